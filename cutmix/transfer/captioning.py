"""Show and Tell (NIC): a residual network encodes an image, an LSTM generates its caption."""

import functools
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from cutmix.config.tasks import Captioning
from cutmix.data.decode import read_image
from cutmix.data.sets import random_subset
from cutmix.errors import InputError
from cutmix.runs.record import Record
from cutmix.runtime.files import png_of
from cutmix.runtime.seeding import derive_seed
from cutmix.training.classification import Evaluation
from cutmix.transfer.backbone import TransferTask
from cutmix.transfer.caption_data import CaptionSet
from cutmix.transfer.caption_scores import END, PAD, START, UNKNOWN, Vocabulary, caption_records, image_scores

LSTMState = tuple[Tensor, Tensor]


class ShowAndTell(nn.Module):
    """A captioner: the image embedding is the first input of an LSTM, which then predicts each next word.

    x₋₁ = BN(W CNN(I)), xₜ = E Sₜ, p(Sₜ₊₁) = softmax(O LSTM(xₜ)), S₀ = START.

    The encoder, a ResNet of timm or of this package, is modified in place: its classifier is removed, so that it
    returns the global average of its last feature map. Without ``tune_encoder`` it stays in eval mode whatever
    ``train`` sets, so that its BN statistics do not change; it gets no gradients and stores no activations.

    Source: Vinyals et al. 2015, eq. 10 to 12. Sizes, BN (momentum 0.01) and initialization follow
    stevehuanghe/image_captioning, the code base of CutMix's table A2; there the frozen encoder's BN statistics drift.
    """

    def __init__(
        self,
        encoder: nn.Module,
        vocabulary_size: int,
        embed: int = 100,
        hidden: int = 300,
        layers: int = 1,
        dropout: float = 0.1,
        tune_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.tune_encoder = tune_encoder
        self.encoder = _without_classifier(encoder).requires_grad_(tune_encoder)
        features: Any = encoder.num_features
        self.project = nn.Linear(features, embed)
        self.norm = nn.BatchNorm1d(embed, momentum=0.01)
        self.embed = nn.Embedding(vocabulary_size, embed)
        self.lstm = nn.LSTM(embed, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, vocabulary_size)
        nn.init.normal_(self.project.weight, std=0.02)
        nn.init.zeros_(self.project.bias)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        nn.init.uniform_(self.output.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)
        self.train()

    def train(self, mode: bool = True) -> "ShowAndTell":
        """Set training or eval mode, except for a frozen encoder, which stays in eval mode."""
        super().train(mode)
        if not self.tune_encoder:
            self.encoder.eval()
        return self

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Return the mean cross-entropy of the next word, in nats, over all words and ENDs of the batch.

        ``images`` are (n, C, H, W) float, normalized; ``tokens`` are (n, longest) int64, from START to END, padded with
        PAD, which is not counted.
        """
        if tokens.ndim != 2 or len(tokens) != len(images):
            raise InputError(
                f"tokens is of shape {tuple(tokens.shape)}; expected ({len(images)}, longest), a row for each image"
            )
        inputs = torch.cat((self.encode(images)[:, None], self.embed(tokens[:, :-1])), 1)
        states, _ = self._recur(inputs)
        logits = self.output(self.dropout(states[:, 1:]))  # without the output after the image: START always follows
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=PAD)

    def encode(self, images: Tensor) -> Tensor:
        """Return the image embeddings that the LSTM reads: (n, C, H, W) -> (n, embed)."""
        with torch.set_grad_enabled(self.tune_encoder and torch.is_grad_enabled()):
            features = self.encoder(images)
        embedded = self.project(features)
        if self.training and len(embedded) == 1:  # a batch of one image has no batch statistics
            norm = self.norm
            return F.batch_norm(embedded, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return self.norm(embedded)

    def _recur(self, inputs: Tensor, state: LSTMState | None = None) -> tuple[Tensor, LSTMState]:
        """Run the LSTM, in float32 where autocast asks for a bfloat16 LSTM that the CPU does not have."""
        device = inputs.device.type
        if device == "cpu" and torch.is_autocast_enabled(device) and not has_bfloat16_lstm():
            with torch.autocast(device, enabled=False):
                return self.lstm(inputs.float(), state)
        return self.lstm(inputs, state)

    @torch.no_grad()
    def beam_search(self, images: Tensor, beam: int = 20, max_length: int = 20) -> tuple[Tensor, Tensor]:
        """Return the most probable captions that a beam search finds, and their log-probabilities in nats, (n,).

        All images and all their beams advance together. At each step every beam is extended by every word, and the
        ``beam`` most probable captions are kept; a finished caption keeps its probability. The probability of a caption
        is the product over its words and END, not normalized by length; a caption without END after ``max_length``
        words is returned without it. PAD, START and UNKNOWN are never generated, and their probability is not
        redistributed. An extension is never more probable than its prefix, so the search ends when the best caption of
        every image has ended.

        The model is in eval mode during the search. A caption does not depend on the other images of the batch, except
        where rounding decides between equally probable captions. Captions are (n, longest) int64, without START, padded
        with PAD after END, for ``Vocabulary.decode``.

        Source: Vinyals et al. 2015 §3.1.2; CutMix appendix D for the beam.
        """
        training = self.training
        self.eval()
        try:
            return self._search(self.encode(images), beam, max_length)
        finally:
            self.train(training)

    def _search(self, embedded: Tensor, beam: int, max_length: int) -> tuple[Tensor, Tensor]:
        n, device = len(embedded), embedded.device
        _, state = self._recur(embedded[:, None])
        words = torch.full((n, 1), START, device=device)
        captions = words.new_empty((n, 1, 0))
        scores = torch.zeros((n, 1), dtype=torch.promote_types(embedded.dtype, torch.float32), device=device)
        never = torch.tensor([PAD, START, UNKNOWN], device=device)
        first = torch.arange(n, device=device)[:, None]
        for step in range(max_length):
            width = words.shape[1]  # 1 at first, then the beam, or fewer while there are fewer captions
            output, state = self._recur(self.embed(words.view(-1, 1)), state)
            logits = self.output(output[:, 0])
            chances = F.log_softmax(logits, 1, dtype=scores.dtype).index_fill_(1, never, -torch.inf)
            ended = ((words == END) | (words == PAD)).view(-1)
            chances.masked_fill_(ended[:, None], -torch.inf)
            chances[:, PAD].masked_fill_(ended, 0.0)
            chances += scores.view(-1, 1)
            options = chances.view(n, -1)
            scores, best = options.topk(min(beam, options.shape[1]))
            parents, words = best // logits.shape[1], best % logits.shape[1]
            rows = (first * width + parents).view(-1)
            state = (state[0].index_select(1, rows), state[1].index_select(1, rows))
            history = captions.gather(1, parents[:, :, None].expand(-1, -1, step))
            captions = torch.cat((history, words[:, :, None]), 2)
            if bool(((words[:, 0] == END) | (words[:, 0] == PAD)).all()):
                break
        return captions[:, 0], scores[:, 0]


def generate_captions(
    model: ShowAndTell,
    batches: Iterable[tuple[Tensor, Tensor]],
    vocabulary: Vocabulary,
    *,
    beam: int = 20,
    max_length: int = 20,
) -> list[str]:
    """Return a caption for every image of the batches, which are pairs of images and anything else."""
    own: list[str] = []
    for images, _ in batches:
        found, _ = model.beam_search(images, beam, max_length)
        own += [vocabulary.decode(numbers) for numbers in found.tolist()]
    return own


def _without_classifier(encoder: nn.Module) -> nn.Module:
    """Replace the classifier of a network by the identity."""
    reset: Any = getattr(encoder, "reset_classifier", None)
    if reset is not None:
        reset(0)
    elif isinstance(getattr(encoder, "fc", None), nn.Linear):
        encoder.fc = nn.Identity()
    else:
        raise InputError(f"the encoder is a {type(encoder).__name__} without a classifier to remove; expected a ResNet")
    return encoder


@functools.cache
def has_bfloat16_lstm() -> bool:
    """Return whether this CPU runs LSTMs in bfloat16; oneDNN has none for CPUs without AVX-512."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        try:
            with torch.autocast("cpu", torch.bfloat16):
                nn.LSTM(1, 1)(torch.zeros(1, 1, 1))[0].sum().backward()
        except RuntimeError:
            return False
    return True


@dataclass
class CaptioningTask(TransferTask[Captioning, CaptionSet]):
    """Captioning, evaluated by CIDEr-D against the reference captions."""

    vocabulary: Vocabulary = field(kw_only=True)  # of the training captions

    key: ClassVar[str] = "cider_d"
    title: ClassVar[str] = "CIDEr-D"
    unit: ClassVar[str] = ""
    command: ClassVar[str] = "cutmix transfer captioning"

    def split(self, images: Tensor, tokens: Tensor, progress: float) -> Sequence[tuple[Any, Any]]:
        """Split a batch; the loss of a part is the mean over its words, weighted by its number of captions."""
        return list(zip(images.chunk(self.recipe.accumulate), tokens.chunk(self.recipe.accumulate), strict=True))

    def loss(self, network: nn.Module, images: Any, targets: Any) -> Tensor:
        """Return the cross-entropy of the words."""
        with self.autocast:
            return network(images, targets)

    def _outputs(self, model: nn.Module) -> list[Any]:
        assert isinstance(model, ShowAndTell)
        beam, most = self.recipe.beam, self.recipe.max_length
        return generate_captions(model, self.test_batches.epoch(), self.vocabulary, beam=beam, max_length=most)

    def _score(self, outputs: list[Any]) -> Evaluation:
        """Return the scores times 100, every caption, and the parts of its scores."""
        scores = image_scores(self._by_name(outputs), self.test_set.references)
        metrics = {name: 100 * value for name, value in scores.corpus().items()}
        texts = {"captions": "\n".join(outputs), "references": self.test_set.fingerprint()}
        arrays = {name: np.frombuffer(text.encode(), np.uint8).copy() for name, text in texts.items()}
        return Evaluation(metrics, arrays | {name: getattr(scores, name) for name in ("bleu", "rouge_l", "cider_d")})

    def records(self, arrays: dict[str, np.ndarray]) -> list[Record]:
        """Return the scores with their intervals, and METEOR where its program can run."""
        return caption_records(self._by_name(_captions(arrays)), self.test_set.references)

    def _by_name(self, captions: Sequence[str]) -> dict[str, str]:
        return dict(zip(self.test_set.names, captions, strict=True))

    def opening(self) -> str:
        """Return the encoder and the data in words."""
        return (
            f"encoder {self.backbone.title}, {'tuned' if self.recipe.tune_encoder else 'frozen'}; "
            f"{self.train_set.name}: {len(self.train_set):,} training images, {len(self.test_set):,} test images, "
            f"{len(self.vocabulary):,} words{self._exception()}"
        )

    def _exception(self) -> str:
        """Return a clause that names the precision of the LSTM where it differs from the run's."""
        bfloat16_on_cpu = self.recipe.precision == "bfloat16" and self.world.device.type == "cpu"
        return (
            "; LSTM in float32 (this CPU has no bfloat16 LSTM)" if bfloat16_on_cpu and not has_bfloat16_lstm() else ""
        )

    def circumstances(self) -> dict[str, Any]:
        """Return the source of the encoder and the beam."""
        return {"task": "captioning", "arch": "show-and-tell", **super().circumstances(), "beam": self.recipe.beam}

    def about(self, epoch: int) -> dict[str, str]:
        """Return the header of the weights, with the words."""
        return super().about(epoch) | {"words": json.dumps(self.vocabulary.words)}

    def figures(self, arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
        """Return test images with the generated captions and the references."""
        return {"captions": gallery_of_captions(self.test_set, self._by_name(_captions(arrays)))}


def _captions(arrays: dict[str, np.ndarray]) -> list[str]:
    return arrays["captions"].tobytes().decode().split("\n")


_COLUMNS = 4
_LETTERS, _SMALL_LETTERS = 33, 44  # that fit in a line above an image, and below it


def gallery_of_captions(data: CaptionSet, captions: Mapping[str, str], *, count: int = 8, seed: int = 0) -> bytes:
    """Draw random images of a set, each with its generated caption in bold and references in gray, as a PNG file."""
    chosen = random_subset(len(data), count, derive_seed(seed, "gallery")).tolist()
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(2.6 * columns, 3.1 * rows), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, i in zip(axes, chosen, strict=False):
        name = data.names[i]
        if name not in captions:
            raise InputError(f"the image '{name}' of {data.name} has no caption; expected one for every image")
        axis.imshow(read_image(data.paths[i]))
        generated = _wrapped(captions[name] or "(empty caption)", _LETTERS, 3)
        axis.set_title(generated, fontsize=9, fontweight="bold", parse_math=False)
        texts = [f"– {text.strip().removesuffix(' .')}" for text in data.captions[i][:2]]
        below = "\n".join(_wrapped(text, _SMALL_LETTERS, 2) for text in texts)
        axis.set_xlabel(below, fontsize=7, color="#555555", parse_math=False)
    for axis in figure.axes:
        axis.set(xticks=[], yticks=[])
        axis.set_frame_on(False)
    return png_of(figure)


def _wrapped(text: str, letters: int, lines: int) -> str:
    """Wrap a text to at most some lines."""
    return "\n".join(textwrap.wrap(text, letters, max_lines=lines, placeholder=" …"))
