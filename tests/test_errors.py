"""The error for a feature whose optional packages are missing, and the words of a message."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

from cutmix.errors import listed, missing_extra, reason

ROOT = Path(__file__).parent.parent
MODULES = [path for path in (ROOT / "cutmix").rglob("*.py") if path.name != "errors.py"]


def test_the_command_names_published_packages() -> None:
    message = str(missing_extra("METEOR", "captions-java"))
    assert message.startswith('METEOR needs nltk and pycocoevalcap; install it with pip install "nltk>=')


def test_a_source_tree_on_the_path_has_no_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", nothing)
    assert 'pip install -e ".[coco]"' in str(missing_extra("COCO's average precision", "coco"))


def test_an_installation_may_be_older_than_its_source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ['tensorboard>=2.15; extra == "tensorboard"'])
    assert 'pip install -e ".[serve]"' in str(missing_extra("serve", "serve"))


def test_every_extra_that_is_named_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    named = re.findall(r'missing_extra\([^()]*"([\w-]+)"\)', "".join(path.read_text("utf-8") for path in MODULES))
    assert named
    assert set(named) <= set(extras)


def test_no_message_names_a_package_that_no_index_has() -> None:
    assert not [path for path in MODULES if "cutmix[" in path.read_text("utf-8")]


def test_words_are_listed() -> None:
    assert [listed(list(words)) for words in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]


def test_a_reason_is_one_line_and_never_empty() -> None:
    assert reason(RuntimeError("\nno disk.\nat line 3")) == "no disk"
    assert reason(AssertionError()) == "AssertionError"
