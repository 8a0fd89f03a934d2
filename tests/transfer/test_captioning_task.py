"""Captioning as a task of the loop: parts, losses, measures that can be made again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cutmix.config.options import RunOptions
from cutmix.config.tasks import Captioning
from cutmix.report.metrics import METRICS
from cutmix.runtime.device import World
from cutmix.transfer.caption_scores import ImageScores, score_captions
from cutmix.transfer.captioning import CaptioningTask, ShowAndTell, has_bfloat16_lstm
from cutmix.transfer.command import prepare_transfer

WORLD = World(0, 1, torch.device("cpu"))
SMALL = Captioning(
    model="resnet20", batch_size=6, image_size=36, crop=32, embed=8, hidden=8, min_count=1, beam=2, max_length=6,
    dropout=0.0, val_fraction=0.25, precision="float32",
)  # fmt: skip


def task(data: Path, **changes: object) -> CaptioningTask:
    found = prepare_transfer(replace(SMALL, data=str(data), **changes), RunOptions(), WORLD).task  # type: ignore[arg-type]
    assert isinstance(found, CaptioningTask)
    return found


def test_the_losses_of_the_parts_add_up(caption_folder: Path) -> None:
    it = task(caption_folder, accumulate=3)
    images, tokens = torch.rand(7, 3, 32, 32), torch.randint(4, 9, (7, 5))  # captions of one length: no PAD
    network = it.state.model.eval()  # batch normalization by its running statistics
    parts = it.split(images, tokens, 0.0)
    assert [len(x) for x, _ in parts] == [3, 3, 1]
    total = sum(it.loss(network, x, y) * len(x) / 7 for x, y in parts)
    assert torch.allclose(total, it.loss(network, images, tokens))
    assert torch.equal(torch.cat([y for _, y in parts]), tokens)


def test_records_can_be_made_again_from_the_arrays(caption_folder: Path) -> None:
    it = task(caption_folder)
    figures, arrays = it.evaluate(it.state.exported)
    records = it.records(arrays)
    values = {record.metric: record.value for record in records}
    assert {name: values[name] for name in figures} == pytest.approx(figures)
    assert it.key in figures
    assert set(values) == {name for name, measure in METRICS.items() if measure.suite == "captioning"}
    assert {record.suite for record in records} == {"captioning"}
    assert next(r for r in records if r.metric == it.key).low is not None


@pytest.mark.parametrize("has_lstm", [False, True])
def test_bfloat16_runs_on_every_cpu(caption_folder: Path, monkeypatch: pytest.MonkeyPatch, has_lstm: bool) -> None:
    if not has_lstm:
        monkeypatch.setattr("cutmix.transfer.captioning.has_bfloat16_lstm", lambda: False)
    it = task(caption_folder, precision="bfloat16", tune_encoder=True)
    loss = it.loss(it.state.model.train(), torch.rand(4, 3, 32, 32), torch.randint(4, 9, (4, 5)))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in it.state.model.parameters())
    assert set(it.evaluate(it.state.exported).metrics) >= {"cider_d"}
    assert it.opening().endswith("LSTM in float32 (this CPU has no bfloat16 LSTM)") is not (
        has_lstm and has_bfloat16_lstm()
    )


def test_captions_are_filed_under_their_images(caption_folder: Path) -> None:
    it = task(caption_folder)
    said = arrays_of([captions[0] for captions in it.test_set.captions])
    perfect = {record.metric: record.value for record in it.records(said)}
    assert perfect["bleu_4"] == pytest.approx(100)
    turned = arrays_of([captions[0] for captions in (*it.test_set.captions[1:], it.test_set.captions[0])])
    assert {r.metric: r.value for r in it.records(turned)}["bleu_4"] < 100
    names = {name: captions[1] for name, captions in zip(it.test_set.names, it.test_set.captions, strict=True)}
    second = {r.metric: r.value for r in it.records(arrays_of(list(names.values())))}
    assert second["cider_d"] == pytest.approx(100 * score_captions(names, it.test_set.references)["cider_d"])


def test_silence_is_a_caption(caption_folder: Path) -> None:
    it = task(caption_folder)
    empty = arrays_of([""] * len(it.test_set))
    assert [r.value for r in it.records(empty) if r.metric != "meteor"] == pytest.approx([0] * 6, abs=1e-6)
    assert it.figures(empty)["captions"].startswith(b"\x89PNG")


def test_a_frozen_encoder_keeps_still_and_a_tuned_one_learns(caption_folder: Path) -> None:
    for tune in (False, True):
        it = task(caption_folder, tune_encoder=tune)
        model = it.state.model
        assert isinstance(model, ShowAndTell)
        before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
        it.loss(model.train(), torch.rand(4, 3, 32, 32), torch.randint(4, 9, (4, 5))).backward()
        it.state.optimizer.step()
        moved = any(not torch.equal(tensor, before[name]) for name, tensor in model.encoder.state_dict().items())
        assert moved is tune
        count = sum(len(group["params"]) for group in it.state.optimizer.param_groups)
        assert (count == len(list(model.parameters()))) is tune
        assert ("tuned" in it.opening(), "frozen" in it.opening()) == (tune, not tune)


def test_weights_say_what_they_need(caption_folder: Path) -> None:
    it = task(caption_folder)
    about = it.about(3)
    assert (about["model"], about["epoch"]) == ("resnet20", "3")
    assert len(it.vocabulary.words) > 5
    assert all(f'"{word}"' in about["words"] for word in ("red", "blue", "green"))


def arrays_of(captions: list[str]) -> dict[str, torch.Tensor]:
    return {"captions": np.frombuffer("\n".join(captions).encode(), np.uint8)}


def test_what_scores_are_made_of_is_kept(caption_folder: Path) -> None:
    it = task(caption_folder)
    figures, arrays = it.evaluate(it.state.exported)
    kept = ImageScores((), *(arrays[name] for name in ("bleu", "rouge_l", "cider_d")))
    assert {name: 100 * value for name, value in kept.corpus().items()} == figures
    assert arrays["references"].tobytes().decode() == it.test_set.fingerprint()
