"""What the wheel and the source distribution hold, and that the wheel works in an environment of its own."""

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("cutmix", "tests", "docs", "scripts", "benchmarks", "results")


def sources(*folders: str) -> set[str]:
    """Return the files that a checkout holds, without what is generated in it."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    reference = {ROOT / "docs" / "reference" / "index.md"}  # the other pages are generated
    return {
        str(path.relative_to(ROOT))
        for path in paths
        if path.suffix != ".pyc" and (path.parent.name != "reference" or path in reference)
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a wheel and a source distribution, built from a copy of the checkout."""
    pytest.importorskip("build")
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for path in ROOT.iterdir():
        if path.name in FOLDERS:
            shutil.copytree(path, copy / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.is_file():
            shutil.copy(path, copy)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return out


@pytest.mark.slow
def test_the_source_distribution_holds_the_checkout(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    top = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "constraints.txt", "pyproject.toml"}
    assert sources(*FOLDERS) | top <= held


@pytest.mark.slow
def test_the_wheel_holds_the_package_only(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == sources("cutmix")
    assert {"cutmix/py.typed", "cutmix/report/page.html.jinja"} <= held


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(built: Path, tmp_path: Path) -> None:
    """The dependencies are those of this environment; cutmix is the wheel's."""
    environment = tmp_path / "environment"
    venv.create(environment)
    python, wheel = environment / "bin" / "python", next(built.glob("*.whl"))
    install = [sys.executable, "-m", "pip", f"--python={python}", "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(*words: str) -> str:
        command = [str(environment / "bin" / words[0]), *words[1:]]
        alone = {"OMP_NUM_THREADS": "1"}  # threads that wait for each other take minutes where the cores are shared
        done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, check=True, timeout=300)
        return done.stdout

    assert Path(run("python", "-c", "import cutmix; print(cutmix.__file__)").strip()).is_relative_to(environment)
    assert run("cutmix", "--version").startswith("cutmix ")
    assert "demo" in run("cutmix", "--help")
    assert "digits" in run("cutmix", "demo", "--help")
    assert "cifar100-resnet20-cutmix" in run("cutmix", "recipes")
    run("cutmix", "train", "digits-resnet20-cutmix", "--epochs", "1", "--device", "cpu", "--out", "run")
    run("cutmix", "report", "run", "--out", "page.html")
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_the_metadata_names_every_python_that_is_supported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["authors"]
    assert project["keywords"]
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in range(11, 15)} <= set(project["classifiers"])
    assert project["requires-python"] == ">=3.11"


def test_every_package_that_is_imported_is_declared() -> None:
    """What an import names as a distribution, in the dependencies or in an extra of users."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {name: needs for name, needs in project["optional-dependencies"].items() if name not in ("dev", "docs")}
    declared = [*project["dependencies"], *(need for needs in extras.values() for need in needs)]
    names = {re.split(r"[^\w.-]", need)[0].lower() for need in declared}
    trees = [ast.parse(path.read_text("utf-8")) for path in (ROOT / "cutmix").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module).split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    foreign = imported - {"cutmix"} - sys.stdlib_module_names
    distributions = packages_distributions()
    found = {name: {one.lower() for one in distributions.get(name, [name])} for name in foreign}
    alternatives = {"pycocotools"}  # the extra has faster-coco-eval, which is tried first
    assert {name for name, owners in found.items() if not owners & names} <= alternatives


def test_the_constraints_are_exact_and_without_addresses() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert all(line.startswith("#") or line.count("==") == 1 for line in lines)
    assert not [line for line in lines if "/" in line or "@" in line]
