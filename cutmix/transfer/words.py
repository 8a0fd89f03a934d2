"""The words of captions: their tokens, and a vocabulary of them.

The tokens are those of the Penn Treebank in lower case without punctuation, made without Java.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from cutmix.errors import InputError, missing_extra

PAD, START, END, UNKNOWN = range(4)


class Vocabulary:
    """The words of a captioner and their ids: PAD 0, START 1, END 2, UNKNOWN 3 for every other word, then the words.

    Args:
        words: The words from id 4 on, each once.

    Raises:
        InputError: If there is no word, or a word is given twice.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._ids = {word: number for number, word in enumerate(self.words, UNKNOWN + 1)}
        if not self.words or len(self._ids) < len(self.words):
            raise InputError(f"there are {len(self.words)} words, {len(self._ids)} different; expected some, each once")

    def __len__(self) -> int:
        """Return the number of ids, the four special ones included: the classes that a captioner predicts."""
        return UNKNOWN + 1 + len(self.words)

    @classmethod
    def from_captions(cls, captions: Iterable[str], min_count: int = 4) -> "Vocabulary":
        """Return the vocabulary of the words that occur at least ``min_count`` times, the most frequent ones first.

        Args:
            captions: The training captions.
            min_count: At least 1; 4 in the paper's code base, which also keeps punctuation.

        Raises:
            InputError: If no word is that frequent.
        """
        counts = Counter(word for caption in captions for word in tokenize(caption))
        kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
        if not kept:
            raise InputError(
                f"--min-count is {min_count}; expected at most {max(counts.values(), default=0)}, the count of the "
                f"most frequent of {len(counts)} words in the training captions"
            )
        return cls(kept)

    def encode(self, caption: str) -> list[int]:
        """Return the ids of a caption's words between START and END, UNKNOWN for words outside the vocabulary."""
        return [START, *(self._ids.get(word, UNKNOWN) for word in tokenize(caption)), END]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the words up to END, joined by spaces; START and PAD are skipped, UNKNOWN becomes "<unk>"."""
        found = []
        for number in ids:
            if number == END:
                break
            if number == UNKNOWN:
                found.append("<unk>")
            elif number > UNKNOWN:
                found.append(self.words[number - UNKNOWN - 1])
        return " ".join(found)


# ---- tokens ----

# What the COCO evaluation drops. It compares after lower-casing, so its "-LRB-" never matches and brackets stay.
_PUNCTUATION = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_TYPOGRAPHIC = str.maketrans({"“": '"', "”": '"', "’": "'", "…": " ... ", "–": " -- ", "—": " -- "})
_SENTENCE_END = re.compile(r"[^.]{2,}\.")
_ABBREVIATIONS = frozenset(
    f"{word}."
    for words in ("dr mr mrs ms st vs jr sr inc co corp ltd etc no mt ave blvd rd dept est prof gen capt lt sgt rev",
                  "hon sen rep gov pres jan feb mar aug sept oct nov dec mon tue fri ft")
    for word in words.split()
)  # fmt: skip


def tokenize(caption: str) -> list[str]:
    """Split a caption into words.

    Line breaks count as spaces, clitics are words of their own ("is n't", "dog 's"), and brackets become "-lrb-" and
    so on. A full stop inside the caption is removed unless it ends an abbreviation.

    Args:
        caption: Any text; a text without words gives an empty list.

    Returns:
        Words in lower case. Joined by spaces and split again they are the same.

    Raises:
        InputError: If nltk is not installed.

    Source: Stanford's PTBTokenizer 3.4.1 with ``-preserveLines -lowerCase`` and the filter after it, as pycocoevalcap
    runs them, reproduced with nltk's TreebankWordTokenizer. For ordinary captions the words are the same: for 4,999 of
    5,000 captions of Flickr8k. For odd strings they often are not: of 105 odd words tried, 23 gave other tokens, and so
    did most captions made of several of them. They differ for words in single quotes, hyphens at the edge of a word,
    e-mail and web addresses, @names, "AT&T" and "c#", emoticons and emoji, "!!" and "?!", "..", currency signs,
    fractions, a full stop before a word, and abbreviations such as "No." and the last word of a caption.
    """
    words = [_BRACKETS.get(word, word) for word in _treebank().tokenize(caption.translate(_TYPOGRAPHIC).lower())]
    words = [word[:-1] if _SENTENCE_END.fullmatch(word) and word not in _ABBREVIATIONS else word for word in words]
    return [word for word in words if word not in _PUNCTUATION]


@functools.cache
def _treebank() -> Any:
    try:
        from nltk.tokenize.treebank import TreebankWordTokenizer  # slow to import
    except ImportError:
        raise missing_extra("captioning", "captions") from None
    return TreebankWordTokenizer()
