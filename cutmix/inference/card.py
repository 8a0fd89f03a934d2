"""The model card of a published classifier, made from its recipe and its results."""

from pathlib import Path

from cutmix.inference.model import Model
from cutmix.runs.read import Run, read_run
from cutmix.runs.record import with_interval

_SUITES = {
    "classification": "Error",
    "calibration": "Calibration",
    "robustness": "Robustness",
    "ood": "Out-of-distribution detection",
    "localization": "Localization",
}


def model_card(model: Model, source: Path) -> str:
    """Return the card in Markdown, with the front matter that the Hugging Face Hub reads.

    Args:
        model: The classifier.
        source: Folder of its run, whose results the card shows; a file of weights has none.
    """
    run = read_run(source) if source.is_dir() else None
    parts = [_FRONT_MATTER, f"# {model.recipe.name}\n", _description(model), _use(model)]
    parts.append(_results(run) if run else "## Results\n\nNot recorded: the card was made from a file of weights.\n")
    parts.append(_LIMITS)
    return "\n".join(parts)


def _description(model: Model) -> str:
    recipe, p = model.recipe, model.preprocessing
    start = "pretrained weights" if recipe.pretrained else recipe.weights or "random weights"
    shown = ", ".join(model.classes[:20]) + (f", … ({len(model.classes)} in all)" if len(model.classes) > 20 else "")
    calibration = (
        f"fitted on held-out images: {model.temperature:.3g}" if model.calibrated else "not fitted: confidences are raw"
    )
    training = (
        f"{recipe.epochs} epochs, batch size {recipe.batch_size}, {recipe.optimizer}, learning rate {recipe.lr:g}"
    )
    mixing = "none" if recipe.mix == "none" else f"{recipe.mix}, α {recipe.alpha:g}, probability {recipe.mix_prob:g}"
    return f"""| | |
|---|---|
| architecture | {recipe.model} |
| starts from | {start} |
| data | {Path(recipe.data).name} |
| classes | {shown} |
| mixing | {mixing} |
| training | {training}, seed {recipe.seed} |
| input | {p.in_chans} × {p.image_size} × {p.image_size}, mean {list(p.mean)}, std {list(p.std)}, {p.interpolation} |
| temperature | {calibration} |
"""


def _use(model: Model) -> str:
    return """## Use

```python
import timm
from PIL import Image

model = timm.create_model("hf-hub:USER/NAME", pretrained=True).eval()  # or "local-dir:FOLDER"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(Image.open("photo.jpg").convert("RGB"))[None])
print(model.pretrained_cfg["label_names"][int(logits.argmax())])
```
"""


def _results(run: Run) -> str:
    """Return a table of each suite after the last epoch."""
    made = ["## Results\n"]
    for suite, title in _SUITES.items():
        suited = [r for r in run.results if (r.suite or "classification") == suite and r.which == "last"]
        lines = [r for r in suited if r.value is not None]
        if not lines:
            made.append(f"### {title}\n\nNot run.\n")
            continue
        rows = [f"### {title}\n", "| metric | value [95 % interval] | images | data |", "|---|---|---|---|"]
        for r in lines:
            what = " ".join(str(part) for part in (r.metric, r.of, None if r.at is None else f"at {r.at:.4g}") if part)
            rows.append(f"| {what} | {with_interval(r, '.4g')} | {r.n or ''} | {r.data}, {r.split} |")
        made.append("\n".join(rows) + "\n")
    return "\n".join(made)


_FRONT_MATTER = """---
library_name: timm
tags: [image-classification, timm, cutmix]
license: unknown  # fill in
---
"""

_LIMITS = """## Limits

* The model knows the classes above and no others: an image of anything else gets one of them.
* The results hold for images like those of the test split; their intervals cover the draw of test images, not other
  cameras, places or times, nor another seed of training.

## Licence

To be filled in by the publisher, with the licence of the training data.
"""
