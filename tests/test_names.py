"""Names that are not UTF-8, printed on a terminal that takes ASCII alone: every command in turn."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cutmix.runs.read import read_config
from cutmix.runs.record import read_records
from cutmix.runtime.checkpoint import read_header

_COMMANDS = """
import os, sys
from cutmix.cli import main

data, run, page, weights = map(os.fsdecode, map(bytes.fromhex, sys.argv[1:]))
common = ["--device", "cpu", "--workers", "0"]
main(["train", "--data", data, "--out", run, "--model", "resnet10t", "--no-pretrained", "--image-size", "32",
      "--epochs", "1", "--batch-size", "8", "--class-weights", weights, *common])
main(["train", "--resume", "--out", run, *common])
main(["evaluate", run, *common])
main(["report", run, "--out", page])
main(["predict", run, data])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere refuse names that are not Unicode")
def test_names_that_are_not_utf8_go_through_every_command(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path)
    data, run, page = root + b"/fotos\xff", root + b"/l\xe4uf", root + b"/s\xe9ite.html"
    random = np.random.default_rng(0)
    for name in (b"caf\xe9", "dög".encode()):
        os.makedirs(data + b"/" + name)
        for i in range(6):
            pixels = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            with open(data + b"/" + name + b"/bild\xfe%d.png" % i, "wb") as file:
                Image.fromarray(pixels).save(file, "PNG")
    weights = root + b"/gewichte\xfc.csv"
    with open(weights, "wb") as file:
        file.write(b"caf\xe9,2\nd\xc3\xb6g,1\n")
    env = os.environ | {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    env |= {"PYTHONCOERCECLOCALE": "0", "OMP_NUM_THREADS": "1"}
    words = [part.hex() for part in (data, run, page, weights)]
    done = subprocess.run([sys.executable, "-c", _COMMANDS, *words], capture_output=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr.decode("ascii", "replace")
    assert done.stdout.isascii()
    assert done.stdout.count(b".png") >= 12
    folder = Path(os.fsdecode(run))
    assert read_config(folder / "config.json").recipe["data"] == os.fsdecode(data)
    assert read_header(folder / "best.safetensors").classes == ("caf\\xe9", "dög")
    errors = {
        r.source: r.value for r in read_records(folder / "results.jsonl") if (r.metric, r.which) == ("top1_err", "last")
    }
    assert errors["training"] == errors["evaluation"]
    with open(page, "rb") as file:
        file.read().decode("utf-8")
