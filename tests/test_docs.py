"""README and docs: code blocks run, command lines parse, tables are those of results/, every method has its card."""

import contextlib
import re
import shlex
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed.run import get_args_parser
from torch.utils.data import DataLoader, TensorDataset

import cutmix
from cutmix import api, cli
from cutmix.runtime.files import read_lines
from cutmix.training.mixes import MIXES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
PAGES = [page for page in PAGES if page.parent != DOCS / "reference" or page.stem == "index"]  # the rest is generated
LIBRARIES = ("lightning", "accelerate", "timm")
CARD = ["What it does", "How to use it", "Checked against", "Hyperparameters", "Results here", "Source"]


def blocks(language):
    return [
        pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text("utf-8"), re.DOTALL))
    ]


def library(block):
    return next((name for name in LIBRARIES if re.search(rf"^(import|from) {name}\b", block, re.MULTILINE)), "torch")


@pytest.fixture
def names():
    """Return what a reader would have: a model, data, an optimizer."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(16, 3, 32, 32, generator=generator), torch.randint(0, 10, (16,), generator=generator)
    dataset = TensorDataset(images, labels)
    model = cutmix.create_model("resnet20", 10)
    return {
        "dataset": dataset,
        "loader": DataLoader(dataset, batch_size=8),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "images": images,
        "labels": labels,
        "vit": cutmix.create_model("deit_tiny_patch8_32", 10),
        "masks": torch.randint(0, 5, (16, 32, 32), generator=generator),
    }


def test_there_is_a_loop_for_every_library():
    assert {library(param.values[0]) for param in blocks("python")} == {"torch", *LIBRARIES}


@pytest.mark.parametrize("block", blocks("python"))
def test_code_runs(block, names, tmp_path, monkeypatch):
    if find_spec(library(block)) is None:
        pytest.skip(f"{library(block)} is not installed")
    monkeypatch.chdir(tmp_path)
    before = [p.clone() for p in names["model"].parameters()]
    model = names["model"]
    with warnings.catch_warnings():
        if library(block) in ("lightning", "accelerate"):
            warnings.simplefilter("ignore")  # theirs, about their own surroundings
        exec(compile(block, "block", "exec"), names)
    if "loss" in names:
        assert torch.isfinite(names["loss"])
    if "step()" in block or "fit(" in block:
        assert any(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def commands_of_claims():
    found = re.findall(r"^\d+\. `(cutmix [^`]+)`$", (DOCS / "experiments/claims.md").read_text("utf-8"), re.MULTILINE)
    assert len(found) > 20  # each once
    return [pytest.param("\n".join(found), id="claims")]


@pytest.mark.parametrize("block", [*blocks("sh"), *blocks("bash"), *commands_of_claims()])
def test_command_lines_parse(block, tmp_path, monkeypatch):
    """Every command is one of ours with flags that it has, or begins with a program that is named here."""
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    class CalledError(Exception):
        pass

    def called(*_, **__):
        raise CalledError

    for command in cli.COMMANDS:
        monkeypatch.setattr(api, command, called)
    for line in block.replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)
        if words and ("=" in words[0] or words[0] in ("export", "srun")):  # of a job script
            words = words[1:] if words[0] == "srun" else []
        if words and words[0] == "torchrun":
            launched = get_args_parser().parse_args(words[1:])
            assert launched.module
            words = [launched.training_script, *launched.training_script_args]
        if words and words[0] == "cutmix":
            with contextlib.suppress(CalledError):
                cli.main(words[1:])
        elif words:
            assert words[0] in ("pip", "make", "python", ".venv/bin/pytest", ".venv/bin/pre-commit"), line


def test_tables_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import tables

    marked = set()
    for page in tables.pages():
        text = page.read_text("utf-8")
        assert tables.fill(text) == text, f"{page.name} is out of date: python scripts/tables.py"
        marked |= set(re.findall(r"<!-- ([\w-]+) -->", text))
    assert marked == set(tables.TABLES)


def test_the_headline_counts_the_rows_of_its_table(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import tables

    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables.settings().splitlines()[2:]]
    shown = [float(row[6].split()[0].replace("−", "-")) for row in rows if "not significant" not in row[7]]
    gains, losses = ([abs(value) for value in shown if value * sign > 0] for sign in (-1, 1))
    said = [float(each) for each in re.findall(r"[\d.]*\d", tables.headline())]
    assert said[2:4] == [len(gains), len(rows)]
    assert said[4:6] == [min(gains), max(gains)]
    assert said[6] == len(losses)
    assert {said[7], said[-2]} == {min(losses), max(losses)}
    assert said[-1] == len(rows) - len(shown)


def test_a_claim_of_no_gain_is_not_confirmed_by_chance(monkeypatch):
    """A gain of 0.41 points is inside of the interval, so it is not below 0.4."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from claims import Evidence

    found = Evidence("", "", 0.5, low=-0.41, high=1.4, p=0.5, detectable=1.0)
    assert found.verdict(0) == "cannot tell: p = 0.50; gain below 0.5 points"


def test_results_of_two_models_do_not_replace_each_other(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import record

    one = {"recipe": "cifar100-none-25-per-class", "epochs": 80, "seed": 1, "metric": "top1_err"}
    for model in ("resnet20", "resnet18"):
        record._merge(tmp_path / "a.jsonl", [one | {"model": model}], (*record._RUN, "metric"))
    assert [each["model"] for each in read_lines(tmp_path / "a.jsonl")] == ["resnet20", "resnet18"]


@pytest.mark.parametrize("name", ["cifar100-subsets", "caltech-101"])
def test_every_run_of_a_log_has_its_record(name):
    lines = read_lines(ROOT / f"results/{name}.jsonl")
    records = {(one["model"], one["epoch"], one["seed"], one["value"]) for one in lines if one["metric"] == "top1_err"}
    last = [one for one in read_lines(ROOT / f"results/{name}.log.jsonl") if one["step"] == one["steps"]]
    assert len(last) >= 15
    for one in last:
        assert (one["model"], one["epoch"], one["seed"], one["top1_err"]) in records, one


def test_links_to_files_lead_somewhere():
    for page in PAGES:
        text = page.read_text("utf-8")
        links = re.findall(r"\]\(([^)#\s]+)", text) + re.findall(r'src="([^"]+)"', text)
        generated = {"api.md", "flags.md", "recipes.md", "metrics.md", "results.md"}
        missing = [
            link
            for link in links
            if "://" not in link and not (page.parent / link).exists() and Path(link).name not in generated
        ]
        assert not missing, page


def test_every_method_has_a_card_with_the_same_headings():
    cards = {page.stem: page.read_text("utf-8") for page in (DOCS / "methods").glob("*.md") if page.stem != "index"}
    for name, text in cards.items():
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == CARD, name
        assert f"\n{name}\n" in (DOCS / "methods" / "index.md").read_text("utf-8")
    for mix in set(MIXES) - {"none"}:
        assert any(re.search(rf"(--mix|or) `?{mix}\b(?!-)", text) or f"-{mix}`" in text for text in cards.values()), mix


def test_every_command_is_in_the_readme_and_in_the_reference(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import reference

    readme, flags = (ROOT / "README.md").read_text("utf-8"), reference.flags()
    for command in cli.COMMANDS:
        assert f"`cutmix {command}" in readme
        assert f"\n## cutmix {command}" in flags or command == "recipes"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]
    subprocess.run(command, check=True, timeout=300)
    assert (tmp_path / "index.html").is_file()


def test_the_ten_minute_walk_works_as_written(tmp_path, monkeypatch, capsys):
    """Every block of the page, in its order, with small models and one epoch."""
    rng = np.random.default_rng(0)
    for name, level in (("cat", 60), ("dog", 180)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.normal(level, 40, (40, 48, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "guides" / "ten-minutes.md").read_text("utf-8")
    for long, short in (
        ("--model resnet18 --image-size 128", "--model resnet10t --no-pretrained --image-size 32"),
        ("--epochs 5", "--epochs 1"), ("photos-resnet18", "photos-resnet10t"),
        ("--seeds 3 --epochs 10", "--seeds 2 --epochs 1"),
    ):  # fmt: skip
        assert long in text
        text = text.replace(long, short)
    for language, block in re.findall(r"```(sh|python)\n(.*?)```", text, re.DOTALL):
        if language == "python":
            exec(compile(block, "block", "exec"), {})
        for line in block.splitlines() if language == "sh" else ():
            cli.main(shlex.split(line)[1:])
    for folder in ("exported", "exported-photos"):
        assert {path.name for path in Path(folder).iterdir()} == {"README.md", "model.onnx"}
    assert len(Path("predictions.csv").read_text().splitlines()) == 41
    assert [path.suffix for path in Path().glob("explained*/*")] == [".png"] * 2
    assert "of 100 images right" in capsys.readouterr().out
