"""BLEU, ROUGE-L and CIDEr-D of captions, as the COCO caption evaluation defines them, without Java.

METEOR is a program in Java: it is either run as it is, or the answer is "needs Java". No other metric has its name.
"""

import functools
import math
import re
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cutmix.errors import InputError, missing_extra
from cutmix.runs.record import Record

Tokens = list[str]
Gram = tuple[str, ...]

_ORDERS = range(1, 5)  # n-grams of BLEU and CIDEr-D
SCORES = (*(f"bleu_{n}" for n in _ORDERS), "rouge_l", "cider_d")
_BETA = 1.2  # weight of recall in ROUGE-L
_SIGMA = 6.0  # of CIDEr-D's penalty of another length, in words


@dataclass(frozen=True, eq=False)
class PictureScores:
    """What the scores of N pictures are made of, so that they can be computed again for any choice of pictures.

    Attributes:
        pictures: The N names, sorted.
        bleu: (N, 10) int64: words of the candidate and of the reference closest in length, the candidate's 1- to
            4-grams, and how many of them the references have.
        rouge_l: (N,) float64, each in [0, 1].
        cider_d: (N,) float64, each in [0, 10].
    """

    pictures: tuple[str, ...]
    bleu: np.ndarray
    rouge_l: np.ndarray
    cider_d: np.ndarray

    def corpus(self, chosen: np.ndarray | slice = slice(None)) -> dict[str, float]:
        """Return the scores of :func:`score_captions` for a choice of pictures, by default all of them."""
        means = float(self.rouge_l[chosen].mean()), float(self.cider_d[chosen].mean())
        return dict(zip(SCORES, (*corpus_bleu(self.bleu[chosen].sum(0)), *means), strict=True))


def score_captions(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Score one caption of each picture against the references of the same pictures.

    Args:
        candidates: A caption by the picture's name; one without a word scores 0.
        references: One or more captions by the same names.

    Returns:
        ``bleu_1``, ``bleu_2``, ``bleu_3``, ``bleu_4`` and ``rouge_l`` in [0, 1], ``cider_d`` in [0, 10]; the paper
        prints them times 100. CIDEr-D of a single picture is 0, as no n-gram tells pictures apart.

    Raises:
        InputError: The two name different pictures, there is none, a candidate is no text, or references are no list of
            texts with words.

    Source: Papineni et al. 2002 (BLEU over the corpus, closest reference length), Lin 2004 (ROUGE-L), Vedantam et al.
    2015 (CIDEr-D) with the constants of pycocoevalcap 1.2, which gives the same numbers for the same tokens.
    """
    return picture_scores(candidates, references).corpus()


def picture_scores(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> PictureScores:
    """Return the parts of :func:`score_captions` picture by picture; takes and raises the same."""
    pictures, words, truth = _tokens(candidates, references)
    grams = [_grams(candidate) for candidate in words]
    truth_grams = [[_grams(one) for one in several] for several in truth]
    cases = list(zip(words, truth, grams, truth_grams, strict=True))
    return PictureScores(
        tuple(pictures),
        np.array([_bleu_counts(*case) for case in cases]),
        np.array([rouge_l(candidate, several) for candidate, several in zip(words, truth, strict=True)]),
        cider_d(grams, truth_grams),
    )


def caption_records(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Record]:
    """Return the scores with their intervals, in the paper's unit.

    The interval is the percentile bootstrap over pictures; CIDEr-D's weights of n-grams stay those of the whole set.
    METEOR's record has no interval, and no value where its program cannot run: its ``note`` then says what it needs.

    Args:
        candidates: As for :func:`score_captions`.
        references: As for :func:`score_captions`.
        confidence: In (0, 1).
        resamples: Number of draws of N pictures out of N.
        seed: Of these draws.
    """
    from cutmix.statistics import resamples as draw  # torch, which a page does without

    scores = picture_scores(candidates, references)
    n = len(scores.pictures)
    drawn = [scores.corpus(chosen) for chosen in draw(n, resamples, seed, "bootstrap")]
    records: list[Record] = []
    shared: dict[str, Any] = {"suite": "captioning", "confidence": confidence, "n": n}
    for name, value in scores.corpus().items():
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        low, high = np.quantile([100 * one[name] for one in drawn], tails).tolist()
        records.append(Record(metric=name, value=100 * value, low=low, high=high, **shared))
    try:
        return [*records, Record(metric="meteor", value=100 * meteor(candidates, references), **shared)]
    except InputError as error:
        note = str(error).removeprefix("METEOR ")
        return [*records, Record(metric="meteor", value=None, note=note, **shared)]


def meteor(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> float:
    """Return METEOR 1.5 of pycocoevalcap's program in Java, in [0, 1]; takes and raises as :func:`score_captions`.

    Raises:
        InputError: Java or pycocoevalcap is missing too.
    """
    pictures, words, truth = _tokens(candidates, references)
    try:
        from pycocoevalcap.meteor.meteor import Meteor
    except ImportError:
        raise missing_extra("METEOR", "captions-java") from None
    if shutil.which("java") is None:
        raise InputError("METEOR needs Java; no program java is on the path")
    texts = {picture: [" ".join(caption)] for picture, caption in zip(pictures, words, strict=True)}
    known = {picture: [" ".join(one) for one in several] for picture, several in zip(pictures, truth, strict=True)}
    return float(Meteor().compute_score(known, texts)[0])


def _tokens(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[list[str], list[Tokens], list[list[Tokens]]]:
    """Return the names, the words of the candidates and those of the references, or say what does not fit."""
    try:
        pictures, differing = sorted(candidates), sorted(candidates.keys() ^ references.keys())
    except TypeError:
        raise InputError("the pictures are named by values of several types: expected texts") from None
    if differing:
        has, lacks = ("candidates", "references") if differing[0] in candidates else ("references", "candidates")
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise InputError(
            f"the {has} have the picture '{differing[0]}'{more}, which the {lacks} have not: expected the same pictures"
        )
    if not candidates:
        raise InputError("there are no captions to score: expected one or more pictures")
    for picture in pictures:
        candidate, given = candidates[picture], references[picture]
        if not isinstance(candidate, str):
            kind = type(candidate).__name__
            raise InputError(f"the candidate of the picture '{picture}' is a {kind}: expected one caption as text")
        listed = isinstance(given, Collection) and not isinstance(given, str | Mapping)
        if not (listed and all(isinstance(one, str) for one in given)):
            raise InputError(f"the references of the picture '{picture}' are no list of texts: expected ['…', '…']")
    truth = [[tokenize(caption) for caption in references[picture]] for picture in pictures]
    for picture, several in zip(pictures, truth, strict=True):
        if not several or not all(several):
            what = "an empty reference" if several else "no reference"
            raise InputError(f"the picture '{picture}' has {what}: expected one or more captions with words")
    return pictures, [tokenize(candidates[picture]) for picture in pictures], truth


def _grams(words: Tokens) -> Counter[Gram]:
    """Count the 1- to 4-grams."""
    return Counter(tuple(words[i : i + n]) for n in _ORDERS for i in range(len(words) - n + 1))


# ---- BLEU ----


def _bleu_counts(words: Tokens, truth: list[Tokens], grams: Counter[Gram], truth_grams: list[Counter[Gram]]) -> list:
    length = len(words)
    closest = min((abs(len(one) - length), len(one)) for one in truth)[1]  # the shorter one of two as close
    found = [0, 0, 0, 0]
    for gram, count in grams.items():
        found[len(gram) - 1] += min(count, max(one[gram] for one in truth_grams))
    return [length, closest, *(max(0, length - n + 1) for n in _ORDERS), *found]


def corpus_bleu(counts: np.ndarray) -> list[float]:
    """Return BLEU-1 to BLEU-4 from summed counts: exp(min(0, 1 − r/c)) (∏ₖ₌₁ⁿ matchesₖ / guessesₖ)^(1/n).

    Args:
        counts: (10,): candidate words c, reference words r, guesses of 1 to 4, matches of 1 to 4.

    Returns:
        Four numbers in [0, 1].
    """
    small, tiny = 1e-9, 1e-15  # pycocoevalcap's: nothing of nothing is 0
    precision = ((counts[6:] + tiny) / (counts[2:6] + small)).cumprod() ** (1 / np.array(_ORDERS))
    ratio = (counts[0] + tiny) / (counts[1] + small)
    return (precision * np.exp(min(0.0, 1 - 1 / ratio))).tolist()


# ---- ROUGE-L ----


def rouge_l(candidate: Tokens, references: list[Tokens]) -> float:
    """Return (1 + β²) P R / (R + β² P), β = 1.2, of the longest common subsequences.

    P and R are each the best over the references, which may be two different ones.

    Args:
        candidate: Words.
        references: One or more lists of words, none empty.
    """
    common = [_common_length(candidate, reference) for reference in references]
    if not max(common):
        return 0.0
    precision = max(common) / len(candidate)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True))
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common_length(a: Tokens, b: Tokens) -> int:
    """Return the length of the longest common subsequence, a whole row of its table in the bits of one number."""
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
    """Return CIDEr-D of each picture.

    10 times the mean, over n = 1 to 4 and over the references, of e^(−(l − l′)² / 2σ²) min(g, g′)·g′ / (|g| |g′|). Here
    g and g′ are the counts of n-grams, each times log(pictures / pictures whose references have it), σ = 6, and l and
    l′ are the lengths (counted in 2-grams, which differ as the words do).

    Args:
        candidates: The n-grams of each picture's candidate.
        references: Of each picture, those of its references.

    Returns:
        (N,) float64.
    """
    pictures = Counter(gram for several in references for gram in set().union(*several))
    log_n = math.log(len(references))
    rarity = {gram: log_n - math.log(count) for gram, count in pictures.items()}

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


# ---- tokens ----
# The words of a caption: Penn Treebank tokens in lower case, without punctuation and without Java.

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
    so on. A full stop inside the caption is cut off unless it ends an abbreviation.

    Args:
        caption: Any text; one without a word gives an empty list.

    Returns:
        Words in lower case. Joined by spaces and split again they are the same.

    Raises:
        InputError: nltk is not installed.

    Source: Stanford's PTBTokenizer 3.4.1 with ``-preserveLines -lowerCase`` and the filter after it, as pycocoevalcap
    runs them; made of nltk's TreebankWordTokenizer. The same words for 4,999 of 5,000 captions of Flickr8k. They differ
    for words in single quotes, e-mail and web addresses, hyphens at a word's edge, and an abbreviation as last word.
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
