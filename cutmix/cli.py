"""The command line: parse the words, then call one function per command. Torch is imported only by what needs it."""

import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cutmix import __version__
from cutmix.errors import InputError, did_you_mean, missing_module, printable

if TYPE_CHECKING:
    from cutmix.config.options import RunOptions, TrainOptions
    from cutmix.config.recipe import Recipe
    from cutmix.config.transfer import Transfer

HELP = """cutmix: train image classifiers with CutMix, and evaluate what it bought.

  cutmix demo                    train on embedded digits with and without CutMix: two minutes, no data needed
  cutmix data photos/            describe a data set: classes, splits, sizes, files left out, copies, leaks
  cutmix preview --data photos/  draw what Cutout, Mixup and CutMix do to your images
  cutmix train --data photos/    fine-tune a pretrained model on a folder that holds one folder per class
  cutmix train RECIPE            train a recipe; every field of it is a flag
  cutmix compare --data photos/  train several mixing methods and seeds: does mixing help on your images?
  cutmix recipes                 list the recipes
  cutmix transfer detection      train a detector on a backbone; cutmix transfer captioning: a captioner
  cutmix evaluate RUN            evaluate a run, or a file of weights, on its own or on other data
  cutmix predict RUN photos/     print classes and probabilities of images, as CSV or JSON lines
  cutmix explain RUN photo.jpg   draw the heat map of a prediction, beside the nearest training images
  cutmix serve RUN               open a local page that classifies images and draws heat maps
  cutmix export RUN              export the classifier for onnxruntime or torch.export, preprocessing inside
  cutmix push RUN USER/NAME      publish the classifier on the Hugging Face Hub, in timm's layout
  cutmix report RUN RUN          write one page that compares runs
  cutmix paper [TABLE]           print the paper's tables beside the results here
  cutmix reproduce TABLE         train the rows of a table; --scale smoke only tries them

cutmix COMMAND --help explains the flags of a command, cutmix --version prints the version.
Several processes: torchrun --nproc-per-node 4 -m cutmix train RECIPE
"""

TRAIN = """Train a classifier and evaluate it after each epoch.

A RECIPE is a named set of defaults for the flags below (cutmix recipes lists them). Without one, a folder of images is
fine-tuned from a pretrained model, and a set of small images is trained from scratch."""

TRANSFER = """Train a detector or a captioner on a backbone, and evaluate it.

--backbone takes the folder of a run, a file of weights, pretrained (timm's weights) or none. The defaults are the
paper's; --small has defaults for a few hundred images and a CPU."""

COMPARE = """Train several mixing methods with equal budget, splits and seeds, and say whether they differ.

Every flag of cutmix train applies to all runs: cutmix compare --data photos/ --mix none cutmix mixup --seeds 3
--epochs 20. First it prints how long that will take. Started again it resumes; finished runs are not run again."""

REPRODUCE = """Train the rows of a table of the paper, and print it with the results here.

Prints first how long that will take. Interrupted, the same command resumes; finished rows are not run again. Rows can
be shared among machines that see the same folder, for example as SLURM array tasks:

sbatch --array=1-15 --wrap 'cutmix reproduce table5 --shard $SLURM_ARRAY_TASK_ID/15'"""

Options = TypeVar("Options")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. A user error is one sentence and exit code 2, a closed pipe exit code 141."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if words[0] in ("-V", "--version"):
        print(f"cutmix {__version__}")
        return
    try:
        from cutmix.runtime.terminal import guarded_output, print_once

        with guarded_output():
            if words[0] not in COMMANDS:
                hint = did_you_mean(words[0], COMMANDS, f"the commands are {', '.join(COMMANDS)}")
                raise InputError(f'there is no command "{words[0]}"; {hint}')
            COMMANDS[words[0]](words[1:])
    except InputError as error:
        print_once(f"cutmix: {error}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except ModuleNotFoundError as error:
        print("cutmix:", missing_module(f"cutmix {words[0]}", error), file=sys.stderr)
        raise SystemExit(2) from None


def demo(words: list[str]) -> None:
    """Train on embedded digits with and without CutMix, and write a page."""
    from cutmix.config.options import DemoOptions

    options = parse(DemoOptions, words, "demo", "Train a small model on embedded digits, with and without CutMix.")
    from cutmix.demo import run_demo

    run_demo(options)


def data(words: list[str]) -> None:
    """Describe a data set."""
    from cutmix.config.options import DataOptions

    options = parse(DataOptions, words, "data", "Describe a data set: classes, splits, sizes, copies, leaks.")
    from cutmix.data.describe import print_description

    print_description(options)


def train(words: list[str]) -> None:
    """Train a recipe, or a folder of images."""
    recipe, options = parse_train(words)
    from cutmix.api import config_text
    from cutmix.api import train as run

    if "--print-config" in words:
        print(config_text(recipe, options), end="")
        return
    from cutmix.runtime.device import keep_freed_memory

    keep_freed_memory()
    run(recipe=recipe, **vars(options))


def parse_train(words: list[str]) -> tuple["Recipe", "TrainOptions"]:
    """Parse ``[RECIPE] [flags]``; the defaults are those of the recipe, or those that fit the data."""
    import tyro

    from cutmix.api import settle
    from cutmix.config.options import TrainOptions
    from cutmix.config.recipe import Recipe
    from cutmix.training.mixes import MIXES

    class Flags(Recipe):  # a recipe is below the table of methods, which has the choices of --mix
        mix: Literal[tuple(MIXES)] | None  # type: ignore[assignment, valid-type]

    name = words[0] if words and not words[0].startswith("-") else None
    flags = spell_out_pretrained(words[1:] if name else words)
    given = {flag[2:].replace("-", "_"): value for flag, value in values_of(flags).items() if flag[:2] == "--"}
    base, held = base_of(name, given, asked=asks_for_help(flags))
    chosen, defaults = settle(base, {key: value for key, value in held.items() if key not in given})

    def both(
        recipe: Annotated[Recipe, tyro.conf.arg(name="", constructor=Flags)] = chosen,
        options: Annotated[TrainOptions, tyro.conf.arg(name="")] = defaults,
        config: Path | None = None,
        print_config: bool = False,
    ) -> tuple[Recipe, TrainOptions]:
        """Parse.

        Args:
            recipe: What to compute.
            options: How.
            config: YAML or JSON file of these settings by their names; flags win over it.
            print_config: Print all settings as YAML for --config, and train nothing.
        """
        return Recipe(**vars(recipe)), options

    recipe, options = parse(both, flags, f"train {name or '[RECIPE]'}", TRAIN)
    before = chosen.to_dict()
    changes = {key: value for key, value in recipe.to_dict().items() if key in given or value != before[key]}
    return settle(base, held | changes | vars(options))


def base_of(name: str | None, given: dict[str, str], *, asked: bool) -> tuple["Recipe", dict[str, Any]]:
    """Return what flags change: the recipe that is named, of a resumed run or of the data; and a file's settings."""
    from cutmix.api import base_recipe, read_config_file
    from cutmix.config.recipe import Recipe

    if asked and name is None:
        return Recipe(), {}
    if given.get("resume") == "":
        given = given | {"resume": "True"}
    named, held = read_config_file(Path(given["config"])) if given.get("config") else (None, {})
    return base_recipe(name or named, held | given), held


def spell_out_pretrained(flags: list[str]) -> list[str]:
    """Give --pretrained and --no-pretrained their value, as neither is a third choice that the data decide."""
    spelled = []
    for flag, following in zip_longest(flags, flags[1:], fillvalue=""):
        if flag == "--no-pretrained":
            spelled += ["--pretrained", "False"]
        elif flag == "--pretrained" and following not in ("True", "False", "None"):
            spelled += ["--pretrained", "True"]
        else:
            spelled.append(flag)
    return spelled


def values_of(flags: list[str]) -> dict[str, str]:
    """Return the word that follows each word: the value of a flag that has one."""
    return {
        name: value
        for word, following in zip_longest(flags, flags[1:], fillvalue="")
        for name, _, value in [word.partition("=") if "=" in word else (word, "", following)]
    }


def transfer(words: list[str]) -> None:
    """Train a detector or a captioner on a backbone."""
    recipe, options = parse_transfer(words)
    from cutmix.runtime.device import keep_freed_memory
    from cutmix.transfer.command import transfer as run

    keep_freed_memory()
    run(recipe, options)


def parse_transfer(words: list[str]) -> tuple["Transfer", "RunOptions"]:
    """Parse ``TASK [flags]``; the defaults are those of the task and its architecture, or of a resumed run."""
    import tyro

    from cutmix.config.options import RunOptions
    from cutmix.config.transfer import Transfer, backbone_name, find_transfer
    from cutmix.config.transfer import small as smaller

    task, flags = (words[0], words[1:]) if words and not words[0].startswith("-") else ("", words)
    if not task and asks_for_help(flags):
        print(f"usage: cutmix transfer detection|captioning [flags]; cutmix transfer TASK --help\n\n{TRANSFER}")
        raise SystemExit(0)
    given = values_of(flags)
    base = find_transfer(task, given.get("--arch", ""))
    base = smaller(base) if "--small" in given else base
    resumed = "--resume" in given and "--out" in given and (Path(given["--out"]) / "config.json").is_file()
    if resumed:
        from cutmix.runs.folder import read_recipe

        base = read_recipe(Path(given["--out"]), type(base))

    def all_of_it(
        recipe: Annotated[Transfer, tyro.conf.arg(name="", constructor=type(base))] = base,
        options: Annotated[RunOptions, tyro.conf.arg(name="")] = RunOptions(),  # noqa: B008
        small: bool = False,
    ) -> tuple[Transfer, RunOptions]:
        """Parse.

        Args:
            recipe: What to compute.
            options: How.
            small: Use defaults for a few hundred images and a CPU.
        """
        return recipe, options

    recipe, options = parse(all_of_it, flags, f"transfer {task}", TRANSFER)
    if recipe.name == base.name and not resumed:
        recipe = replace(recipe, name=f"{recipe.name}-{backbone_name(recipe.backbone)}")
    return recipe, options


def recipes(words: list[str]) -> None:
    """List the recipes."""
    from cutmix.config.recipes import RECIPES

    parse(lambda: None, words, "recipes", "List the recipes of cutmix train.")
    width = max(map(len, RECIPES))
    for name, recipe in RECIPES.items():
        data = recipe.data or "your own folder"
        print(f"{name:<{width}}  {recipe.model} on {data}, mix {recipe.mix}, {recipe.epochs} epochs")


def compare(words: list[str]) -> None:
    """Train several mixing methods, and say whether they differ."""
    from cutmix.config.options import CompareOptions

    if asks_for_help(words):
        parse(CompareOptions, words, "compare", COMPARE)
    own, rest = _split_flags(words, CompareOptions)
    options = parse(CompareOptions, own, "compare", COMPARE)
    recipe, _ = parse_train(rest)
    from cutmix.api import compare as run
    from cutmix.runtime.device import keep_freed_memory

    keep_freed_memory()
    found = run(recipe=recipe, **vars(options))
    if options.json:
        print(found.to_json())
    elif found:
        print(found)


def _split_flags(words: list[str], options: type) -> tuple[list[str], list[str]]:
    """Divide words into those of an options class, with their values, and the others."""
    names = {f"--{field.name.replace('_', '-')}" for field in fields(options)}
    own: list[str] = []
    rest: list[str] = []
    target = rest
    for word in words:
        if word.startswith("--"):
            target = own if word.partition("=")[0] in names else rest
        target.append(word)
    return own, rest


def evaluate(words: list[str]) -> None:
    """Evaluate a run or a file of weights."""
    from cutmix.config.options import EvaluateOptions

    options = parse(
        EvaluateOptions, words, "evaluate", "Evaluate a run, or a file of weights, with one or several suites."
    )
    from cutmix.evaluation.command import run_evaluate
    from cutmix.runtime.device import keep_freed_memory

    keep_freed_memory()
    run_evaluate(options)


def predict(words: list[str]) -> None:
    """Classify images."""
    from cutmix.config.options import PredictOptions

    options = parse(PredictOptions, words, "predict", "Print classes and probabilities of images, in the order given.")
    from cutmix.inference.command import run_predict

    if code := run_predict(options):
        raise SystemExit(code)


def explain(words: list[str]) -> None:
    """Draw what a prediction rests on."""
    from cutmix.config.options import ExplainOptions

    said = "Draw images with the heat map of the predicted class, beside the nearest training images."
    options = parse(ExplainOptions, words, "explain", said)
    from cutmix.inference.command import run_explain

    run_explain(options)


def serve(words: list[str]) -> None:
    """Serve a classifier on a local page."""
    from cutmix.config.options import ServeOptions

    options = parse(ServeOptions, words, "serve", "Serve a local page that classifies images and draws heat maps.")
    from cutmix.inference.command import run_serve

    run_serve(options)


def export(words: list[str]) -> None:
    """Export a classifier to another runtime."""
    from cutmix.config.options import ExportOptions

    options = parse(ExportOptions, words, "export", "Export a classifier with its preprocessing, and check the result.")
    from cutmix.inference.export import run_export

    run_export(options)


def push(words: list[str]) -> None:
    """Publish a classifier."""
    from cutmix.config.options import PushOptions

    options = parse(PushOptions, words, "push", "Publish a classifier with a model card, in timm's layout.")
    from cutmix.inference.push import run_push

    run_push(options)


def preview(words: list[str]) -> None:
    """Draw what mixing does to a set of images."""
    from cutmix.config.options import PreviewOptions

    options = parse(PreviewOptions, words, "preview", "Draw images unmixed and mixed, with their labels.")
    from cutmix.preview import run_preview

    run_preview(options)


def report(words: list[str]) -> None:
    """Write one page of one or several runs."""
    from cutmix.config.options import ReportOptions

    options = parse(ReportOptions, words, "report", "Write one self-contained HTML page of one or several runs.")
    from cutmix.report.summary import write_report
    from cutmix.runtime.terminal import say

    say(f"wrote {write_report(options.runs, options.out)}")


def paper(words: list[str]) -> None:
    """Print the paper's tables beside the results here."""
    from cutmix.config.options import PaperOptions

    options = parse(PaperOptions, words, "paper", "Print the paper's tables beside the results here.")
    from cutmix.paper.command import run_paper

    run_paper(options.tables, options.runs, options.results)


def reproduce(words: list[str]) -> None:
    """Train rows of the paper's tables."""
    from cutmix.config.options import ReproduceOptions

    options = parse(ReproduceOptions, words, "reproduce", REPRODUCE)
    from cutmix.paper.command import run_reproduce
    from cutmix.runtime.device import keep_freed_memory

    keep_freed_memory()
    run_reproduce(options)


_IN_ORDER = (demo, data, train, transfer, compare, evaluate, predict, explain, serve, export, push, preview, report,
             recipes, paper, reproduce)  # fmt: skip
COMMANDS = {command.__name__: command for command in _IN_ORDER}


def parse(what: Callable[..., Options], words: list[str], command: str, description: str) -> Options:
    """Parse the words of a command; tyro prints what it does not understand, with the closest flags."""
    import tyro

    from cutmix.runtime.terminal import print_once

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(what, args=words, prog=f"cutmix {command}", description=description)
    except SystemExit as stop:
        error: BaseException | None = stop
        while error is not None:  # a field out of range, which tyro would print in a frame
            if isinstance(error, InputError):
                raise error from None
            error = error.__context__
        print_once(printable(printed.getvalue().rstrip(), keep="\n"))
        raise


def asks_for_help(words: list[str]) -> bool:
    """Return whether the words ask for help, so that no data is needed."""
    return "-h" in words or "--help" in words
