"""The defaults for a folder of images against a plain AdamW loop on the same images, model and budget.

    python benchmarks/defaults.py --weights FILE --out results/defaults.log.jsonl

Folders of CIFAR-100 images are written as PNG: 60 and 300 training images of five classes, 3,000 of ten; 100 test
images per class. A fine-tuned model is EfficientNet-Lite0 with ImageNet's weights (FILE is what
scripts/efficientnet_lite0.py writes); a model from random weights is ResNet-10-T. The images are enlarged to 64 pixels,
but for the longest runs, 3,000 images from random weights, which keep their 32.
Both sides have equal epochs, batches and precision, those that the defaults choose, and the last epoch counts: nothing
is chosen on the test images. Each line of the file is a run; runs that the file holds are not repeated.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from cutmix.config.options import TrainOptions
from cutmix.config.recipe import ARRAYS, Recipe, complete
from cutmix.data import ArraySet, open_data
from cutmix.models import create_model
from cutmix.runs.folder import environment
from cutmix.runtime.files import append_line, read_lines
from cutmix.training.loop import run_training

MODELS = {"fine-tuned": ("tf_efficientnet_lite0", "float32"), "random": ("resnet10t", "bfloat16")}
CLASSES = {60: 5, 300: 5, 3000: 10}
TEST_PER_CLASS = 100


def image_size(images: int, start: str) -> int:
    """Return the height and width of the images of a cell, in pixels."""
    return 32 if (images, start) == (3000, "random") else 64


def write_folder(root: Path, images: int, seed: int, side: int) -> Path:
    """Write train/ and test/ of the first classes of a random order; smaller sets are parts of larger ones."""
    order = torch.randperm(100, generator=torch.Generator().manual_seed(seed)).tolist()
    for split, count in (("train", images // CLASSES[images]), ("test", TEST_PER_CLASS)):
        data = open_data("cifar-100", "train" if split == "train" else "test")
        assert isinstance(data, ArraySet)
        for label in order[: CLASSES[images]]:
            folder = root / split / data.classes[label]
            folder.mkdir(parents=True)
            for i in (data.labels == label).nonzero().flatten()[:count].tolist():
                pixels = data.images[i].permute(1, 2, 0).numpy()
                Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return root


def plain(recipe: Recipe, root: Path, lr: float) -> float:
    """Return the test error in per cent of the loop that everybody writes: AdamW, crop and flip, nothing else."""
    torch.manual_seed(recipe.seed)
    end = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    augment = [
        transforms.RandomResizedCrop(recipe.image_size or 64, (0.3, 1.0)),
        transforms.RandomHorizontalFlip(),
        *end,
    ]
    train = datasets.ImageFolder(str(root / "train"), transforms.Compose(augment))
    test = datasets.ImageFolder(str(root / "test"), transforms.Compose(end))
    model = create_model(recipe.model, len(train.classes), pretrained=recipe.weights or False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    drop = len(train) % recipe.batch_size == 1  # a batch of one stops batch normalisation
    for _ in range(recipe.epochs):
        for images, labels in DataLoader(train, recipe.batch_size, shuffle=True, drop_last=drop):
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.inference_mode():
        wrong = sum(int((model(x).argmax(1) != y).sum()) for x, y in DataLoader(test, 100))
    return 100 * wrong / len(test)


def ours(recipe: Recipe, out: Path) -> float:
    """Return the test error in per cent of the last epoch of a run."""
    run_training(recipe, TrainOptions(out=out, workers=0, device="cpu"))
    lines = [line for line in read_lines(out / "results.jsonl") if line["metric"] == "top1_err"]
    return next(line["value"] for line in lines if line["which"] == "last")


def run(asked: Recipe, images: int, side: str, root: Path) -> dict[str, Any]:
    """Run one side, and return its line of the file."""
    recipe, _ = complete(asked, images=images, classes=CLASSES[images], files=True)
    begin = time.perf_counter()
    if side.startswith("plain"):
        error = plain(recipe, root / "data", float(side.split()[-1]))
    else:
        error = ours(recipe, root / "run")
    about = environment(torch.device("cpu"))
    return {
        "top1_err": error, "classes": CLASSES[images], "test_images": TEST_PER_CLASS * CLASSES[images],
        "image_size": recipe.image_size, "seconds": round(time.perf_counter() - begin, 1),
        "chosen": {name: getattr(recipe, name) for name in ARRAYS},
        **{name: about[name] for name in ("commit", "torch", "device")},
    }  # fmt: skip


def main(arguments: argparse.Namespace) -> None:
    """Run what the file lacks."""
    done = read_lines(arguments.out)
    sides: dict[str, dict[str, Any]] = {
        side: {} for side in ("defaults", *(f"plain, lr {lr:g}" for lr in arguments.lrs))
    }
    sides = sides | {variant: json.loads(variant) for variant in arguments.variants}
    cells = itertools.product(arguments.images, arguments.starts, range(arguments.seeds), sides)
    for images, start, seed, side in cells:
        key = {"images": images, "start": start, "seed": seed, "side": side}
        if any(key.items() <= line.items() for line in done):
            continue
        model, precision = MODELS[start]
        with tempfile.TemporaryDirectory() as folder:
            fields: dict[str, Any] = (
                {"weights": str(arguments.weights)} if start == "fine-tuned" else {"pretrained": False}
            )
            fields |= {
                "model": model,
                "image_size": image_size(images, start),
                "precision": precision,
                "seed": seed,
            } | sides[side]
            data = write_folder(Path(folder) / "data", images, seed, image_size(images, start))
            asked = Recipe(data=str(data), val_fraction=0.0, eval_every=1000, **fields)
            line = key | run(asked, images, side, Path(folder))
        append_line(arguments.out, line)
        print(f"{images} {start} seed {seed} {side}: {line['top1_err']:.1f} % in {line['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="EfficientNet-Lite0's weights, for fine-tuned")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; finished runs in it are kept")
    parser.add_argument("--images", type=int, nargs="+", default=[60, 300, 3000], choices=CLASSES)
    parser.add_argument("--starts", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--lrs", type=float, nargs="+", default=[1e-3], help="learning rates of the plain loop")
    parser.add_argument("--variants", nargs="*", default=[], help="fields of a recipe as JSON, run beside the defaults")
    main(parser.parse_args())
