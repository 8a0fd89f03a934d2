"""Scores beside cases worked out by hand, other libraries, and pycocoevalcap where it is installed.

The oracle was also run by hand on 800 images of Flickr8k with 4 references each: every score was the same to 1e-16,
ROUGE-L and CIDEr-D of each single image to 2e-15.
"""

import math
import random
import shutil
from typing import Any

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu

from cutmix.errors import InputError
from cutmix.transfer import caption_scores as module
from cutmix.transfer.caption_scores import caption_records, image_scores, meteor, rouge_l, score_captions, tokenize

WORDS = "a the dog cat man runs sits red ball on in grass".split()  # noqa: SIM905


def some_captions(n: int = 60, seed: int = 0) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Candidates from four words to twelve, one of them without any, and one to five references each."""
    draw = random.Random(seed)
    references = {
        f"{i}.jpg": [" ".join(draw.choices(WORDS, k=draw.randint(3, 12))) for _ in range(draw.randint(1, 5))]
        for i in range(n)
    }
    candidates = {name: " ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for name in references}
    for name in list(references)[::3]:
        candidates[name] = references[name][0] + " " + draw.choice(WORDS)
    candidates["1.jpg"] = " ."
    return candidates, references


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


def test_bleu_by_hand() -> None:
    # candidate: the cat sat on the mat (6 words); references of 7 and 5 words, both 1 away: the shorter one counts, 5.
    # 1-grams: the 2 of 2, cat, on, mat; sat is in none: 5/6. 2-grams: the cat, on the, the mat of 5: 3/5.
    # 3-grams: on the mat of 4: 1/4. 4-grams: none of 3, so BLEU-4 is about 0. c = 6 > r = 5: no penalty.
    scores = score_captions({"x": "the cat sat on the mat"}, {"x": ["the cat is on the mat now", "a cat on the mat"]})
    assert scores["bleu_1"] == pytest.approx(5 / 6)
    assert scores["bleu_2"] == pytest.approx(math.sqrt(5 / 6 * 3 / 5))
    assert scores["bleu_3"] == pytest.approx((5 / 6 * 3 / 5 * 1 / 4) ** (1 / 3))
    assert scores["bleu_4"] == pytest.approx((5 / 6 * 3 / 5 * 1 / 4 * 1e-15 / 3) ** (1 / 4))
    assert scores["cider_d"] == 0  # of one image


def test_bleu_penalty_by_hand() -> None:
    # 2 words beside 4: precision 1, exp(1 − 4/2). Clipping: "dog dog dog" has one of three.
    short = score_captions({"x": "a dog"}, {"x": ["a dog runs fast"]})
    assert [short["bleu_1"], short["bleu_2"]] == pytest.approx([math.exp(-1)] * 2)
    assert score_captions({"x": "dog dog dog"}, {"x": ["a dog runs"]})["bleu_1"] == pytest.approx(1 / 3)


def test_bleu_is_that_of_the_corpus_as_nltk_has_it() -> None:
    candidates, references = some_captions()
    candidates["1.jpg"] = "a dog runs on"  # nltk counts an n-gram in a caption that has none
    scores = score_captions(candidates, references)
    names = sorted(candidates)
    truth, words = [[r.split() for r in references[n]] for n in names], [tokenize(candidates[n]) for n in names]
    for n in range(1, 5):
        weights = (1 / n,) * n
        theirs = corpus_bleu(truth, words, weights, smoothing_function=SmoothingFunction().method0)
        assert scores[f"bleu_{n}"] == pytest.approx(theirs, rel=1e-9)


def test_rouge_l_by_hand() -> None:
    # "a dog runs" and "a big dog" have a dog in common: P 2/3, R 2/3. "runs": P 1/3, R 1. The best of each are of two
    # references: P 2/3, R 1, F = 2.44 · 2/3 / (1 + 1.44 · 2/3) = 0.8299...
    assert rouge_l(["a", "dog", "runs"], [["a", "big", "dog"], ["runs"]]) == pytest.approx(2.44 * 2 / 3 / (1 + 0.96))
    assert rouge_l(["a", "b"], [["b", "a"]]) == pytest.approx(0.5)
    assert rouge_l(["x"], [["y"]]) == rouge_l([], [["y"]]) == 0
    assert rouge_l(["x", "y"], [["x", "y"]]) == pytest.approx(1)


def test_common_subsequences_are_those_of_the_whole_table() -> None:
    draw = random.Random(1)
    for _ in range(300):
        a, b = (draw.choices("abcd", k=draw.randint(0, 70)) for _ in range(2))
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        assert module._common_length(a, b) == table[-1][-1]


def test_cider_d_by_hand() -> None:
    # Two images, one reference each: log(2/1) = ln 2 for each n-gram of one image, 0 for "a", which both have.
    # x: candidate "a dog", reference "a dog": 1-grams: a counts 0, dog/dog: cosine 1. 2-grams: a dog: 1. There are no
    # 3- and 4-grams: 0. Mean over n: 1/2, times 10: 5.
    # y: candidate "cat cat cat", reference "a cat": 1-grams: (3 ln 2) and (ln 2): min(3, 1) / 3 = 1/3, clipped.
    # 2-grams: cat cat / a cat: 0. Lengths in 2-grams 2 and 1: e^(−1/72). 10 · e^(−1/72) / 3 / 4.
    scores = image_scores({"x": "a dog", "y": "cat cat cat"}, {"x": ["a dog"], "y": ["a cat"]})
    assert scores.images == ("x", "y")
    assert scores.cider_d.tolist() == pytest.approx([5, 10 * math.exp(-1 / 72) / 12])
    assert scores.corpus()["cider_d"] == pytest.approx((5 + 10 * math.exp(-1 / 72) / 12) / 2)


def test_end_points() -> None:
    _, references = some_captions()
    references = {name: [f"{' '.join(texts)} word{i} {i}"] for i, (name, texts) in enumerate(references.items())}
    perfect = score_captions({name: texts[0] for name, texts in references.items()}, references)
    for name, value in perfect.items():
        assert value == pytest.approx(10 if name == "cider_d" else 1), name
    worst = score_captions(dict.fromkeys(references, "zebra"), references)
    assert max(worst.values()) < 1e-6
    assert set(score_captions(dict.fromkeys(references, ""), references).values()) == {0.0}


def test_the_order_of_images_and_spelling_of_tokens_changes_nothing() -> None:
    candidates, references = some_captions()
    scores = score_captions(candidates, references)
    shuffled = dict(reversed(candidates.items()))
    loud = {name: [f" {text.upper()} ." for text in texts] for name, texts in references.items()}
    assert score_captions(shuffled, loud) == scores


def test_equal_to_pycocoevalcap() -> None:
    pytest.importorskip("pycocoevalcap", reason="needs pycocoevalcap")
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    candidates, references = some_captions(300)
    names = sorted(candidates)
    texts = {name: [" ".join(tokenize(candidates[name]))] for name in names}
    truth = {name: references[name] for name in names}
    bleu = BleuScorer()
    for name in names:
        bleu += (texts[name][0], truth[name])
    expected = dict(zip(("bleu_1", "bleu_2", "bleu_3", "bleu_4"), bleu.compute_score("closest")[0], strict=True))
    expected |= {"rouge_l": Rouge().compute_score(truth, texts)[0], "cider_d": Cider().compute_score(truth, texts)[0]}
    assert score_captions(candidates, references) == pytest.approx(expected, rel=1e-12)


@pytest.mark.usefixtures("no_java")
def test_records_have_intervals_of_the_bootstrap() -> None:
    candidates, references = some_captions(200)
    records = caption_records(candidates, references, resamples=300)
    scores = score_captions(candidates, references)
    assert [record.metric for record in records] == [*scores, "meteor"]
    for record, (name, value) in zip(records[:-1], scores.items(), strict=True):
        assert record.value == pytest.approx(100 * value), name
        assert record.low < record.value < record.high
        assert (record.confidence, record.n) == (0.95, 200)
    # ROUGE-L is a mean: its interval is about that of the normal distribution
    parts = 100 * image_scores(candidates, references).rouge_l
    half = 1.96 * parts.std() / math.sqrt(200)
    rouge = records[4]
    assert rouge.high - rouge.low == pytest.approx(2 * half, rel=0.15)
    assert caption_records(candidates, references, resamples=300) == records
    assert caption_records(candidates, references, resamples=300, seed=1) != records


@pytest.mark.usefixtures("no_java")
def test_meteor_needs_java_and_nothing_else_takes_its_place() -> None:
    candidates, references = some_captions(3)
    with pytest.raises(InputError, match=r"METEOR needs (Java|nltk and pycocoevalcap)"):
        meteor(candidates, references)
    record = caption_records(candidates, references, resamples=2)[-1]
    assert (record.metric, record.value) == ("meteor", None)
    assert "needs " in record.note
    assert "meteor" not in score_captions(candidates, references)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pycocoevalcap leaves its pipes open
def test_meteor_is_the_program_in_java() -> None:
    pytest.importorskip("pycocoevalcap", reason="needs pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    references = {"x": ["a dog runs on the grass"], "y": ["a man sits"]}
    assert meteor({"x": "a dog runs on the grass", "y": "a man sits"}, references) == pytest.approx(1, abs=0.01)
    stemmed = meteor({"x": "a dog running on the grass", "y": "a man sitting"}, references)
    assert 0.3 < stemmed < 1  # nltk's metric of that name gives other values


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        (
            {"a.jpg": "x", "b.jpg": "x"},
            {"b.jpg": ["x"]},
            r"the candidates have the image 'a.jpg', which the references",
        ),
        (
            {"b.jpg": "x"},
            {"a.jpg": ["x"], "b.jpg": ["x"], "c.jpg": ["x"]},
            r"references have .* 'a.jpg' and 1 more, which",
        ),
        ({"a.jpg": "x"}, {"a.jpg": ["a dog", " ."]}, r"the image 'a.jpg' has an empty reference; expected"),
        ({"a.jpg": "x"}, {"a.jpg": []}, r"the image 'a.jpg' has no reference; expected"),
        ({}, {}, r"there are no captions; expected those of"),
        ({"a": "dog"}, {"a": "dog"}, r"the references of the image 'a' are not a list of texts; expected \["),
        ({"a": "dog"}, {"a": "a dog"}, r"the references of the image 'a' are not a list of texts"),
        ({"a": "dog"}, {"a": ["dog", None]}, r"the references of the image 'a' are not a list of texts"),
        ({"a": "dog"}, {"a": None}, r"the references of the image 'a' are not a list of texts"),
        ({"a": ["dog"]}, {"a": ["dog"]}, r"the candidate of the image 'a' is a list; expected one caption as text"),
        ({"a": "dog", 1: "cat"}, {"a": ["dog"], 1: ["cat"]}, r"the names of the images are of several types; expected"),
        ({"1": "dog"}, {1: ["dog"]}, r"the names of the images are of several types; expected"),
    ],
)
def test_what_does_not_fit_is_refused(candidates: Any, references: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        score_captions(candidates, references)


def test_parts_are_kept_by_image() -> None:
    candidates, references = some_captions(50)
    whole = image_scores(candidates, references)
    assert whole.bleu.shape == (50, 10)
    half = np.arange(0, 50, 2)
    chosen = [whole.images[i] for i in half]
    part = score_captions({n: candidates[n] for n in chosen}, {n: references[n] for n in chosen})
    ours = whole.corpus(np.arange(50) % 2 == 0)
    for name in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"):  # CIDEr-D's weights are of the whole set
        assert ours[name] == pytest.approx(part[name], rel=1e-12), name
