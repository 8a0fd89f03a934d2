"""Flags of the commands that are not part of a recipe: data, folders, devices, intervals. Imports no torch."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cutmix.config.tasks import EVALUATE, parse_suites
from cutmix.errors import InputError

WORKERS = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that do not change its result."""

    out: Path | None = None
    """Folder of the run; by default runs/NAME-seedN."""
    resume: bool = False
    """Resume the run in the folder, on a CPU bit for bit; start it if there is none."""
    overwrite: bool = False
    """Remove the run in the folder, and start again."""
    device: str = "auto"
    """auto (CUDA, XPU, MPS or the CPU, the first there is), cpu, cuda, cuda:1, xpu, mps."""
    workers: int = WORKERS
    """Image files: threads that decode; 0 decodes in the thread of the loop."""
    log_every: int = 50
    """Log the loss every N steps; each reading waits for the GPU."""
    checkpoint_every: int = 1000
    """Save a checkpoint every N steps; 0 saves at the end of an epoch only."""
    timeout: float = 1800.0
    """Several processes: seconds that each waits for the others before it ends with an error."""
    log: Literal["tensorboard", "wandb", "mlflow", "trackio"] | None = None
    """Log to this tracker too; TensorBoard's files are in the folder of the run, and the others follow the
    settings of their own environment variables. Each needs its extra."""

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise InputError("--resume and --overwrite are both given; a run is either continued or started again")
        for name, least in (("workers", 0), ("log_every", 1), ("checkpoint_every", 0)):
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}; expected at least {least}")
        if not 1 <= self.timeout <= 1e6:
            raise InputError(f"--timeout is {self.timeout}; expected 1 to 1,000,000 seconds")


@dataclass(frozen=True)
class TrainOptions(RunOptions):
    """Options of a classifier's run that do not change its result."""

    skip_unreadable: bool = False
    """Leave out unreadable images and count them, instead of stopping."""
    download: bool = False
    """Download a known data set that is missing."""


Convention = Literal["exact", "odin", "confident", "mahalanobis", "openood"]

_SUITE_HELP = f"Suites to run: {', '.join(EVALUATE)}, several with commas, or all."


@dataclass(frozen=True)
class EvaluateOptions:
    """Flags of ``cutmix evaluate``."""

    source: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, or a file of weights (safetensors, or a state dict as timm and torchvision save it)."""
    data: str | None = None
    """Data to evaluate on; by default the test data of the run."""
    suite: Annotated[str, tyro.conf.arg(help=_SUITE_HELP)] = "classification"
    model: str | None = None
    """Name of the model, for a file that does not name it."""
    classes: Path | None = None
    """Names of the outputs in their order, for a file that does not hold them: a name in each line, or JSON."""
    weights_ema: bool = False
    """Evaluate the moving average in a file that holds the weights and their average."""
    which: Literal["last", "best"] = "last"
    """Epoch of a run."""
    image_size: int | None = None
    """Side of the input in pixels, for a file that does not name it."""
    crop_fraction: float = 0.875
    """Image files: side of the centre crop as a share of the resized image, for a file that does not name it."""
    squash: bool = False
    """Image files: resize both sides alike, whatever the aspect ratio, for a file that does not name it."""
    batch_size: int = 256
    """Number of images in a batch."""
    precision: Literal["auto", "float32", "tf32", "bfloat16", "float16"] | None = None
    """Arithmetic; by default the run's own, and float32 for a file."""
    device: str = "auto"
    """auto (CUDA, XPU, MPS or the CPU, the first there is), cpu, cuda, cuda:1, xpu, mps."""
    workers: int = WORKERS
    """Image files: number of decoding threads."""
    skip_unreadable: bool = False
    """Leave out unreadable images and count them, instead of stopping."""
    out: Path | None = None
    """Folder for the results, or a file that ends in .jsonl to append them to; by default the folder of the run."""
    images: int | None = None
    """Number of images to evaluate on, drawn with --seed; by default all."""
    seed: int = 0
    """Seed of all random draws."""
    pairs: int | None = None
    """robustness: number of pairs of images to mix; by default five for each image, at most 50,000."""
    apgd: bool = False
    """robustness: attack with APGD too, which needs the package pyautoattack."""
    corruptions: Path | None = None
    """robustness: folder of CIFAR-10-C, CIFAR-100-C or ImageNet-C."""
    outliers: tuple[str, ...] = ()
    """ood: other data, by name or as folders of images; by default those of the paper's seven sets that are found."""
    convention: tuple[Convention, ...] = ()
    """ood: further conventions of the metrics, as other programs count them; the metrics by definition are always
    included."""
    boxes: Path | None = None
    """localization: folder of annotations, if they are not beside the images."""

    def __post_init__(self) -> None:
        parse_suites(self.suite)
        for name, least, most in (
            ("batch_size", 1, None), ("workers", 0, 1024), ("images", 2, None), ("pairs", 1, None),
            ("image_size", 1, None),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not least <= value <= (value if most is None else most):
                expected = f"at least {least}" if most is None else f"{least} to {most:,}"
                raise InputError(f"--{name.replace('_', '-')} is {value}; expected {expected}")
        if not 0 < self.crop_fraction <= 1:
            raise InputError(f"--crop-fraction is {self.crop_fraction}; expected a share above 0, at most 1")


def check_channels(channels: int) -> None:
    """Raise InputError unless image files can be decoded to this number of channels."""
    if not 1 <= channels <= 16:
        raise InputError(f"--channels is {channels}; expected 1 to 16")


@dataclass(frozen=True)
class DataOptions:
    """What ``cutmix data`` describes."""

    data: Annotated[str, tyro.conf.Positional]
    """A folder of class folders, or a known set such as digits or cifar-100."""
    json: bool = False
    """Print the whole description as JSON."""
    out: Path | None = None
    """Draw a few images of each class into this PNG file."""
    val_fraction: float = 0.2
    """Share of each class to hold out where a folder has no validation split; 0 holds out nothing."""
    seed: int = 0
    """Seed of that division; cutmix train with the same seed has the same splits."""
    channels: int = 3
    """Channels that image files are decoded to, as of cutmix train."""
    download: bool = False
    """Download a known set that is not there."""

    def __post_init__(self) -> None:
        _check_ending(self.out, ".png")
        check_channels(self.channels)


@dataclass(frozen=True)
class ShardsOptions:
    """What ``cutmix shards`` writes."""

    data: Annotated[str, tyro.conf.Positional]
    """A folder of images, a file of labels, or any other data set of images that cutmix train takes."""
    out: Annotated[Path, tyro.conf.arg(name="out")]
    """Folder of the shards; started again, the shards that are there are not written again."""
    shard_size: int = 256
    """Megabytes of a shard."""
    val_fraction: float = 0.2
    """Share of each class to hold out where the data have no validation split; 0 holds out nothing."""
    seed: int = 0
    """Seed of that division and of the order in the training shards."""
    skip_unreadable: bool = False
    """Leave out unreadable images and count them, instead of stopping."""
    channels: int = 3
    """Channels that image files can be decoded to, as of cutmix train."""

    def __post_init__(self) -> None:
        check_channels(self.channels)
        if not 1 <= self.shard_size <= 100_000:
            raise InputError(f"--shard-size is {self.shard_size}; expected 1 to 100,000 megabytes")


@dataclass(frozen=True)
class PredictOptions:
    """What ``cutmix predict`` classifies."""

    source: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, or a file of weights that cutmix train wrote."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files, folders of images or of tar shards, or - for file names from standard input, a line each."""
    top: int = 1
    """Number of classes of each prediction."""
    format: Literal["csv", "jsonl"] = "csv"
    """Comma-separated values, or one JSON object a line."""
    out: Path | None = None
    """Write to this file; by default to standard output."""
    temperature: float | None = None
    """Divides the logits before the softmax; by default that of the run's calibration on held-out images."""
    tta: Literal["none", "flip"] = "none"
    """flip: average with the prediction of the mirrored image."""
    threshold: float = 0.0
    """Mark predictions as sure from this probability on, and those below as not sure; 0 marks none."""
    which: Literal["last", "best"] = "last"
    """Epoch of a run."""
    batch_size: int = 64
    """Images at a time."""
    workers: int = WORKERS
    """Threads that decode."""
    device: str = "auto"
    """auto (CUDA, XPU, MPS or the CPU, the first there is), cpu, cuda, cuda:1, xpu, mps."""

    def __post_init__(self) -> None:
        if not self.images:
            raise InputError("no image was given; expected files, folders, or - for names from standard input")
        if "-" in self.images and len(self.images) > 1:
            raise InputError("- reads file names from standard input; give it alone")


@dataclass(frozen=True)
class ExplainOptions:
    """What ``cutmix explain`` draws."""

    source: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, or a file of weights that cutmix train wrote."""
    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files, or folders of images."""
    class_name: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Draw the heat map of this class too, beside that of the predicted one."""
    neighbours: int = 4
    """Training images that are nearest in feature space; 0 draws none."""
    out: Path = Path("explanations")
    """Folder of the images."""
    which: Literal["last", "best"] = "last"
    """Epoch of a run."""
    device: str = "auto"
    """auto (CUDA, XPU, MPS or the CPU, the first there is), cpu, cuda, cuda:1, xpu, mps."""

    def __post_init__(self) -> None:
        if not self.images:
            raise InputError("no image was given; expected image files, or folders of them")
        if not 0 <= self.neighbours <= 20:
            raise InputError(f"--neighbours is {self.neighbours}; expected 0 to 20")


@dataclass(frozen=True)
class ServeOptions:
    """What ``cutmix serve`` shows."""

    source: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, or a file of weights that cutmix train wrote."""
    port: int | None = None
    """Port on the loopback address; by default the first free one from 7860 on."""
    which: Literal["last", "best"] = "last"
    """Epoch of a run."""
    device: str = "auto"
    """auto (CUDA, XPU, MPS or the CPU, the first there is), cpu, cuda, cuda:1, xpu, mps."""


@dataclass(frozen=True)
class ExportOptions:
    """What ``cutmix export`` writes."""

    source: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, or a file of weights that cutmix train wrote."""
    format: Literal["onnx", "torch", "safetensors"] = "onnx"
    """ONNX, a torch.export program, or the weights alone; the first two hold preprocessing and calibration."""
    out: Path | None = None
    """Folder to write; by default the run's name with the format."""
    which: Literal["last", "best"] = "last"
    """Epoch of a run."""


@dataclass(frozen=True)
class PushOptions:
    """What ``cutmix push`` publishes."""

    source: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, or a file of weights that cutmix train wrote."""
    name: Annotated[str | None, tyro.conf.Positional] = None
    """Repository on the Hugging Face Hub, USER/NAME."""
    to: Path | None = None
    """Write the files to this folder instead, without a network."""
    which: Literal["last", "best"] = "last"
    """Epoch of a run."""
    private: bool = False
    """Make a new repository private."""


@dataclass(frozen=True)
class PreviewOptions:
    """What ``cutmix preview`` draws."""

    data: str
    """A folder of class folders, or a known set such as digits or cifar-100."""
    out: Path = Path("preview.png")
    """Write to this PNG file."""
    mix: Literal["images", "smmix"] = "images"
    """images: Cutout, Mixup and CutMix; smmix: the attention of a vision transformer and what SMMix mixes."""
    model: str = "deit_tiny_patch16_224"
    """smmix: a vision transformer."""
    weights: Path | None = None
    """smmix: its weights; by default random ones, whose attention is random too."""
    count: int = 6
    """Number of samples."""
    image_size: int | None = None
    """Side in pixels; by default a small set's own, and 224 for image files."""
    alpha: float = 1.0
    """α of the Beta distribution of CutMix and Mixup."""
    cutout_size: int | None = None
    """Side of Cutout's square in pixels; by default half of the image's side."""
    seed: int = 0
    """Seed of the samples and of the mixing."""
    skip_unreadable: bool = False
    """Leave out unreadable images instead of stopping."""
    channels: int = 3
    """Channels that image files are decoded to, as of cutmix train."""

    def __post_init__(self) -> None:
        _check_ending(self.out, ".png")
        check_channels(self.channels)


@dataclass(frozen=True)
class ReportOptions:
    """What ``cutmix report`` shows."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs."""
    out: Path = Path("report.html")
    """The page."""

    def __post_init__(self) -> None:
        _check_ending(self.out, ".html")


@dataclass(frozen=True)
class PaperOptions:
    """What ``cutmix paper`` shows."""

    tables: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """table1, table3 to table12, tableA2, tableA3, figure2, figure3, talk, smmix; by default all."""
    runs: tuple[Path, ...] = ()
    """Folders of runs, or folders that hold them; by default runs/, and results/*.jsonl beside it."""
    results: tuple[Path, ...] = ()
    """JSON-lines files of results."""


@dataclass(frozen=True)
class CampaignOptions:
    """Options of several runs in one folder."""

    out: Path = Path("runs")
    """Folder that holds a folder for each run; runs that were begun in it are resumed."""
    shard: str = "1/1"
    """i/n runs every n-th run from the i-th on, to share the runs among machines that see the same folder."""
    device: str = "auto"
    """auto (CUDA, XPU, MPS or the CPU, the first there is), cpu, cuda, cuda:1, xpu, mps."""
    workers: int = WORKERS
    """Image files: threads that decode."""
    download: bool = False
    """Download a known data set that is not there."""


@dataclass(frozen=True)
class ReproduceOptions(CampaignOptions):
    """What ``cutmix reproduce`` runs."""

    table: Annotated[str, tyro.conf.Positional] = tyro.MISSING
    """table1, table3 to table8, figure2, figure3, talk, smmix, or all."""
    rows: tuple[str, ...] = ()
    """Labels or recipes of rows; by default every row that a recipe runs."""
    seeds: int | None = None
    """Runs of each row, with seeds from 0; by default 3, and 1 at smoke scale."""
    scale: Literal["full", "short", "smoke"] = "full"
    """The paper's protocol, the same with fewer epochs, or a few steps to check that it runs."""
    model: str | None = None
    """Another model than the rows', such as resnet20 on a CPU."""
    lr: float | None = None
    """Another learning rate than the rows', for another model."""
    epochs: int | None = None
    """Epochs at short scale; by default 10."""
    data: str | None = None
    """Folder of the data; by default under $CUTMIX_DATA or ./data."""
    out: Path = Path("runs/reproduce")
    """Folder that holds a folder for each run; runs that were begun in it are resumed."""


@dataclass(frozen=True)
class CompareOptions(CampaignOptions):
    """What ``cutmix compare`` trains and compares; every other flag of ``cutmix train`` applies to all runs."""

    mix: tuple[str, ...] = ("none", "cutmix")
    """Mixing methods; the first is the baseline."""
    seeds: int = 3
    """Runs of each method, with seeds from 0."""
    train_per_class: tuple[int, ...] = ()
    """Numbers of training images of each class, for a curve over subsets that contain one another; by default all."""
    steps: int | None = None
    """Optimizer steps of each run, so that subsets of all sizes are trained equally long; replaces --epochs, of which
    --warmup-epochs and --eval-every keep their share."""
    out: Path = Path("runs/compare")
    """Folder that holds a folder for each run, the page and comparison.json; runs that were begun in it are resumed."""
    jobs: int = 1
    """Runs at a time, each with its share of the cores."""
    json: bool = False
    """Print the comparison as JSON instead of text."""

    def __post_init__(self) -> None:
        if len(self.mix) < 2 or len(set(self.mix)) < len(self.mix):
            raise InputError(f"--mix is {' '.join(self.mix) or 'empty'}; expected two or more different methods")
        for name in ("seeds", "jobs"):
            if not 1 <= getattr(self, name) <= 1000:
                raise InputError(f"--{name} is {getattr(self, name)}; expected 1 to 1000")
        if any(count < 1 for count in self.train_per_class):
            raise InputError(f"--train-per-class is {self.train_per_class}; expected numbers of at least 1")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"--steps is {self.steps}; expected a number of at least 1")
        if self.jobs > 1 and self.shard != "1/1":
            raise InputError("--jobs and --shard are both given; --jobs makes shards by itself")


@dataclass(frozen=True)
class DemoOptions:
    """What ``cutmix demo`` does."""

    out: Path = Path("runs/demo")
    """Folder of the runs and their page; runs that were begun in it are resumed."""
    epochs: int = 40
    """Passes over the thousand training digits."""
    seeds: int = 1
    """Runs of each method, with seeds from 0."""
    device: str = "auto"
    """auto (CUDA, XPU, MPS or the CPU, the first there is), cpu, cuda, cuda:1, xpu, mps."""


def _check_ending(out: Path | None, ending: str) -> None:
    """Refuse the name of an output by which an image or the results of a run would be replaced."""
    if out is not None and out.suffix.lower() != ending:
        raise InputError(f"--out is {out}; expected a name that ends in {ending}")
