"""The suites of ``cutmix evaluate`` and the tasks of ``cutmix transfer`` as sections of a report. No torch here.

``evaluate.command`` has the function that runs a suite, ``report.suites`` the one that shows it.
"""

from dataclasses import dataclass
from typing import Literal

from cutmix.errors import InputError

Paired = Literal["rates", "ece", "auroc", "resampled"]


@dataclass(frozen=True)
class Suite:
    """Metrics that are evaluated together and shown in one section.

    Attributes:
        name: Name on the command line and in results.
        title: Title of the section.
        metrics: What is evaluated, for the help of a command.
        paired: How two runs are compared on the same images.
        flags: Flags that only this suite reads; where one is given, the suite has to run, even among all.
        paper: Name of the paper's table beside which the section shows the results, "" if there is none.
        command: The command that runs it.
    """

    name: str
    title: str
    metrics: str
    paired: Paired
    flags: tuple[str, ...] = ()
    paper: str = ""
    command: Literal["evaluate", "train", "transfer"] = "evaluate"


SUITES = {
    suite.name: suite
    for suite in (
        Suite("classification", "Classification", "top-1 and top-5 error", "rates"),
        Suite("labels", "Labels", "mAP and F1 of images with several labels", "rates", command="train"),
        Suite("calibration", "Calibration", "calibration errors, NLL, Brier score, temperature", "ece"),
        Suite(
            "robustness", "Robustness", "attacks, occlusion, mixtures of two images, published corruptions", "rates",
            flags=("pairs", "apgd", "corruptions"), paper="table11",
        ),
        Suite(
            "ood", "Out-of-distribution detection", "AUROC, TNR and others against images of no known class", "auroc",
            flags=("outliers", "convention"), paper="table12",
        ),
        Suite(
            "localization", "Localization", "boxes from class activation maps against true boxes", "rates",
            flags=("boxes",), paper="table9",
        ),
        Suite("detection", "Detection", "average precision", "resampled", command="transfer"),
        Suite("captioning", "Captioning", "BLEU, METEOR, ROUGE-L, CIDEr-D", "resampled", command="transfer"),
    )
}  # fmt: skip
EVALUATE = tuple(name for name, suite in SUITES.items() if suite.command == "evaluate")


def parse_suites(text: str) -> tuple[str, ...]:
    """Return the names of the suites that "robustness,ood" or "all" stands for, in the order of the table.

    Raises:
        InputError: If a name is not that of a suite.
    """
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in (*EVALUATE, "all")]
    if unknown:
        raise InputError(f'--suite is "{unknown[0]}"; expected {", ".join(EVALUATE)}, several with commas, or all')
    return EVALUATE if "all" in names else tuple(suite for suite in EVALUATE if suite in names)
