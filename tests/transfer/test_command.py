"""Transfer runs: through the loop to the end, again after being killed, in two processes, and what they refuse."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cutmix.training.loop
import cutmix.transfer.detection_task
from cutmix.cli import main
from cutmix.config.options import RunOptions, TrainOptions
from cutmix.config.tasks import Captioning, Detection, Transfer
from cutmix.errors import InputError
from cutmix.models import create_model
from cutmix.report.summary import write_report
from cutmix.runs.record import read_records
from cutmix.runtime.device import World
from cutmix.runtime.files import read_lines
from cutmix.runtime.weights import load_weights
from cutmix.transfer.command import prepare_transfer, run_transfer
from cutmix.transfer.detection_task import COCO_METRICS

# Three steps an epoch of nine images, or of 18 captions; everything that has a state is on.
_SHARED: dict[str, Any] = {
    "epochs": 2, "accumulate": 2, "optimizer": "adamw", "lr": 1e-3, "ema_decay": 0.5, "clip_grad_norm": 10.0,
    "schedule": "cosine", "val_fraction": 0.25, "precision": "float32",
}  # fmt: skip
DETECTORS = {
    arch: Detection(name=arch, arch=arch, model="test_resnet", batch_size=4, image_size=64, min_size=32, max_size=48,
                    **_SHARED)
    for arch in ("ssd300", "faster-rcnn")
}  # fmt: skip
CAPTIONER = Captioning(
    name="captioning", model="resnet20", batch_size=6, image_size=36, crop=32, embed=8, hidden=8, min_count=1,
    dropout=0.3, beam=2, max_length=6, tune_encoder=True, **_SHARED,
)  # fmt: skip
KINDS = (*DETECTORS, "captioning")
METRICS = {
    "captioning": ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d", "meteor"],
    **{kind: ["map", "map_all_point", "ap", "ap", *COCO_METRICS] for kind in DETECTORS},
}
FIGURES = {"captioning": "captions", **dict.fromkeys(DETECTORS, "detections")}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def recipes(voc_folder: Path, caption_folder: Path) -> dict[str, Transfer]:
    found: dict[str, Transfer] = {n: replace(recipe, data=str(voc_folder)) for n, recipe in DETECTORS.items()}
    return found | {"captioning": replace(CAPTIONER, data=str(caption_folder))}


def options(out: Path, **changes: Any) -> RunOptions:
    return RunOptions(**{"out": out, "workers": 0, "log_every": 2, "checkpoint_every": 2, "device": "cpu"} | changes)


@pytest.fixture(scope="module")
def runs(recipes: dict[str, Transfer], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every task, trained to the end."""
    folder = tmp_path_factory.mktemp("runs")
    return {kind: run_transfer(recipe, options(folder / kind)) for kind, recipe in recipes.items()}


def outcome(run: Path) -> dict[str, Any]:
    """Return all that a run has computed, without what the clock decides."""
    clock = {"seconds", "images_per_second", "date", "command", "commit"}
    found: dict[str, Any] = {}
    for name in ("model.safetensors", "best.safetensors"):
        found[name] = (run / name).read_bytes()  # equal runs have equal files
    for name in ("log.jsonl", "results.jsonl"):
        found[name] = [{k: v for k, v in record.items() if k not in clock} for record in read_lines(run / name)]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_leaves_what_every_run_leaves(runs: dict[str, Path], kind: str) -> None:
    run = runs[kind]
    results = read_records(run / "results.jsonl")
    for which in ("last", "best"):
        assert [r.metric for r in results if r.which == which] == METRICS[kind]
    for record in results:
        assert (record.recipe, record.source) == (kind, "training")
        assert (record.backbone, record.weights, record.split) == ("none", "ema", "test")
        assert record.suite == record.task == ("captioning" if kind == "captioning" else "detection")
        assert record.value is not None or record.note.startswith("not run") or record.metric == "meteor"
    with Image.open(run / f"figures/{FIGURES[kind]}.png") as figure:
        assert min(figure.size) > 300
    assert not (run / "samples.png").exists()
    epochs = [record for record in read_lines(run / "log.jsonl") if record["kind"] == "epoch"]
    key = "cider_d" if kind == "captioning" else "map"
    last = next(r for r in results if r.which == "last" and r.metric == key)
    assert [record["step"] for record in epochs] == [3, 6]
    assert epochs[-1][key] == pytest.approx(last.value)


class Killed(BaseException):
    """Ends a run in the middle of anything; what it had in memory is lost."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [6, pytest.param(4, marks=pytest.mark.slow)])  # one step after a checkpoint, right after
def test_a_killed_run_goes_on_bit_for_bit(
    runs: dict[str, Path], recipes: dict[str, Transfer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str,
    at: int,
) -> None:  # fmt: skip
    original, calls = cutmix.training.loop.train_step, iter(range(1, 100))

    def train_step(*arguments: Any) -> Any:
        if next(calls) == at:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(cutmix.training.loop, "train_step", train_step)
    # Slow, and not compared.
    monkeypatch.setattr(cutmix.transfer.detection_task, "gallery_of_detections", lambda *_: b"")
    with pytest.raises(Killed):
        run_transfer(recipes[kind], options(tmp_path / "run"))
    torch.manual_seed(99)  # the state of the process that goes on does not matter
    assert outcome(run_transfer(recipes[kind], options(tmp_path / "run", resume=True))) == outcome(runs[kind])


def test_accumulation_adds_up_the_losses_of_the_parts(recipes: dict[str, Transfer], tmp_path: Path) -> None:
    run = prepare_transfer(recipes["ssd300"], options(tmp_path), World(0, 1, torch.device("cpu")))
    images, targets = next(iter(run.batches.epoch()))
    before = [buffer.clone() for buffer in run.state.model.buffers()]
    run.network.train()
    with torch.no_grad():
        parts = [run.task.loss(run.network, images[i : i + 2], targets[i : i + 2]) for i in (0, 2)]
        for buffer, saved in zip(run.state.model.buffers(), before, strict=True):
            buffer.copy_(saved)
    loss = cutmix.training.loop.train_step(run, images, targets)
    shares = [len(images[i : i + 2]) / len(images) for i in (0, 2)]
    expected = sum(share * part.item() for share, part in zip(shares, parts, strict=True))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_backbone_of_a_run_is_where_training_starts(recipes: dict[str, Transfer], tmp_path: Path) -> None:
    network = create_model("test_resnet", 5)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    recipe = replace(recipes["faster-rcnn"], backbone=str(tmp_path / "w.pth"))
    run = prepare_transfer(recipe, options(tmp_path), World(0, 1, torch.device("cpu")))
    start = {name: tensor for name, tensor in run.state.model.state_dict().items() if "layer4" in name}
    own = {name: tensor for name, tensor in network.state_dict().items() if "layer4" in name}
    assert len(start) == len(own) > 5
    assert all(torch.equal(a, b) for a, b in zip(start.values(), own.values(), strict=True))


def test_a_finished_run_is_left_alone(
    runs: dict[str, Path], recipes: dict[str, Transfer], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in runs["ssd300"].iterdir() if path.name != ".lock"}
    run_transfer(recipes["ssd300"], options(runs["ssd300"], resume=True))
    assert "is finished" in capsys.readouterr().out
    assert before == {path.name: path.stat().st_mtime_ns for path in runs["ssd300"].iterdir() if path.name != ".lock"}


def test_the_page_takes_transfer_runs(runs: dict[str, Path], tmp_path: Path) -> None:
    page = write_report(tuple(runs.values()), tmp_path / "page.html").read_text()
    assert "unfinished" not in page


def test_evaluate_is_for_classifiers(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for kind in KINDS:
        for source in (runs[kind], runs[kind] / "model.safetensors"):
            with pytest.raises(SystemExit, match="2"):
                main(["evaluate", str(source), "--device", "cpu"])
            said = capsys.readouterr().err
            assert said.startswith("cutmix: ")
            assert said.count("\n") == 1


def test_a_detector_is_no_backbone(runs: dict[str, Path], recipes: dict[str, Transfer], tmp_path: Path) -> None:
    recipe = replace(recipes["captioning"], backbone=str(runs["ssd300"]))
    with pytest.raises(InputError, match=r"ssd300/model\.safetensors is a checkpoint of another model"):
        run_transfer(recipe, options(tmp_path / "run"))


def _break_box(folder: Path) -> None:
    file = folder / "Annotations/00.xml"
    file.write_text(file.read_text().replace("<xmin>", "<xmin>9"))


def _break_class(folder: Path) -> None:
    file = folder / "Annotations/01.xml"
    file.write_text(file.read_text().replace("cat", "cot"))


def _break_list(folder: Path) -> None:
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "ImageSets/Main/trainval.txt").write_text("00\n77\n")
    (folder / "ImageSets/Main/test.txt").write_text("01\n")


def _break_caption(folder: Path) -> None:
    with open(folder / "captions.txt", "a") as file:
        file.write("00.png,\n")


def _cut_header(folder: Path) -> None:
    file = folder / "JPEGImages/05.png"
    file.write_bytes(file.read_bytes()[:20])


def _break_size(folder: Path) -> None:
    for file in (folder / "Annotations").iterdir():
        file.write_text(file.read_text().replace("<height>", "<height>1"))


def _break_image(folder: Path) -> None:
    (folder / "images/03.png").write_bytes(b"no image")


def _break_captions_file(folder: Path) -> None:
    (folder / "captions.txt").write_text("picture;text\n")


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("ssd300", _break_box, r"object 1 of .*00\.xml: its box .* has no area"),
        ("faster-rcnn", _break_class, r"01\.xml has an object of class 'cot', and .*xml one of class 'cat'; expected"),
        ("ssd300", _break_list, r"line 2 of .*trainval\.txt is '77'; expected the name of an image in"),
        ("captioning", _break_caption, r"captions\.txt has an empty caption for the image '00\.png'"),
        ("ssd300", _cut_header, r"05\.png cannot be read as an image .*: repair or remove it$"),
        ("faster-rcnn", _break_size, r"\.png is \d+×\d+ pixels; expected \d+×\d+ by its annotation"),
        ("captioning", _break_image, r"03\.png cannot be read as an image .*: repair or remove it$"),
        ("captioning", _break_captions_file, r"captions\.txt begins with 'picture;text'; expected a header such as"),
    ],
)
def test_wrong_data_is_one_sentence_with_the_files_name(
    recipes: dict[str, Transfer], tmp_path: Path, kind: str, damage: Any, message: str
) -> None:
    shutil.copytree(recipes[kind].data, tmp_path / "data")
    damage(tmp_path / "data")
    with pytest.raises(InputError, match=message):
        run_transfer(replace(recipes[kind], data=str(tmp_path / "data")), options(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("ssd300", {"data": ""}, "--data is missing; expected the folder of a detection"),
        ("ssd300", {"data": "nowhere"}, "nowhere is not a folder; expected annotations/instances"),
        ("ssd300", {"model": "resnet20"}, "ssd300 does not fit resnet20 with random weights"),
        ("ssd300", {"image_size": 32}, "ssd300 does not fit test_resnet with random weights: image_size is 32, which"),
        ("faster-rcnn", {"backbone": "gone.pth"}, r"--backbone is gone\.pth, but gone\.pth does not exist"),
        ("captioning", {"data": "nowhere"}, "nowhere is not a folder"),
        ("captioning", {"model": "geresnet50"}, "--crop is 32 .*; expected a size that geresnet50 "),
        ("ssd300", {"image_size": 10**6}, "--image-size is 1000000: a batch of images takes .* GiB; expected at most"),
        ("faster-rcnn", {"min_size": 10**6, "max_size": 10**6}, "--min-size is 1000000: a batch of images takes"),
        ("captioning", {"image_size": 10**6}, "--image-size is 1000000: a batch of images takes"),
        ("captioning", {"image_size": 10**6, "crop": 10**6}, "--image-size is 1000000: a batch of images"),
        ("captioning", {"hidden": 10**6}, "--hidden is 1000000: the LSTM takes"),
        ("captioning", {"embed": 10**11}, "--embed is 100000000000: the embeddings"),
        ("captioning", {"beam": 10**12}, "--beam is 1000000000000: a step of the search takes"),
        ("captioning", {"model": "resnet2000"}, "there is no model 'resnet2000'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_written(
    recipes: dict[str, Transfer], tmp_path: Path, kind: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_transfer(replace(recipes[kind], **changes), options(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["download", "skip_unreadable"])
def test_flags_of_classifiers_only_are_refused(recipes: dict[str, Transfer], tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} is not available for transfer"):
        run_transfer(recipes["ssd300"], TrainOptions(out=tmp_path / "run", **{name: True}))  # type: ignore[arg-type]


DRIVER = """
import json, sys
import torch
from pathlib import Path
from cutmix.config.options import RunOptions
from cutmix.config.tasks import Captioning, Detection
from cutmix.transfer.command import run_transfer

torch.set_num_threads(1)
for kind, values in json.loads(Path(sys.argv[1], "recipes.json").read_text()).items():
    recipe = (Captioning if kind == "captioning" else Detection).from_dict(values)
    run_transfer(recipe, RunOptions(out=Path(sys.argv[1], kind), workers=0, device="cpu"))
"""


@pytest.fixture(scope="module")
def together(recipes: dict[str, Transfer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train every task in two processes."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "driver.py").write_text(DRIVER)
    values = {kind: replace(recipe, epochs=1).to_dict() for kind, recipe in recipes.items()}
    (folder / "recipes.json").write_text(json.dumps(values))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(folder / "driver.py"), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_measure_what_one_does(together: Path, recipes: dict[str, Transfer], kind: str) -> None:
    run = prepare_transfer(recipes[kind], options(together / "alone"), World(0, 1, torch.device("cpu")))
    load_weights(run.state.exported, together / kind / "model.safetensors")
    _, alone = run.task.evaluate(run.state.exported)
    with np.load(together / kind / "predictions/last.npz") as both:
        assert sorted(both) == sorted(alone)
        for name, array in alone.items():
            np.testing.assert_allclose(both[name], array, rtol=1e-4, atol=1e-4)
    records = {r.metric: r.value for r in read_records(together / kind / "results.jsonl")}
    again = {r.metric: r.value for r in run.task.records(alone)}
    assert records == pytest.approx(again)
    assert json.loads((together / kind / "environment.json").read_text())["processes"] == 2
