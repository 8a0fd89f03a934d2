"""What the pages' tables are made of: records, cells, Markdown."""

from pathlib import Path

from cutmix.runs.record import Record, read_records, with_interval

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
MODELS = {"resnet20": "ResNet-20", "resnet18": "ResNet-18"}


def lines(name: str) -> list[Record]:
    """Return the records of a file."""
    return read_records(RESULTS / name)


def cell(line: Record, digits: int = 1) -> str:
    """Return a value with its interval."""
    return with_interval(line, f".{digits}f")


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])
