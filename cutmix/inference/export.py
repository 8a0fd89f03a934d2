"""``cutmix export``: a classifier for another runtime, preprocessing and calibration inside, checked once written."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cutmix.config.options import ExportOptions
from cutmix.errors import InputError, missing_extra
from cutmix.inference.model import Model, load
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
    """Export a model into a folder with a README, and return the folder.

    Raises:
        InputError: If the model cannot be exported, or the exported one does not agree with it.
    """
    model = load(options.source, which=options.which, device="cpu")
    folder = options.out or Path(f"{options.source.name.removesuffix('.safetensors')}-{options.format}")
    name, write = _FORMATS[options.format]
    with folder_written_whole(folder) as temporary:
        difference = write(model, temporary / name)
        if difference is not None and not difference <= _LARGEST_DIFFERENCE:
            raise InputError(
                f"the exported model gives probabilities that differ by {difference:.2g} from the model's; it is not "
                "kept"
            )
        (temporary / "README.md").write_text(_readme(model, options, name, difference), encoding="utf-8")
    agreed = "" if difference is None else f"; largest difference of a probability from torch: {difference:.1e}"
    say(f"wrote {folder / name}{agreed}")
    return folder


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
        raise InputError(f"{model.recipe.model} cannot be exported: {str(error).splitlines()[0]}") from None


def _write_onnx(model: Model, path: Path) -> float:
    """Write an ONNX file and return its largest difference from torch, run by onnxruntime with batches of 1 and 3."""
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
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return _difference(model, module, run)


def _write_torch(model: Model, path: Path) -> float:
    """Write a ``torch.export`` program and return its largest difference from the model after reading it again."""
    module, program = _trace(model)
    torch.export.save(program, path, extra_files=dict(_metadata(model)))
    return _difference(model, module, torch.export.load(path).module())


def _write_safetensors(model: Model, path: Path) -> None:
    """Copy the file of weights, which holds all that ``cutmix.load`` needs."""
    shutil.copyfile(model.source, path)


def _difference(model: Model, module: nn.Module, run: Any) -> float:
    """Return the largest difference of a probability on batches of one and of three images."""
    with torch.no_grad():
        batches = [example(model, count) for count in (1, 3)]
        return max(float((run(images) - module(images)).abs().max()) for images in batches)


def _metadata(model: Model) -> dict[str, str]:
    """Return what a user of the file has to know, as JSON texts."""
    thresholds = "[]"
    if model.thresholds is not None:
        thresholds = json.dumps(model.label_thresholds().tolist())
    return {
        "multi_label": json.dumps(model.thresholds is not None), "thresholds": thresholds,
        "classes": json.dumps(model.classes, ensure_ascii=False), "temperature": repr(model.temperature),
        "image_size": str(model.preprocessing.image_size), "model": model.recipe.model,
    }  # fmt: skip


_FORMATS = {
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


def _readme(model: Model, options: ExportOptions, name: str, difference: float | None) -> str:
    """Return how to call the exported model from Python."""
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
    calibrated = f"temperature {model.temperature:.3g}" if model.calibrated else "not calibrated (temperature 1)"
    array = "numpy.asarray(image)[None, None]" if p.in_chans == 1 else "numpy.asarray(image).transpose(2, 0, 1)[None]"
    read = f'image = Image.open("photo.jpg").convert("{mode}")\n{crop}\npixels = numpy.ascontiguousarray({array})'
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
* Input `images`: uint8, (batch, {p.in_chans}, {size}, {size}), {mode}. Normalisation is inside.
* Output `probabilities`: float32, (batch, {len(model.classes)}){kind}; {calibrated}.
* Largest difference of a probability from torch, on random images in batches of 1 and 3: {difference:.1e}.

```python
import json

{_IMPORTS[options.format]}
import numpy
from PIL import Image

{read}
{_CALL[options.format]}
{shown}
```
"""
