"""CutMix and its relatives for any PyTorch training loop, a trainer, and an evaluation with intervals.

mix = cutmix.CutMix(alpha=1.0, seed=0)
for images, labels in loader:
    images, targets = mix(images, labels)
    loss = cutmix.mixed_cross_entropy(model(images), targets)
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from cutmix.errors import InputError as InputError

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cutmix.api import compare as compare
    from cutmix.api import evaluate as evaluate
    from cutmix.api import explain as explain
    from cutmix.api import export as export
    from cutmix.api import predict as predict
    from cutmix.api import push as push
    from cutmix.api import recipes as recipes
    from cutmix.api import reproduce as reproduce
    from cutmix.api import serve as serve
    from cutmix.api import shards as shards
    from cutmix.api import train as train
    from cutmix.config.recipe import Recipe as Recipe
    from cutmix.inference.model import load as load
    from cutmix.mixing import *  # noqa: F403
    from cutmix.models import create_model as create_model
    from cutmix.models.transformers import WithTokenHead as WithTokenHead

    __all__: list[str]

_ELSEWHERE = {
    "WithTokenHead": "cutmix.models.transformers", "create_model": "cutmix.models", "load": "cutmix.inference.model",
    "Recipe": "cutmix.config.recipe",
    # a command whose name is also that of a part of the package is a function of cutmix.api alone
    **dict.fromkeys(
        ("train", "evaluate", "compare", "predict", "explain", "serve", "export", "push", "recipes", "reproduce",
         "shards"),
        "cutmix.api",
    ),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import torch only when a name that needs it is used; ``cutmix --help`` needs none."""
    if name == "__all__":
        return ["InputError", "__version__", *_ELSEWHERE, *import_module("cutmix.mixing").__all__]
    if name in ("api", "mixing"):
        return import_module(f"cutmix.{name}")
    # names that tools look up in every module, and modules, which ``from cutmix import cli`` looks up before the import
    if name.startswith("_") or (name not in _ELSEWHERE and find_spec(f"cutmix.{name}")):
        raise AttributeError(f"module 'cutmix' has no attribute '{name}'")
    module = import_module(_ELSEWHERE.get(name, "cutmix.mixing"))
    if name not in _ELSEWHERE and name not in module.__all__:
        raise AttributeError(f"module 'cutmix' has no attribute '{name}'")
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __getattr__("__all__")
