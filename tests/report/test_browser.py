"""The page in headless Chromium, at the widths of a phone, a laptop and a desktop."""

import html
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cutmix.report.summary import write_report
from cutmix.runs.record import Record, append_records

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (375, 1280, 1920)
CLASSES = ("American alligator", "European fire salamander", "bullfrog", "goldfish", "tailed frog")

# The page has no script: a second page holds it in frames of each width and writes down what it finds.
PROBE = """<!doctype html><body>%s<pre id="found"></pre><script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, view = frame.contentWindow;
    const shown = element => element.getClientRects().length > 0;
    const inside = element => !element.closest(".scroll, .images figure, math, .skip, svg");
    return {
      width: view.innerWidth,
      page: page.documentElement.scrollWidth,
      beyond: [...page.body.querySelectorAll("*")].filter(element => inside(element) && shown(element)
        && element.getBoundingClientRect().right > view.innerWidth + 1).map(element => element.outerHTML.slice(0, 80)),
      cut: [...page.querySelectorAll(".scroll")].filter(each => shown(each) && each.scrollWidth > each.clientWidth + 1)
        .map(each => each.getAttribute("aria-label")),
      unreachable: [...page.querySelectorAll(".scroll")].filter(each => each.tabIndex !== 0).length,
      broken: [...page.images].filter(image => !image.complete || !image.naturalWidth || !image.alt).length,
      images: page.images.length,
      scripts: page.scripts.length,
      requests: view.performance.getEntriesByType("resource").map(entry => entry.name)
        .filter(name => !name.startsWith("data:")),
    };
  });
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>"""


def make_run(folder: Path, mix: str) -> Path:
    """Write a run with predictions, images, results of a suite and long names."""
    for name in ("predictions", "figures"):
        (folder / name).mkdir(parents=True)
    recipe = {
        "name": f"photographs-resnet50-{mix}",
        "data": "photographs",
        "mix": mix,
        "epochs": 2,
        "model": "resnet50",
    }
    command = f"cutmix train --data photographs --model resnet50 --mix {mix} --epochs 2 --out {'long/' * 30}run"
    (folder / "config.json").write_text(json.dumps({"recipe": recipe, "command": command}))
    log = [{"kind": "epoch", "epoch": k, "step": k, "train_loss": 1 / k, "top1_err": 40.0 / k} for k in (1, 2)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    about = {"data": "photographs", "split": "test", "epoch": 2, "n": 50, "classes": 5, "test_images": 50}
    training = {
        "source": "training",
        "device": "cuda (NVIDIA H200 with a long name)",
        "torch": "2.15.0",
        "date": "2026-01-02",
    }
    records = [Record(metric="top1_err", value=20.0, low=11.2, high=33.0, which=which, **about, **training)
               for which in ("last", "best")]  # fmt: skip
    records += [Record(metric=name, value=12.345, low=10.0, high=15.0, suite="calibration", **about | {"n": 40})
                for name in ("ece", "ece_adaptive", "mce", "signed_gap", "nll", "temperature")]  # fmt: skip
    append_records(folder / "results.jsonl", records)
    labels = np.arange(50) % 5
    logits = 3.0 * np.eye(5, dtype=np.float32)[np.where(np.arange(50) < 10, (labels + 1) % 5, labels)]
    files = [f"{CLASSES[k]}/a-long-name-of-a-file-without-spaces-{i:04d}.jpeg" for i, k in enumerate(labels)]
    np.savez(folder / "predictions/last.npz", logits=logits, labels=labels, classes=CLASSES, files=files)
    for i in range(50):
        Image.new("RGB", (320, 160), (i, 99, 99)).save(folder / f"figures/example-{i}.png")
    Image.new("RGB", (900, 300)).save(folder / "samples.png")
    return folder


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("mixes", [("none",), ("none", "cutmix")])
def test_the_page_fits_every_width_and_asks_for_nothing(tmp_path: Path, mixes: tuple[str, ...]) -> None:
    out = write_report([make_run(tmp_path / mix, mix) for mix in mixes], tmp_path / "page.html")
    page = html.escape(out.read_text(encoding="utf-8"), quote=True)
    frames = "".join(
        f'<iframe srcdoc="{page}" style="width:{width}px;height:900px;border:0"></iframe>' for width in WIDTHS
    )
    (tmp_path / "probe.html").write_text(PROBE % frames, encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=20000", "--window-size=2000,1000", "--dump-dom", f"file://{tmp_path / 'probe.html'}",
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout
    (text,) = re.findall(r'<pre id="found">(.*?)</pre>', dom, flags=re.DOTALL)
    found = json.loads(html.unescape(text))
    assert [one["width"] for one in found] == list(WIDTHS)
    for one in found:
        assert one["page"] == one["width"], "the page scrolls sideways"
        assert one["beyond"] == []
        assert one["unreachable"] == one["broken"] == one["scripts"] == 0
        assert one["requests"] == []
        assert one["images"] > 20
        assert one["width"] < 1280 or one["cut"] == [], "a table is cut off"


def test_headings_links_and_texts_stand_in_order(tmp_path: Path) -> None:
    text = write_report([make_run(tmp_path / "a", "none")], tmp_path / "page.html").read_text(encoding="utf-8")
    levels = [int(level) for level in re.findall(r"<h([1-6])", text)]
    assert levels[0] == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    anchors = re.findall(r'<h2 id="([^"]+)"', text)
    assert anchors[:3] == ["summary", "mistakes", "results"]
    assert anchors[-2:] == ["definitions", "provenance"]
    assert text.index('class="skip" href="#content"') < text.index("<nav") < text.index('<main id="content"')
    assert all(re.search(r'alt="[^"]+"', image) for image in re.findall(r"<img [^>]*>", text))
    assert '<html lang="en">' in text
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
