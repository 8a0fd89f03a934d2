"""Speed of the batched beam search beside one picture and one beam after another, and of the scores, in one run.

    python benchmarks/captioning.py [--json FILE] [--quick] [--device cuda] [--threads N]

Both sides search from the same features with the same network and rule; their captions are compared first. They take
turns within one run and the medians are compared, so that a machine that is busy for a while is busy for both.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from cutmix.transfer.captioning import ShowAndTell
from cutmix.transfer.scores import caption_scores
from cutmix.transfer.vocabulary import END, PAD, START, UNKNOWN

FEATURES, MAX_LENGTH, FASTER, SCORES_LIMIT = 2048, 20, 5.0, 20.0


class Features(nn.Module):
    """Stands for an encoder whose features are given: both sides would spend the same time in it."""

    num_features = FEATURES

    def __init__(self) -> None:
        super().__init__()
        self.fc: nn.Module = nn.Linear(1, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return them as they are."""
        return features


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows, hardware and versions to this file")
    parser.add_argument("--quick", action="store_true", help="few repetitions and pictures: does it run?")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, help="threads of torch; as it chooses without this")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    where: dict[str, object] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numpy", "nltk")}, "load_before": os.getloadavg(),
    }  # fmt: skip
    rows = [search_row(words, 20, 20, 1 if args.quick else 5, device) for words in (1_500, 10_000)]
    rows.append(scores_row(200 if args.quick else 5_000, 1 if args.quick else 3))
    where["load_after"] = os.getloadavg()
    show(rows, where)
    if args.json:
        args.json.write_text(json.dumps({"circumstances": where, "rows": rows}, indent=1) + "\n")
    if not all(row["passed"] for row in rows):
        sys.exit(1)


def search_row(words: int, n: int, beam: int, rounds: int, device: torch.device) -> dict:
    """Time both ways to search captions for n pictures, after both have found the same ones."""
    torch.manual_seed(0)
    model = ShowAndTell(Features(), words).to(device).eval()
    for parameter in (*model.lstm.parameters(), model.output.weight):
        nn.init.normal_(parameter, std=0.3)  # captions that differ, and words that are not all as probable
    nn.init.normal_(model.project.weight, std=0.1)
    pictures = torch.randn(n, FEATURES, device=device)
    with torch.no_grad():
        model.output.bias[END] += 3  # about as long as captions are
    one = search_one_after_another(model, pictures, beam)
    batched = model.beam_search(pictures, beam, MAX_LENGTH)[0].tolist()
    same = sum(mine == [word for word in own if word != PAD] for mine, own in zip(one, batched, strict=True))
    ours, peer = in_turn(
        lambda: model.beam_search(pictures, beam, MAX_LENGTH),
        lambda: search_one_after_another(model, pictures, beam),
        rounds,
        device,
    )
    return {
        "what": f"beam search, {n} pictures, beam {beam}, {words:,} words", "ours_s": ours,
        "peer": "one picture and one beam after another", "peer_s": peer, "ratio": peer / ours,
        "note": f"{same} of {n} captions the same, {statistics.mean(map(len, one)):.1f} words",
        "target": f"≥ {FASTER:g} ×, all the same", "passed": peer / ours >= FASTER and same == n,
    }  # fmt: skip


@torch.no_grad()
def search_one_after_another(model: ShowAndTell, pictures: Tensor, beam: int) -> list[list[int]]:
    """Search for each picture on its own, a step of the LSTM for each of its beams on its own."""
    found = []
    for picture in pictures:
        _, state = model.lstm(model.look(picture[None])[:, None])
        beams: list[tuple[float, list[int], tuple[Tensor, Tensor]]] = [(0.0, [], state)]
        for _ in range(MAX_LENGTH):
            grown = []
            for score, words, state in beams:
                if words[-1:] == [END]:
                    grown.append((score, words, state))
                    continue
                word = torch.tensor([[words[-1] if words else START]], device=pictures.device)
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


def scores_row(n: int, rounds: int) -> dict:
    """Time the scores of n pictures with 5 references each, tokens and all."""
    draw = random.Random(0)
    words = [f"word{i}" for i in range(3000)]
    shares = [1 / (i + 3) for i in range(3000)]  # Zipf's law

    def caption() -> str:
        return " ".join(draw.choices(words, shares, k=draw.randint(8, 14))) + " ."

    references = {f"{i}.jpg": [caption() for _ in range(5)] for i in range(n)}
    candidates = {name: caption() for name in references}
    taken = [seconds(lambda: caption_scores(candidates, references), torch.device("cpu")) for _ in range(rounds)]
    return {
        "what": f"caption_scores, {n:,} pictures, 5 references", "ours_s": statistics.median(taken),
        "target": f"< {SCORES_LIMIT:g} s", "passed": statistics.median(taken) < SCORES_LIMIT,
    }  # fmt: skip


def in_turn(
    ours: Callable[[], object], peer: Callable[[], object], rounds: int, device: torch.device
) -> tuple[float, float]:
    """Return the median seconds of a call of each, timed in turn after a first one that does not count."""
    times: list[tuple[float, float]] = [(seconds(ours, device), seconds(peer, device)) for _ in range(rounds + 1)]
    first, second = zip(*times[1:], strict=True)
    return statistics.median(first), statistics.median(second)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(rows: list[dict], where: dict[str, object]) -> None:
    """Print the rows as a table."""
    table = Table("what", "ours, s", "beside", "s", "times", "", "target", "", title="Captioning, float32")
    for row in rows:
        peer = [row["peer"], f"{row['peer_s']:.3f}", f"{row['ratio']:.1f}"] if "peer" in row else ["", "", ""]
        verdict = "yes" if row["passed"] else "NO"
        table.add_row(row["what"], f"{row['ours_s']:.3f}", *peer, row.get("note", ""), row["target"], verdict)
    Console(width=max(150, Console().width)).print(table, where)


if __name__ == "__main__":
    main()
