"""Imports follow the map in CONTRIBUTING, and what reads results or explains flags starts without torch."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cutmix"
FILES = sorted(PACKAGE.rglob("*.py"))
WITHOUT_TORCH = (
    "recipe", "recipes", "options", "report", "paper", "measured", "statistics", "runs", "comparison", "plots", "jsonl",
    "show_paper", "cli", "errors", "version",
)  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, *, at_import_time: bool) -> set[str]:
    """Return the names of the modules that a file imports: all, or those that importing it imports."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif at_import_time and (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        ):
            continue
        else:
            found |= imported(node, at_import_time=at_import_time)
    return found


@cache
def imports(path: Path, at_import_time: bool = False) -> set[str]:
    return imported(ast.parse(path.read_text()), at_import_time=at_import_time)


def ours(names: set[str]) -> set[str]:
    """Return the package's modules among the names."""
    return {name for name in names if name in {module_name(path) for path in FILES}}


def with_parents(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[: i + 1]) for i in range(len(parts))}


@pytest.mark.parametrize("start", WITHOUT_TORCH)
def test_these_import_no_torch_not_even_through_others(start: str) -> None:
    files = {module_name(path): path for path in FILES}
    left, seen = {f"cutmix.{start}"}, set()
    while left:
        module = left.pop()
        seen.add(module)
        names = imports(files[module], at_import_time=True)
        heavy = {name for name in names if name.split(".")[0] in ("torch", "torchvision", "timm", "safetensors")}
        assert not heavy, f"{start} imports {heavy} through {module}"
        left |= set().union(*map(with_parents, ours(names))) - seen


def test_mixing_stands_alone() -> None:
    allowed = ("torch", "numpy", "cutmix.runtime.seeding", "cutmix.errors", "cutmix.mixing")
    standard = {"collections.abc", "dataclasses", "math", "os", "typing", "abc", "copy", "functools", "itertools"}
    for path in PACKAGE.glob("mixing/*.py"):
        for name in imports(path):
            known = name.startswith(allowed) or name in standard or name.rpartition(".")[0] in standard
            assert known, f"{path.name} imports {name}"


def rows() -> list[list[str]]:
    """Return CONTRIBUTING's table: the modules, and folders of them, that each row names."""
    table = re.findall(r"^\| (`cutmix/.*?) \|", (PACKAGE.parent / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    return [re.findall(r"`(?:cutmix/)?(\w+)(?:/|\.py)`", row) for row in table]


def part_of(path: Path) -> str:
    """Return what the table calls a module: its own name, or that of its folder."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_the_map_names_every_module_once() -> None:
    named = [part for row in rows() for part in row]
    assert sorted(named) == sorted({part_of(path) for path in FILES} - {"__init__", "__main__"})


def test_imports_point_up_the_map() -> None:
    level = {part: number for number, row in enumerate(rows()) for part in row}
    for path in FILES:
        part = part_of(path)
        if part in ("__init__", "__main__"):  # the names that the package gives out, and the command's start
            continue
        for name in ours(imports(path)) - {"cutmix"}:
            assert level[name.split(".")[1]] <= level[part], f"{module_name(path)} imports {name}, which is below it"


APART = {
    # what it is: what it must not import, though the map would let it
    "data": ("models",),
    "models": ("data",),
    "state": ("evaluate",),
    "transfer": ("optim",),
}


@pytest.mark.parametrize("part", APART)
def test_what_stands_apart(part: str) -> None:
    files = [path for path in FILES if part_of(path) == part]
    assert files
    for path in files:
        for upper in APART[part]:
            above = {name for name in imports(path) if f"{name}.".startswith(f"cutmix.{upper}.")}
            assert not above, f"{module_name(path)} imports {above}"


def test_no_module_has_the_name_of_its_function() -> None:
    """So that ``cutmix.x`` is a module wherever it is imported, and never what a line took out of it."""
    found = [
        module_name(path)
        for path in FILES
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == path.stem
    ]
    assert not found


def test_one_file_names_torch_distributed() -> None:
    names = [path.name for path in FILES if "torch.distributed" in path.read_text()]
    assert names == ["distributed.py"]


def mirrored(path: Path) -> Path:
    """Return the test file of a module."""
    return (Path(__file__).parent / path.relative_to(PACKAGE)).with_name(f"test_{path.name}")


def test_every_module_has_its_test_file() -> None:
    parts = ("circumstances.py", "comparison.py", "curves.py", "plots.py", "runs.py")
    of_the_page = {PACKAGE / name: PACKAGE / "report.py" for name in parts}
    untested = [
        str(path.relative_to(PACKAGE))
        for path in FILES
        if path.stem not in ("__init__", "__main__", "version", "errors")
        and not mirrored(of_the_page.get(path, path)).is_file()
    ]
    assert not untested
