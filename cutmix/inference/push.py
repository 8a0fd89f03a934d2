"""``cutmix push``: a classifier in timm's layout with a model card, to a folder or to the Hugging Face Hub."""

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
from cutmix.inference.card import model_card
from cutmix.inference.model import Model, load
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
        if options.to.exists() and (not options.to.is_dir() or any(options.to.iterdir())):
            raise InputError(f"{options.to} exists and is not empty; choose another folder")
        write_folder(model, options.source, options.to)
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
    folder.mkdir(parents=True, exist_ok=True)
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
    recipe = {name: value for name, value in asdict(model.recipe).items() if name in ("name", "mix", "epochs", "seed")}
    return {
        "num_classes": len(model.classes), "label_names": list(model.classes), "pretrained_cfg": config,
        "cutmix": {"recipe": recipe, "temperature": model.temperature},
    }  # fmt: skip


def _upload(name: str, folder: str, private: bool) -> str:
    """Upload a folder and return the address of the repository."""
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Add model"))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(f"{name} could not be uploaded: {str(error).splitlines()[0]}") from None
