"""The paper's transfer runs as values (Table 10, A2), and small ones for a CPU. No torch here.

Source: Yun et al. 2019, appendices C and D; what the paper does not say is from the code bases that it names, marked
below: amdegroot/ssd.pytorch, jwyang/faster-rcnn.pytorch, stevehuanghe/image_captioning.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cutmix.config.recipe import Training
from cutmix.errors import InputError


@dataclass(frozen=True)
class Transfer(Training):
    """What the two transfer tasks share.

    Raises:
        InputError: If a field is out of its range.
    """

    data: str = ""
    """Folder of the data."""
    model: str = "resnet50"
    """Network of the backbone: a ResNet of timm; a run or a file that says its network decides by itself."""
    backbone: str = "none"
    """Weights of the backbone: a run's folder, a file, pretrained (timm's, fetched), or none for random ones."""
    val_fraction: float = 0.2
    """Share of the pictures that is kept for testing where the data have no splits of their own."""
    nesterov: bool = False
    """Nesterov's form of momentum."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass; the code bases' is float32."""
    channels_last: bool = False
    """Memory layout that convolutions are faster in."""
    compile: Annotated[bool, tyro.conf.Suppress] = False
    """Not for transfer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("val_fraction", high=1, above=True)
        if self.compile:
            raise InputError("--compile is not for transfer: sizes and counts change from picture to picture")


@dataclass(frozen=True)
class Detection(Transfer):
    """A detector on a backbone.

    Raises:
        InputError: If a field is out of its range.
    """

    arch: Literal["ssd300", "faster-rcnn"] = "ssd300"
    """SSD300, or Faster R-CNN with the C4 head."""
    image_size: int = 300
    """ssd300: side of the network's input in pixels."""
    min_size: int = 600
    """faster-rcnn: pixels of the resized picture's shorter side."""
    max_size: int = 1000
    """faster-rcnn: most pixels of its longer side."""
    freeze: bool = True
    """faster-rcnn: keep stem, first stage and every normalisation of trained weights; random ones are never kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("image_size", "min_size", "max_size", low=32)

    def without_unread(self) -> "Detection":
        """Return the recipe with the defaults of what its detector does not read, in which two runs cannot differ."""
        own = Detection()
        if self.arch == "faster-rcnn":
            return replace(self, image_size=own.image_size)
        return replace(self, min_size=own.min_size, max_size=own.max_size, freeze=own.freeze)


@dataclass(frozen=True)
class Captioning(Transfer):
    """Show and Tell on a backbone.

    Raises:
        InputError: If a field is out of its range.
    """

    tune_encoder: bool = False
    """Train the backbone too; the paper's code keeps it frozen."""
    embed: int = 100
    """Size of the embeddings."""
    hidden: int = 300
    """Size of the LSTM's state."""
    layers: int = 1
    """Layers of the LSTM."""
    dropout: float = 0.1
    """Dropout of the LSTM's output."""
    min_count: int = 4
    """Training captions in which a word has to occur to be in the vocabulary, times."""
    picture_size: int = 256
    """Side that pictures are resized to."""
    crop: int = 224
    """Side of the random crop of it, or of its centre in a test."""
    beam: int = 20
    """Beams of the search; 1 is greedy."""
    max_length: int = 20
    """Most words of a caption."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("embed", "hidden", "layers", "min_count", "beam", "max_length", "picture_size", "crop", low=1)
        self._check_range("dropout", high=1)
        if self.crop > self.picture_size:
            raise InputError(f"--crop is {self.crop}; expected at most --picture-size, {self.picture_size}")


SSD300 = Detection(
    name="ssd300", arch="ssd300", epochs=232, batch_size=32, lr=1e-3, momentum=0.9, weight_decay=5e-4, schedule="step",
    milestones=(80 / 120, 100 / 120), eval_every=8,
)  # fmt: skip
"""Batch, learning rate, 120,000 iterations (232 epochs of 16,551 pictures) and decays at 80,000 and 100,000 are the
paper's; momentum, weight decay and augmentation are its code base's."""

FASTER_RCNN = Detection(
    name="faster-rcnn", arch="faster-rcnn", epochs=58, batch_size=8, lr=0.01, momentum=0.9, weight_decay=1e-4,
    decay_all=False, schedule="step", milestones=(100 / 120,), eval_every=2,
)  # fmt: skip
"""Batch, learning rate, 120,000 iterations (58 epochs) and the decay at 100,000 are the paper's; sizes, weight decay
(none of biases) and what is frozen are its code base's."""

CAPTIONING = Captioning(
    name="captioning", epochs=100, batch_size=20, lr=1e-3, optimizer="adamw", weight_decay=0.0, schedule="constant",
    eval_every=5,
)  # fmt: skip
"""Batch, learning rate, epochs and beam are the paper's; the rest its code base's. Its Adam is AdamW without decay."""

TASKS: dict[str, tuple[Transfer, ...]] = {"detection": (SSD300, FASTER_RCNN), "captioning": (CAPTIONING,)}
"""The recipes of each task; the first one is what is meant where none is named."""


def find_transfer(task: str, arch: str = "") -> Transfer:
    """Return a task's recipe: that of an architecture, or its first one.

    Raises:
        InputError: If there is no such task.
    """
    if task not in TASKS:
        given = f'there is no task "{task}"' if task else "cutmix transfer needs a task"
        raise InputError(f"{given}; expected {' or '.join(TASKS)}")
    return next((recipe for recipe in TASKS[task] if recipe.name == arch), TASKS[task][0])


def task_of(recipe: Mapping[str, Any]) -> str:
    """Return what a run learns, by the recipe of its configuration: classification, detection or captioning."""
    if "backbone" not in recipe:
        return "classification"
    return "detection" if "arch" in recipe else "captioning"


def small(recipe: Transfer) -> Transfer:
    """Return a recipe for some hundred pictures and a CPU: a small network, small pictures, few epochs, AdamW."""
    if isinstance(recipe, Captioning):
        return replace(recipe, name="captioning-small", model="resnet20", epochs=15, picture_size=72, crop=64)
    assert isinstance(recipe, Detection)
    return replace(
        recipe, name=f"{recipe.arch}-small", model="resnet10t", epochs=40, batch_size=8, optimizer="adamw", lr=1e-3,
        schedule="cosine", warmup_epochs=1, eval_every=10, image_size=160, min_size=160, max_size=256,
    )  # fmt: skip


def backbone_name(backbone: str) -> str:
    """Return what a backbone's weights are called: a run by its folder, also where its file is named."""
    path = Path(backbone).resolve()
    names = {"model.safetensors": path.parent.name, "best.safetensors": f"{path.parent.name}-best"}
    return names.get(path.name, path.name)


def backbone_in_words(backbone: str) -> str:
    """Return a backbone's weights as a table names them."""
    name = backbone_name(backbone)
    return {"none": "random weights", "pretrained": "timm’s weights"}.get(name, name)


def recipe_of_arch(arch: str) -> Transfer:
    """Return the paper's recipe of a detector, or of the captioner, as a result names it."""
    return {"ssd300": SSD300, "faster-rcnn": FASTER_RCNN, "show-and-tell": CAPTIONING}[arch]


def recipe_of(recipe: Transfer) -> Transfer:
    """Return the paper's recipe of the same detector, or of the captioner."""
    return recipe_of_arch(recipe.arch if isinstance(recipe, Detection) else "show-and-tell")
