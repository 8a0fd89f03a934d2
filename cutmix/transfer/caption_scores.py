"""The words of captions, and their BLEU, ROUGE-L and CIDEr-D, as the COCO caption evaluation defines them.

The words are those of the Penn Treebank in lower case without punctuation. METEOR is computed by its program in Java
where that can run, and not at all otherwise; the rest needs no Java.
"""

import functools
import math
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cutmix.errors import InputError, missing_extra
from cutmix.runs.record import Record
from cutmix.runtime.seeding import derive_seed
from cutmix.statistics import bootstrap, bootstrap_interval

# ---- words ----

PAD, START, END, UNKNOWN = range(4)


class Vocabulary:
    """The words of a captioner and their ids: PAD 0, START 1, END 2, UNKNOWN 3 for every other word, then the words.

    Args:
        words: The words from id 4 on, each once.

    Raises:
        InputError: If no word is given, or a word twice.
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

# Tokens that the COCO evaluation drops. It compares after lower-casing, so its "-LRB-" never matches and brackets stay.
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


# ---- scores ----

Tokens = list[str]
Gram = tuple[str, ...]

_ORDERS = range(1, 5)  # n-grams of BLEU and CIDEr-D
SCORES = (*(f"bleu_{n}" for n in _ORDERS), "rouge_l", "cider_d")
_BETA = 1.2  # weight of recall in ROUGE-L
_SIGMA = 6.0  # of CIDEr-D's penalty of another length, in words


@dataclass(frozen=True, eq=False)
class ImageScores:
    """The parts of the scores of N images, from which the scores of any subset can be computed.

    Attributes:
        images: The N names, sorted.
        bleu: (N, 10) int64: words of the candidate, words of the reference closest in length, numbers of the
            candidate's 1- to 4-grams, and how many of them are in the references.
        rouge_l: (N,) float64, each in [0, 1].
        cider_d: (N,) float64, each in [0, 10].
    """

    images: tuple[str, ...]
    bleu: np.ndarray
    rouge_l: np.ndarray
    cider_d: np.ndarray

    def corpus(self, counts: np.ndarray | None = None) -> dict[str, float]:
        """Return the scores of :func:`score_captions`, each image counted as often as ``counts`` (N,) says, or once."""
        counts = np.ones(len(self.rouge_l), dtype=np.int64) if counts is None else counts
        means = (float(counts @ part) / int(counts.sum()) for part in (self.rouge_l, self.cider_d))
        return dict(zip(SCORES, (*corpus_bleu(counts @ self.bleu), *means), strict=True))


def score_captions(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return the scores of one caption for each image against its references.

    Args:
        candidates: The caption of each image, by the image's name; a caption without words scores 0.
        references: One or more captions of each image, by the same names.

    Returns:
        ``bleu_1``, ``bleu_2``, ``bleu_3``, ``bleu_4`` and ``rouge_l`` in [0, 1], ``cider_d`` in [0, 10]; the paper
        prints them times 100. CIDEr-D of a single image is 0, since its n-grams are in every image.

    Raises:
        InputError: If the two have different names or none, a candidate is not a text, or references are not a list of
            texts with words.

    Source: Papineni et al. 2002 (BLEU over the corpus, closest reference length), Lin 2004 (ROUGE-L), Vedantam et al.
    2015 (CIDEr-D) with the constants of pycocoevalcap 1.2, which gives the same numbers for the same tokens.
    """
    return image_scores(candidates, references).corpus()


def image_scores(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> ImageScores:
    """Return the parts of :func:`score_captions` for each image; takes and raises the same."""
    images, words, truth = _tokens(candidates, references)
    grams = [_grams(candidate) for candidate in words]
    truth_grams = [[_grams(reference) for reference in several] for several in truth]
    cases = list(zip(words, truth, grams, truth_grams, strict=True))
    return ImageScores(
        tuple(images),
        np.array([_bleu_counts(*case) for case in cases]),
        np.array([rouge_l(candidate, several) for candidate, several in zip(words, truth, strict=True)]),
        cider_d(grams, truth_grams),
    )


def caption_records(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Record]:
    """Return the scores with their intervals, in the paper's unit.

    The interval is the percentile bootstrap over images; CIDEr-D's weights of n-grams stay those of the whole set.
    METEOR has no interval, and no value where its program cannot run; the ``note`` then gives the reason.

    Args:
        candidates: As for :func:`score_captions`.
        references: As for :func:`score_captions`.
        resamples: Number of resamples.
        seed: Seed of the resamples.
    """
    scores = image_scores(candidates, references)
    n = len(scores.images)
    seeded = n, derive_seed(seed, "bootstrap")
    drawn = bootstrap(lambda counts: [[*scores.corpus(row).values()] for row in counts], seeded, draws=resamples)
    records: list[Record] = []
    shared: dict[str, Any] = {"suite": "captioning", "confidence": 0.95, "n": n}
    for (name, value), spread in zip(scores.corpus().items(), drawn.T, strict=True):
        most = 1000.0 if name == "cider_d" else 100.0
        ends = bootstrap_interval(100 * value, 100 * spread, n, 0.95, most=most, centred=False)
        records.append(Record(metric=name, value=100 * value, **ends._asdict(), **shared))
    try:
        return [*records, Record(metric="meteor", value=100 * meteor(candidates, references), **shared)]
    except InputError as error:
        note = str(error).removeprefix("METEOR ")
        return [*records, Record(metric="meteor", value=None, note=note, **shared)]


def meteor(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> float:
    """Return METEOR 1.5 of pycocoevalcap's program in Java, in [0, 1]; takes and raises as :func:`score_captions`.

    Raises:
        InputError: Also if Java or pycocoevalcap is missing.
    """
    images, words, truth = _tokens(candidates, references)
    try:
        from pycocoevalcap.meteor.meteor import Meteor
    except ImportError:
        raise missing_extra("METEOR", "captions-java") from None
    if shutil.which("java") is None:
        raise InputError("METEOR needs Java; no program java is on the path")
    texts = {image: [" ".join(caption)] for image, caption in zip(images, words, strict=True)}
    known = {image: [" ".join(one) for one in several] for image, several in zip(images, truth, strict=True)}
    return float(Meteor().compute_score(known, texts)[0])


def _tokens(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[list[str], list[Tokens], list[list[Tokens]]]:
    """Return the names, the words of the candidates and those of the references, all checked."""
    try:
        images, differing = sorted(candidates), sorted(candidates.keys() ^ references.keys())
    except TypeError:
        raise InputError("the names of the images are of several types; expected texts") from None
    if differing:
        has, lacks = ("candidates", "references") if differing[0] in candidates else ("references", "candidates")
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise InputError(
            f"the {has} have the image '{differing[0]}'{more}, which the {lacks} do not have; expected the same images"
        )
    if not candidates:
        raise InputError("there are no captions; expected those of one or more images")
    for image in images:
        candidate, given = candidates[image], references[image]
        if not isinstance(candidate, str):
            kind = type(candidate).__name__
            raise InputError(f"the candidate of the image '{image}' is a {kind}; expected one caption as text")
        listed = isinstance(given, Collection) and not isinstance(given, str | Mapping)
        if not (listed and all(isinstance(text, str) for text in given)):
            raise InputError(f"the references of the image '{image}' are not a list of texts; expected ['…', '…']")
    truth = [[tokenize(caption) for caption in references[image]] for image in images]
    for image, several in zip(images, truth, strict=True):
        if not several or not all(several):
            what = "an empty reference" if several else "no reference"
            raise InputError(f"the image '{image}' has {what}; expected one or more captions with words")
    return images, [tokenize(candidates[image]) for image in images], truth


def _grams(words: Tokens) -> Counter[Gram]:
    """Return the counts of the 1- to 4-grams."""
    return Counter(tuple(words[i : i + n]) for n in _ORDERS for i in range(len(words) - n + 1))


# ---- BLEU ----


def _bleu_counts(words: Tokens, truth: list[Tokens], grams: Counter[Gram], truth_grams: list[Counter[Gram]]) -> list:
    length = len(words)
    closest = min((abs(len(own) - length), len(own)) for own in truth)[1]  # of two equally close ones the shorter
    found = [0, 0, 0, 0]
    for gram, count in grams.items():
        found[len(gram) - 1] += min(count, max(own[gram] for own in truth_grams))
    return [length, closest, *(max(0, length - n + 1) for n in _ORDERS), *found]


def corpus_bleu(counts: np.ndarray) -> list[float]:
    """Return BLEU-1 to BLEU-4 from summed counts: exp(min(0, 1 − r/c)) (∏ₖ₌₁ⁿ matchesₖ / guessesₖ)^(1/n).

    Args:
        counts: (10,): candidate words c, reference words r, guesses of 1 to 4, matches of 1 to 4.

    Returns:
        Four numbers in [0, 1].
    """
    small, tiny = 1e-9, 1e-15  # pycocoevalcap's; 0 of 0 is 0
    precision = ((counts[6:] + tiny) / (counts[2:6] + small)).cumprod() ** (1 / np.array(_ORDERS))
    ratio = (counts[0] + tiny) / (counts[1] + small)
    return (precision * np.exp(min(0.0, 1 - 1 / ratio))).tolist()


# ---- ROUGE-L ----


def rouge_l(candidate: Tokens, references: list[Tokens]) -> float:
    """Return (1 + β²) P R / (R + β² P), β = 1.2, of the longest common subsequences.

    P and R are each the maximum over the references, which may be two different ones.

    Args:
        candidate: The words of the caption.
        references: The words of one or more references, none empty.
    """
    common = [_common_length(candidate, reference) for reference in references]
    if not max(common):
        return 0.0
    precision = max(common) / len(candidate)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True))
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_length(a: Tokens, b: Tokens) -> int:
    """Return the length of the longest common subsequence; a row of its table is held in the bits of one integer."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    every = (1 << len(a)) - 1
    row = every  # bit i is 0 where the table grows from i to i + 1
    for word in b:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & every
    return len(a) - row.bit_count()


# ---- CIDEr-D ----


def cider_d(candidates: Sequence[Counter[Gram]], references: Sequence[Sequence[Counter[Gram]]]) -> np.ndarray:
    """Return CIDEr-D of each image.

    10 times the mean, over n = 1 to 4 and over the references, of e^(−(l − l′)² / 2σ²) min(g, g′)·g′ / (|g| |g′|). Here
    g and g′ are the counts of n-grams, each times log(images / images whose references have it), σ = 6, and l and l′
    are the lengths (in 2-grams, whose numbers differ as those of the words do).

    Args:
        candidates: The n-grams of the candidate of each image.
        references: The n-grams of each reference, for each image.

    Returns:
        (N,) float64.
    """
    images = Counter(gram for several in references for gram in set().union(*several))
    log_n = math.log(len(references))
    rarity = {gram: log_n - math.log(count) for gram, count in images.items()}

    def vector(grams: Counter[Gram]) -> tuple[dict[Gram, float], list[float], int]:
        weights = {gram: count * rarity.get(gram, log_n) for gram, count in grams.items()}
        squares = [0.0] * 4
        for gram, weight in weights.items():
            squares[len(gram) - 1] += weight * weight
        return weights, [math.sqrt(square) for square in squares], sum(n for gram, n in grams.items() if len(gram) == 2)

    scores = []
    for candidate, several in zip(candidates, references, strict=True):
        own, own_norms, own_length = vector(candidate)
        total = 0.0
        for weights, norms, length in map(vector, several):
            products = [0.0] * 4
            for gram, weight in own.items():
                if known := weights.get(gram):
                    products[len(gram) - 1] += min(weight, known) * known
            cosine = sum(p / (a * b) for p, a, b in zip(products, own_norms, norms, strict=True) if a and b)
            total += cosine * math.exp(-((own_length - length) ** 2) / (2 * _SIGMA**2))
        scores.append(10 * total / (4 * len(several)))
    return np.array(scores)
