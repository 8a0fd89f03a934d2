"""``cutmix push``: a classifier in timm's layout with a model card, to a folder or to the Hugging Face Hub.

The card is made from the recipe and the results of the run.
"""

import math
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from timm.models import list_models, save_for_hf
from timm.models._registry import split_model_name_tag

from cutmix.config.options import PushOptions
from cutmix.errors import InputError
from cutmix.inference.model import Model, load
from cutmix.runs.read import Run, read_run
from cutmix.runs.record import with_interval
from cutmix.runtime.files import folder_written_whole
from cutmix.runtime.terminal import say


def run_push(options: PushOptions) -> str:
    """Write the files for ``timm.create_model("hf-hub:USER/NAME", pretrained=True)``, and upload them.

    Returns:
        The folder, or the address of the repository.

    Raises:
        InputError: If the model is not one of timm's, the folder is in use, or the upload fails.
    """
    if (options.name is None) == (options.to is None):
        raise InputError("expected either a repository USER/NAME or --to FOLDER")
    if options.name is not None and len(options.name.split("/")) != 2:
        raise InputError(f'the repository is "{options.name}"; expected USER/NAME')
    model = load(options.source, which=options.which, device="cpu")
    if split_model_name_tag(model.recipe.model)[0] not in list_models():
        raise InputError(
            f"{model.recipe.model} is not one of timm's models, so timm could not load it; publish the folder of "
            "cutmix export --format onnx instead"
        )
    if options.to is not None:
        with folder_written_whole(options.to) as temporary:
            write_folder(model, options.source, temporary)
        say(f'wrote {options.to}; timm.create_model("local-dir:{options.to}", pretrained=True) loads it')
        return str(options.to)
    with tempfile.TemporaryDirectory() as folder:
        write_folder(model, options.source, Path(folder))
        address = _upload(str(options.name), folder, options.private)
    say(f'uploaded to {address}; timm.create_model("hf-hub:{options.name}", pretrained=True) loads it')
    return address


def write_folder(model: Model, source: Path, folder: Path) -> None:
    """Write weights, timm's ``config.json`` and the model card.

    The configuration says the normalisation, size, crop and interpolation of this model: those of the pretrained
    weights it started from would give other predictions.
    """
    save_for_hf(model.network, str(folder), model_config=timm_config(model), safe_serialization=True)
    (folder / "README.md").write_text(model_card(model, source), encoding="utf-8")


def timm_config(model: Model) -> dict[str, Any]:
    """Return what timm's ``config.json`` says beside the architecture."""
    p = model.preprocessing
    size = (p.in_chans, p.image_size, p.image_size)
    crop = "squash" if p.squash or p.small else "center"
    side = round(p.image_size / p.crop_fraction)  # which timm rounds down
    exact = p.small or math.floor(p.image_size / p.crop_fraction) == side
    crop_pct = p.crop_fraction if exact else p.image_size / (side + 1e-3)
    config = {
        "input_size": size, "fixed_input_size": True, "test_input_size": size, "mean": p.mean, "std": p.std,
        "interpolation": p.interpolation, "crop_pct": 1.0 if p.small else crop_pct, "crop_mode": crop,
        "test_crop_pct": None, "num_classes": len(model.classes),
    }  # fmt: skip
    several = {}
    if model.thresholds is not None:
        several = {"multi_label": True, "thresholds": list(model.thresholds)}
    recipe = {name: value for name, value in asdict(model.recipe).items() if name in ("name", "mix", "epochs", "seed")}
    return {
        "num_classes": len(model.classes), "label_names": list(model.classes), "pretrained_cfg": config,
        "cutmix": {"recipe": recipe, "temperature": model.temperature} | several,
    }  # fmt: skip


def _upload(name: str, folder: str, private: bool) -> str:
    """Upload a folder and return the address of the repository."""
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Add model"))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(f"{name} could not be uploaded: {str(error).splitlines()[0]}") from None


_SUITES = {
    "classification": "Error",
    "labels": "Labels",
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
    parts.append(_LIMITS.replace(_ONE_CLASS, _SEVERAL) if model.thresholds is not None else _LIMITS)
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
    mode = {1: "L", 2: "LA", 4: "RGBA"}.get(model.preprocessing.in_chans, "RGB")
    answer = 'print(model.pretrained_cfg["label_names"][int(logits.argmax())])'
    if model.thresholds is not None:
        answer = "print(dict(zip(model.pretrained_cfg['label_names'], logits[0].sigmoid().tolist())))"
    return f"""## Use

```python
import timm
from PIL import Image

model = timm.create_model("hf-hub:USER/NAME", pretrained=True).eval()  # or "local-dir:FOLDER"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(Image.open("photo.jpg").convert("{mode}"))[None])
{answer}
```
"""


def _results(run: Run) -> str:
    """Return a table of each suite after the last epoch."""
    made = ["## Results\n"]
    for suite, title in _SUITES.items():
        if suite == ("classification" if run.task == "multilabel" else "labels"):
            continue
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

_ONE_CLASS = "The model knows the classes above and no others: an image of anything else gets one of them."
_SEVERAL = (
    "The outputs are independent: the probability of a label is the sigmoid of its output, and a label is predicted\n"
    "  from the threshold on that `config.json` has for it."
)

_LIMITS = f"""## Limits

* {_ONE_CLASS}
* The results hold for images like those of the test split; their intervals cover the draw of test images, not other
  cameras, places or times, nor another seed of training.

## Licence

To be filled in by the publisher, with the licence of the training data.
"""
