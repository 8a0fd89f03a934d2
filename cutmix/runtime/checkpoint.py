"""Files of weights and of a run's state: written whole or not at all, read without running code from them."""

import _codecs
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from cutmix.errors import InputError
from cutmix.runtime.files import write_atomic

# What a NumPy number is pickled as (under its name of NumPy 1 too): older checkpoints hold their best error so.
# Only dtypes of plain numbers, so no Python object can come with one.
_NUMPY_NUMBERS: list[Any] = [
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
    np.dtype,
    _codecs.encode,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
]


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Save the state of a run atomically.

    Args:
        path: The file to write.
        state: Nested dictionaries, lists, tuples, tensors, numbers, strings and None: what ``load_checkpoint`` reads.

    Raises:
        InputError: The system refused to write; the previous file is unchanged.
    """
    write_atomic(path, lambda file: torch.save(state, file))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read the state of a run; every tensor is on the CPU. Code in the file is refused, never run.

    Raises:
        InputError: The file is missing, truncated, not a checkpoint, or holds Python objects other than plain data.
    """
    state = _unpickle(Path(path))
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}; a checkpoint is a dictionary")
    return state


def save_weights(path: str | Path, state_dict: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Save weights atomically as safetensors, each tensor dense and in the usual layout.

    Tied weights are stored once for each of their names, so that any reader finds every key.

    Args:
        path: The file to write.
        state_dict: Tensors by name, of any device and memory format.
        metadata: Strings to keep with them (model, classes, ...).

    Raises:
        InputError: The system refused to write; the previous file is unchanged.
    """
    dense: dict[str, Tensor] = {}
    stored: set[int] = set()
    for key, tensor in state_dict.items():
        dense[key] = tensor.detach().cpu().contiguous()
        if dense[key].untyped_storage().data_ptr() in stored:  # safetensors refuses tensors that share memory
            dense[key] = dense[key].clone()
        stored.add(dense[key].untyped_storage().data_ptr())
    content = safetensors_bytes(dense, metadata)
    write_atomic(path, lambda file: file.write(content))


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the weights in a file.

    Accepted are safetensors (mapped into memory, not copied), a state dict saved by ``torch.save`` (PyTorch,
    torchvision, timm), and a checkpoint that holds one under ``state_dict`` (as the authors' do) or ``model`` (as a
    run's ``checkpoint.pt`` does). The prefixes of DataParallel and ``torch.compile`` are removed from the names.

    Args:
        path: The file.

    Returns:
        The tensors by name, on the CPU, and the file's strings (empty unless safetensors).

    Raises:
        InputError: The file is missing, truncated, of another kind, or holds code.
    """
    path = Path(path)
    metadata: dict[str, str] = {}
    if _first_bytes(path)[8:9] == b"{":  # safetensors: 8 bytes of length, then JSON
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata = dict(file.metadata() or {})
                weights: Any = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        except SafetensorError as error:
            raise InputError(f"{path} is damaged or incomplete ({error})") from error
    else:
        weights = load_checkpoint(path)
        for key in ("state_dict", "model"):
            if isinstance(weights.get(key), dict):
                weights = weights[key]
                break
    if not weights or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in weights.items()):
        names = ", ".join(repr(key) for key in list(weights)[:5]) or "nothing"
        raise InputError(f"{path} holds no weights: expected tensors by name, found {names}")
    return _plain_names(weights), metadata


def load_weights(model: nn.Module, path: str | Path, *, new_head: bool = False) -> None:
    """Load a file of weights into a model of the same architecture; nothing is loaded unless all of it fits.

    Args:
        model: The network; its classifier is what ``get_classifier()`` returns (timm), else its last linear layer.
        path: A file that ``read_weights`` reads.
        new_head: Whether a classifier for another number of classes is left out, so that the model keeps its own.

    Raises:
        InputError: The file cannot be read, is of another model, or of another class count without ``new_head``.
    """
    found, own = read_weights(path)[0], model.state_dict()
    classifier = _classifier_prefixes(model)
    head_differs = None
    for key in dict.fromkeys([*own, *found]):
        old, new = _shape(found, key), _shape(own, key)
        # Files from before PyTorch 0.4.1 (torchvision's first weights) lack this counter.
        if old == new or (old is None and key.endswith(".num_batches_tracked")):
            continue
        if not key.startswith(classifier) or not old or not new or old[1:] != new[1:]:
            raise InputError(
                f"{path} is a checkpoint of another model: {key!r} is {_say(old)} in the file"
                f" and {_say(new)} in the model"
            )
        head_differs = head_differs or (old[0], new[0])
    if head_differs and not new_head:
        raise InputError(
            f"{path} holds {head_differs[0]} classes, the model has {head_differs[1]}: "
            "give the same classes, or ask for a new head"
        )
    if head_differs:
        found = {key: tensor for key, tensor in found.items() if not key.startswith(classifier)}
    model.load_state_dict(found, strict=False)


def _first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            first = file.read(9)
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror or error}") from error
    if not first:
        raise InputError(f"{path} is empty; a file of weights or a checkpoint is expected")
    return first


def _unpickle(path: Path) -> Any:
    if not _first_bytes(path).startswith((b"PK\x03\x04", b"\x80")):  # a zip, or the pickle of PyTorch before 1.6
        raise InputError(f"{path} is not a checkpoint: expected a file written by torch.save or safetensors")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY_NUMBERS):
            warnings.simplefilter("ignore")  # torch's remarks on foreign pickles precede the error that says it
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything: RuntimeError, EOFError, KeyError, struct.error
        refused = re.search(r"GLOBAL (\S+)|Unsupported operand|allowlisted|TorchScript", str(error))
        if refused is None:
            raise InputError(f"{path} is damaged or incomplete and could not be read") from error
        raise InputError(
            f"{path} holds Python objects ({refused[1] or 'of an unknown kind'}), which could run code, and was not"
            " loaded: expected tensors and plain data, as torch.save(model.state_dict(), path) writes"
        ) from error


def _plain_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {key.replace("_orig_mod.", ""): tensor for key, tensor in weights.items()}
    while all(key.startswith("module.") for key in weights):
        weights = {key.removeprefix("module."): tensor for key, tensor in weights.items()}
    return weights


def _classifier_prefixes(model: nn.Module) -> tuple[str, ...]:
    get_classifier: Any = getattr(model, "get_classifier", None)
    if get_classifier is not None:
        heads = get_classifier()
        heads = list(heads) if isinstance(heads, tuple | list) else [heads]
    else:
        heads = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1:]
    named = model.named_modules()
    return tuple(f"{name}." if name else "" for name, module in named if any(module is head for head in heads))


def _shape(tensors: dict[str, Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(tensors[key].shape) if key in tensors else None


def _say(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return "absent"
    return "×".join(str(side) for side in shape) or "a number"
