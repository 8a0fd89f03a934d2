"""The command: parses, then calls one function a subcommand. Torch is imported only by what needs it."""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from cutmix.errors import InputError
from cutmix.version import __version__

if TYPE_CHECKING:
    from cutmix.config.options import RunOptions, TrainOptions
    from cutmix.config.recipes import Recipe
    from cutmix.config.transfer import Transfer

HELP = """cutmix: train strong image classifiers with CutMix, and measure what it bought.

  cutmix demo                    train on embedded digits with and without CutMix; two minutes, no data needed
  cutmix preview --data photos/  a picture of what Cutout, Mixup and CutMix do to your own images
  cutmix train --data photos/    fine-tune a pretrained network on a folder that holds one folder a class
  cutmix train RECIPE            train a recipe by its name; every field of it is a flag
  cutmix recipes                 the names of the recipes
  cutmix transfer detection      train a detector on a backbone; cutmix transfer captioning: a captioner
  cutmix evaluate RUN            measure a run, or a file of weights, on its own or on other data
  cutmix report RUN RUN          one page of several runs, side by side
  cutmix paper [TABLE]           the paper's tables with what was measured here
  cutmix reproduce TABLE         run the rows of one; --scale smoke only tries them

cutmix COMMAND --help explains a command's flags, cutmix --version says the version.
Several processes: torchrun --nproc-per-node 4 -m cutmix train RECIPE
"""

TRAIN = """Train a classifier and measure it after each epoch.

A RECIPE is a named set of defaults for the flags below (cutmix recipes lists them). Without one, a folder of
photographs is fine-tuned from a pretrained network with CutMix, and a set of small images is trained from scratch."""

TRANSFER = """Train a detector or a captioner on a backbone, to see what the backbone is worth, and measure it.

--backbone takes the folder of a run, a file of weights, pretrained (timm's) or none. The defaults are the paper's;
--small has them for some hundred pictures and a CPU."""

REPRODUCE = """Run the rows of a table of the paper, and print it with what was measured.

First it says how long that will take. Interrupted and started again it goes on where it was; what is finished is not
run again. Rows can be shared among machines that see the same folder, for example as SLURM array tasks:

sbatch --array=1-15 --wrap 'cutmix reproduce table5 --shard $SLURM_ARRAY_TASK_ID/15'"""

Options = TypeVar("Options")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a user's mistake is one sentence and exit code 2, a closed pipe is exit code 141."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if words[0] in ("-V", "--version"):
        print(f"cutmix {__version__}")
        return
    from cutmix.runtime.terminal import guarded_output, print_error

    try:
        with guarded_output():
            if words[0] not in COMMANDS:
                raise InputError(f'there is no command "{words[0]}"; the commands are {", ".join(COMMANDS)}')
            COMMANDS[words[0]](words[1:])
    except InputError as error:
        print_error(str(error))
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def demo(words: list[str]) -> None:
    """Train on the embedded digits with and without CutMix, and make a page of it."""
    from cutmix.config.options import DemoOptions

    options = parse(DemoOptions, words, "demo", "Train a small network on embedded digits, with and without CutMix.")
    from cutmix.demo import run_demo

    run_demo(options)


def train(words: list[str]) -> None:
    """Train a recipe, or a folder of photographs."""
    recipe, options = parse_train(words)
    from cutmix.runtime.device import keep_freed_memory
    from cutmix.training.loop import run_training as run

    keep_freed_memory()

    run(recipe, options)


def parse_train(words: list[str]) -> tuple["Recipe", "TrainOptions"]:
    """Parse ``[RECIPE] [flags]``: the flags' defaults are the recipe's, or those that fit the data."""
    import tyro

    from cutmix.config.options import TrainOptions
    from cutmix.config.recipes import PHOTOS, Recipe, find_recipe

    name = words[0] if words and not words[0].startswith("-") else None
    flags = words[1:] if name else words
    base = find_recipe(name) if name else PHOTOS if asks_for_help(flags) else default_recipe(flags)

    def both(
        recipe: Annotated[Recipe, tyro.conf.arg(name="")] = base,
        options: Annotated[TrainOptions, tyro.conf.arg(name="")] = TrainOptions(),  # noqa: B008
    ) -> tuple[Recipe, TrainOptions]:
        return recipe, options

    recipe, options = parse(both, flags, f"train {name or '[RECIPE]'}", TRAIN)
    if base in (Recipe(), PHOTOS) and name is None and recipe.name == base.name:
        stem = Path(recipe.data).expanduser().resolve().name if Path(recipe.data).exists() else recipe.data
        recipe = replace(recipe, name=f"{stem}-{recipe.model}-{recipe.mix}".replace("/", "-"))
    return recipe, options


def default_recipe(flags: list[str]) -> "Recipe":
    """Return the defaults without a recipe's name: a resumed run's own, or those for the kind of data."""
    from cutmix.config.recipes import PHOTOS, Recipe

    given = values_of(flags)
    if "--resume" in given and "--out" in given and (Path(given["--out"]) / "config.json").is_file():
        from cutmix.runs.folder import saved_recipe

        return saved_recipe(Path(given["--out"]))
    if "--data" not in given:
        raise InputError("there is nothing to train on; give --data FOLDER, or the name of a recipe (cutmix recipes)")
    from cutmix.data import is_small

    return Recipe() if is_small(given["--data"]) else PHOTOS


def values_of(flags: list[str]) -> dict[str, str]:
    """Return what follows each word, before the words are parsed: the value of a flag that has one."""
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
    """Parse ``TASK [flags]``: the defaults are those of the task and its architecture, or a resumed run's own."""
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
            small: Take defaults for some hundred pictures and a CPU.
        """
        return recipe, options

    recipe, options = parse(all_of_it, flags, f"transfer {task}", TRANSFER)
    if recipe.name == base.name and not resumed:
        recipe = replace(recipe, name=f"{recipe.name}-{backbone_name(recipe.backbone)}")
    return recipe, options


def recipes(words: list[str]) -> None:
    """List the recipes."""
    from cutmix.config.recipes import RECIPES

    if words:
        raise InputError(f'cutmix recipes takes no words, but "{words[0]}" was given')
    width = max(map(len, RECIPES))
    for name, recipe in RECIPES.items():
        data = recipe.data or "your own folder"
        print(f"{name:<{width}}  {recipe.model} on {data}, mix {recipe.mix}, {recipe.epochs} epochs")


def evaluate(words: list[str]) -> None:
    """Measure a run or a file of weights."""
    from cutmix.config.options import EvaluateOptions

    options = parse(
        EvaluateOptions, words, "evaluate", "Measure a run, or a file of weights, by one or several suites."
    )
    from cutmix.evaluate.command import run_evaluate
    from cutmix.runtime.device import keep_freed_memory

    keep_freed_memory()
    run_evaluate(options)


def preview(words: list[str]) -> None:
    """Draw what mixing does to one's own images."""
    from cutmix.config.options import PreviewOptions

    options = parse(PreviewOptions, words, "preview", "Draw original, Cutout, Mixup and CutMix with the mixed labels.")
    from cutmix.preview.command import run_preview

    run_preview(options)


def report(words: list[str]) -> None:
    """Write one page of several runs."""
    from cutmix.config.options import ReportOptions

    options = parse(ReportOptions, words, "report", "Write one self-contained HTML page of one or several runs.")
    from cutmix.report.summary import write_report

    print(f"wrote {write_report(options.runs, options.out)}")


def paper(words: list[str]) -> None:
    """Print the paper's tables with what was measured here."""
    from cutmix.config.options import PaperOptions

    options = parse(PaperOptions, words, "paper", "Print the paper's tables with what was measured here beside them.")
    from cutmix.paper.command import run_paper

    run_paper(options.tables, options.runs, options.results)


def reproduce(words: list[str]) -> None:
    """Run rows of the paper's tables."""
    from cutmix.config.options import ReproduceOptions

    options = parse(ReproduceOptions, words, "reproduce", REPRODUCE)
    from cutmix.paper.reproduce import run_reproduce
    from cutmix.runtime.device import keep_freed_memory

    keep_freed_memory()
    run_reproduce(options)


COMMANDS = {
    "demo": demo,
    "train": train,
    "transfer": transfer,
    "evaluate": evaluate,
    "preview": preview,
    "report": report,
    "recipes": recipes,
    "paper": paper,
    "reproduce": reproduce,
}


def parse(what: Callable[..., Options], words: list[str], command: str, description: str) -> Options:
    """Parse a command's words into what describes its flags."""
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(what, args=words, prog=f"cutmix {command}", description=description)
    except SystemExit as error:
        if error.code in (0, None):  # the help
            raise
        raise InputError(_in_one_line(said.getvalue())) from None


_HEADINGS = ("parsing error", "invalid choice", "unrecognized options", "value error")  # of the parser's frames


def _in_one_line(framed: str) -> str:
    """Return what the parser says in a frame, up to its hint at the help, as one sentence."""
    lines = [line.strip("│╭╮╰╯─ \t") for line in framed.splitlines()]
    kept = []
    for line in lines:
        if line.lower().startswith(("for full helptext", "argument helptext")):
            break
        if line and line.lower() not in _HEADINGS:
            kept.append(line)
    return re.sub(r"^Error parsing \w+: ", "", " ".join(kept))


def asks_for_help(words: list[str]) -> bool:
    """Return whether the flags are only to be explained, so that no data need be there."""
    return "-h" in words or "--help" in words
