"""The suites of ``cutmix evaluate``, and the tasks of ``cutmix transfer`` with their recipes. No torch here.

``evaluation.command`` runs a suite, ``report.suites`` shows its results. The recipes are those of the paper's Tables 10
and A2 (appendices C and D), and small ones for a CPU. Settings that the paper does not give are from the code that it
names: amdegroot/ssd.pytorch, jwyang/faster-rcnn.pytorch, stevehuanghe/image_captioning.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cutmix.config.recipe import Training
from cutmix.errors import InputError

# ---- suites ----

Paired = Literal["rates", "ece", "auroc", "resampled"]


@dataclass(frozen=True)
class Suite:
    """Metrics that are evaluated together and shown in one section."""

    name: str  # on the command line and in results
    title: str  # of the section
    metrics: str  # for the help of a command
    paired: Paired  # comparison of two runs on the same images
    # flags that only this suite reads; if one is given, the suite must run, also with ``--suite all``
    flags: tuple[str, ...] = ()
    paper: str = ""  # name of the paper's table beside which the section shows the results
    command: Literal["evaluate", "train", "transfer"] = "evaluate"  # the command that runs it


SUITES = {
    suite.name: suite
    for suite in (
        Suite("classification", "Classification", "top-1 and top-5 error", "rates"),
        Suite("labels", "Labels", "mAP and F1 of images with several labels", "rates", command="train"),
        Suite("calibration", "Calibration", "calibration errors, NLL, Brier score, temperature", "ece"),
        Suite(
            "robustness", "Robustness", "attacks, occlusion, mixtures of two images, published corruptions", "rates",
            flags=("pairs", "apgd", "corruptions"), paper="table11",
        ),
        Suite(
            "ood", "Out-of-distribution detection", "AUROC, TNR and others against images of no known class", "auroc",
            flags=("outliers", "convention"), paper="table12",
        ),
        Suite(
            "localization", "Localization", "boxes from class activation maps against true boxes", "rates",
            flags=("boxes",), paper="table9",
        ),
        Suite("detection", "Detection", "average precision", "resampled", command="transfer"),
        Suite("captioning", "Captioning", "BLEU, METEOR, ROUGE-L, CIDEr-D", "resampled", command="transfer"),
    )
}  # fmt: skip
EVALUATE = tuple(name for name, suite in SUITES.items() if suite.command == "evaluate")


def parse_suites(text: str) -> tuple[str, ...]:
    """Return the names of the suites in a text such as "robustness,ood" or "all", in the order of the table."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in (*EVALUATE, "all")]
    if unknown:
        known = ", ".join(EVALUATE)
        raise InputError(f'--suite is "{unknown[0]}"; expected {known}, several separated by commas, or all')
    return EVALUATE if "all" in names else tuple(suite for suite in EVALUATE if suite in names)


# ---- transfer ----


@dataclass(frozen=True)
class Transfer(Training):
    """The fields that both transfer tasks have."""

    data: str = ""
    """Folder of the data set."""
    model: str = "resnet50"
    """Model of the backbone: one of timm's ResNets; a run, or a file that names its model, overrides it."""
    backbone: str = "none"
    """Weights of the backbone: the folder of a run, a file, pretrained (timm's, downloaded), or none: random."""
    val_fraction: float = 0.2
    """Share of the images used for testing, for data without splits of their own."""
    nesterov: bool = False
    """Use Nesterov momentum."""
    precision: Literal["auto", "float32", "tf32", "bfloat16", "float16"] = "float32"
    """Precision of the forward pass; auto is bfloat16 where the device has it in hardware, else float32."""
    channels_last: bool = False
    """Use the channels_last memory format, in which convolutions are usually faster."""
    compile: Annotated[Literal["off", "model", "step"], tyro.conf.Suppress] = "off"
    """Not available for transfer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.val_fraction < 1:
            raise InputError(f"--val-fraction is {self.val_fraction}; expected a number above 0 and below 1")
        if self.compile != "off":
            raise InputError("--compile is not available for transfer, where sizes and counts differ between images")


@dataclass(frozen=True)
class Detection(Transfer):
    """Training of a detector on a backbone."""

    arch: Literal["ssd300", "faster-rcnn"] = "ssd300"
    """Detector: SSD300, or Faster R-CNN with the C4 head."""
    classes: tuple[str, ...] = ()
    """Class names in the order of their labels, or a file with a name on each line; by default those of the data."""
    image_size: int = 300
    """ssd300: side of the model's input in pixels."""
    min_size: int = 600
    """faster-rcnn: shorter side of a resized image in pixels."""
    max_size: int = 1000
    """faster-rcnn: maximum of its longer side in pixels."""
    freeze: bool = True
    """faster-rcnn: freeze stem, first stage and every normalization; a random backbone is never frozen."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("image_size", "min_size", "max_size", low=32)

    def without_unread(self) -> "Detection":
        """Return the recipe with defaults in the fields that its detector does not use, so that recipes compare."""
        own = Detection()
        if self.arch == "faster-rcnn":
            return replace(self, image_size=own.image_size)
        return replace(self, min_size=own.min_size, max_size=own.max_size, freeze=own.freeze)


@dataclass(frozen=True)
class Captioning(Transfer):
    """Training of Show and Tell on a backbone."""

    tune_encoder: bool = False
    """Train the backbone too; the paper's code freezes it."""
    embed: int = 100
    """Dimensions of the embeddings."""
    hidden: int = 300
    """Dimensions of the LSTM state."""
    layers: int = 1
    """Number of LSTM layers."""
    dropout: float = 0.1
    """Dropout rate of the LSTM output."""
    min_count: int = 4
    """Minimum number of occurrences in the training captions for a word of the vocabulary."""
    image_size: int = 256
    """Side in pixels to which images are resized before the crop."""
    crop: int = 224
    """Side of the random crop in pixels; test images are cropped at the centre."""
    beam: int = 20
    """Number of beams of the search; 1 is greedy."""
    max_length: int = 20
    """Maximum number of words of a caption."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("embed", "hidden", "layers", "min_count", "beam", "max_length", "image_size", "crop", low=1)
        self._check_range("dropout", high=1)
        if self.crop > self.image_size:
            raise InputError(f"--crop is {self.crop}; expected at most --image-size, {self.image_size}")


SSD300 = Detection(
    name="ssd300", arch="ssd300", epochs=232, batch_size=32, lr=1e-3, momentum=0.9, weight_decay=5e-4, schedule="step",
    milestones=(80 / 120, 100 / 120), eval_every=8,
)  # fmt: skip
"""From the paper: batch size, learning rate, 120,000 iterations (232 epochs of 16,551 images), decays at 80,000 and
100,000. From its code base: momentum, weight decay, augmentation."""

FASTER_RCNN = Detection(
    name="faster-rcnn", arch="faster-rcnn", epochs=58, batch_size=8, lr=0.01, momentum=0.9, weight_decay=1e-4,
    decay_all=False, schedule="step", milestones=(100 / 120,), eval_every=2,
)  # fmt: skip
"""From the paper: batch size, learning rate, 120,000 iterations (58 epochs), the decay at 100,000. From its code base:
sizes, weight decay (none for biases), frozen layers."""

CAPTIONING = Captioning(
    name="captioning", epochs=100, batch_size=20, lr=1e-3, optimizer="adamw", weight_decay=0.0, schedule="constant",
    eval_every=5,
)  # fmt: skip
"""The paper's: batch size, learning rate, epochs, beam. From its code base: the rest (Adam as AdamW without decay)."""

TASKS: dict[str, tuple[Transfer, ...]] = {"detection": (SSD300, FASTER_RCNN), "captioning": (CAPTIONING,)}
"""The recipes of each task; the first one is the default."""


def find_transfer(task: str, arch: str = "") -> Transfer:
    """Return the recipe of a task for an architecture, by default the task's first one."""
    if task not in TASKS:
        given = f'there is no task "{task}"' if task else "cutmix transfer needs a task"
        raise InputError(f"{given}; expected {' or '.join(TASKS)}")
    return next((recipe for recipe in TASKS[task] if recipe.name == arch), TASKS[task][0])


def task_of(recipe: Mapping[str, Any]) -> str:
    """Return the task of a recipe, given as in a run's configuration: classification, detection or captioning."""
    if "backbone" not in recipe:
        return "classification"
    return "detection" if "arch" in recipe else "captioning"


def small_transfer(recipe: Transfer) -> Transfer:
    """Return a recipe for a few hundred images and a CPU: small model, small images, few epochs, AdamW."""
    if isinstance(recipe, Captioning):
        return replace(recipe, name="captioning-small", model="resnet20", epochs=15, image_size=72, crop=64)
    assert isinstance(recipe, Detection)
    return replace(
        recipe, name=f"{recipe.arch}-small", model="resnet10t", epochs=40, batch_size=8, optimizer="adamw", lr=1e-3,
        schedule="cosine", warmup_epochs=1, eval_every=10, image_size=160, min_size=160, max_size=256,
    )  # fmt: skip


def backbone_name(backbone: str) -> str:
    """Return the name of a backbone's weights; a run is named by its folder, even if its file is given."""
    path = Path(backbone).resolve()
    names = {"model.safetensors": path.parent.name, "best.safetensors": f"{path.parent.name}-best"}
    return names.get(path.name, path.name)


def backbone_in_words(backbone: str) -> str:
    """Return the name of a backbone's weights for a table."""
    name = backbone_name(backbone)
    return {"none": "random weights", "pretrained": "timm’s weights"}.get(name, name)


def recipe_of_arch(arch: str) -> Transfer:
    """Return the paper's recipe of a detector or of the captioner, by the ``arch`` of a result."""
    return {"ssd300": SSD300, "faster-rcnn": FASTER_RCNN, "show-and-tell": CAPTIONING}[arch]


def recipe_of(recipe: Transfer) -> Transfer:
    """Return the paper's recipe of the same detector, or of the captioner."""
    return recipe_of_arch(recipe.arch if isinstance(recipe, Detection) else "show-and-tell")
