"""Tokens beside those that Stanford's program in Java gave for the same captions, written down here."""

import builtins
from typing import Any

import pytest

from cutmix.errors import InputError
from cutmix.transfer import caption_scores as tokens
from cutmix.transfer.caption_scores import tokenize

# The right side is the output of pycocoevalcap 1.2's PTBTokenizer (CoreNLP 3.4.1, Java 17).
STANFORD = {
    'He said "hello" to the dog.': "he said hello to the dog",
    "The colour of the grey theatre's centre.": "the colour of the grey theatre 's centre",
    "a man (in red) rides a bike.": "a man -lrb- in red -rrb- rides a bike",
    "It's a dog's toy, isn't it?": "it 's a dog 's toy is n't it",
    "tri-colored dog 's bone ; ok": "tri-colored dog 's bone ok",
    "Two dogs. Then they run.": "two dogs then they run",
    "It has 10. Then 5.": "it has 10 then 5",
    "Dr. Who vs. them at 3 p.m. in the u.s. army": "dr. who vs. them at 3 p.m. in the u.s. army",
    "an apple.An orange": "an apple.an orange",
    "A dog.\nA cat": "a dog a cat",
    "the man’s hat isn’t “new” .": "the man 's hat is n't new",
    "A cat… and a dog – or — two": "a cat and a dog or two",
    "the boys’ hats": "the boys hats",
    "A black dog--runs , 1,000 people at 10:30 ...": "a black dog runs 1,000 people at 10:30",
    "cannot gonna wanna": "can not gon na wan na",
    " lots   of   space ": "lots of space",
    "?": "",
    "": "",
}


@pytest.mark.parametrize("caption", STANFORD)
def test_tokens_are_those_of_stanfords_tokenizer(caption: str) -> None:
    assert " ".join(tokenize(caption)) == STANFORD[caption]


@pytest.mark.parametrize("caption", STANFORD)
def test_tokens_of_tokens_are_the_same(caption: str) -> None:
    once = tokenize(caption)
    assert tokenize(" ".join(once)) == once


def test_without_nltk_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("nltk"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    tokens._treebank.cache_clear()
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"captioning needs nltk; install it with pip install \"nltk>="):
        tokenize("a dog")
