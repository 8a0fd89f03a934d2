"""What is said while a run goes on."""

import pytest

from cutmix.runtime.terminal import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "said"), [(5.2, "5 s"), (119, "119 s"), (600, "10 min"), (36_000, "10 h"), (864_000, "10.0 days")]
)
def test_duration(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_an_epoch_is_a_line_and_nothing_of_it_is_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(12, 5, shown=True) as progress:
        progress.start_epoch()
        progress.step(64)
        progress.show(1, 5, 2.3, 0.1)
        progress.say("a path/[old]/run [/x]")
        progress.show_epoch(
            {"epoch": 1, "step": 5, "train_loss": 2.5, "test_loss": 2.25, "top1_err": 50.125, "top5_err": 12.5,
             "images_per_second": 1234.5}
        )  # fmt: skip
        progress.show_epoch({"epoch": 2, "step": 10, "train_loss": 2.5, "images_per_second": 1})
        progress.show_epoch({"epoch": 3, "step": 15, "train_loss": 2.5})
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "a path/[old]/run [/x]"
    expected = (
        "epoch   1/12",
        "train loss 2.500",
        "test loss 2.250",
        "top-1 error 50.12 %",
        "top-5 12.50 %",
        "1,234 images/s",
    )
    assert said[1] == "  ".join(expected)
    assert "error" not in said[2]
    assert said[3].endswith("train loss 2.500")  # no speed of an epoch that was resumed after its last step


def test_speed_counts_the_epochs_images() -> None:
    progress = Progress(1, 1, shown=False)
    assert progress.images_per_second() == 0
    progress.step(64)
    progress.step(36)
    assert progress.images_per_second() > 0
    progress.start_epoch()
    assert progress.images_per_second() == 0


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1, 1, shown=False) as progress:
        progress.say("something")
    assert capsys.readouterr().out == ""
