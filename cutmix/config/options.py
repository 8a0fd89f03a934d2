"""Flags of the commands that are not part of a recipe: data, folders, devices, intervals. Imports no torch."""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cutmix.config.tasks import EVALUATE, SUITES, parse_suites
from cutmix.errors import InputError

_ALLOWED = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CORES = max(_ALLOWED // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 1)
"""Cores of this process: its share of those that the processes of ``torchrun`` on this machine may use."""

WORKERS = min(8, CORES)
MOST_WORKERS = 1024


@dataclass(frozen=True)
class OnDevice:
    """The device of a command."""

    device: str = field(default="auto", kw_only=True)
    """auto (the first available of CUDA, XPU, MPS and CPU), cpu, cuda, cuda:1, xpu, mps."""


@dataclass(frozen=True)
class OfModel:
    """The model that a command uses."""

    source: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, or a file of weights that cutmix train wrote."""
    which: Literal["last", "best"] = field(default="last", kw_only=True)
    """Weights of a run: of its last or its best epoch."""


@dataclass(frozen=True)
class Running(OnDevice):
    """Options of training, of one run or of many, that do not change a result."""

    workers: int = WORKERS
    """Image files: number of decoding threads; 0 decodes in the main thread."""
    log_every: int = 50
    """Log the loss every N steps; each reading waits for the GPU."""
    checkpoint_every: int = 1000
    """Save a checkpoint every N steps; 0 saves only at the end of an epoch."""
    timeout: float = 1800.0
    """Several processes: seconds that a process waits for the others before it fails."""
    log: Literal["tensorboard", "wandb", "mlflow", "trackio"] | None = None
    """Log to this tracker too. TensorBoard writes to the folder of the run; the other trackers are configured by their
    own environment variables. Each needs its extra."""

    def __post_init__(self) -> None:
        _check_range(self, "workers", low=0, high=MOST_WORKERS)
        _check_range(self, "checkpoint_every", low=0)
        _check_range(self, "log_every", low=1)
        if not 1 <= self.timeout <= 1e6:
            raise InputError(f"--timeout is {self.timeout}; expected 1 to 1,000,000 seconds")


@dataclass(frozen=True)
class RunOptions(Running):
    """Options of a run that do not change its result."""

    out: Path | None = None
    """Folder of the run; by default runs/NAME-seedN."""
    resume: bool = False
    """Resume the run in the folder (bit for bit on a CPU), or start it if there is none."""
    overwrite: bool = False
    """Remove the run in the folder and start again."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.overwrite:
            raise InputError("--resume and --overwrite are both given; a run is either resumed or started again")


@dataclass(frozen=True)
class TrainOptions(RunOptions):
    """Options of a classifier's run that do not change its result."""

    skip_unreadable: bool = False
    """Leave out unreadable images and count them, instead of stopping."""
    download: bool = False
    """Download a known data set that is missing."""


Convention = Literal["exact", "odin", "confident", "mahalanobis", "openood"]

_SUITE_HELP = f"Suites to run: {', '.join(EVALUATE)}, several separated by commas, or all."


@dataclass(frozen=True)
class EvaluateOptions(OnDevice):
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
    """Weights of a run: of its last or its best epoch."""
    image_size: int | None = None
    """Side of the input in pixels, for a file that does not name it."""
    crop_fraction: float | None = None
    """Image files: side of the centre crop as a share of the resized image; by default that of the file, or 0.875."""
    squash: bool = False
    """Image files: resize to a square, ignoring the aspect ratio, for a file that does not name it."""
    batch_size: int = 256
    """Number of images in a batch."""
    precision: Literal["auto", "float32", "tf32", "bfloat16", "float16"] | None = None
    """Precision; by default that of the training, or float32 for a file that does not name it."""
    workers: int = WORKERS
    """Image files: number of decoding threads."""
    skip_unreadable: bool = False
    """Leave out unreadable images and count them, instead of stopping."""
    out: Path | None = None
    """Folder of the results, or a .jsonl file to append them to; by default that of the run, none for a file."""
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
        chosen = parse_suites(self.suite)
        _check_range(self, "batch_size", "pairs", "image_size", low=1)
        _check_range(self, "images", low=2)
        _check_range(self, "workers", low=0, high=MOST_WORKERS)
        if self.crop_fraction is not None and not 0 < self.crop_fraction <= 1:
            raise InputError(f"--crop-fraction is {self.crop_fraction}; expected a share above 0, at most 1")
        for suite in (SUITES[name] for name in EVALUATE if name not in chosen):
            if given := [name for name in suite.flags if getattr(self, name)]:
                raise InputError(f"--{given[0]} is given, but --suite is {self.suite}; expected --suite {suite.name}")


@dataclass(frozen=True)
class DataOptions:
    """Flags of ``cutmix data``."""

    data: Annotated[str, tyro.conf.Positional]
    """A folder of images or tar shards, a file of labels, or a known set such as digits or cifar-100."""
    json: bool = False
    """Print the whole description as JSON."""
    out: Path | None = None
    """Draw a few images of each class into this PNG file."""
    val_fraction: float = 0.2
    """Share of each class to hold out if a folder has no validation split; 0 holds out nothing."""
    seed: int = 0
    """Seed of that split; the --split-seed of cutmix train."""
    channels: int = 3
    """Channels that image files are decoded to, as in cutmix train."""
    download: bool = False
    """Download a known set that is missing."""

    def __post_init__(self) -> None:
        _check_ending(self.out, ".png")
        _check_range(self, "channels", low=1, high=16)


@dataclass(frozen=True)
class ShardsOptions:
    """Flags of ``cutmix shards``."""

    data: Annotated[str, tyro.conf.Positional]
    """A folder of images, a file of labels, or any other data set of image files that cutmix train accepts."""
    out: Annotated[Path, tyro.conf.arg(name="out")]
    """Folder of the shards; an interrupted command writes only the missing shards."""
    shard_size: int = 256
    """Size of a shard in megabytes."""
    val_fraction: float = 0.2
    """Share of each class to hold out if the data have no validation split; 0 holds out nothing."""
    seed: int = 0
    """Seed of that split and of the order of the training images."""
    skip_unreadable: bool = False
    """Leave out unreadable images and count them, instead of stopping."""
    channels: int = 3
    """Channels that image files can be decoded to, as in cutmix train."""

    def __post_init__(self) -> None:
        _check_range(self, "channels", low=1, high=16)
        if not 1 <= self.shard_size <= 100_000:
            raise InputError(f"--shard-size is {self.shard_size}; expected 1 to 100,000 megabytes")


@dataclass(frozen=True)
class PredictOptions(OnDevice, OfModel):
    """Flags of ``cutmix predict``."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files, folders of images or tar shards, or - to read file names from standard input, one per line."""
    top: int = 1
    """Number of classes to print for each image."""
    format: Literal["csv", "jsonl"] = "csv"
    """csv, or jsonl: one JSON object per line."""
    out: Path | None = None
    """Output file; by default standard output."""
    temperature: float | None = None
    """Temperature that divides the logits; by default the temperature from the calibration of the run."""
    tta: Literal["none", "flip"] = "none"
    """Test-time augmentation; flip: average with the prediction of the flipped image."""
    threshold: float = 0.0
    """Mark predictions below this probability as not sure; 0 marks none. Of several labels: the threshold of each."""
    batch_size: int = 64
    """Number of images in a batch."""
    workers: int = WORKERS
    """Number of decoding threads."""

    def __post_init__(self) -> None:
        if not self.images:
            raise InputError("no image was given; expected files, folders, or - for names from standard input")
        if "-" in self.images and len(self.images) > 1:
            raise InputError("- reads file names from standard input; give it alone")


@dataclass(frozen=True)
class ExplainOptions(OnDevice, OfModel):
    """Flags of ``cutmix explain``."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files, or folders of images."""
    class_name: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Draw the heat map of this class too, beside that of the predicted class."""
    neighbours: int = 4
    """Number of nearest training images in feature space to draw; 0 draws none."""
    out: Path = Path("explanations")
    """Folder of the images."""

    def __post_init__(self) -> None:
        if not self.images:
            raise InputError("no image was given; expected image files, or folders of them")
        _check_range(self, "neighbours", low=0, high=20)


@dataclass(frozen=True)
class ServeOptions(OnDevice, OfModel):
    """Flags of ``cutmix serve``."""

    port: int | None = None
    """Port on the loopback address; by default the first free port from 7860."""


@dataclass(frozen=True)
class ExportOptions(OfModel):
    """Flags of ``cutmix export``."""

    format: Literal["onnx", "torch", "safetensors"] = "onnx"
    """ONNX, a torch.export program, or the weights alone; the first two hold preprocessing and calibration."""
    out: Path | None = None
    """Output folder; by default the name of the run and the format."""


@dataclass(frozen=True)
class PushOptions(OfModel):
    """Flags of ``cutmix push``."""

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Repository on the Hugging Face Hub, USER/NAME."""
    to: Path | None = None
    """Write the files to this folder instead of uploading them."""
    private: bool = False
    """Create the repository as private."""


@dataclass(frozen=True)
class PreviewOptions:
    """Flags of ``cutmix preview``."""

    data: str
    """A folder of images or tar shards, a file of labels, or a known set such as digits or cifar-100."""
    out: Path = Path("preview.png")
    """Output PNG file."""
    mix: Literal["images", "smmix"] = "images"
    """images: draw Cutout, Mixup and CutMix; smmix: draw the attention of a vision transformer and SMMix."""
    model: str = "deit_tiny_patch16_224"
    """smmix: a vision transformer."""
    weights: Path | None = None
    """smmix: weights of the transformer; by default random, with random attention."""
    count: int = 6
    """Number of samples."""
    image_size: int | None = None
    """Side in pixels; by default the size of the images of a small set, and 224 for image files."""
    alpha: float = 1.0
    """α of the Beta distribution of CutMix and Mixup."""
    cutout_size: int | None = None
    """Side of Cutout's square in pixels; by default half the side of the image."""
    seed: int = 0
    """Seed of the samples and of the mixing."""
    skip_unreadable: bool = False
    """Leave out unreadable images instead of stopping."""
    channels: int = 3
    """Channels that image files are decoded to, as in cutmix train."""

    def __post_init__(self) -> None:
        _check_ending(self.out, ".png")
        _check_range(self, "channels", low=1, high=16)


@dataclass(frozen=True)
class ReportOptions:
    """Flags of ``cutmix report``."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs."""
    out: Path = Path("report.html")
    """Output HTML file."""

    def __post_init__(self) -> None:
        _check_ending(self.out, ".html")


@dataclass(frozen=True)
class PaperOptions:
    """Flags of ``cutmix paper``."""

    tables: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """table1, table3 to table12, tableA2, tableA3, figure2, figure3, talk, smmix; by default all."""
    runs: tuple[Path, ...] = ()
    """Folders of runs, or folders that hold them; by default runs/, and results/*.jsonl beside it."""
    results: tuple[Path, ...] = ()
    """JSON-lines files of results."""


@dataclass(frozen=True)
class CampaignOptions(Running):
    """Options of several runs in one folder."""

    out: Path = Path("runs")
    """Folder of the runs, one folder per run; interrupted runs in it are resumed."""
    shard: str = "1/1"
    """i/n trains every n-th run, starting with the i-th, to share the runs among machines with a common folder."""
    skip_unreadable: bool = False
    """Leave out unreadable images and count them, instead of stopping."""
    download: bool = False
    """Download a known data set that is missing."""


_OF_A_RUN = {each.name for each in fields(TrainOptions)} - {"out"}
SHARED = tuple(each.name for each in fields(CampaignOptions) if each.name in _OF_A_RUN)
"""Options of a campaign that are those of each of its runs."""


@dataclass(frozen=True)
class ReproduceOptions(CampaignOptions):
    """Flags of ``cutmix reproduce``."""

    table: Annotated[str, tyro.conf.Positional] = tyro.MISSING
    """table1, table3 to table8, figure2, figure3, talk, smmix, or all."""
    rows: tuple[str, ...] = ()
    """Labels or recipes of rows; by default every row that has a recipe."""
    seeds: int | None = None
    """Number of seeds of each row, from 0; by default 3, and 1 at smoke scale."""
    scale: Literal["full", "short", "smoke"] = "full"
    """full: the paper's protocol; short: the same with fewer epochs; smoke: a few steps, to check that it runs."""
    model: str | None = None
    """Train this model instead of that of each row, such as resnet20 on a CPU."""
    lr: float | None = None
    """Learning rate to use instead of that of each row, for another model."""
    epochs: int | None = None
    """Epochs at short scale; by default 10."""
    data: str | None = None
    """Folder of the data; by default under $CUTMIX_DATA or ./data."""
    out: Path = Path("runs/reproduce")
    """Folder of the runs, one folder per run; interrupted runs in it are resumed."""


@dataclass(frozen=True)
class CompareOptions(CampaignOptions):
    """Flags of ``cutmix compare``; every other flag of ``cutmix train`` applies to all runs."""

    mix: tuple[str, ...] = ("none", "cutmix")
    """Mixing methods; the first is the baseline. A method may have settings of its own:
    cutmix:alpha=0.5,label-smoothing=0.1."""
    seeds: int = 3
    """Number of seeds of each method, from 0."""
    train_per_class: tuple[int, ...] = ()
    """Numbers of training images per class, for a curve over nested subsets; by default all images."""
    steps: int | None = None
    """Optimizer steps of each run, so that subsets of all sizes are trained equally long; replaces --epochs.
    --warmup-epochs, --eval-every, --freeze and --patience keep their share of the training."""
    out: Path = Path("runs/compare")
    """Folder of the runs, report.html and comparison.json; interrupted runs in it are resumed."""
    jobs: int = 1
    """Number of runs in parallel, each with its share of the cores."""
    table: Path | None = None
    """Write a table with a row for each method to this file too, in the format of its ending: .csv, .tex or .md."""
    json: bool = False
    """Print the comparison as JSON instead of text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.mix) < 2 or len(set(self.mix)) < len(self.mix):
            raise InputError(f"--mix is {' '.join(self.mix) or 'empty'}; expected two or more different methods")
        _check_range(self, "seeds", "jobs", low=1, high=1000)
        _check_range(self, "steps", low=1)
        if any(count < 1 for count in self.train_per_class):
            raise InputError(f"--train-per-class is {self.train_per_class}; expected numbers of at least 1")
        if self.table is not None and self.table.suffix not in (".csv", ".tex", ".md"):
            raise InputError(f"--table is {self.table}; expected a name that ends in .csv, .tex or .md")
        if self.jobs > 1 and self.shard != "1/1":
            raise InputError("--jobs and --shard are both given; --jobs makes shards by itself")


@dataclass(frozen=True)
class DemoOptions(OnDevice):
    """Flags of ``cutmix demo``."""

    out: Path = Path("runs/demo")
    """Folder of the runs and their page; interrupted runs in it are resumed."""
    epochs: int = 40
    """Passes over the thousand training digits."""
    seeds: int = 1
    """Number of seeds of each method, from 0."""


def _check_range(options: object, *names: str, low: int, high: int | None = None) -> None:
    """Refuse options that are neither None nor from ``low`` to ``high``."""
    for name in names:
        value = getattr(options, name)
        if value is not None and (value < low or (high is not None and value > high)):
            expected = f"at least {low}" if high is None else f"{low} to {high:,}"
            raise InputError(f"--{name.replace('_', '-')} is {value}; expected {expected}")


def _check_ending(out: Path | None, ending: str) -> None:
    """Refuse the name of an output that could replace an image or the results of a run."""
    if out is not None and out.suffix.lower() != ending:
        raise InputError(f"--out is {out}; expected a name that ends in {ending}")
