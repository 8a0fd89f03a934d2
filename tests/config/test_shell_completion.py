"""The completion script, run by the shells that it is for."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cutmix.cli import COMMANDS, main

_ASK = """
ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _cutmix; echo "${COMPREPLY[*]}"; }
"""


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Return the script for bash, in a folder with one file."""
    main(["--completion", "bash"])
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "cutmix.sh").write_text(capsys.readouterr().out, encoding="utf-8")
    return tmp_path / "cutmix.sh"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("cutmix tra", "train transfer"),
        ("cutmix train --optimi", "--optimizer"),
        ("cutmix train --optimizer ad", "adamw"),
        ("cutmix train --no-pre", "--no-pretrained"),
        ("cutmix train digits-resnet20-mix", "digits-resnet20-mixup"),
        ("cutmix compare --mix cutmix-s", "cutmix-scheduled"),
        ("cutmix transfer det", "detection"),
        ("cutmix explain runs/x --cl", "--class"),
        ("cutmix export runs/x --format ''", "onnx torch safetensors"),
        ("cutmix predict runs/x pho", "photo.jpg"),
    ],
)
@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_bash_completes(words: str, expected: str, script: Path) -> None:
    text = script.read_text(encoding="utf-8") + _ASK + f"ask {words}\n"
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, cwd=script.parent, timeout=60)
    assert (done.stdout.strip(), done.stderr) == (expected, "")


@pytest.mark.skipif(not shutil.which("zsh"), reason="there is no zsh")
def test_zsh_reads_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--completion", "zsh"])
    text = f"autoload -U compinit; compinit -u; {capsys.readouterr().out}\nprint $_comps[cutmix]"
    done = subprocess.run(["zsh", "-f", "-c", text], capture_output=True, text=True, timeout=60)
    assert "_cutmix" in done.stdout
    assert not done.stderr


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"compare", "transfer", "recipes"}))
def test_the_flags_are_those_of_the_help(command: str, script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = set(re.findall(r"(?<=[ ,│])--[a-z][a-z0-9-]+", re.sub(r"\n[^-]*?\n", "\n", capsys.readouterr().out)))
    line = re.search(rf'^ +{command}\) words="(--help[^"]*)" ;;', script.read_text(encoding="utf-8"), re.MULTILINE)
    assert line
    flags = {flag for flag in line[1].split() if flag != "--help"}
    assert {flag for flag in flags if flag.replace("--no-", "--") not in shown and flag not in shown} == set()


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--completion", "fish"])
    assert capsys.readouterr().err == "cutmix: --completion is fish; expected bash or zsh\n"
