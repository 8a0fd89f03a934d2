"""Files of weights: safetensors with a header and a digest, and the containers of state dicts of other programs."""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from cutmix.errors import InputError, counted
from cutmix.runtime.checkpoint import first_bytes, load_checkpoint, open_safetensors
from cutmix.runtime.files import write_atomic

_log = logging.getLogger(__name__)

# Parts of a name that DataParallel's relatives add anywhere in it, and names of a moving average.
_WRAPPERS = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_forward_module)\.")
_AVERAGE = re.compile(r"(?:^|[._])(?:ema|avg|average|averaged|swa|polyak|teacher)(?=[._]|$)")
_USUAL = ("state_dict.", "model.", "model_state_dict.")  # preferred where several sets of weights fit
# Tensors that belong to a training method or to a profiler and not to the model: SMMix's second head, thop's counters.
_LEFT_OUT = re.compile(r"(?:.*\.)?(?:total_ops|total_params)|token_head\..*|n_averaged")


class Weights(NamedTuple):
    """The content of a file of weights."""

    tensors: dict[str, Tensor]  # by name, on the CPU; a nested container joins its names with dots
    header: dict[str, str]  # the strings beside the tensors of a safetensors file; "model" for what others call "arch"
    path: Path
    held_in: dict[str, str]  # the name of the container of each tensor, "" for the file itself
    use_ema: bool = False  # whether to load the moving average if the file holds the weights and their average


def save_weights(path: str | Path, state_dict: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Save weights atomically as safetensors, each tensor dense and contiguous, with the strings of a header.

    Tied weights are stored once for each of their names, so that any reader finds every key. The header gets a digest
    of everything in the file, and equal content gives equal bytes.
    """
    dense: dict[str, Tensor] = {}
    stored: set[int] = set()
    for key, tensor in state_dict.items():
        dense[key] = tensor.detach().cpu().contiguous()
        if dense[key].untyped_storage().data_ptr() in stored:  # safetensors refuses tensors that share memory
            dense[key] = dense[key].clone()
        stored.add(dense[key].untyped_storage().data_ptr())
    content = safetensors_bytes(dense)
    end = 8 + int.from_bytes(content[:8], "little")
    head, data = json.loads(content[8:end]), memoryview(content)[end:]
    strings = dict(sorted(header.items()))
    strings["digest"] = _digest(head | {"__metadata__": strings}, [data])
    text = json.dumps({"__metadata__": strings} | head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(file: Any) -> None:
        for part in (len(text).to_bytes(8, "little"), text, data):
            file.write(part)

    write_atomic(path, write)


def read_weights(path: str | Path, *, use_ema: bool = False) -> Weights:
    """Read every tensor in a file, without running code from it.

    Accepted are safetensors (mapped into memory, not copied) and files of ``torch.save``: a state dict, or dictionaries
    that hold one or several beside other plain data, as the checkpoints of timm, torchvision's references, Lightning,
    Accelerate, SMMix and this package do. ``load_weights`` finds those of a model among them.
    """
    path = Path(path)
    content: dict[str, Any]
    if first_bytes(path)[8:9] == b"{":  # safetensors: 8 bytes of length, then JSON
        content, header = _read_safetensors(path)
    else:
        content = load_checkpoint(path)
        header = {"model": arch} if isinstance(arch := content.get("arch"), str) else {}
    tensors: dict[str, Tensor] = {}
    held_in: dict[str, str] = {}
    for holder, key, tensor in _walk(content, "", set()):
        name = _WRAPPERS.sub("", holder + key)
        tensors[name], held_in[name] = tensor, _WRAPPERS.sub("", holder)
    if not any(tensor.is_floating_point() and tensor.ndim for tensor in tensors.values()):
        names = ", ".join(repr(key) for key in list(content)[:5]) or "nothing"
        raise InputError(f"{path} holds no weights: expected floating-point tensors by name, found {names}")
    return Weights(tensors, header, path, held_in, use_ema)


def load_weights(model: nn.Module, source: str | Path | Weights, *, new_head: bool = False, name: str = "") -> None:
    """Load the weights of a file into a model; nothing is loaded unless all of the model's tensors are found.

    The names may have any common prefix (``module.``, ``network.``, ``state_dict.model.``, …). If several prefixes fit,
    the one that is not a moving average is taken; with ``read_weights(..., use_ema=True)``, the one that is. Loaded and
    ignored tensors are logged.

    With ``new_head``, a classifier that is absent or for another number of classes is ignored, so that the model keeps
    its own; a first convolution for RGB is then adapted to other channels, as timm does. The classifier is
    ``get_classifier()`` (timm), else the last linear layer. A file that names another model than ``name`` is logged, as
    models of equal shapes can differ in padding. Quantized, complex, sparse and infinite numbers are refused.
    """
    weights = source if isinstance(source, Weights) else read_weights(source)
    own = model.state_dict()
    prefix = find_prefix(weights, own)
    found = {name: weights.tensors[prefix + name] for name in own if prefix + name in weights.tensors}
    if new_head:
        found |= {name: _adapted(tensor, own[name]) for name, tensor in found.items() if _is_stem(tensor, own[name])}
    holders = {weights.held_in[prefix + name] for name in found}
    beside = [name.removeprefix(prefix) for name, holder in weights.held_in.items()
              if name.startswith(prefix) and holder in holders and name.removeprefix(prefix) not in own]  # fmt: skip
    classifier = _classifier_prefixes(model)
    head = [name for name in own if name.startswith(classifier)]
    head_differs = any(_shape(found, name) != _shape(own, name) for name in head)
    if head_differs and new_head and not any(_other_features(found, own, name) for name in head):
        found = {name: tensor for name, tensor in found.items() if not name.startswith(classifier)}
    else:
        head = []
    numbers = {n for n in beside if "." not in n and not weights.tensors[prefix + n].ndim}  # an epoch, a score
    misfits = _Misfits(
        missing=[n for n in own if n not in found and n not in head and not n.endswith(".num_batches_tracked")],
        left_over=[
            n
            for n in beside
            if n not in numbers and not _LEFT_OUT.fullmatch(n) and not (head and n.startswith(classifier))
        ],
        differing=[n for n in found if found[n].shape != own[n].shape],
    )
    if misfits.missing or misfits.left_over or misfits.differing:
        raise _refusal(weights.path, model, misfits, found, own, classifier)
    for key, tensor in found.items():
        if own[key].is_floating_point() and (kind := _unusable(tensor)):
            raise InputError(f"{weights.path} has {key!r} as {kind}; expected dense, finite floating-point numbers")
    model.load_state_dict(found, strict=False)
    named = weights.header.get("model", "").partition(".")[0]
    if name and named not in ("", name.partition(".")[0]):
        _log.info("%s names the model %s; its weights are loaded into %s", weights.path, named, name)
    _report(weights, prefix, found, bool(head))


def _unusable(tensor: Tensor) -> str:
    """Return why the values of a tensor are no weights, which PyTorch would round, cut or copy; "" for weights."""
    if not tensor.is_floating_point() or tensor.layout is not torch.strided:
        return f"{str(tensor.dtype).removeprefix('torch.')}{' (sparse)' if tensor.layout is not torch.strided else ''}"
    return "" if bool(tensor.float().isfinite().all()) else "NaN or infinite numbers"


def _is_stem(tensor: Tensor, own: Tensor) -> bool:
    """Return whether a tensor is a convolution of RGB images where the model's own is of other channels."""
    return own.ndim == 4 and tensor.shape == (len(own), 3, *own.shape[2:]) != own.shape


def _adapted(stem: Tensor, own: Tensor) -> Tensor:
    """Return the stem for the channels of the model's own: the sum for one, else repeated and scaled."""
    from timm.models import adapt_input_conv  # slow to import

    return adapt_input_conv(own.shape[1], stem)


def find_prefix(weights: Weights, own: Mapping[str, Tensor]) -> str:
    """Return the prefix of the names of a model's tensors in a file, such as "", ``module.``, ``state_dict.``."""
    counts: Counter[str] = Counter()
    for name in weights.tensors:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in own:
                counts[".".join([*parts[:start], ""]) if start else ""] += 1
    average = {prefix: count for prefix, count in counts.items() if _AVERAGE.search(prefix)}
    plain = {prefix: count for prefix, count in counts.items() if prefix not in average}
    if weights.use_ema and 2 * max(average.values(), default=0) < max(counts.values(), default=1):
        raise InputError(f"{weights.path} holds no moving average beside the model's weights; leave out --weights-ema")
    only_average = 2 * max(plain.values(), default=0) < max(average.values(), default=0)
    fitting = average if weights.use_ema or only_average else plain
    best = [prefix for prefix, count in fitting.items() if count == max(fitting.values())] or [""]
    usual = [prefix for prefix in ("", *_USUAL) if prefix in best]
    if len(best) > 1 and not usual and 2 * counts[best[0]] > len(own):
        names = ", ".join(prefix.rstrip(".") for prefix in best)
        raise InputError(f"{weights.path} holds several sets of weights that fit ({names}); save one in a file")
    return [*usual, *best][0]


def count_classes(model: nn.Module, weights: Weights) -> int | None:
    """Return the number of classes of the classifier in a file, not of the model; None without a classifier."""
    own = model.state_dict()
    prefix = find_prefix(weights, own)
    head = [prefix + name for name in own if name.startswith(_classifier_prefixes(model))]
    return next((len(weights.tensors[name]) for name in head if name in weights.tensors), None)


class _Misfits(NamedTuple):
    """Names of a model's tensors that keep a file from loading."""

    missing: list[str]
    left_over: list[str]
    differing: list[str]


def _refusal(
    path: Path,
    model: nn.Module,
    misfits: _Misfits,
    found: dict[str, Tensor],
    own: dict[str, Tensor],
    classifier: tuple[str, ...],
) -> InputError:
    """Return the error of a file that does not fit a model: the tensors, and the remedy."""
    if not misfits.missing and not misfits.left_over and all(n.startswith(classifier) for n in misfits.differing):
        name = misfits.differing[0]
        if not _other_features(found, own, name):
            return InputError(
                f"{path} holds {len(found[name])} classes, the model has {len(own[name])}: "
                "give the same classes, or ask for a new head"
            )
    shapes = [f"{n!r} is {_say(found[n])} in the file and {_say(own[n])} in the model" for n in misfits.differing]
    parts = [
        _count(names, what)
        for what, names in (
            ("missing", [repr(n) for n in misfits.missing]),
            ("left over", [repr(n) for n in misfits.left_over]),
            ("of another shape", shapes),
        )
        if names
    ]
    return InputError(f"{path} is a checkpoint of another model than this {type(model).__name__}: {', '.join(parts)}")


def _report(weights: Weights, prefix: str, found: dict[str, Tensor], new_head: bool) -> None:
    """Log the loaded and the ignored tensors of a file, unless it holds nothing but the model's tensors."""
    used = {prefix + name for name in found}
    rest = Counter(name.removeprefix(prefix).split(".")[0] for name in weights.tensors if name not in used)
    left = []
    for name, count in rest.most_common(5):
        which = ["the moving average, loaded by --weights-ema"] if _AVERAGE.search(name) else []
        which += [f"{count} tensors"] if count > 1 else []
        left.append(f"{name} ({', '.join(which)})" if which else name)
    left += ["…"] if len(rest) > 5 else []
    texts = [f"weights named {prefix}* are loaded" if prefix else ""]
    texts += [f"left out: {', '.join(left)}" if left else "", "the classifier is new" if new_head else ""]
    if any(texts):
        _log.info("%s: %s", weights.path, "; ".join(filter(None, texts)))


def _walk(content: dict[Any, Any], holder: str, seen: set[int]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield container, name and tensor of every tensor in nested dictionaries, each once, except an optimizer's."""
    if "param_groups" in content or id(content) in seen:
        return
    seen.add(id(content))
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, Tensor) and value.device.type == "cpu":
            yield holder, key, value
        elif isinstance(key, str) and isinstance(value, dict) and holder.count(".") < 8:
            yield from _walk(value, f"{holder}{key}.", seen)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and strings of a safetensors file, whose digest is verified if it has one."""
    try:
        with open_safetensors(path) as file:
            strings = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        if digest := strings.get("digest"):
            with open(path, "rb") as raw:
                head = json.loads(raw.read(int.from_bytes(raw.read(8), "little")))
                del head["__metadata__"]["digest"]
                if digest != _digest(head, iter(lambda: raw.read(1 << 20), b"")):
                    raise InputError(f"{path} is damaged: its digest does not match; copy it or train it again")
    except (SafetensorError, ValueError, KeyError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged or incomplete ({error})") from error
    return tensors, strings


def _digest(head: dict[str, Any], data: Iterable[bytes | memoryview]) -> str:
    """Return the SHA-256 of names, types, shapes, strings and values."""
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for part in data:
        digest.update(part)
    return digest.hexdigest()


def _classifier_prefixes(model: nn.Module) -> tuple[str, ...]:
    get_classifier: Any = getattr(model, "get_classifier", None)
    if get_classifier is not None:
        heads = get_classifier()
        heads = list(heads) if isinstance(heads, tuple | list) else [heads]
    else:
        heads = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1:]
    named = model.named_modules()
    return tuple(f"{name}." if name else "" for name, module in named if any(module is head for head in heads))


def _other_features(found: dict[str, Tensor], own: dict[str, Tensor], name: str) -> bool:
    """Return whether a tensor of the classifier is for other features, and not only for other classes."""
    return name in found and (found[name].ndim != own[name].ndim or found[name].shape[1:] != own[name].shape[1:])


def _shape(tensors: dict[str, Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(tensors[key].shape) if key in tensors else None


def _count(names: list[str], what: str) -> str:
    """Return the number of tensors that are missing, left over or of another shape, and the first of them."""
    shown = ", ".join([*names[:3], "…"] if len(names) > 3 else names)
    return f"{counted(len(names), 'tensor is', 'tensors are')} {what} ({shown})"


def _say(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"
