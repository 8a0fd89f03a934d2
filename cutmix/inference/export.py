"""``cutmix export`` for another runtime, ``cutmix push`` in timm's layout with a model card.

An export includes preprocessing and calibration, and is checked after it is written. The card is made from the recipe
and the results of the run.
"""

import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from timm.models import list_models, save_for_hf
from timm.models._registry import split_model_name_tag
from torch import Tensor, nn

from cutmix.config.options import ExportOptions, PushOptions
from cutmix.config.tasks import SUITES
from cutmix.data.sets import take
from cutmix.data.transforms import denormalize
from cutmix.errors import InputError, missing_extra, printable, reason
from cutmix.inference.explain import open_training_set, read_inputs
from cutmix.inference.model import Model, load
from cutmix.runs.read import Run, read_run
from cutmix.runs.record import with_interval
from cutmix.runtime.files import folder_written_whole
from cutmix.runtime.terminal import say

_LARGEST_DIFFERENCE = 1e-4  # of probabilities, between torch and the exported model


class WithPreprocessing(nn.Module):
    """Maps uint8 images (N, C, S, S) of the model's input size to calibrated probabilities (N, K).

    They are a softmax's or, where an image can have several labels, each label's sigmoid.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.network, self.temperature, self.several = model.network, model.temperature, model.thresholds is not None
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1) for values in (model.preprocessing.mean, model.preprocessing.std)
        )
        self.scale, self.shift = nn.Buffer(1 / (255 * std)), nn.Buffer(-mean / std)

    def forward(self, images: Tensor) -> Tensor:
        """Return the probabilities of a batch."""
        logits = self.network(images.float() * self.scale + self.shift)
        scaled = logits / self.temperature
        return scaled.sigmoid() if self.several else scaled.softmax(1)


def run_export(options: ExportOptions) -> Path:
    """Export a model into a folder with a README, and return the folder."""
    model = load(options.source, which=options.which, device="cpu")
    own = os.path.basename(os.path.abspath(options.source))  # also of "."
    folder = options.out or Path(f"{own.removesuffix('.safetensors')}-{options.format}")
    name, write = _FORMATS[options.format]
    with folder_written_whole(folder) as temporary:
        images, what = check_images(model) if options.format != "safetensors" else (torch.empty(0), "")
        difference = write(model, temporary / name, images)
        if difference is not None and not difference <= _LARGEST_DIFFERENCE:
            raise InputError(
                f"the exported model gives probabilities that differ by {difference:.2g} from the model's; it is not "
                "kept"
            )
        agreed = f"largest difference of a probability from torch, on {what}: {difference or 0:.1e}"
        text = printable(_readme(model, options, name, agreed), keep="\n")  # the name may not be UTF-8
        (temporary / "README.md").write_text(text, encoding="utf-8")
    say(f"wrote {folder / name}" + ("" if difference is None else f"; {agreed}"))
    return folder


def check_images(model: Model, count: int = 16) -> tuple[Tensor, str]:
    """Return uint8 images of the input's size, and what they are: from the training data where they are here."""
    p = model.preprocessing
    try:
        data = open_training_set(model)
        chosen = torch.linspace(0, len(data) - 1, min(count, len(data))).long()
        inputs = torch.cat([*read_inputs(model, take(data, chosen))])
    except InputError:
        return example(model, count), f"{count} random images (the training images cannot be read here)"
    return (255 * denormalize(inputs, p.mean, p.std)).round().byte(), f"{len(inputs)} training images"


def example(model: Model, count: int) -> Tensor:
    """Return random uint8 images of the input's size."""
    side = model.preprocessing.image_size
    generator = torch.Generator().manual_seed(0)
    shape = (count, model.preprocessing.in_chans, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def _trace(model: Model) -> tuple[nn.Module, torch.export.ExportedProgram]:
    """Return the model with its preprocessing, and its graph for any batch size."""
    module = WithPreprocessing(model).eval()
    batch = {"images": {0: torch.export.Dim("batch", min=1)}}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch about its own graph passes
            return module, torch.export.export(module, (example(model, 2),), dynamic_shapes=batch)
    except Exception as error:
        raise InputError(f"{model.recipe.model} cannot be exported: {reason(error)}") from None


def _write_onnx(model: Model, path: Path, images: Tensor) -> float:
    """Write an ONNX file and return its largest difference from torch, run by onnxruntime."""
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError:
        raise missing_extra("--format onnx", "export") from None
    module, program = _trace(model)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch and onnxscript about their own names
        exported: Any = torch.onnx.export(
            program, (), dynamo=True, verbose=False, external_data=False, input_names=["images"],
            output_names=["probabilities"],
        )  # fmt: skip
        exported.save(str(path), external_data=False)
    proto = onnx.load(str(path))
    for key, value in _metadata(model).items():
        proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, str(path))
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return _difference(images, module, run)


def _write_torch(model: Model, path: Path, images: Tensor) -> float:
    """Write a ``torch.export`` program and return its largest difference from the model after reading it again."""
    module, program = _trace(model)
    file = BytesIO()  # writing to a full disk, torch would end the process
    torch.export.save(program, file, extra_files=dict(_metadata(model)))
    path.write_bytes(file.getbuffer())
    with path.open("rb") as opened:  # here, since torch cannot take a path that is not UTF-8
        return _difference(images, module, torch.export.load(cast(BytesIO, opened)).module())


def _write_safetensors(model: Model, path: Path, images: Tensor) -> None:
    """Copy the file of weights, which holds everything that ``cutmix.load`` needs."""
    shutil.copyfile(model.source, path)


def _difference(images: Tensor, module: nn.Module, run: Any) -> float:
    """Return the largest difference of a probability, on one image and on all."""
    with torch.no_grad():
        return max(float((run(batch) - module(batch)).abs().max()) for batch in (images[:1], images))


def _metadata(model: Model) -> dict[str, str]:
    """Return the metadata of the file for its users, as JSON texts."""
    thresholds = "[]"
    if model.thresholds is not None:
        thresholds = json.dumps(model.label_thresholds().tolist())
    return {
        "multi_label": json.dumps(model.thresholds is not None), "thresholds": thresholds,
        "classes": json.dumps(model.classes, ensure_ascii=False), "temperature": repr(model.temperature),
        "image_size": str(model.preprocessing.image_size), "model": model.recipe.model,
    }  # fmt: skip


_FORMATS: dict[str, tuple[str, Callable[[Model, Path, Tensor], float | None]]] = {
    "onnx": ("model.onnx", _write_onnx),
    "torch": ("model.pt2", _write_torch),
    "safetensors": ("model.safetensors", _write_safetensors),
}

_CALL = {
    "onnx": """session = onnxruntime.InferenceSession("model.onnx")
texts = session.get_modelmeta().custom_metadata_map
classes = json.loads(texts["classes"])
probabilities = session.run(None, {"images": pixels})[0]""",
    "torch": """texts = {"classes": "", "thresholds": ""}
program = torch.export.load("model.pt2", extra_files=texts)
classes = json.loads(texts["classes"])
probabilities = program.module()(torch.from_numpy(pixels)).detach().numpy()""",
}
_IMPORTS = {"onnx": "import onnxruntime", "torch": "import torch"}


def _readme(model: Model, options: ExportOptions, name: str, agreed: str) -> str:
    """Return instructions to call the exported model from Python."""
    p = model.preprocessing
    size, mode = p.image_size, {1: "L", 3: "RGB"}.get(p.in_chans, f"{p.in_chans} channels")
    head = (
        f"# {model.recipe.name}\n\n{model.recipe.model}, {len(model.classes)} classes, exported by `cutmix export`.\n"
    )
    if options.format == "safetensors":
        top = ", top=3" if model.thresholds is None else ""
        lines = f'import cutmix\n\nmodel = cutmix.load("{name}")\nprint(*model.predict("photo.jpg"{top}))'
        return f"{head}\n```python\n{lines}\n```\n"
    if p.small:
        crop = f"image = image.resize(({size}, {size}), Image.Resampling.{p.interpolation.upper()})"
    else:
        short = round(size / p.crop_fraction)
        sides = f"({short}, {short})" if p.squash else f"[int({short} * side / min(image.size)) for side in image.size]"
        crop = (
            f"size = {sides}\n"
            f"image = image.resize(size, Image.Resampling.{p.interpolation.upper()})\n"
            f"left, top = (round((side - {size}) / 2) for side in image.size)\n"
            f"image = image.crop((left, top, left + {size}, top + {size}))"
        )
    temperature = f"temperature {model.describe_temperature()}"
    array = "numpy.asarray(image)[None, None]" if p.in_chans == 1 else "numpy.asarray(image).transpose(2, 0, 1)[None]"
    read = (
        f'image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("{mode}")\n{crop}\n'
        f"pixels = numpy.ascontiguousarray({array})"
    )
    if p.in_chans not in (1, 3):
        read = (
            f"pixels = ...  # uint8, (1, {p.in_chans}, {size}, {size}): the bands, resized and cropped as in training"
        )
    shown, kind = "print(classes[probabilities[0].argmax()], probabilities[0].max())", ""
    if model.thresholds is not None:
        shown = (
            'thresholds = json.loads(texts["thresholds"])\n'
            "print([(name, p) for name, p, t in zip(classes, probabilities[0], thresholds) if p >= t])"
        )
        kind = "; of each label by itself, which an image has from its threshold on"
    return f"""{head}
* Input `images`: uint8, (batch, {p.in_chans}, {size}, {size}), {mode}. Normalization is inside.
* Output `probabilities`: float32, (batch, {len(model.classes)}){kind}; {temperature}.
* {agreed.capitalize()}.
{_MODES if p.in_chans in (1, 3) else ""}{"" if p.small or p.decoder != "fast" else _DECODER.format("Pillow")}
```python
import json

{_IMPORTS[options.format]}
import numpy
from PIL import Image{", ImageOps" if p.in_chans in (1, 3) else ""}

{read}
{_CALL[options.format]}
{shown}
```
"""


def run_push(options: PushOptions) -> str:
    """Write the files for ``timm.create_model("hf-hub:USER/NAME", pretrained=True)``, and upload them.

    The result is the folder, or the address of the repository.
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
    if model.recipe.shake_drop:
        raise InputError(
            f"{options.source} was trained with --shake-drop, by which residual branches are scaled in evaluation too, "
            "and timm's model would not; publish the folder of cutmix export --format onnx instead"
        )
    if options.to is not None:
        with folder_written_whole(options.to) as temporary:
            write_folder(model, options.source, temporary)
        say(f'wrote {options.to}; timm.create_model("local-dir:{options.to}", pretrained=True) loads it')
        return str(options.to)
    with tempfile.TemporaryDirectory() as folder:
        with folder_written_whole(Path(folder) / "files") as temporary:
            write_folder(model, options.source, temporary)
        address = _upload(str(options.name), f"{folder}/files", options.private)
    say(f'uploaded to {address}; timm.create_model("hf-hub:{options.name}", pretrained=True) loads it')
    return address


def write_folder(model: Model, source: Path, folder: Path) -> None:
    """Write weights, timm's ``config.json`` and the model card.

    The configuration has the normalization, size, crop and interpolation of this model: those of the pretrained weights
    that it started from would give other predictions.
    """
    try:
        save_for_hf(model.network, str(folder), model_config=timm_config(model), safe_serialization=True)
    except SafetensorError as error:  # a full disk
        raise OSError(str(error)) from None
    (folder / "README.md").write_text(printable(model_card(model, source), keep="\n"), encoding="utf-8")


def timm_config(model: Model) -> dict[str, Any]:
    """Return the fields of timm's ``config.json`` beside the architecture."""
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
        "tag": None, "license": None,  # not those of the pretrained weights
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
        raise InputError(f"{name} could not be uploaded: {reason(error)}") from None


def model_card(model: Model, source: Path) -> str:
    """Return the card in Markdown, with the front matter of the Hugging Face Hub and the results of a run's folder."""
    run = read_run(source) if source.is_dir() else None
    parts = [_FRONT_MATTER, f"# {model.recipe.name}\n", _description(model), _use(model)]
    parts.append(_results(run) if run else "## Results\n\nNot recorded: the card was made from a file of weights.\n")
    limits = _LIMITS.replace(_ONE_CLASS, _SEVERAL) if model.thresholds is not None else _LIMITS
    if model.preprocessing.decoder == "fast":
        limits = limits.replace(_MODES, _MODES + _DECODER.format("timm"))
    parts.append(limits)
    return "\n".join(parts)


def _description(model: Model) -> str:
    recipe, p = model.recipe, model.preprocessing
    start = "pretrained weights" if recipe.pretrained else recipe.weights or "random weights"
    shown = ", ".join(model.classes[:20]) + (f", … ({len(model.classes)} in all)" if len(model.classes) > 20 else "")
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
| temperature | {model.describe_temperature()} |
"""


def _use(model: Model) -> str:
    mode = {1: "L", 2: "LA", 4: "RGBA"}.get(model.preprocessing.in_chans, "RGB")
    answer = 'print(model.pretrained_cfg["label_names"][int(logits.argmax())])'
    if model.thresholds is not None:
        answer = "print(dict(zip(model.pretrained_cfg['label_names'], logits[0].sigmoid().tolist())))"
    return f"""## Use

```python
import timm
from PIL import Image, ImageOps

model = timm.create_model("hf-hub:USER/NAME", pretrained=True).eval()  # or "local-dir:FOLDER"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("{mode}")
logits = model(transform(image)[None])
{answer}
```
"""


def _results(run: Run) -> str:
    """Return a table of each suite after the last epoch."""
    made = ["## Results\n"]
    other = "classification" if run.task == "multilabel" else "labels"
    for suite, about in SUITES.items():
        if about.command == "transfer" or suite == other:
            continue
        suited = [r for r in run.results if (r.suite or "classification") == suite and r.which == "last"]
        lines = [r for r in suited if r.value is not None]
        if not lines:
            made.append(f"### {about.title}\n\nNot run.\n")
            continue
        rows = [f"### {about.title}\n", "| metric | value [95 % interval] | images | data |", "|---|---|---|---|"]
        for r in lines:
            what = " ".join(str(part) for part in (r.metric, r.of, None if r.at is None else f"at {r.at:.4g}") if part)
            size = "" if run.is_own(r) or not r.image_size else f", {r.image_size} pixels"
            rows.append(f"| {what} | {with_interval(r, '.4g')} | {r.n or ''} | {r.data}, {r.split}{size} |")
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

_DRAW = """
* The results hold for images like those of the test split; their intervals cover the draw of test images, not other
  cameras, places or times, nor another seed of training.
"""
_MODES = """\
* 16-bit grey images were scaled to 8 bits and transparent pixels laid on white; Pillow's `convert` clips the former and
  shows the colour beneath the latter.
"""
_DECODER = """\
* JPEG files were decoded at the resolution that the crop needs; {} decodes them at full resolution, which can change
  predictions near the border between classes.
"""

_LIMITS = f"""## Limits

* {_ONE_CLASS}{_DRAW}{_MODES}
## Licence

To be filled in by the publisher, with the licence of the training data.
"""
