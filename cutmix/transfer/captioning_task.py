"""Captioning as a task of the training loop."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from cutmix.config.transfer import Captioning
from cutmix.data.loaders import Loader
from cutmix.runs.record import Record
from cutmix.runtime.distributed import World, send_buffers
from cutmix.training.classification import Evaluation
from cutmix.training.state import State
from cutmix.transfer.backbone import Backbone
from cutmix.transfer.caption_data import CaptionSet, Vocabulary
from cutmix.transfer.caption_scores import caption_records, image_scores
from cutmix.transfer.captioning import ShowAndTell, generate_captions, has_bfloat16_lstm
from cutmix.transfer.galleries import gallery_of_captions


@dataclass
class CaptioningTask:
    """Captioning, evaluated by CIDEr-D against the reference captions.

    Attributes:
        recipe: The recipe of the run.
        state: The captioner and its optimizer.
        world: The processes.
        train_set: The training split.
        test_set: The test split.
        test_batches: Test batches of this process.
        vocabulary: The vocabulary of the training captions.
        autocast: Context of the forward pass.
        backbone: The encoder.
    """

    recipe: Captioning
    state: State
    world: World
    train_set: CaptionSet
    test_set: CaptionSet
    test_batches: Loader
    vocabulary: Vocabulary
    autocast: contextlib.AbstractContextManager[Any]
    backbone: Backbone

    key: ClassVar[str] = "cider_d"
    less_is_better: ClassVar[bool] = False
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

    def evaluate(self, model: nn.Module) -> Evaluation:
        """Return the scores times 100, every caption, and the parts of its scores."""
        assert isinstance(model, ShowAndTell)
        send_buffers(model, self.world)
        training = model.training
        model.eval()
        with torch.inference_mode(), self.autocast:
            captions = generate_captions(
                model, self.test_batches.epoch(), self.vocabulary, self.world,
                beam=self.recipe.beam, max_length=self.recipe.max_length,
            )  # fmt: skip
        model.train(training)
        scores = image_scores(self._by_name(captions), self.test_set.references)
        figures = {name: 100 * value for name, value in scores.corpus().items()}
        texts = {"captions": "\n".join(captions), "references": self.test_set.fingerprint()}
        arrays = {name: np.frombuffer(text.encode(), np.uint8).copy() for name, text in texts.items()}
        return Evaluation(figures, arrays | {name: getattr(scores, name) for name in ("bleu", "rouge_l", "cider_d")})

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
        """Return whether the LSTM is computed in another precision than the run's, in words."""
        bfloat16_on_cpu = self.recipe.precision == "bfloat16" and self.world.device.type == "cpu"
        return (
            "; LSTM in float32 (this CPU has no bfloat16 LSTM)" if bfloat16_on_cpu and not has_bfloat16_lstm() else ""
        )

    def notes(self) -> list[str]:
        """Return what was left out or assumed when the data were read."""
        return [*self.train_set.notes, *self.test_set.notes]

    def circumstances(self) -> dict[str, Any]:
        """Return the source of the encoder and the beam."""
        return {
            "task": "captioning", "arch": "show-and-tell", "backbone": self.backbone.source,
            "backbone_recipe": self.backbone.recipe,
            "training_images": len(self.train_set), "beam": self.recipe.beam,
        }  # fmt: skip

    def fingerprint(self) -> str:
        """Return the fingerprint of the training split."""
        return self.train_set.fingerprint()

    def about(self, epoch: int) -> dict[str, str]:
        """Return what is needed to use the weights."""
        about = {"recipe": self.recipe.to_dict(), "words": self.vocabulary.words, "epoch": epoch,
                 "mean": self.backbone.mean, "std": self.backbone.std}  # fmt: skip
        return {"model": self.backbone.model} | {name: json.dumps(value) for name, value in about.items()}

    def samples(self) -> None:
        """Return no figure: images are drawn with their captions after training."""

    def pictures(self, arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
        """Return test images with the generated captions and the references."""
        return {"captions": gallery_of_captions(self.test_set, self._by_name(_captions(arrays)))}


def _captions(arrays: dict[str, np.ndarray]) -> list[str]:
    return arrays["captions"].tobytes().decode().split("\n")
