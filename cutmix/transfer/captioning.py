"""Show and Tell (NIC): a residual network looks at a picture, an LSTM says what it saw."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutmix.errors import InputError
from cutmix.runtime.distributed import World, gather
from cutmix.transfer.caption_data import END, PAD, START, UNKNOWN, Vocabulary


class ShowAndTell(nn.Module):
    """The picture is the first "word" that an LSTM reads; from then on it foretells the next word of the caption.

    x₋₁ = BN(W CNN(I)),  xₜ = E Sₜ,  p(Sₜ₊₁) = softmax(O LSTM(xₜ)),  S₀ = START.

    Args:
        encoder: A ResNet of timm or of this package. It is changed: its classifier is taken away, and it gives the
            global average of its last feature map.
        vocabulary_size: ``len`` of the vocabulary.
        embed: Size of the embeddings of words and pictures.
        hidden: Size of the LSTM's state.
        layers: Layers of the LSTM.
        dropout: Of the LSTM's output, and between its layers.
        tune_encoder: Whether the encoder is trained. Otherwise it stays in eval mode whatever ``train`` says, so that
            its BN statistics do not move, has no gradients, and stores no activations.

    Raises:
        InputError: A size is below 1 or dropout outside [0, 1).

    Source: Vinyals et al. 2015 eq. 10 to 12. Sizes, the BN (momentum 0.01) and the initialisation are those of
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
        sizes = {"vocabulary_size": vocabulary_size, "embed": embed, "hidden": hidden, "layers": layers}
        for name, size in sizes.items():
            if size < 1:
                raise InputError(f"{name} is {size}: expected 1 or more")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout}: expected 0 or more and less than 1")
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
        """Set the mode of all but a frozen encoder, which stays in eval mode."""
        super().train(mode)
        if not self.tune_encoder:
            self.encoder.eval()
        return self

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Return the mean cross entropy of the next word, in nats, over all words and ENDs of the batch.

        Args:
            images: (n, C, H, W) float, normalised.
            tokens: (n, longest) int64, START to END, filled up with PAD, which costs nothing.

        Raises:
            InputError: The counts of images and captions differ.
        """
        if tokens.ndim != 2 or len(tokens) != len(images):
            raise InputError(
                f"{len(images)} images came with tokens of shape {tuple(tokens.shape)}: expected a row for each image"
            )
        inputs = torch.cat((self.look(images)[:, None], self.embed(tokens[:, :-1])), 1)
        states, _ = self.lstm(inputs)
        logits = self.output(self.dropout(states[:, 1:]))  # what follows the picture itself is always START
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=PAD)

    def look(self, images: Tensor) -> Tensor:
        """Return the pictures as the LSTM reads them: (n, C, H, W) -> (n, embed)."""
        with torch.set_grad_enabled(self.tune_encoder and torch.is_grad_enabled()):
            features = self.encoder(images)
        seen = self.project(features)
        if self.training and len(seen) == 1:  # a last batch of one has no statistics of its own
            return F.batch_norm(
                seen, self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias, eps=self.norm.eps
            )
        return self.norm(seen)

    def greedy(self, images: Tensor, max_length: int = 20) -> Tensor:
        """Return captions of the most probable word at each step; as :meth:`beam_search` with a beam of 1."""
        return self.beam_search(images, 1, max_length)[0]

    @torch.no_grad()
    def beam_search(self, images: Tensor, beam: int = 20, max_length: int = 20) -> tuple[Tensor, Tensor]:
        """Search the most probable caption of each picture, all pictures and all their beams at once.

        At every step each beam is continued by every word, and the ``beam`` captions of the highest probability are
        kept. A caption that has ended keeps its place with the probability it had. The probability of a caption is
        the product over its words and END, not normalised by length; one that has not ended after ``max_length`` words
        counts as it is. PAD, START and UNKNOWN are never said; their probability is not given to the other words. As no
        continuation is more probable than its beginning, the search ends when every picture's best caption has ended.

        The network is in eval mode meanwhile. Which words win does not depend on what else is in the batch, except
        where rounding decides between captions of the same probability.

        Args:
            images: (n, C, H, W) float, normalised.
            beam: At least 1; 20 in the paper.
            max_length: Most words of a caption, END included, at least 1; 20 in the code base.

        Returns:
            Captions without START, (n, longest) int64, filled up with PAD after END, for ``Vocabulary.decode``; and
            their log-probabilities in nats, (n,).

        Raises:
            InputError: ``beam`` or ``max_length`` is below 1.

        Source: Vinyals et al. 2015 §3.1.2; CutMix appendix D for the beam.
        """
        for name, value in (("beam", beam), ("max_length", max_length)):
            if value < 1:
                raise InputError(f"{name} is {value}: expected 1 or more")
        training = self.training
        self.eval()
        try:
            return self._search(self.look(images), beam, max_length)
        finally:
            self.train(training)

    def _search(self, seen: Tensor, beam: int, max_length: int) -> tuple[Tensor, Tensor]:
        n, device = len(seen), seen.device
        _, state = self.lstm(seen[:, None])
        words = torch.full((n, 1), START, device=device)
        captions = words.new_empty((n, 1, 0))
        scores = torch.zeros((n, 1), dtype=torch.promote_types(seen.dtype, torch.float32), device=device)
        silent = torch.tensor([PAD, START, UNKNOWN], device=device)
        first = torch.arange(n, device=device)[:, None]
        for step in range(max_length):
            width = words.shape[1]  # 1 at first, then the beam, or less while there are fewer captions than that
            output, state = self.lstm(self.embed(words.view(-1, 1)), state)
            logits = self.output(output[:, 0])
            chances = F.log_softmax(logits, 1, dtype=scores.dtype).index_fill_(1, silent, -torch.inf)
            ended = ((words == END) | (words == PAD)).view(-1)
            chances.masked_fill_(ended[:, None], -torch.inf)
            chances[:, PAD].masked_fill_(ended, 0.0)
            chances += scores.view(-1, 1)
            options = chances.view(n, -1)
            scores, best = options.topk(min(beam, options.shape[1]))
            parents, words = best // logits.shape[1], best % logits.shape[1]
            rows = (first * width + parents).view(-1)
            state = tuple(part.index_select(1, rows) for part in state)
            history = captions.gather(1, parents[:, :, None].expand(-1, -1, step))
            captions = torch.cat((history, words[:, :, None]), 2)
            if bool(((words[:, 0] == END) | (words[:, 0] == PAD)).all()):
                break
        return captions[:, 0], scores[:, 0]


def generate_captions(
    model: ShowAndTell,
    batches: Iterable[tuple[Tensor, Tensor]],
    vocabulary: Vocabulary,
    world: World,
    *,
    beam: int = 20,
    max_length: int = 20,
) -> list[str]:
    """Caption a whole set, each process its share, and put the shares in order.

    Args:
        model: The network.
        batches: (images, anything) of this process: process r of R has the pictures r, r + R, …
        vocabulary: The network's.
        world: This process among all.
        beam: As in ``beam_search``.
        max_length: As in ``beam_search``.

    Returns:
        A caption for each picture, in the order of the set, in every process.
    """
    own: list[str] = []
    for images, _ in batches:
        found, _ = model.beam_search(images, beam, max_length)
        own += [vocabulary.decode(numbers) for numbers in found.tolist()]
    shares = gather(own, world)
    every = [""] * sum(map(len, shares))
    for rank, share in enumerate(shares):
        every[rank :: world.size] = share
    return every


def _without_classifier(encoder: nn.Module) -> nn.Module:
    """Make a network return the features that its classifier got."""
    reset: Any = getattr(encoder, "reset_classifier", None)
    if reset is not None:
        reset(0)
    elif isinstance(getattr(encoder, "fc", None), nn.Linear):
        encoder.fc = nn.Identity()
    else:
        raise InputError(f"{type(encoder).__name__} has no classifier to take away: expected a ResNet")
    return encoder
