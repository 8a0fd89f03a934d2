"""The package keeps to the map in CONTRIBUTING: imports point down it, and the light parts start without torch."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cutmix"
TESTS = ROOT / "tests"
HEAVY = {"torch", "torchvision", "timm", "safetensors"}
WITHOUT_TORCH = (
    "config", "runs.record", "cli", "errors", "runtime.files", "training.mixes", "training.settings",
    "statistics", "paper.compare", "report",
)  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {name: path for name, path in FILES.items() if path.stem != "__init__"}
PARTS = sorted({name.split(".")[1] for name in FILES if name not in ("cutmix", "cutmix.__main__")})


def imported(tree: ast.AST, *, at_import_time: bool) -> set[str]:
    """Return the modules that a syntax tree imports: all of them, or those that importing the file imports."""
    found: set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
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
def imports(module: str, at_import_time: bool = False) -> frozenset[str]:
    return frozenset(imported(ast.parse(FILES[module].read_text()), at_import_time=at_import_time))


def own_imports(module: str) -> set[str]:
    """Return the package's modules that a module imports, without the package itself, whose names are lazy."""
    return {name for name in imports(module) if name in FILES and name not in ("cutmix", module)}


def part_of(module: str) -> str:
    return module.split(".")[1]


def levels() -> list[list[str]]:
    """Return the rows of CONTRIBUTING's map, lowest first: the modules and folders that each names."""
    rows = re.findall(r"^\| (`cutmix/.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    return [re.findall(r"`(?:cutmix/)?(\w+)(?:/|\.py)`", row) for row in rows]


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    """Return the longest chain of imports, and fail if there is a circle."""
    chains: dict[str, list[str]] = {}

    def visit(node: str, above: tuple[str, ...]) -> list[str]:
        assert node not in above, f"import circle: {' -> '.join((*above[above.index(node) :], node))}"
        if node not in chains:
            below = [visit(name, (*above, node)) for name in sorted(graph[node])]
            chains[node] = [node, *max(below, key=len, default=[])]
        return chains[node]

    return max((visit(node, ()) for node in graph), key=len)


def test_the_map_names_every_part_once_on_ten_levels() -> None:
    assert sorted(part for row in levels() for part in row) == PARTS
    assert len(levels()) <= 10


@pytest.mark.parametrize("part", PARTS)
def test_imports_point_down_the_map(part: str) -> None:
    """Parts of a row do not import each other."""
    level = {name: number for number, row in enumerate(levels()) for name in row}
    upward = [
        f"{module} imports {name}"
        for module in FILES
        if module not in ("cutmix", "cutmix.__main__") and part_of(module) == part
        for name in own_imports(module)
        if part_of(name) != part and level[part_of(name)] >= level[part]
    ]
    assert not upward


def test_modules_do_not_import_in_circles() -> None:
    chain = longest_chain({module: own_imports(module) for module in FILES if module != "cutmix"})
    print(f"{len(chain)} levels of modules: {' -> '.join(chain)}")


@pytest.mark.parametrize("part", WITHOUT_TORCH)
def test_these_import_no_torch_not_even_through_others(part: str) -> None:
    start = {name for name in FILES if f"{name}.".startswith(f"cutmix.{part}.")}
    assert start
    left, seen = set(start), {"cutmix"}
    while left:
        module = left.pop()
        seen.add(module)
        names = imports(module, at_import_time=True)
        heavy = {name for name in names if name.split(".")[0] in HEAVY}
        assert not heavy, f"{part} imports {heavy} through {module}"
        parents = {name.rpartition(".")[0] for name in names if name in FILES}
        left |= ({name for name in names if name in FILES} | parents) - seen - {""}


def test_mixing_stands_alone() -> None:
    allowed = ("torch", "numpy", "cutmix.runtime.seeding", "cutmix.errors", "cutmix.mixing")
    for module in FILES:
        if f"{module}.".startswith("cutmix.mixing."):
            foreign = {
                name
                for name in imports(module)
                if not name.startswith(allowed) and name.split(".")[0] not in sys.stdlib_module_names
            }
            assert foreign <= {"cutmix.runtime"}, f"{module} imports {foreign}"


@pytest.mark.parametrize(("module", "allowed"), [("cutmix", set()), ("cutmix.mixing", {"torch", "numpy"})])
def test_importing_a_part_loads_no_more(module: str, allowed: set[str]) -> None:
    known = (HEAVY | {"numpy", "scipy", "sklearn", "matplotlib", "PIL", "tyro", "rich", "jinja2", "pandas"}) - allowed
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}} & {known})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_transforms_run_with_torch_and_numpy_alone() -> None:
    """As after ``pip install --no-deps``; a command then says what it lacks."""
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[^\w-]", line)[0] for line in metadata} - {"torch", "numpy"}
    modules = {{"pillow": "PIL", "scikit-learn": "sklearn", "pyyaml": "yaml"}.get(name, name) for name in names}
    code = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(modules)}))
import torch, cutmix
images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
for mix in (cutmix.CutMix(seed=0), cutmix.Mixup(seed=0), cutmix.RandomChoice([cutmix.CutMix()], seed=0)):
    mixed, targets = cutmix.collate(mix)([*zip(images, labels.tolist())])
    assert mixed.shape == images.shape and cutmix.mixed_cross_entropy(torch.zeros(4, 4), targets) > 0
from cutmix.cli import main
main(["train"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    said = r"cutmix: cutmix train needs the module \w+, which is not installed; pip install -e \. in the source tree"
    assert re.match(said, done.stderr)


def test_torch_distributed_is_used_in_one_file_and_for_the_rank_of_a_random_stream() -> None:
    """Mixing stands alone: it asks for the rank itself."""
    used = [name for name in FILES if any(re.fullmatch(r"torch\.distributed(\..*)?", one) for one in imports(name))]
    assert used == ["cutmix.mixing.draw", "cutmix.runtime.device"]
    assert FILES["cutmix.mixing.draw"].read_text().count("distributed.") == 3


def test_no_module_has_the_name_of_its_function() -> None:
    """A package attribute is then a module wherever it is imported, never what a line took out of the module."""
    found = [
        name
        for name, path in FILES.items()
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == path.stem
    ]
    assert not found


def test_the_test_folders_are_those_of_the_package() -> None:
    folders = {path.name for path in TESTS.iterdir() if any(path.glob("test_*.py"))}
    assert folders == {part for part in PARTS if (PACKAGE / part).is_dir()} | {"bad_input"}  # of every command


def test_the_root_is_small_and_files_are_of_readable_length() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert len([path for path in MODULES.values() if path.parent == PACKAGE]) <= 8
    assert len(lengths) <= 95
    assert 90 <= median(lengths.values()) <= 375
    assert {name: lines for name, lines in lengths.items() if lines > 450} == {}
