"""Create a model from its name; find the parts of a model that give class activation maps."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cutmix.errors import InputError, did_you_mean, reason
from cutmix.models.cifar import BasicBlock, Bottleneck, CifarResNet, PooledClassifier, PyramidNet
from cutmix.runtime.checkpoint import Header
from cutmix.runtime.weights import Weights, find_prefix, load_weights, read_weights

Pretrained = bool | str | Path | Weights
Normalization = tuple[tuple[float, ...], tuple[float, ...]]

# Called with num_classes and in_chans. ResNet-110 is the paper's (bottleneck, 9 · 12 + 2), not the classic basic-block
# one; PyramidNets are additive with bottlenecks (9n + 2), of 64 and 240 for α̃.
_CIFAR_NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet20": partial(CifarResNet, BasicBlock, 3),
    "resnet32": partial(CifarResNet, BasicBlock, 5),
    "resnet44": partial(CifarResNet, BasicBlock, 7),
    "resnet56": partial(CifarResNet, BasicBlock, 9),
    "resnet110": partial(CifarResNet, Bottleneck, 12),
    "pyramidnet110": partial(PyramidNet, 12, 64),
    "pyramidnet200": partial(PyramidNet, 22, 240),
}

# Transformers for another size of images and patches than timm's names have, such as deit_tiny_patch4_32.
_OTHER_PATCHES = re.compile(r"(.+)_patch([1-9]\d*)_([1-9]\d*)(?<!patch16_224)")
_TRANSFORMERS = {
    "deit_tiny": "deit_tiny_patch16_224", "deit_small": "deit_small_patch16_224",
    "deit_base": "deit_base_patch16_224", "cait_xxs24": "cait_xxs24_224", "cait_xxs36": "cait_xxs36_224",
}  # fmt: skip
_FOR_LOCALIZATION = ("resnet50_wsol", "vgg16_gap")
_GATHER_EXCITE = {"geresnet50": "resnet50", "geresnet101": "resnet101"}


def create_model(name: str, num_classes: int, *, in_chans: int = 3, pretrained: Pretrained = False) -> nn.Module:
    """Create a model that maps images (N, in_chans, H, W) to logits (N, num_classes).

    Args:
        name: ``resnet20``, ``resnet32``, ``resnet44``, ``resnet56`` (basic blocks) or ``resnet110`` (the paper's
            bottleneck), ``pyramidnet110`` (α̃ 64), ``pyramidnet200`` (α̃ 240) for CIFAR; ``resnet18_cifar``,
            ``resnet50_cifar`` and so on: timm's ResNet with a 3×3 stem of stride 1 and no max-pooling;
            ``geresnet50``, ``geresnet101``: with Gather-Excite, for images of 224×224; ``resnet50_wsol`` (its last
            stage does not stride) and ``vgg16_gap`` for localization; ``pvt_tiny`` to ``pvt_large``, or
            ``pvt_tiny_patch1_32`` for other patches and images, ``deit_tiny_patch4_32``, ``cait_xxs24_patch4_32`` and
            so on; or any name of timm (``seresnet50``, ...).
        num_classes: Outputs, at least 1.
        in_chans: Channels of the images, at least 1.
        pretrained: False: random weights. True: timm's weights for this name, downloaded. A path, or the result of
            ``read_weights``: a file of weights for this model; a classifier of another class count in it is left out,
            and the model's starts at zero.

    Raises:
        InputError: The name is unknown, a count is below 1, or the weights do not exist, do not fit or do not load.

    Source: Yun et al. 2019 §4.1; parameter counts checked against the authors' networks.
    """
    for argument, count in (("num_classes", num_classes), ("in_chans", in_chans)):
        if count < 1:
            raise InputError(f"{argument} is {count}; expected at least 1")
    if name in _CIFAR_NETWORKS:
        _refuse_download(name, pretrained)
        model = _CIFAR_NETWORKS[name](num_classes, in_chans)
    elif name in _GATHER_EXCITE:
        _refuse_download(name, pretrained)
        attention = {"block_args": {"attn_layer": GatherExcite}}
        model = _timm_model(_GATHER_EXCITE[name], num_classes, in_chans, download=False, **attention)
    elif name.startswith("pvt_") and not name.startswith("pvt_v2"):
        _refuse_download(name, pretrained)
        from cutmix.models.transformers import create_pvt  # with timm, which is slow to import

        model = create_pvt(name, num_classes, in_chans)
    elif (found := _OTHER_PATCHES.fullmatch(name)) and found[1] in _TRANSFORMERS:
        _refuse_download(name, pretrained)
        size = {"patch_size": int(found[2]), "img_size": int(found[3])}
        model = _timm_model(_TRANSFORMERS[found[1]], num_classes, in_chans, download=False, **size)
    elif name == "resnet50_wsol":
        model = widen_last_stage(_timm_model("resnet50", num_classes, in_chans, download=pretrained is True))
    elif name == "vgg16_gap":
        model = VggGap(num_classes, in_chans)
        if pretrained is True:
            model.load_backbone(_timm_model("vgg16", num_classes, in_chans, download=True).state_dict())
            start_new_head(model)
        elif pretrained:
            weights = pretrained if isinstance(pretrained, Weights) else read_weights(pretrained)
            prefix = find_prefix(weights, model.state_dict())
            if f"{prefix}conv6.weight" not in weights.tensors:
                model.load_backbone({name.removeprefix(prefix): tensor for name, tensor in weights.tensors.items()})
                return start_new_head(model)
    elif name.endswith("_cifar"):
        _refuse_download(name, pretrained)
        model = _with_cifar_stem(name, num_classes, in_chans)
    else:
        model = _timm_model(name, num_classes, in_chans, download=pretrained is True)
    if not isinstance(pretrained, bool):
        start_new_head(model)  # stays zero where the head of the file is left out
        load_weights(model, pretrained, new_head=True, name=name)
    return model


def start_new_head(model: nn.Module) -> nn.Module:
    """Set the linear classifier of a model to zero, and return the model.

    On pretrained features of any scale, the first loss is then the logarithm of the number of classes.
    """
    layers = _classifiers(model)
    if not layers:
        raise InputError(f"{type(model).__name__} has no linear classifier to replace")
    for layer in layers:
        for parameter in layer.parameters(recurse=False):
            nn.init.zeros_(parameter)
    return model


def _narrow_head(model: nn.Module) -> nn.Module:
    """Initialize a random classifier again where timm scales it by 1/√classes: EfficientNet, MobileNet, ReXNet, DLA."""
    for layer in _classifiers(model):
        weight = layer.weight.detach()
        if not weight.is_meta and weight.square().mean() * weight[0].numel() > 1:
            layer.reset_parameters()
    return model


def _classifiers(model: nn.Module) -> list[Any]:
    """Return the linear layers, or 1×1 convolutions, that map features to classes."""
    found = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    heads = found if isinstance(found, list | tuple | nn.ModuleList) else [found]
    layers = [[x for x in head.modules() if isinstance(x, nn.Linear | nn.Conv2d)] for head in heads if head]
    return [of_a_head[-1] for of_a_head in layers if of_a_head]


class GatherExcite(nn.Module):
    """x · sigmoid(W₂ ReLU(W₁ BN(gather(x)))): the channels of a ResNet's block weighed by their context.

    The gathering is a depthwise convolution as large as the map, so the size of the image is fixed: maps of 256, 512,
    1024 and 2048 channels are 56, 28, 14 and 7 wide, for images of 224×224. W₁ has a sixteenth of the channels. timm
    has a module of the name, whose constructor fails in its version 1.0.31.

    Source: Hu et al. 2018 (Gather-Excite), GE-θ⁺ with global extent, which is the 33.7M of the CutMix paper's table 3.
    """

    def __init__(self, channels: int, **factory: Any) -> None:
        super().__init__()
        self.map_size = 56 * 256 // channels
        self.gather = nn.Conv2d(channels, channels, self.map_size, groups=channels, bias=False, **factory)
        self.bn = nn.BatchNorm2d(channels, **factory)
        self.fc1 = nn.Conv2d(channels, channels // 16, 1, **factory)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        if tuple(x.shape[-2:]) != (self.map_size, self.map_size):
            raise InputError(
                f"a feature map is {x.shape[-2]}×{x.shape[-1]} where Gather-Excite expects {self.map_size}×"
                f"{self.map_size}; its networks take images of 224×224"
            )
        context = self.fc1(self.bn(self.gather(x))).relu()
        return x * self.fc2(context).sigmoid()


def _refuse_download(name: str, pretrained: Pretrained) -> None:
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


def _timm_model(name: str, num_classes: int, in_chans: int, *, download: bool, **options: Any) -> nn.Module:
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise _unknown(name)
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise InputError(f"{architecture!r} has no weights {tag!r}; known are {', '.join(tags) or 'none'}")
    options |= {"num_classes": num_classes, "in_chans": in_chans}
    if not download:
        return _narrow_head(timm.create_model(name, **options))
    if not tags:
        _refuse_download(name, True)
    place = timm.get_pretrained_cfg(name).hf_hub_id
    try:
        if place:
            _find_on_hub(place)
        model = timm.create_model(name, pretrained=True, **options)
    except Exception as error:  # each way of downloading has its own exceptions
        raise InputError(
            f"the pretrained weights of {name!r} could not be downloaded ({reason(error)}); "
            f"{_where_on_disk(place)}give another file of weights (--weights FILE, of a backbone --backbone FILE), or "
            "start from random weights (--no-pretrained, --backbone none)"
        ) from error
    return model if model.pretrained_cfg["num_classes"] == num_classes else start_new_head(model)


def _find_on_hub(place: str) -> None:
    """Ask the hub once for weights that are not cached; timm would retry for a minute."""
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import get_session

    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(place, file), str) for file in files):
        return
    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    get_session().head(hf_hub_url(place, files[0]), timeout=5)


def _where_on_disk(place: str | None) -> str:
    """Return the place of the hub's files, as a clause for a message."""
    if not place:
        return ""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{place.replace('/', '--')}"
    return f"copy {folder} from a machine that has them, "


def _unknown(name: str) -> InputError:
    import timm

    own = [*_CIFAR_NETWORKS, *(f"resnet{n}_cifar" for n in (18, 34, 50)), *_GATHER_EXCITE, *_FOR_LOCALIZATION]
    known = f"expected {', '.join(own)} or a model of timm"
    return InputError(f"there is no model {name!r}; {did_you_mean(name, [*own, *timm.list_models()], known)}")


def pretrained_normalization(name: str) -> Normalization | None:
    """Return the mean and std, for pixels in [0, 1], of timm's weights of this name; None if it has none."""
    import timm

    settings = timm.get_pretrained_cfg(name) if timm.is_model(name.partition(".")[0]) else None
    return (tuple(settings.mean), tuple(settings.std)) if settings and len(settings.mean) == 3 else None


def weights_normalization(name: str | None, header: Header, in_chans: int) -> Normalization | None:
    """Return the mean and std of the images that weights were trained on: the file's, else those of timm's weights.

    They are for pixels in [0, 1]; None if neither the file nor timm knows them.
    """
    if header.mean and header.std and len(header.mean) == in_chans:
        return header.mean, header.std
    return pretrained_normalization(name) if name and in_chans == 3 else None


def check_shake_drop(path: str | Path, header: Header, shake_drop: float = 0.0) -> None:
    """Refuse weights for a model without their ShakeDrop, which scales residual branches in evaluation too."""
    p = (header.recipe or {}).get("shake_drop") or 0.0
    if p not in (0.0, shake_drop):
        raise InputError(
            f"{path} was trained with --shake-drop {p:g}, by which residual branches are scaled in evaluation too; "
            "expected a model with the same --shake-drop"
        )


@contextmanager
def trying_images(name: str, size: tuple[int, ...]) -> Iterator[None]:
    """Turn the error of a model that does not take images of H×W pixels into an ``InputError``."""
    try:
        yield
    except InputError:
        raise
    except (AssertionError, RuntimeError, ValueError) as error:
        sides = "×".join(map(str, size))
        raise InputError(
            f"{name} takes no images of {sides} pixels ({reason(error)}); give another --image-size or --model"
        ) from None


# ---- class activation maps ----


class Head(NamedTuple):
    """The two parts of a network that ends in global average pooling and a linear layer."""

    features: Callable[[Tensor], Tensor]  # maps images (N, C_in, H, W) to feature maps (N, C, h, w)
    classifier: nn.Linear  # the linear layer, of weight (K, C)


def find_head(model: nn.Module, image_shape: Sequence[int]) -> Head:
    """Return the feature maps and the linear layer of a network, if the logits are the mean of their class activations.

    Two random images of ``image_shape`` check, in eval mode, that logits = mean over positions of W f(x) + b. A network
    with a class token, with hidden layers or a normalization after the pooling, or with another pooling is refused, and
    one whose map has a single position.
    """
    name = type(model).__name__
    features: Any = getattr(model, "forward_features", None)
    classifier: Any = getattr(model, "get_classifier", lambda: None)()
    refusal = f"{name} has no class activation map, which needs global average pooling and one linear layer at the end"
    if features is None or not isinstance(classifier, nn.Linear):
        found = type(classifier).__name__ if features else "no forward_features()"
        raise InputError(f"{refusal}: found {found}")
    training, parameter = model.training, next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, *image_shape, generator=generator).to(parameter)
    model.eval()
    try:
        with torch.no_grad():
            maps, logits = features(images), model(images)
    except Exception as error:  # of a network that is made for other sizes
        raise InputError(f"{name} cannot be tried on images of {tuple(images.shape[1:])} ({reason(error)})") from error
    finally:
        model.train(training)
    if not bool(logits.isfinite().all()):
        raise InputError(f"{name} gives logits that are NaN or infinite, so nothing can be evaluated")
    if maps.ndim != 4 or maps.shape[1] != classifier.in_features:
        raise InputError(
            f"{refusal}: its features are {'×'.join(map(str, maps.shape[1:]))} and its linear layer takes "
            f"{classifier.in_features}"
        )
    if maps.shape[2:].numel() == 1:
        raise InputError(
            f"{name} has no class activation map on images of {tuple(images.shape[1:])}: its features are 1×1 there"
        )
    with torch.no_grad():
        expected = classifier(maps.mean((2, 3)))
    if not torch.allclose(expected, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max())):
        raise InputError(f"{refusal}: its logits are not the mean of the map")
    return Head(features, classifier)


# ---- models for localization ----


def widen_last_stage(model: nn.Module) -> nn.Module:
    """Keep the size of the maps in the last stage of timm's ResNet, changed in place: 14×14 of 224×224 pixels, not 7×7.

    The stride of ``layer4`` becomes 1 and nothing else changes: no dilation, as timm's ``output_stride=16`` would
    bring, no parameter and no name, so that its weights for ImageNet load.

    Source: Yun et al. 2019, appendix B; the strides are those of ``resnet50`` in clovaai/wsolevaluation.
    """
    stage = getattr(model, "layer4", None)
    strided = [
        module
        for module in (stage.modules() if isinstance(stage, nn.Module) else ())
        if isinstance(module, nn.Conv2d | nn.AvgPool2d) and module.stride not in (1, (1, 1))
    ]
    if not strided or not all(isinstance(module, nn.Conv2d) for module in strided):
        raise InputError(f"{type(model).__name__} has no stage layer4 with convolutions that stride")
    for module in strided:
        module.stride = (1, 1)
    return model


_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0 pools


class VggGap(PooledClassifier):
    """VGG-16 without its last pooling and hidden layers; then a 3×3 convolution, average pooling, a linear layer.

    Images of 224×224 have maps of 14×14. The names are those of torchvision's and timm's ``features`` and of ``conv6``
    and ``fc`` in the code that it was checked against, so that weights of all three load.

    Source: Zhou et al. 2016 (VGGnet-GAP); ``VggCam`` of clovaai/wsolevaluation.
    """

    def __init__(self, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_chans
        for width in _VGG16:
            if width:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            else:
                layers.append(nn.MaxPool2d(2, 2))
        self.num_classes = num_classes
        self.num_features = 1024
        self.features = nn.Sequential(*layers)
        self.conv6 = nn.Conv2d(channels, self.num_features, 3, padding=1)
        self.fc = nn.Linear(self.num_features, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def load_backbone(self, weights: dict[str, Tensor]) -> None:
        """Load the thirteen convolutions of a VGG-16, torchvision's or timm's; its other weights are ignored."""
        found = {key.removeprefix("features."): w for key, w in weights.items() if key.startswith("features.")}
        own = self.features.state_dict()
        if {key: w.shape for key, w in found.items()} != {key: w.shape for key, w in own.items()}:
            raise InputError(f"the weights are not those of a VGG-16: expected {len(own)} tensors named features.*")
        self.features.load_state_dict(found)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, 1024, H/16, W/16), not negative."""
        return self.conv6(self.features(x)).relu()
