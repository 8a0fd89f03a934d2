"""Words of captions: tokens against those of Stanford's program in Java, recorded here, and the vocabulary."""

import builtins
from typing import Any

import pytest
import torch

from cutmix.errors import InputError
from cutmix.transfer import caption_scores
from cutmix.transfer.caption_data import collate
from cutmix.transfer.caption_scores import END, PAD, START, UNKNOWN, Vocabulary, tokenize

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
# What the docstring names as different, with Stanford's words.
DIFFERENT = {
    "the 'no' sign": "the no sign",
    "a well- known man": "a well known man",
    "a man user@mail.com": "a man user@mail.com",
    "see http://x.org/a now": "see http://x.org/a now",
    "a man @home": "a man @home",
    "an AT&T shop": "an at&t shop",
    "in c# code": "in c# code",
    "a dog :) runs": "a dog :-rrb- runs",
    "a dog !! runs": "a dog !! runs",
    "a dog .. runs": "a dog runs",
    "a dog 🙂 runs": "a dog runs",
    "for €20 now": "for $ 20 now",
    "a ½ cup": "a 1/2 cup",
    "in .NET code": "in net code",
    "a No. sign": "a no sign",
}


@pytest.mark.parametrize("caption", DIFFERENT)
def test_the_documented_differences_are_there(caption: str) -> None:
    assert " ".join(tokenize(caption)) != DIFFERENT[caption]


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

    caption_scores._treebank.cache_clear()
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"captioning needs nltk; install it with pip install \"nltk>="):
        tokenize("a dog")


# ---- vocabulary ----

CAPTIONS = ["A dog runs .", "a dog sits", "The dog's ball", "a cat"]


def test_the_most_frequent_words_come_first_and_rare_ones_not_at_all() -> None:
    # a 3, dog 3, 's ball cat runs sits the 1 each
    assert Vocabulary.from_captions(CAPTIONS, 1).words == ("a", "dog", "'s", "ball", "cat", "runs", "sits", "the")
    assert Vocabulary.from_captions(CAPTIONS, 2).words == ("a", "dog")
    assert len(Vocabulary.from_captions(CAPTIONS, 2)) == 6
    assert Vocabulary.from_captions(reversed(CAPTIONS), 1).words == Vocabulary.from_captions(CAPTIONS, 1).words


def test_a_caption_is_decoded_and_another_word_is_unknown() -> None:
    vocabulary = Vocabulary.from_captions(CAPTIONS, 1)
    for caption, expected in zip(CAPTIONS, ["a dog runs", "a dog sits", "the dog 's ball", "a cat"], strict=True):
        encoded = vocabulary.encode(caption)
        assert (encoded[0], encoded[-1]) == (START, END)
        assert vocabulary.decode(encoded) == expected
        assert vocabulary.decode(encoded[1:]) == expected
        assert all(UNKNOWN < number < len(vocabulary) for number in encoded[1:-1])
    assert vocabulary.encode("a zebra runs") == [START, 4, UNKNOWN, 9, END]
    assert vocabulary.decode([START, 4, UNKNOWN, 9, END, 5, PAD]) == "a <unk> runs"
    assert vocabulary.decode([END]) == vocabulary.decode([]) == ""


def test_words_survive_a_file() -> None:
    vocabulary = Vocabulary.from_captions(CAPTIONS, 1)
    assert Vocabulary(list(vocabulary.words)).encode("the cat") == vocabulary.encode("the cat")


def test_shorter_captions_are_padded() -> None:
    tokens = collate([[START, 5, END], [START, END], [START, 4, 5, 6, END]])
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [[1, 5, 2, 0, 0], [1, 2, 0, 0, 0], [1, 4, 5, 6, 2]]


def test_what_makes_no_vocabulary_is_refused() -> None:
    with pytest.raises(
        InputError, match="--min-count is 9; expected at most 3, the count of the most frequent of 8 wor"
    ):
        Vocabulary.from_captions(CAPTIONS, 9)
    with pytest.raises(InputError, match="there are 2 words, 1 different; expected some, each once"):
        Vocabulary(["dog", "dog"])
    with pytest.raises(InputError, match="there are 0 words"):
        Vocabulary([])
