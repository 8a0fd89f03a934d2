"""The local page classifies an image as ``predict`` does."""

import gc
import itertools
import json
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    """Return an image of random colours and opacities."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 4), np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_gradio_missing_is_one_sentence(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match="cutmix serve needs "):
        run_serve(ServeOptions(digits_run, device="cpu"), block=False)


@pytest.mark.filterwarnings("default")  # gradio's own dependencies
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_the_page_answers_as_predict_does_on_the_loopback_address(
    digits_run: Path, image: Path, tmp_path: Path
) -> None:
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
            assert drawn.size == (320, 320)
        if CHROMIUM:
            shown = dropped(page.local_url, image, tmp_path)
            assert "10 classes" in shown["text"]
            assert f"{expected.classes[0]}\n{100 * expected.probabilities[0]:.0f}%" in shown["text"]
            assert shown["images"] == [[20, 20], [320, 320]]
            assert min(shown["heights"]) > 200
            assert shown["elsewhere"] == []
    finally:
        page.close()
        gc.collect()  # gradio leaves sockets open; they are reported here, not in another test


FOUND = """({text: document.body.innerText, images: [...document.images].map(i => [i.naturalWidth, i.naturalHeight]),
  heights: [...document.images].map(i => i.getBoundingClientRect().height),
  elsewhere: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith(location.origin))})"""


def dropped(url: str, image: Path, profile: Path) -> dict[str, Any]:
    """Give a page an image in headless Chromium, and return what it shows when the heat map is there."""
    from websockets.sync.client import connect  # gradio's client needs it

    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--window-size=1280,900"]
    browser = subprocess.Popen(
        [str(CHROMIUM), *words, f"--user-data-dir={profile}/chromium"], stderr=subprocess.DEVNULL
    )
    number = itertools.count(1)

    def until(find: Callable[[], Any], seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while not (found := find()) and time.monotonic() < end:
            time.sleep(0.1)
        assert found, find
        return found

    try:
        port = profile / "chromium" / "DevToolsActivePort"
        address = f"http://127.0.0.1:{until(lambda: port.is_file() and port.read_text().split())[0]}/json"
        with urllib.request.urlopen(address) as answer:
            tab = next(tab for tab in json.load(answer) if tab["type"] == "page")
        with connect(tab["webSocketDebuggerUrl"], max_size=None) as socket:

            def call(method: str, **given: Any) -> dict[str, Any]:
                socket.send(json.dumps({"id": (own := next(number)), "method": method, "params": given}))
                while (message := json.loads(socket.recv(timeout=60))).get("id") != own:
                    pass
                return message["result"]

            def value(code: str) -> Any:
                return call("Runtime.evaluate", expression=code, returnByValue=True)["result"].get("value")

            call("Page.navigate", url=url)
            until(lambda: value("!!document.querySelector('input[type=file]')"))
            root = call("DOM.getDocument")["root"]["nodeId"]
            node = call("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
            call("DOM.setFileInputFiles", nodeId=node, files=[str(image)])
            until(lambda: value("[...document.images].filter(i => i.naturalWidth).length == 2"))
            return value(FOUND)
    finally:
        browser.kill()
        browser.wait()


def test_explain_in_python_shows_an_image(digits_run: Path, image: Path) -> None:
    model = load(digits_run, device="cpu")
    other = 3 if model.explain(image, neighbours=0).class_ids[0] != 3 else 4
    found = model.explain(image, class_name=str(other), neighbours=2)
    assert found.class_ids[1] == other
    assert found.maps.shape == (2, 8, 8)
    assert found._repr_png_().startswith(b"\x89PNG")
    assert found.overlay().shape == (8, 8, 3)
    with pytest.raises(InputError, match='--class is "cat"'):
        model.explain(np.asarray(Image.open(image).convert("RGB")), class_name="cat")
