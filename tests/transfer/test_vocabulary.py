"""Words to numbers and back."""

import pytest
import torch

from cutmix.errors import InputError
from cutmix.transfer.caption_data import END, PAD, START, UNKNOWN, Vocabulary, collate

CAPTIONS = ["A dog runs .", "a dog sits", "The dog's ball", "a cat"]


def test_the_most_frequent_words_come_first_and_rare_ones_not_at_all() -> None:
    # a 3, dog 3, 's ball cat runs sits the 1 each
    assert Vocabulary.from_captions(CAPTIONS, 1).words == ("a", "dog", "'s", "ball", "cat", "runs", "sits", "the")
    assert Vocabulary.from_captions(CAPTIONS, 2).words == ("a", "dog")
    assert len(Vocabulary.from_captions(CAPTIONS, 2)) == 6
    assert Vocabulary.from_captions(reversed(CAPTIONS), 1).words == Vocabulary.from_captions(CAPTIONS, 1).words


def test_a_caption_comes_back_and_a_foreign_word_is_unknown() -> None:
    vocabulary = Vocabulary.from_captions(CAPTIONS, 1)
    for caption, words in zip(CAPTIONS, ["a dog runs", "a dog sits", "the dog 's ball", "a cat"], strict=True):
        encoded = vocabulary.encode(caption)
        assert (encoded[0], encoded[-1]) == (START, END)
        assert vocabulary.decode(encoded) == words
        assert vocabulary.decode(encoded[1:]) == words
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
    with pytest.raises(InputError, match=r"none of the 8 words .* occurs 9 times: lower min_count"):
        Vocabulary.from_captions(CAPTIONS, 9)
    with pytest.raises(InputError, match="min_count is 0: expected 1 or more"):
        Vocabulary.from_captions(CAPTIONS, 0)
    with pytest.raises(InputError, match="a vocabulary of 2 words: expected one or more, none of them twice"):
        Vocabulary(["dog", "dog"])
    with pytest.raises(InputError, match="a vocabulary of 0 words"):
        Vocabulary([])
