"""Write the reference pages of the documentation from the code: ``python scripts/reference.py FOLDER``.

``make docs`` calls it. The pages hold what the code says (docstrings, flags, recipes, fields, definitions), so that
there is nothing to copy by hand.
"""

import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from textwrap import dedent
from typing import Any

import cutmix
from cutmix.config import options
from cutmix.config.recipe import Recipe, flag
from cutmix.config.recipes import RECIPES
from cutmix.config.tasks import CAPTIONING, FASTER_RCNN, SSD300, SUITES
from cutmix.report.metrics import METRICS
from cutmix.runs.record import SCHEMA, Record

COMMANDS: dict[str, tuple[Any, ...]] = {
    "demo": (options.DemoOptions,),
    "data": (options.DataOptions,),
    "shards": (options.ShardsOptions,),
    "preview": (options.PreviewOptions,),
    "train": (Recipe(), options.TrainOptions),
    "compare": (options.CompareOptions,),
    "evaluate": (options.EvaluateOptions,),
    "report": (options.ReportOptions,),
    "predict": (options.PredictOptions,),
    "explain": (options.ExplainOptions,),
    "serve": (options.ServeOptions,),
    "export": (options.ExportOptions,),
    "push": (options.PushOptions,),
    "transfer detection": (SSD300, options.RunOptions),
    "transfer detection --arch faster-rcnn": (FASTER_RCNN, options.RunOptions),
    "transfer captioning": (CAPTIONING, options.RunOptions),
    "paper": (options.PaperOptions,),
    "reproduce": (options.ReproduceOptions,),
}
MODULES = (
    "cutmix.api", "cutmix.models.regularizers", "cutmix.statistics", "cutmix.evaluation.attacks",
    "cutmix.evaluation.calibration", "cutmix.evaluation.classification",
    "cutmix.evaluation.localization", "cutmix.evaluation.boxes", "cutmix.evaluation.ood",
    "cutmix.evaluation.ood_conventions", "cutmix.transfer.average_precision", "cutmix.transfer.caption_scores",
    "cutmix.data.outliers",
    "cutmix.runtime.device", "cutmix.inference.model",
)  # fmt: skip


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    lines = [list(header)]
    lines += [["---"] * len(lines[0]), *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def field_docs(kind: type) -> dict[str, str]:
    """Return the string below each field of a dataclass and of its bases."""
    docs: dict[str, str] = {}
    for owner in reversed(kind.__mro__[:-1]):
        body = ast.parse(dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                assert isinstance(field.target, ast.Name)
                docs[field.target.id] = str(below.value.value)
    return docs


def default_of(value: Any) -> str:
    """Return a field's default as a flag is written."""
    if value is dataclasses.MISSING:
        return "required"
    if value in (None, ()):
        return ""
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`"


def flags_of(part: Any) -> list[list[str]]:
    """Return the flag, the default and the help of each field of a dataclass, or of a value of one."""
    kind = part if isinstance(part, type) else type(part)
    docs, rows = field_docs(kind), []
    for field in dataclasses.fields(kind):
        given = getattr(field.type, "__metadata__", ())  # what tyro is told beside the type
        if any("Suppress" in str(one) for one in given):
            continue
        value = field.default if isinstance(part, type) else getattr(part, field.name)
        name, text = (next((x for one in given if (x := getattr(one, what, None))), None) for what in ("name", "help"))
        positional = any("Positional" in str(one) for one in given)
        shown = field.name.upper() if positional else f"--{flag(name or field.name)}"
        rows.append([f"`{shown}`", default_of(value), text or docs[field.name]])
    return rows


def flags() -> str:
    """Return the flags of every command."""
    text = "# Flags\n\n`cutmix COMMAND --help` prints the same. A boolean flag `--x` has the opposite `--no-x`.\n"
    for command, parts in COMMANDS.items():
        rows = [row for part in parts for row in flags_of(part)]
        text += f"\n## cutmix {command}\n\n{table(['flag', 'default', 'effect'], rows)}"
    return text


def recipes() -> str:
    """Return the recipes with the fields in which each differs from the defaults."""
    default = Recipe()
    rows = []
    for name, recipe in RECIPES.items():
        changed = [f.name for f in dataclasses.fields(recipe) if getattr(recipe, f.name) != getattr(default, f.name)]
        shown = [f"`--{flag(field)} {_word(getattr(recipe, field))}`" for field in changed if field != "name"]
        rows.append([f"`{name}`", " ".join(shown)])
    return (
        "# Recipes\n\n`cutmix train NAME` runs a recipe; a flag beside the name replaces a field. The second column "
        "holds what differs from [the defaults](flags.md#cutmix-train).\n\n" + table(["name", "fields"], rows)
    )


def _word(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def attribute_docs(kind: type) -> dict[str, str]:
    """Return the entries of a docstring's ``Attributes`` section."""
    section = inspect.getdoc(kind).partition("Attributes:\n")[2].partition("\n\n")[0]  # type: ignore[union-attr]
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def results() -> str:
    """Return the fields of a line of ``results.jsonl``."""
    docs = attribute_docs(Record)
    rows = []
    for field in dataclasses.fields(Record):
        kind = re.sub(r"\b(typing|collections\.abc)\.", "", inspect.formatannotation(field.type))
        rows.append([f"`{field.name}`", f"`{kind}`", docs[field.name]])
    return (
        "# Result fields\n\nA line of `results.jsonl` is a JSON object with these fields, without those at their "
        f"default value. `schema` is {SCHEMA}: a line with another number, an unknown field or a wrong type is refused."
        "\n\n" + table(["field", "type", "meaning"], rows)
    )


def metrics() -> str:
    """Return the definition of every metric, by suite."""
    text = "# Metrics\n\nThe names are those of `results.jsonl`; the definitions are those of the report page.\n"
    for suite in SUITES.values():
        rows = [
            [f"`{name}`", metric.heading, metric.better or "–", metric.definition]
            for name, metric in METRICS.items()
            if metric.suite == suite.name
        ]
        text += f"\n## {suite.title}\n\n{table(['name', 'in tables', 'better', 'definition'], rows)}"
    return text


def api() -> str:
    """Return directives that fill in the docstrings of the public names."""
    names = [name for name in cutmix.__all__ if not name.startswith("__")]
    text = "# Python\n\n## The package\n\n```{eval-rst}\n.. currentmodule:: cutmix\n"
    for name in sorted(names, key=str.lower):
        kind = "class" if inspect.isclass(getattr(cutmix, name)) else "function"
        text += f"\n.. auto{kind}:: cutmix.{name}\n"
    text += "```\n\n## Modules\n"
    for module in MODULES:
        text += f"\n### {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n```\n"
    return text


PAGES: dict[str, Callable[[], str]] = {
    "flags": flags,
    "recipes": recipes,
    "results": results,
    "metrics": metrics,
    "api": api,
}


def write_pages(folder: Path) -> None:
    """Write every page whose text has changed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        page, text = folder / f"{name}.md", make()
        if not page.is_file() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
