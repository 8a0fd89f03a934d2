"""Every command as a Python function of its name, which the command calls. Torch is imported when they are called."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutmix.config.options import (
    SHARED,
    CompareOptions,
    DataOptions,
    DemoOptions,
    EvaluateOptions,
    ExplainOptions,
    ExportOptions,
    PredictOptions,
    PreviewOptions,
    PushOptions,
    ReproduceOptions,
    RunOptions,
    ServeOptions,
    ShardsOptions,
)
from cutmix.config.recipe import Recipe
from cutmix.config.recipes import RECIPES
from cutmix.config.tasks import Transfer, backbone_name, find_transfer, small_transfer
from cutmix.errors import InputError
from cutmix.training.settings import make_options, settle

if TYPE_CHECKING:
    from cutmix.data.command import Description
    from cutmix.inference.model import Predictions
    from cutmix.paper.command import PaperTables
    from cutmix.report.verdict import Comparisons
    from cutmix.runs.read import Run
    from cutmix.runs.record import Results

Pathlike = str | os.PathLike[str]


def train(data: Pathlike | None = None, *, recipe: Recipe | str | None = None, **settings: Any) -> "Run | Results":
    """Train a classifier and evaluate it after each epoch, as ``cutmix train`` does.

    Args:
        data: Folder of images, file of labels, or the name of a known set.
        recipe: A recipe, or its name, that the other arguments change; by default the one that suits the data.
        **settings: Any flag of ``cutmix train`` by its name, such as ``model="resnet50"``, ``mix="cutmix"``,
            ``epochs=30``, ``out="runs/x"``, ``resume=True``, ``config="recipe.yaml"``.

    Returns:
        The run. It prints as a table of its results, and is accepted wherever the path of a run is. With ``folds``, the
        results of each fold and their means.

    Raises:
        InputError: If an argument, the data, the folder or the device does not fit.
        KeyboardInterrupt: After Ctrl-C and a checkpoint; the same call with ``resume=True`` resumes.
    """
    if data is not None:
        settings["data"] = os.fspath(data)
    chosen, options = settle(recipe, settings)
    from cutmix.runs.read import read_run
    from cutmix.training.loop import run_training

    if chosen.folds and not chosen.fold:
        from cutmix.training.campaign import run_folds

        with _interruptible():
            return run_folds(chosen, options)
    with _interruptible("the same call with resume=True"):
        return read_run(run_training(chosen, options))


def evaluate(
    run: Pathlike, suites: str | Sequence[str] = "classification", *, show: bool = False, **settings: Any
) -> "Results":
    """Evaluate a run, or a file of weights, as ``cutmix evaluate`` does.

    Args:
        run: The result of ``train``, the folder of a run, or a file of weights.
        suites: Names of suites, or "all".
        show: Print each suite as soon as it is finished, as the command does.
        **settings: Any flag of ``cutmix evaluate`` by its name, such as ``data``, ``images``, ``device``.

    Returns:
        The records, which print as a table. Those of a run are saved in its folder.

    Raises:
        InputError: If an argument, the weights, the data or a suite do not fit each other.
    """
    suite = suites if isinstance(suites, str) else ",".join(suites)
    options = make_options(EvaluateOptions, {"source": Path(run), "suite": suite} | settings)
    from cutmix.evaluation.command import run_evaluate

    return run_evaluate(options, shown=show)


def compare(
    data: Pathlike | None = None, mix: Sequence[str] = ("none", "cutmix"), *, seeds: int = 3,
    recipe: Recipe | str | None = None, **settings: Any,
) -> "Comparisons":  # fmt: skip
    """Train several mixing methods with equal budget, splits and seeds, as ``cutmix compare`` does.

    Args:
        data: Folder of images, file of labels, or the name of a known set.
        mix: Mixing methods, as ``--mix`` takes them, such as "cutmix:alpha=0.5"; the first is the baseline.
        seeds: Runs of each method.
        recipe: A recipe, or its name, that the other arguments change.
        **settings: Any flag of ``cutmix compare`` or ``cutmix train`` by its name.

    Returns:
        A comparison with the baseline for each method, which prints as words and tables. Called again, finished runs
        are read and not run again.

    Raises:
        InputError: If an argument or the data does not fit, or runs failed.
        KeyboardInterrupt: After Ctrl-C and a checkpoint; the same call resumes.
    """
    if data is not None:
        settings["data"] = os.fspath(data)
    names = {field.name for field in fields(CompareOptions)}.difference(SHARED)
    own = {name: settings.pop(name) for name in names & settings.keys()}
    chosen, training = settle(recipe, settings)
    of_runs = {name: getattr(training, name) for name in SHARED}
    options = make_options(CompareOptions, own | of_runs | {"mix": _names(mix), "seeds": seeds})
    if chosen.seed:
        raise InputError(f"--seed is {chosen.seed}; expected --seeds N, for the seeds 0 to N − 1 of each method")
    if training.overwrite:
        raise InputError("--overwrite is given; expected another --out, as cutmix compare resumes the runs in it")
    from cutmix.report.summary import write_report
    from cutmix.report.verdict import TEXTS, Comparisons, compare_runs
    from cutmix.runs.folder import write_bytes, write_json
    from cutmix.runs.read import read_runs
    from cutmix.training.campaign import run_methods

    with _interruptible():
        jobs = run_methods(chosen, options)
    if not jobs:
        return Comparisons()
    paths = [job.path for job in jobs]
    found = Comparisons(compare_runs(read_runs(paths), [job.method for job in jobs], options.mix[0]))
    write_json(options.out / "comparison.json", [one.to_json() for one in found])
    if options.table:
        write_bytes(options.table, TEXTS[options.table.suffix](found).encode())
    found.page = write_report(paths, options.out / "report.html")
    return found


def transfer(
    task: str = "",
    data: Pathlike | None = None,
    *,
    recipe: Transfer | None = None,
    small: bool = False,
    **settings: Any,
) -> "Run":
    """Train a detector or a captioner on a backbone and evaluate it, as ``cutmix transfer`` does.

    Args:
        task: "detection" or "captioning".
        data: Folder of the data set.
        recipe: A recipe to be changed by the other arguments; by default the paper's.
        small: Use defaults for a few hundred images and a CPU.
        **settings: Any flag of ``cutmix transfer`` by its name, such as ``backbone="runs/x"``, ``arch="ssd300"``.

    Returns:
        The run, which prints as a table of its results.

    Raises:
        InputError: If an argument, the data or the backbone does not fit.
        KeyboardInterrupt: After Ctrl-C and a checkpoint; the same call with ``resume=True`` resumes.
    """
    if data is not None:
        settings["data"] = os.fspath(data)
    of_options = {field.name for field in fields(RunOptions)}
    options = make_options(RunOptions, {name: value for name, value in settings.items() if name in of_options})
    changes = {name: value for name, value in settings.items() if name not in of_options}
    base = find_transfer(task, settings.get("arch", "")) if recipe is None else recipe
    base = small_transfer(base) if small else base
    chosen = type(base).from_dict(base.to_dict() | changes, "cutmix transfer")
    if recipe is None and "name" not in settings:
        chosen = replace(chosen, name=f"{base.name}-{backbone_name(chosen.backbone)}")
    from cutmix.runs.read import read_run
    from cutmix.transfer.command import run_transfer

    with _interruptible("the same call with resume=True"):
        return read_run(run_transfer(chosen, options))


# ---- use of a model ----


def predict(run: Pathlike, images: Any, **settings: Any) -> "Predictions":
    """Classify images, as ``cutmix predict`` does.

    Args:
        run: A run, its folder, or a file of weights that ``train`` wrote.
        images: Files, folders of images, PIL images or uint8 arrays (H, W, 3); one or several.
        **settings: Any flag of ``cutmix predict`` by its name, such as ``top=3``, ``tta="flip"``.

    Returns:
        A prediction for each image, in their order, made when it is used. They print as a table.

    Raises:
        InputError: If the model, a path or an argument cannot be used. An unreadable file is a prediction with error.
    """
    from cutmix.inference.command import run_predict

    names, given = _named(images)
    return run_predict(make_options(PredictOptions, {"source": Path(run), "images": names} | settings), given)


def explain(run: Pathlike, images: Any, **settings: Any) -> list[Path]:
    """Draw images with heat maps and the nearest training images, as ``cutmix explain`` does.

    Args:
        run: A run, its folder, or a file of weights that ``train`` wrote.
        images: As of ``predict``. ``cutmix.load(run).explain(image)`` shows one in a notebook.
        **settings: Any flag of ``cutmix explain`` by its name, such as ``class_name="cat"``, ``out="heat"``.

    Returns:
        The PNG files.

    Raises:
        InputError: If the model, an image or an argument cannot be used.
    """
    from cutmix.inference.command import run_explain

    names, given = _named(images)
    return run_explain(make_options(ExplainOptions, {"source": Path(run), "images": names} | settings), given)


def serve(run: Pathlike, *, block: bool = True, **settings: Any) -> Any:
    """Serve a local page that classifies images, as ``cutmix serve`` does; return gradio's page.

    Args:
        run: A run, its folder, or a file of weights that ``train`` wrote.
        block: Wait until Ctrl-C; otherwise return while a thread serves, until ``close()`` of the page is called.
        **settings: Any flag of ``cutmix serve`` by its name, such as ``port``.

    Raises:
        InputError: If the model cannot be used, gradio is not installed, or the port is in use.
    """
    options = make_options(ServeOptions, {"source": Path(run)} | settings)
    from cutmix.inference.command import run_serve

    return run_serve(options, block=block)


def export(run: Pathlike, **settings: Any) -> Path:
    """Export a classifier with its preprocessing and check the result, as ``cutmix export`` does.

    Args:
        run: A run, its folder, or a file of weights that ``train`` wrote.
        **settings: Any flag of ``cutmix export`` by its name, such as ``format="onnx"``, ``out="model"``.

    Returns:
        The folder, which has a README.

    Raises:
        InputError: If the model cannot be exported, or the exported one does not agree with it.
    """
    options = make_options(ExportOptions, {"source": Path(run)} | settings)
    from cutmix.inference.export import run_export

    return run_export(options)


def push(run: Pathlike, name: str | None = None, **settings: Any) -> str:
    """Publish a classifier with a model card in timm's layout, as ``cutmix push`` does.

    Args:
        run: A run, its folder, or a file of weights that ``train`` wrote.
        name: Repository on the Hugging Face Hub, "USER/NAME"; or give ``to=FOLDER``.
        **settings: Any flag of ``cutmix push`` by its name.

    Returns:
        The address of the repository, or the folder.

    Raises:
        InputError: If the model is not one of timm's, the folder is in use, or the upload fails.
    """
    options = make_options(PushOptions, {"source": Path(run), "name": name} | settings)
    from cutmix.inference.export import run_push

    return run_push(options)


# ---- data, pages, tables ----


def data(data: Pathlike, **settings: Any) -> "Description":
    """Describe a data set, as ``cutmix data`` does.

    Args:
        data: Folder of images, file of labels, or the name of a known set.
        **settings: Any flag of ``cutmix data`` by its name, such as ``out="classes.png"``.

    Returns:
        The description, which prints as a table and sentences.

    Raises:
        InputError: If the data cannot be understood.
    """
    options = make_options(DataOptions, {"data": os.fspath(data)} | settings)
    from cutmix.data.command import run_data

    return run_data(options)


def shards(data: Pathlike, out: Pathlike, **settings: Any) -> Path:
    """Write a data set as tar shards in webdataset's format, as ``cutmix shards`` does.

    Args:
        data: Folder of images, file of labels, or another data set of images.
        out: Folder of the shards: new, or that of an interrupted call.
        **settings: Any flag of ``cutmix shards`` by its name, such as ``shard_size``, ``val_fraction``, ``seed``.

    Returns:
        The folder, which ``train`` takes as ``data``.

    Raises:
        InputError: If an argument or the data does not fit, or the folder holds something else.
    """
    options = make_options(ShardsOptions, {"data": os.fspath(data), "out": Path(out)} | settings)
    from cutmix.data.command import write_shards

    return write_shards(options)


def preview(data: Pathlike, **settings: Any) -> Path:
    """Draw images of a data set unmixed and mixed, as ``cutmix preview`` does, and return the PNG file.

    Args:
        data: Folder of images, file of labels, or the name of a known set.
        **settings: Any flag of ``cutmix preview`` by its name, such as ``out="preview.png"``.

    Raises:
        InputError: If the data or an argument does not fit.
    """
    options = make_options(PreviewOptions, {"data": os.fspath(data)} | settings)
    from cutmix.preview import run_preview

    return run_preview(options)


def report(runs: Pathlike | Sequence[Pathlike], out: Pathlike = "report.html") -> Path:
    """Write one self-contained HTML page of one or several runs, as ``cutmix report`` does, and return it.

    Args:
        runs: Runs, or their folders.
        out: The page.

    Raises:
        InputError: If a folder is not a run or is damaged, or the page cannot be written.
    """
    from cutmix.report.summary import write_report

    return write_report([Path(run) for run in _names(runs)], Path(out))


def paper(
    tables: str | Sequence[str] = (), runs: Sequence[Pathlike] = (), results: Sequence[Pathlike] = ()
) -> "PaperTables":
    """Return the paper's tables beside the results here, as ``cutmix paper`` prints them.

    Args:
        tables: Names, such as "table5"; by default all.
        runs: Folders of runs, or folders that hold them; by default ``runs/``, and ``results/*.jsonl`` beside it.
        results: JSON-lines files of results.

    Raises:
        InputError: If a table does not exist, or a run or a file cannot be read.
    """
    from cutmix.paper.command import run_paper

    names = (tables,) if isinstance(tables, str) else tuple(tables)
    return run_paper(names, [Path(run) for run in runs], [Path(file) for file in results])


def reproduce(table: str, **settings: Any) -> "PaperTables":
    """Train the rows of a table of the paper, as ``cutmix reproduce`` does.

    Args:
        table: "table5" or another; "all" for every row that a recipe runs.
        **settings: Any flag of ``cutmix reproduce`` by its name, such as ``scale="smoke"``, ``rows=("CutMix",)``.

    Returns:
        The table with the results here.

    Raises:
        InputError: If an argument or the data does not fit, or rows failed.
        KeyboardInterrupt: After Ctrl-C and a checkpoint; the same call resumes.
    """
    options = make_options(ReproduceOptions, {"table": table} | settings)
    from cutmix.paper.command import run_reproduce

    with _interruptible():
        return run_reproduce(options)


def recipes() -> dict[str, Recipe]:
    """Return the recipes by their names, as ``cutmix recipes`` lists them."""
    return dict(RECIPES)


def demo(**settings: Any) -> "Comparisons":
    """Compare training without mixing and with CutMix on embedded digits, as ``cutmix demo`` does.

    Args:
        **settings: Any flag of ``cutmix demo`` by its name, such as ``epochs``, ``out``.

    Returns:
        The comparison, which prints as words and tables. Called again, finished runs are read and not run again.
    """
    options = vars(make_options(DemoOptions, settings))
    # mixed as in the recipe digits-resnet20-cutmix
    return compare(mix=("none", "cutmix"), recipe="digits-resnet20", mix_prob=0.5, **options)


def _names(paths: Any) -> tuple[str, ...]:
    """Return one or several paths as texts."""
    given = [paths] if isinstance(paths, str | os.PathLike) or not isinstance(paths, Iterable) else [*paths]
    for each in given:
        if not isinstance(each, str | os.PathLike):
            raise InputError(f"a {type(each).__name__} is given; expected a path or a name, or several")
    return tuple(str(os.fspath(each)) for each in given)


def _named(images: Any) -> tuple[tuple[str, ...], list[Any]]:
    """Return a name for each of one or several images, and the images."""
    from cutmix.inference.model import several_images

    given = [*several_images(images)]
    return tuple(str(x) if isinstance(x, str | os.PathLike) else type(x).__name__ for x in given), given


@contextmanager
def _interruptible(resumes: str = "the same call") -> Iterator[None]:
    """Raise KeyboardInterrupt where Ctrl-C ended a run, which is saved by then; SystemExit would end a notebook."""
    try:
        yield
    except SystemExit as stop:
        if stop.code != 130:
            raise
        raise KeyboardInterrupt(f"stopped after a checkpoint; {resumes} resumes") from None
