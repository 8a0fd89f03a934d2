"""The command line: parse the words, then call one function per command. Torch is imported only where it is needed."""

import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, make_dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar

from cutmix import __version__
from cutmix.errors import InputError, did_you_mean, missing_module, printable

if TYPE_CHECKING:
    from cutmix.config.options import RunOptions, TrainOptions
    from cutmix.config.recipe import Recipe
    from cutmix.config.tasks import Transfer

HELP = """cutmix: train image classifiers with CutMix, and evaluate its effect.

  cutmix demo                    train on embedded digits with and without CutMix: two minutes, no data needed
  cutmix data photos/            describe a data set: classes, splits, sizes, files left out, copies, leaks
  cutmix shards photos/ --out D  write tar shards, for very many images; --data D trains on them
  cutmix preview --data photos/  draw your images after Cutout, Mixup and CutMix
  cutmix train --data photos/    fine-tune a pretrained model on a folder that holds one folder per class
  cutmix train RECIPE            train a recipe; every field of it is a flag
  cutmix compare --data photos/  train several mixing methods and seeds: does mixing help on your images?
  cutmix recipes                 list the recipes
  cutmix transfer detection      train a detector on a backbone; cutmix transfer captioning: a captioner
  cutmix evaluate RUN            evaluate a run, or a file of weights, on its own or on other data
  cutmix predict RUN photos/     print classes and probabilities of images, as CSV or JSON lines
  cutmix explain RUN photo.jpg   draw the heat map of a prediction, beside the nearest training images
  cutmix serve RUN               serve a local page that classifies images and draws heat maps
  cutmix export RUN              export the classifier for onnxruntime or torch.export, with its preprocessing
  cutmix push RUN USER/NAME      publish the classifier on the Hugging Face Hub, in timm's layout
  cutmix report RUN RUN          write one page that compares runs
  cutmix paper [TABLE]           print the paper's tables beside the results here
  cutmix reproduce TABLE         train the rows of a table; --scale smoke only tries them

cutmix COMMAND --help explains the flags of a command, cutmix --version prints the version. Completion of commands and
flags with the tab key, in bash and zsh: eval "$(cutmix --completion bash)" in ~/.bashrc, or zsh in ~/.zshrc.
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

Prints how long that will take: before the first run, with --scale smoke after it. Interrupted, the same command
resumes; finished rows are not run again. Rows can be shared among machines that see the same folder, for example as
SLURM array tasks:

sbatch --array=1-15 --wrap 'cutmix reproduce table5 --shard $SLURM_ARRAY_TASK_ID/15'"""

Options = TypeVar("Options")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. A user error is one sentence and exit code 2, a closed pipe exit code 141."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        from cutmix.runtime.terminal import guarded_output, print_once

        with guarded_output():
            if not words or words[0] in ("-h", "--help", "help"):
                print(HELP, end="")
            elif words[0] in ("-V", "--version"):
                print(f"cutmix {__version__}")
            elif words[0] == "--completion":
                print_completion(words[1] if len(words) > 1 else "")
            elif words[0] in COMMANDS:
                COMMANDS[words[0]](words[1:])
            else:
                hint = did_you_mean(words[0], COMMANDS, f"the commands are {', '.join(COMMANDS)}")
                raise InputError(f'there is no command "{words[0]}"; {hint}')
    except InputError as error:
        print_once(f"cutmix: {error}")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except ModuleNotFoundError as error:
        print("cutmix:", missing_module(" ".join(["cutmix", *words[:1]]), error), file=sys.stderr)
        raise SystemExit(2) from None


def train(words: list[str]) -> None:
    """Train a recipe, or a folder of images."""
    recipe, options = parse_train(words)
    from cutmix.api import train as run
    from cutmix.training.settings import config_text

    if "--print-config" in words:
        print(config_text(recipe, options), end="")
        return
    from cutmix.runtime.device import keep_freed_memory

    keep_freed_memory()
    found = run(recipe=recipe, **vars(options))
    if recipe.folds and not recipe.fold:
        from cutmix.runtime.terminal import print_tables

        print_tables(found)


def parse_train(words: list[str], command: str = "train") -> tuple["Recipe", "TrainOptions"]:
    """Parse ``[RECIPE] [flags]`` of a command; the defaults are those of the recipe, or those that fit the data."""
    import tyro

    from cutmix.config.options import TrainOptions
    from cutmix.config.recipe import Recipe
    from cutmix.training.mixes import MIXES
    from cutmix.training.settings import settle

    class Flags(Recipe):  # a recipe is below the table of methods, which has the choices of --mix
        mix: Literal[tuple(MIXES)] | None  # type: ignore[assignment, valid-type]

    name = words[0] if words and not words[0].startswith("-") else None
    flags = spell_out_pretrained(words[1:] if name else words)
    if "--labels" in values_of(flags):
        if "--data" in values_of(flags):
            raise InputError("--data and --labels are both given; a file of labels names its images by itself")
        flags = [f"--data{word[8:]}" if word.partition("=")[0] == "--labels" else word for word in flags]
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

    recipe, options = parse(both, flags, f"{command} {name or '[RECIPE]'}", TRAIN)
    before = chosen.to_dict()
    changes = {key: value for key, value in recipe.to_dict().items() if key in given or value != before[key]}
    return settle(base, held | changes | vars(options))


def base_of(name: str | None, given: dict[str, str], *, asked: bool) -> tuple["Recipe", dict[str, Any]]:
    """Return the recipe that flags change (by its name, of a resumed run, or for the data) and a file's settings."""
    from cutmix.config.recipe import Recipe
    from cutmix.training.settings import base_recipe, read_config_file

    if asked and name is None:
        return Recipe(), {}
    if given.get("resume") == "":
        given = given | {"resume": "True"}
    named, held = read_config_file(Path(given["config"])) if given.get("config") else (None, {})
    return base_recipe(name or named, held | given), held


def spell_out_pretrained(flags: list[str]) -> list[str]:
    """Give --pretrained and --no-pretrained a value; without either flag, the data decide."""
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
    """Return the next word of each word: the value of a flag that has one."""
    return {
        name: value
        for word, following in zip_longest(flags, flags[1:], fillvalue="")
        for name, _, value in [word.partition("=") if "=" in word else (word, "", following)]
    }


def transfer(words: list[str]) -> None:
    """Train a detector or a captioner on a backbone."""
    recipe, options = parse_transfer(words)
    from cutmix.api import transfer as run
    from cutmix.runtime.device import keep_freed_memory

    keep_freed_memory()
    run(recipe=recipe, **vars(options))


def parse_transfer(words: list[str]) -> tuple["Transfer", "RunOptions"]:
    """Parse ``TASK [flags]``; the defaults are those of the task and its architecture, or of a resumed run."""
    import tyro

    from cutmix.config.options import RunOptions
    from cutmix.config.tasks import Transfer, backbone_name, find_transfer, small_transfer

    task, flags = (words[0], words[1:]) if words and not words[0].startswith("-") else ("", words)
    if not task and asks_for_help(flags):
        print(f"usage: cutmix transfer detection|captioning [flags]; cutmix transfer TASK --help\n\n{TRANSFER}")
        raise SystemExit(0)
    given = values_of(flags)
    base = find_transfer(task, given.get("--arch", ""))
    base = small_transfer(base) if "--small" in given else base
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
    from cutmix import api

    parse(lambda: None, words, "recipes", "List the recipes of cutmix train.")
    width = max(map(len, found := api.recipes()))
    for name, recipe in found.items():
        about = f"{recipe.model} on {recipe.data}, mix {recipe.mix}, {recipe.epochs} epochs"
        print(f"{name:<{width}}  {about if recipe.data else 'your own folder (--data), by its number of images'}")


def compare(words: list[str]) -> None:
    """Train several mixing methods, and say whether they differ."""
    from cutmix.config.options import SHARED, CompareOptions

    if asks_for_help(words):
        parse(CompareOptions, words, "compare", COMPARE)
    of_compare = [each.name for each in fields(CompareOptions) if each.name not in SHARED]
    own, rest = _split_flags(words, of_compare)
    options = parse(CompareOptions, own, "compare", COMPARE)
    recipe, training = parse_train(rest, "compare")  # which may read options of the runs from a file
    if "--print-config" in words:
        from cutmix.training.settings import config_text

        print(config_text(recipe, training), end="")
        return
    from cutmix.api import compare as run
    from cutmix.runtime.device import keep_freed_memory

    keep_freed_memory()
    # standard output is for the answer alone if a program reads it
    with contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext():
        found = run(recipe=recipe, **vars(training) | {name: getattr(options, name) for name in of_compare})
    if options.json:
        print(found.to_json())
    elif found:
        print(found)


def _split_flags(words: list[str], of: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide words into the flags of some fields, with their values, and the others."""
    names = {f"--{name.replace('_', '-')}" for name in of}
    own: list[str] = []
    rest: list[str] = []
    target = rest
    for word in words:
        if word.startswith("--"):
            target = own if word.partition("=")[0] in names else rest
        target.append(word)
    return own, rest


def print_completion(shell: str) -> None:
    """Print a script for the completion of commands and flags in a shell."""
    from cutmix.config import options as kinds
    from cutmix.config.recipe import Recipe
    from cutmix.config.recipes import RECIPES
    from cutmix.config.shell_completion import completion_script
    from cutmix.config.tasks import TASKS, Captioning, Detection
    from cutmix.training.mixes import MIXES

    own: dict[str, list[type]] = {
        "train": [Recipe, kinds.TrainOptions, make_dataclass("More", [("config", str), ("print_config", bool)])],
        "compare": [kinds.CompareOptions, Recipe],
        "transfer": [Detection, Captioning, kinds.RunOptions], "recipes": [],
    }  # fmt: skip
    flags = {name: own[name] if name in own else [getattr(kinds, PLAIN[name].options)] for name in COMMANDS}
    choices = {f"{command} --mix": tuple(MIXES) for command in ("train", "compare")}
    print(completion_script(shell, flags, choices, {"train": RECIPES, "transfer": TASKS}), end="")


class Plain(NamedTuple):
    """A command whose flags are the fields of one class of ``config.options``."""

    options: str  # name of the class
    said: str  # description in its help
    first: tuple[str, ...] = ("source",)  # fields that are positional arguments of the function of ``cutmix.api``
    show: Callable[[Any, Any], None] = lambda found, options: None  # prints its result
    keep_memory: bool = False  # whether it keeps freed memory, as training does


def run_plain(command: str, words: list[str]) -> None:
    """Parse the words of a command, call its function of ``cutmix.api``, and show the result."""
    from cutmix import api
    from cutmix.config import options as kinds

    plain = PLAIN[command]
    options: Any = parse(getattr(kinds, plain.options), words, command, plain.said)
    if plain.keep_memory:
        from cutmix.runtime.device import keep_freed_memory

        keep_freed_memory()
    given = dict(vars(options))
    first = [given.pop(name) for name in plain.first]
    if command == "evaluate":
        given |= {"suites": given.pop("suite"), "show": True}
    plain.show(getattr(api, command)(*first, **given), options)


def show_tables(found: Any, options: Any) -> None:
    """Print a result as tables and sentences, or as JSON on request."""
    from cutmix.runtime.terminal import print_tables, say

    if getattr(options, "json", False):
        print(found.to_json())
        return
    print_tables(found)
    if getattr(options, "out", None):
        say(f"wrote {options.out}")


def show_paper(found: Any, options: Any) -> None:
    """Print tables of the paper, once for all processes."""
    from cutmix.runtime.terminal import print_tables

    if found.found or not hasattr(options, "shard"):
        print_tables(found)


def show_page(page: Any, options: Any) -> None:
    """Print the path of a page."""
    from cutmix.runtime.terminal import say

    say(f"wrote {page}")


def show_predictions(found: Any, options: Any) -> None:
    """Write predictions as soon as they are made; exit code 2 if a file cannot be read."""
    from cutmix.inference.command import write_predictions

    if code := write_predictions(found, options):
        raise SystemExit(code)


PLAIN = {
    "demo": Plain(
        "DemoOptions", "Train a small model on embedded digits, with and without CutMix.", (), show_tables, True
    ),
    "data": Plain("DataOptions", "Describe a data set: classes, splits, sizes, copies, leaks.", ("data",), show_tables),
    "shards": Plain(
        "ShardsOptions",
        "Write a data set as tar shards; after an interruption, the same command continues.",
        ("data", "out"),
    ),
    "evaluate": Plain(
        "EvaluateOptions", "Evaluate a run, or a file of weights, with one or several suites.", keep_memory=True
    ),
    "predict": Plain(
        "PredictOptions",
        "Print classes and probabilities of images, in the order given.",
        ("source", "images"),
        show_predictions,
    ),
    "explain": Plain(
        "ExplainOptions",
        "Draw images with the heat map of the predicted class, beside the nearest training images.",
        ("source", "images"),
    ),
    "serve": Plain("ServeOptions", "Serve a local page that classifies images and draws heat maps."),
    "export": Plain("ExportOptions", "Export a classifier with its preprocessing, and check the result."),
    "push": Plain("PushOptions", "Publish a classifier with a model card, in timm's layout.", ("source", "name")),
    "preview": Plain("PreviewOptions", "Draw images unmixed and mixed, with their labels.", ("data",)),
    "report": Plain(
        "ReportOptions", "Write one self-contained HTML page of one or several runs.", ("runs",), show_page
    ),
    "paper": Plain("PaperOptions", "Print the paper's tables beside the results here.", ("tables",), show_paper),
    "reproduce": Plain("ReproduceOptions", REPRODUCE, ("table",), show_paper, keep_memory=True),
}
_OWN = {"train": train, "transfer": transfer, "compare": compare, "recipes": recipes}
_ORDER = (
    "demo", "data", "shards", "train", "transfer", "compare", "evaluate", "predict", "explain", "serve", "export",
    "push", "preview", "report", "recipes", "paper", "reproduce",
)  # fmt: skip
COMMANDS: dict[str, Callable[[list[str]], None]] = {name: _OWN.get(name) or partial(run_plain, name) for name in _ORDER}


def parse(what: Callable[..., Options], words: list[str], command: str, description: str) -> Options:
    """Parse the words of a command; tyro prints unknown words, with the closest flags."""
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
