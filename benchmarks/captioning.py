"""Time of the batched beam search beside a search of one image and one beam at a time, and of the scores.

    python benchmarks/captioning.py [--json FILE] [--quick] [--device cuda] [--threads N]

Both sides search from the same features with the same model and rule, and are checked to find the same captions.
"""

import random
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cutmix.transfer.caption_scores import END, PAD, START, UNKNOWN, score_captions
from cutmix.transfer.captioning import ShowAndTell
from measuring import Row, arguments, in_turns, medians, report, versions

FEATURES, MAX_LENGTH = 2048, 20
LIMIT = 20_000.0  # milliseconds for the scores of 5,000 images


class Features(nn.Module):
    """An encoder that returns given features; both sides would spend the same time in a real one."""

    num_features = FEATURES

    def __init__(self) -> None:
        super().__init__()
        self.fc: nn.Module = nn.Linear(1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features."""
        return features


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    args = parser.parse_args()
    report("Captioning, float32", rows(args.device, quick=args.quick), args, versions("nltk"))


def rows(device: str, *, quick: bool) -> Iterator[Row]:
    """Yield the search with a small and a large vocabulary, and the scores."""
    for words in (1_500, 10_000):
        yield search_row(words, 20, 20, 1 if quick else 5, device)
    yield scores_row(200 if quick else 5_000, 1 if quick else 3)


def search_row(words: int, n: int, beam: int, rounds: int, device: str) -> Row:
    """Time both searches on n images, after a check that they find the same captions."""
    torch.manual_seed(0)
    model = ShowAndTell(Features(), words).to(device).eval()
    for parameter in (*model.lstm.parameters(), model.output.weight):
        nn.init.normal_(parameter, std=0.3)  # captions that differ, and words that are not all as probable
    nn.init.normal_(model.project.weight, std=0.1)
    images = torch.randn(n, FEATURES, device=device)
    with torch.no_grad():
        model.output.bias[END] += 3  # about as long as captions are
    sides: dict[str, Callable[[], Any]] = {
        "ours": partial(model.beam_search, images, beam, MAX_LENGTH),
        "peer": partial(search_one_after_another, model, images, beam),
    }
    one, batched = sides["peer"](), sides["ours"]()[0].tolist()
    if one != [[word for word in own if word != PAD] for own in batched]:
        raise SystemExit(f"with {words:,} words the two ways do not find the same captions")
    ms = medians(in_turns(sides, rounds, device))
    at = f"{n} images, beam {beam}, {words:,} words, {statistics.mean(map(len, one)):.1f} in a caption"
    return Row("beam search", "ms", ms["ours"], "one beam after another", ms["peer"], 0.2, at)


@torch.no_grad()
def search_one_after_another(model: ShowAndTell, images: Tensor, beam: int) -> list[list[int]]:
    """Search image by image, with one step of the LSTM per beam."""
    found = []
    for image in images:
        _, state = model.lstm(model.encode(image[None])[:, None])
        beams: list[tuple[float, list[int], tuple[Tensor, Tensor]]] = [(0.0, [], state)]
        for _ in range(MAX_LENGTH):
            grown = []
            for score, words, state in beams:
                if words[-1:] == [END]:
                    grown.append((score, words, state))
                    continue
                word = torch.tensor([[words[-1] if words else START]], device=images.device)
                output, after = model.lstm(model.embed(word), state)
                chances = model.output(output[0, 0]).log_softmax(0)
                chances[[PAD, START, UNKNOWN]] = -torch.inf
                best = chances.topk(beam)
                for chance, chosen in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                    grown.append((score + chance, [*words, chosen], after))
            beams = sorted(grown, key=lambda one: -one[0])[:beam]
            if beams[0][1][-1] == END:
                break
        found.append(beams[0][1])
    return found


def scores_row(n: int, rounds: int) -> Row:
    """Time the scores of n images with 5 references each, tokenization included."""
    draw = random.Random(0)
    words = [f"word{i}" for i in range(3000)]
    shares = [1 / (i + 3) for i in range(3000)]  # Zipf's law

    def caption() -> str:
        return " ".join(draw.choices(words, shares, k=draw.randint(8, 14))) + " ."

    references = {f"{i}.jpg": [caption() for _ in range(5)] for i in range(n)}
    candidates = {name: caption() for name in references}
    ms = medians(in_turns({"ours": partial(score_captions, candidates, references)}, rounds))
    return Row("score_captions", "ms", ms["ours"], "limit", LIMIT, 1.0, f"{n:,} images, 5 references")


if __name__ == "__main__":
    main()
