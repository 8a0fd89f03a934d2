"""The local page classifies an image as ``predict`` does."""

import gc
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cutmix.config.options import ServeOptions
from cutmix.errors import InputError
from cutmix.inference.command import run_serve
from cutmix.inference.model import load

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_gradio_missing_is_one_sentence(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match="cutmix serve needs "):
        run_serve(ServeOptions(digits_run, device="cpu"), block=False)


@pytest.mark.filterwarnings("default")  # gradio's own dependencies
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_the_page_answers_as_predict_does_on_the_loopback_address(digits_run: Path, image: Path) -> None:
    pytest.importorskip("gradio", reason="the extra serve is not installed")
    client = pytest.importorskip("gradio_client")
    page = run_serve(ServeOptions(digits_run, device="cpu"), block=False)
    try:
        assert page.local_url.startswith("http://127.0.0.1:")
        assert page.share_url is None
        label, heat = client.Client(page.local_url, verbose=False).predict(
            client.handle_file(str(image)), api_name="/classify"
        )
        (expected,) = load(digits_run, device="cpu").predict(image, top=5)
        assert label["label"] == expected.classes[0]
        found = [each["confidence"] for each in label["confidences"]]
        assert found == pytest.approx(expected.probabilities, abs=1e-5)
        with Image.open(heat if isinstance(heat, str) else heat["path"]) as drawn:
            assert drawn.size == (8, 8)
        if CHROMIUM:
            words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000", "--dump-dom"]
            shown = subprocess.run(
                [CHROMIUM, *words, page.local_url], capture_output=True, text=True, timeout=100, check=False
            ).stdout
            assert "10 classes" in shown
    finally:
        page.close()
        gc.collect()  # gradio leaves sockets open; they are reported here, not in another test


def test_explain_in_python_shows_an_image(digits_run: Path, image: Path) -> None:
    model = load(digits_run, device="cpu")
    found = model.explain(image, class_name="3", neighbours=2)
    assert found.class_ids[1] == 3
    assert found.maps.shape == (2, 8, 8)
    assert found._repr_png_().startswith(b"\x89PNG")
    assert found.overlay().shape == (8, 8, 3)
    with pytest.raises(InputError, match='--class is "cat"'):
        model.explain(np.asarray(Image.open(image)), class_name="cat")
