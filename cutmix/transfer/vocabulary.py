"""The words that a captioning network knows, and captions as their numbers."""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cutmix.errors import InputError
from cutmix.transfer.tokens import tokenize

PAD, START, END, UNKNOWN = range(4)


class Vocabulary:
    """Words and their numbers: 0 pads, 1 starts a caption, 2 ends it, 3 stands for every other word, then the words.

    Args:
        words: The words from number 4 on, each once.

    Raises:
        InputError: There is no word, or one twice.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._numbers = {word: number for number, word in enumerate(self.words, UNKNOWN + 1)}
        if not self.words or len(self._numbers) < len(self.words):
            raise InputError(f"a vocabulary of {len(self.words)} words: expected one or more, none of them twice")

    def __len__(self) -> int:
        """Count the words and the four other numbers: the classes that a network tells apart."""
        return UNKNOWN + 1 + len(self.words)

    @classmethod
    def from_captions(cls, captions: Iterable[str], min_count: int = 4) -> "Vocabulary":
        """Make a vocabulary of the words that occur at least ``min_count`` times, the most frequent ones first.

        Args:
            captions: The training captions.
            min_count: At least 1; 4 in the code that the CutMix authors built on, which also kept punctuation.

        Raises:
            InputError: ``min_count`` is below 1, or no word is that frequent.
        """
        if min_count < 1:
            raise InputError(f"min_count is {min_count}: expected 1 or more")
        counts = Counter(word for caption in captions for word in tokenize(caption))
        kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
        if not kept:
            raise InputError(
                f"none of the {len(counts)} words of the training captions occurs {min_count} times: "
                "lower min_count or give more captions"
            )
        return cls(kept)

    def encode(self, caption: str) -> list[int]:
        """Return the numbers of a caption's words, between START and END; UNKNOWN for words that are not here."""
        return [START, *(self._numbers.get(word, UNKNOWN) for word in tokenize(caption)), END]

    def decode(self, numbers: Iterable[int]) -> str:
        """Return the words up to END, joined by spaces; START and PAD are left out, UNKNOWN is "<unk>"."""
        found = []
        for number in numbers:
            if number == END:
                break
            if number == UNKNOWN:
                found.append("<unk>")
            elif number > UNKNOWN:
                found.append(self.words[number - UNKNOWN - 1])
        return " ".join(found)


def collate(encoded: Sequence[Sequence[int]]) -> Tensor:
    """Return captions as one matrix, the shorter ones filled up with PAD.

    Args:
        encoded: n captions as ``Vocabulary.encode`` gives them.

    Returns:
        (n, longest) int64.
    """
    return pad_sequence([torch.tensor(caption) for caption in encoded], batch_first=True, padding_value=PAD)
