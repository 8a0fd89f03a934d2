"""Show and Tell beside loops over words and images, exhaustive search, and 16 images that it must remember."""

import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutmix.errors import InputError
from cutmix.models import create_model
from cutmix.transfer.caption_data import CaptionBatches, CaptionSet, ImageBatches
from cutmix.transfer.caption_layouts import open_captions
from cutmix.transfer.caption_scores import END, PAD, START, UNKNOWN, Vocabulary, tokenize
from cutmix.transfer.captioning import ShowAndTell, generate_captions, has_bfloat16_lstm


class Pool(nn.Module):
    """An encoder that is quick: the means of a grid of cells, behind a BN; its classifier is ``fc``."""

    num_features = 12

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.fc: nn.Module = nn.Linear(12, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.bn(images), 2).flatten(1))


def network(words: int = 9, *, seed: int = 0, **options: Any) -> ShowAndTell:
    """A small network in float64 whose words differ in probability, END among them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ShowAndTell(Pool(), words, embed=6, hidden=8, **options).double()
        for parameter in model.lstm.parameters():
            nn.init.normal_(parameter, std=2)
        nn.init.normal_(model.output.weight)
        nn.init.normal_(model.output.bias)
        nn.init.normal_(model.project.weight, std=5)
    return model


def some_images(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def some_tokens() -> Tensor:
    return torch.tensor([[START, 5, 6, 7, END], [START, 8, END, PAD, PAD], [START, UNKNOWN, 4, END, PAD]])


def log_probability(model: ShowAndTell, image: Tensor, words: list[int]) -> Tensor:
    """The sum of log p of each word, one step of the LSTM after another."""
    _, state = model.lstm(model.encode(image[None])[:, None])
    total, previous = torch.zeros((), dtype=torch.float64), START
    for word in words:
        output, state = model.lstm(model.embed(torch.tensor([[previous]])), state)
        total, previous = total + model.output(output[0, 0]).log_softmax(0)[word], word
    return total


# ---- the loss ----


def test_the_loss_is_the_mean_over_words_of_a_loop_over_captions() -> None:
    model, images, tokens = network().eval(), some_images(3), some_tokens()
    words = [[int(word) for word in row[1:] if word != PAD] for row in tokens]
    expected = -sum(log_probability(model, image, own) for image, own in zip(images, words, strict=True))
    loss = model(images, tokens)
    torch.testing.assert_close(loss, expected / 9)
    assert torch.isclose(model(images, F.pad(tokens, (0, 4))), loss)


def test_dropout_is_applied_in_training_only() -> None:
    model = network(dropout=0.5)
    images, tokens = some_images(3), some_tokens()
    assert not torch.isclose(model(images, tokens), model(images, tokens))
    model.eval()
    assert model(images, tokens) == model(images, tokens)


def test_a_batch_of_one_can_be_trained_on() -> None:
    model = network(dropout=0.0)
    mean = model.norm.running_mean.clone()
    loss = model(some_images(1), some_tokens()[:1])
    loss.backward()
    assert torch.equal(model.norm.running_mean, mean)
    assert loss == model.eval()(some_images(1), some_tokens()[:1])


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "resnet110", "resnet50_cifar"])
def test_any_residual_network_is_an_encoder(name: str) -> None:
    encoder = create_model(name, 10)
    model = ShowAndTell(encoder, 20).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = encoder.forward_features(images).mean((2, 3))  # type: ignore[operator]
        torch.testing.assert_close(model.encoder(images), features)
    assert not any(isinstance(module, nn.Linear) for module in encoder.modules())
    assert model(images, torch.tensor([[START, 5, END], [START, END, PAD]])).isfinite()
    assert model.beam_search(images, 1, 3)[0].shape[0] == 2


# ---- the encoder ----


def test_a_frozen_encoder_does_not_move_and_stores_nothing() -> None:
    model = network().train()
    assert model.training
    assert not model.encoder.training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), 0.5)
    stored: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: stored.append(tuple(x.shape)) or x, lambda x: x):
        loss = model(some_images(3) + 5, some_tokens())
    loss.backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("encoder.") for name in moved)
    assert {"norm.running_mean", "project.weight", "output.weight", "embed.weight"} <= moved
    assert all(len(shape) < 4 for shape in stored)  # no feature map, nor the images
    assert all(p.grad is None and not p.requires_grad for p in model.encoder.parameters())


def test_a_tuned_encoder_moves() -> None:
    model = network(tune_encoder=True)
    assert model.encoder.training
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    model(some_images(3) + 5, some_tokens()).backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert not torch.equal(model.encoder.state_dict()["bn.running_mean"], before["bn.running_mean"])
    assert not model.eval().encoder.training


# ---- the search ----


def every_caption(words: range, max_length: int) -> Iterator[list[int]]:
    """All captions that end, and all that are cut off."""
    for length in range(max_length + 1):
        for caption in itertools.product(words, repeat=length):
            yield [*caption, END] if length < max_length else list(caption)


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_best_of_all_captions(seed: int) -> None:
    model, images = network(7, seed=seed).eval(), some_images(5, seed)
    found, scores = model.beam_search(images, beam=3**3, max_length=3)
    with torch.no_grad():
        for image, own, score in zip(images, found.tolist(), scores, strict=True):
            chances = {tuple(c): float(log_probability(model, image, c)) for c in every_caption(range(4, 7), 3)}
            best = max(chances, key=chances.__getitem__)
            assert tuple(word for word in own if word != PAD) == best
            assert float(score) == pytest.approx(chances[best])


def one_after_another(model: ShowAndTell, image: Tensor, beam: int, max_length: int) -> list[int]:
    """Search for one image, one beam after another, in plain Python."""
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(max_length):
        grown = []
        for score, words in beams:
            if words[-1:] == [END]:
                grown.append((score, words))
                continue
            _, state = model.lstm(model.encode(image[None])[:, None])
            output, _ = model.lstm(model.embed(torch.tensor([[START, *words]])), state)
            chances = model.output(output[0, -1]).log_softmax(0).tolist()
            grown += [
                (score + chance, [*words, word])
                for word, chance in enumerate(chances)
                if word not in (PAD, START, UNKNOWN)
            ]
        beams = sorted(grown, key=lambda one: -one[0])[:beam]
    return beams[0][1]


@pytest.mark.parametrize("beam", [1, 2, 5, 20])
def test_all_at_once_finds_what_one_after_another_finds(beam: int) -> None:
    model, images = network(30, seed=6).eval(), some_images(6)
    found, scores = model.beam_search(images, beam, 7)
    with torch.no_grad():
        for image, own, score in zip(images, found.tolist(), scores, strict=True):
            words = one_after_another(model, image, beam, 7)
            assert [word for word in own if word != PAD] == words
            assert float(score) == pytest.approx(float(log_probability(model, image, words)))
    assert len({tuple(own) for own in found.tolist()}) > 1


def test_greedy_takes_the_best_word_at_each_step() -> None:
    model, images = network(12, seed=6).eval(), some_images(5)
    found = model.beam_search(images, 1, 6)[0]
    for image, own in zip(images, found.tolist(), strict=True):
        words: list[int] = []
        while len(words) < 6 and words[-1:] != [END]:
            chances = torch.stack([log_probability(model, image, [*words, word]) for word in range(12)])
            chances[[PAD, START, UNKNOWN]] = -math.inf
            words.append(int(chances.argmax()))
        assert [word for word in own if word != PAD] == words
    assert torch.equal(found, model.beam_search(images, 1, 6)[0])


def test_an_image_gets_the_same_caption_alone_and_in_a_batch() -> None:
    model, images = network(30).train(), some_images(7)
    found = model.beam_search(images, 4, 8)[0].tolist()
    assert model.training
    assert not model.encoder.training
    for image, own in zip(images, found, strict=True):
        alone = model.beam_search(image[None], 4, 8)[0][0].tolist()
        assert [word for word in alone if word != PAD] == [word for word in own if word != PAD]


def test_captions_end_once_and_hold_words_only() -> None:
    model = network(12, layers=2).eval()
    with torch.no_grad():
        model.output.bias[END] -= 2
        model.output.bias[[PAD, START, UNKNOWN]] += 20  # what the network would like to say is not said
    found, scores = model.beam_search(some_images(20), 5, 9)
    lengths = set()
    for own in found.tolist():
        end = own.index(END) if END in own else len(own)
        assert all(word > UNKNOWN for word in own[:end])
        assert all(word == PAD for word in own[end + 1 :])
        lengths.add(end)
    assert len(lengths) > 1
    assert bool(scores.isfinite().all())
    assert found.dtype == torch.int64
    assert found.shape[1] <= 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_search_runs_in_other_precisions(dtype: torch.dtype) -> None:
    model = network(12).float().eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found, scores = model.beam_search(some_images(4).float(), 3, 5)
    assert scores.dtype == torch.float32
    assert len(found) == 4


def test_without_a_bfloat16_lstm_it_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutmix.transfer.captioning.has_bfloat16_lstm", lambda: False)
    model, inputs = network(12).float().train(), torch.rand(3, 4, 6)
    expected, _ = model.lstm(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found, own = model._recur(inputs)
        loss = model(some_images(3).float(), some_tokens())
    assert found.dtype == own[0].dtype == torch.float32
    assert torch.equal(found, expected)
    loss.backward()
    assert model.lstm.weight_hh_l0.grad is not None
    assert model.lstm.weight_hh_l0.grad.isfinite().all()


def test_a_bfloat16_lstm_is_sought_without_drawing_numbers() -> None:
    before = torch.get_rng_state()
    assert has_bfloat16_lstm.__wrapped__() is has_bfloat16_lstm()
    assert torch.equal(torch.get_rng_state(), before)


def test_captions_do_not_depend_on_the_batches() -> None:
    model, images, vocabulary = network(12).eval(), some_images(7), Vocabulary([f"w{i}" for i in range(8)])
    expected = [vocabulary.decode(own) for own in model.beam_search(images, 3, 5)[0].tolist()]
    batches = [(part, part) for part in images.split(2)]
    assert generate_captions(model, batches, vocabulary, beam=3, max_length=5) == expected
    assert len(set(expected)) > 1


# ---- wrong input ----


def test_what_does_not_fit_is_refused() -> None:
    model = network()
    with pytest.raises(InputError, match=r"tokens is of shape \(3, 5\); expected \(2, longest\), a row for each image"):
        model(some_images(2), some_tokens())
    with pytest.raises(InputError, match="the encoder is a Flatten without a classifier to remove; expected a ResNet"):
        ShowAndTell(nn.Flatten(), 9)


# ---- real images ----


@pytest.mark.slow
@pytest.mark.data
def test_sixteen_images_are_learned_by_heart() -> None:
    root = Path(os.environ.get("CUTMIX_DATA", ""), "flickr8k-1000")
    if not os.environ.get("CUTMIX_DATA") or not root.is_dir():
        pytest.skip("needs $CUTMIX_DATA/flickr8k-1000")
    whole = open_captions(root)[0]
    few = CaptionSet(whole.name, "train", whole.paths[:16], whole.names[:16], whole.captions[:16])
    vocabulary = Vocabulary.from_captions((text for texts in few.captions for text in texts), min_count=1)
    epochs = 80
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ShowAndTell(create_model("resnet20", 10), len(vocabulary), dropout=0.0)
        optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), 0.005)
        batches = CaptionBatches(few, vocabulary, size=32, crop=32, flip=False)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, epochs * batches.steps)
        for epoch in range(epochs):
            for images, tokens in batches.epoch(epoch):
                optimizer.zero_grad()
                model(images, tokens).backward()
                optimizer.step()
                schedule.step()
    found = generate_captions(model, ImageBatches(few, size=32, crop=32).epoch(), vocabulary, beam=1, max_length=40)
    known = [{" ".join(tokenize(text)) for text in texts} for texts in few.captions]
    assert sum(caption in texts for caption, texts in zip(found, known, strict=True)) >= 14
    assert len(set(found)) >= 14
