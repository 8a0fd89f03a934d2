"""One function that makes a network from its name."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from cutmix.checkpoint import load_weights
from cutmix.errors import InputError
from cutmix.models.resnet import BasicBlock, Bottleneck, CifarResNet

# name: block, blocks a stage. ResNet-110 is the paper's (bottleneck, 9 · 12 + 2), not the classic basic-block one.
_CIFAR_RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], int]] = {
    "resnet20": (BasicBlock, 3),
    "resnet32": (BasicBlock, 5),
    "resnet44": (BasicBlock, 7),
    "resnet56": (BasicBlock, 9),
    "resnet110": (Bottleneck, 12),
}


def create_model(name: str, num_classes: int, *, in_chans: int = 3, pretrained: bool | str | Path = False) -> nn.Module:
    """Make a network that maps images (N, in_chans, H, W) to logits (N, num_classes).

    Args:
        name: ``resnet20``, ``resnet32``, ``resnet44``, ``resnet56`` (basic blocks) or ``resnet110`` (the paper's
            bottleneck) for CIFAR; ``resnet18_cifar``, ``resnet50_cifar`` and so on: timm's ResNet with a 3×3 stem of
            stride 1 and no max-pooling; or any model name of timm.
        num_classes: Outputs, at least 1.
        in_chans: Channels of the images, at least 1.
        pretrained: False: random weights. True: timm's weights for this name, downloaded. A path: a file of weights
            for this network; a classifier of another class count in it is left out and stays random.

    Raises:
        InputError: The name is unknown, a count is below 1, or the weights do not exist, do not fit or cannot be had.

    Source: Yun et al. 2019 §4.1; parameter counts checked against the authors' networks.
    """
    for argument, count in (("num_classes", num_classes), ("in_chans", in_chans)):
        if count < 1:
            raise InputError(f"{argument} is {count}; at least 1 is expected")
    if name in _CIFAR_RESNETS:
        _refuse_download(name, pretrained)
        block, blocks = _CIFAR_RESNETS[name]
        model: nn.Module = CifarResNet(block, blocks, num_classes, in_chans)
    elif name.endswith("_cifar"):
        _refuse_download(name, pretrained)
        model = _with_cifar_stem(name, num_classes, in_chans)
    else:
        model = _timm_model(name, num_classes, in_chans, download=pretrained is True)
    if not isinstance(pretrained, bool):
        load_weights(model, pretrained, new_head=True)
    return model


def _refuse_download(name: str, pretrained: bool | str | Path) -> None:
    if pretrained is True:
        raise InputError(f"no pretrained weights are published for {name!r}: train it from scratch or give a file")


def _with_cifar_stem(name: str, num_classes: int, in_chans: int) -> nn.Module:
    from timm.models import ResNet, is_model

    original = name.removesuffix("_cifar")
    if not is_model(original):
        raise _unknown(name)
    model = _timm_model(original, num_classes, in_chans, download=False)
    if not (isinstance(model, ResNet) and isinstance(model.conv1, nn.Conv2d)):
        raise InputError(f"{name!r} does not exist: the CIFAR stem is for timm's ResNets with a plain 7×7 stem")
    model.conv1 = nn.Conv2d(in_chans, model.conv1.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def _timm_model(name: str, num_classes: int, in_chans: int, *, download: bool) -> nn.Module:
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise _unknown(name)
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise InputError(f"{architecture!r} has no weights {tag!r}; known are {', '.join(tags) or 'none'}")
    options: dict[str, Any] = {"num_classes": num_classes, "in_chans": in_chans}
    if not download:
        return timm.create_model(name, **options)
    if not tags:
        _refuse_download(name, True)
    try:
        return timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # each way of downloading has exceptions of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the pretrained weights of {name!r} could not be loaded ({reason}): check the network, "
            "give a file of weights, or train from scratch"
        ) from error


def _unknown(name: str) -> InputError:
    import timm

    cifar = [*_CIFAR_RESNETS, "resnet18_cifar", "resnet34_cifar", "resnet50_cifar"]
    close = get_close_matches(name, [*cifar, *timm.list_models()], n=5)
    hint = f"the closest are {', '.join(close)}" if close else f"known are {', '.join(cifar)} and timm's models"
    return InputError(f"no model is called {name!r}; {hint}")
