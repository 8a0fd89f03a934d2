"""Standard output that is closed, full or cannot show a character; more than one process with the same message."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from cutmix.cli import main
from cutmix.errors import InputError, printable
from cutmix.runtime import terminal
from cutmix.runtime.checkpoint import load_checkpoint
from cutmix.runtime.terminal import Progress

PRINT = "from cutmix.cli import COMMANDS, main; COMMANDS['x'] = lambda words: {}; main(['x'])"
CONSOLE = "__import__('cutmix.runtime.terminal').runtime.terminal.Console().print('\\u732b ' * 10)"


def run(code: str, **options: object) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([sys.executable, "-c", PRINT.format(code)], stderr=subprocess.PIPE, check=False, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("code", ["print('a' * 100_000)", "print('a')", CONSOLE])
def test_a_closed_pipe_is_exit_code_141(code: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run(code, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("code", ["print('a' * 100_000)", "print('a')", CONSOLE])
def test_a_full_disk_behind_the_output_is_one_sentence(code: str) -> None:
    with open("/dev/full", "wb") as full:
        done = run(code, stdout=full)
    said = b"cutmix: standard output could not be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, said)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [[], ["--help"], ["--version"]])
def test_help_that_cannot_be_printed_ends_as_every_command(words: list[str]) -> None:
    code = f"from cutmix.cli import main; main({words})"
    reader, pipe = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    said = b"cutmix: standard output could not be written: No space left on device\n"
    for output, expected in ((pipe, (141, b"")), (full, (2, said))):
        done = subprocess.run([sys.executable, "-c", code], stdout=output, stderr=subprocess.PIPE, check=False)
        os.close(output)
        assert (done.returncode, done.stderr) == expected


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_terminal_of_ascii_gets_escapes(environment: dict[str, str]) -> None:
    for code in ("print('\\u732b caf\\udce9')", CONSOLE):
        done = run(code, stdout=subprocess.PIPE, env=os.environ | environment)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\\u732b" in done.stdout


def test_printed_results_have_frames_of_ascii_on_a_terminal_of_ascii() -> None:
    code = (
        "from cutmix.runtime.terminal import Table, Tabular\n"
        "class Results(Tabular):\n"
        "    def tables(self): return [Table('method')]\n"
        "print(Results())"
    )
    for encoding, frame in (("ascii", b"+--------+"), ("utf-8", "┏━━━━━━━━┓".encode())):
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment)
        assert done.stdout.splitlines()[0] == frame


def test_other_errors_of_the_system_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(words: list[str]) -> None:
        raise FileNotFoundError(2, "No such file", "a")

    monkeypatch.setitem(__import__("cutmix.cli").cli.COMMANDS, "x", command)
    with pytest.raises(FileNotFoundError):
        main(["x"])


def test_a_refusal_of_the_file_system_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, reason in (("x" * 1000, "File name too long"), ("loop", "Too many levels of symbolic links")):
        path = tmp_path / name
        if name == "loop":
            path.symlink_to(path)
        monkeypatch.setitem(__import__("cutmix.cli").cli.COMMANDS, "x", lambda _, path=path: os.stat(path))
        with pytest.raises(SystemExit, match="2"):
            main(["x"])
        said = capsys.readouterr().err
        assert said.startswith("cutmix: /")
        assert said.endswith(f" could not be opened: {reason}\n")
        assert len(said) < 400


def test_names_are_escaped_in_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("a\x1bb")
    table.add_row("c\x9bd")
    table.add_row(Text("e\x07f"))
    console = terminal.Console(width=60)
    console.print("wrote \x1b[31m/\x1f", markup=False)
    console.print(Text("one\u202e\ntwo"))
    console.print(table)
    terminal.say("wrote \x1b[31m\nand")
    said = capsys.readouterr().out
    assert "wrote \\x1b[31m/\\x1f\none\\u202e\ntwo\n" in said
    assert said.endswith("wrote \\x1b[31m\nand\n")
    assert not set(said) & set("\x1b\x9b\x07\x1f\u202e")


def test_a_warning_is_a_line_without_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(words: list[str]) -> None:
        warnings.simplefilter("always")
        warnings.warn("odd\nthing", stacklevel=1)

    monkeypatch.setitem(__import__("cutmix.cli").cli.COMMANDS, "x", command)
    main(["x"])
    assert capsys.readouterr().err == "warning: odd\\nthing\n"


def test_what_is_logged_is_printed_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("cutmix.runtime.weights")
    monkeypatch.setitem(__import__("cutmix.cli").cli.COMMANDS, "x", lambda _: logger.info("%s: done", "a\nb"))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        main(["x"])
        assert capsys.readouterr().out == ("a\\nb: done\n" if rank == "0" else "")
    assert not logging.getLogger("cutmix").handlers


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Käse 猫 \U0001f408‍⬛", "Käse 猫 \U0001f408‍⬛"),
        ("a\nb\r\tc\x1b[31m\x07\x7f\x9b", "a\\nb\\r\\tc\\x1b[31m\\x07\\x7f\\x9b"),
        ("gpj.\u202eexe\u2028", "gpj.\\u202eexe\\u2028"),
        (os.fsdecode(b"caf\xe9"), "caf\\udce9"),
    ],
)
def test_names_cannot_drive_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == str(InputError(text)) == shown


def test_processes_of_torchrun_say_the_same_once(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-endpoint", "localhost:0", "-m", "cutmix", "evaluate", "absent"]
    said = subprocess.run(torchrun, capture_output=True, text=True, check=False, cwd=tmp_path).stderr
    assert f"\n{said}".count("\ncutmix: absent does not exist") == 1


def test_an_epoch_is_saved_before_it_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    words = ["train", "--data", "digits", "--train-per-class", "3", "--epochs", "2", "--crop-padding", "0"]
    words += ["--out", str(tmp_path / "run"), "--device", "cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "show_epoch", gone)
        patch.setattr(terminal, "_discard_output", lambda: None)
        with pytest.raises(SystemExit) as stopped:
            main(words)
    assert stopped.value.code == 141
    assert load_checkpoint(tmp_path / "run/checkpoint.pt")["epoch"] == 1
    main([*words, "--resume"])
    assert load_checkpoint(tmp_path / "run/checkpoint.pt")["epoch"] == 2
