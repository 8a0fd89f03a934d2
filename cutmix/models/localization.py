"""Models for class activation maps: their feature maps and linear layer, and the two models with larger maps."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cutmix.errors import InputError
from cutmix.models.cifar import PooledClassifier


class Head(NamedTuple):
    """The two parts of a network that ends in global average pooling and a linear layer.

    Attributes:
        features: Maps images (N, C_in, H, W) to feature maps (N, C, h, w).
        classifier: The linear layer, of weight (K, C).
    """

    features: Callable[[Tensor], Tensor]
    classifier: nn.Linear


def find_head(model: nn.Module, image_shape: Sequence[int] | None = None) -> Head:
    """Return the feature maps and the linear layer of a network, if the logits are their class activations' mean.

    It is tried, in eval mode on two random images: logits = mean over positions of W f(x) + b. So a network with a
    class token, with hidden layers or a normalisation behind the pooling, or with another pooling, is refused.

    Args:
        model: With ``forward_features`` and ``get_classifier``, as the networks here and timm's have them.
        image_shape: Channels, height and width to try it with; timm's own size or 32×32 by default.

    Raises:
        InputError: If there are no such parts, or the logits are not what they give, or not finite.
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
    images = torch.randn(2, *(image_shape or _image_shape(model)), generator=generator).to(parameter)
    model.eval()
    try:
        with torch.no_grad():
            maps, logits = features(images), model(images)
    except Exception as error:  # whatever a network that is made for other sizes raises
        raise InputError(f"{name} cannot be tried on images of {tuple(images.shape[1:])} ({error})") from error
    finally:
        model.train(training)
    if not bool(logits.isfinite().all()):
        raise InputError(f"{name} gives logits that are NaN or infinite, so nothing can be evaluated")
    if maps.ndim != 4 or maps.shape[1] != classifier.in_features:
        raise InputError(
            f"{refusal}: its features are {'×'.join(map(str, maps.shape[1:]))} and its linear layer takes "
            f"{classifier.in_features}"
        )
    with torch.no_grad():
        expected = classifier(maps.mean((2, 3)))
    if not torch.allclose(expected, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max())):
        raise InputError(f"{refusal}: its logits are not the mean of the map")
    return Head(features, classifier)


def _image_shape(model: nn.Module) -> tuple[int, ...]:
    settings = getattr(model, "pretrained_cfg", None) or {}
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return (first.in_channels if first else 3, *settings.get("input_size", (3, 32, 32))[1:])


def widen_last_stage(model: nn.Module) -> nn.Module:
    """Let the last stage of timm's ResNet keep the size of its maps: 14×14 of 224×224 pixels, not 7×7.

    The stride of ``layer4`` becomes 1 and nothing else changes: no dilation, as timm's ``output_stride=16`` would
    bring, no parameter and no name, so that its weights for ImageNet load.

    Args:
        model: timm's ResNet, whose stem and stages stay; changed in place.

    Raises:
        InputError: If it has no stage ``layer4`` that strides.

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

    Args:
        num_classes: Outputs.
        in_chans: Channels of the images.

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
        """Take the thirteen convolutions of a VGG-16, torchvision's or timm's; the rest of its weights is left.

        Raises:
            InputError: If the weights are of another network.
        """
        found = {key.removeprefix("features."): w for key, w in weights.items() if key.startswith("features.")}
        own = self.features.state_dict()
        if {key: w.shape for key, w in found.items()} != {key: w.shape for key, w in own.items()}:
            raise InputError(f"the weights are not those of a VGG-16: expected {len(own)} tensors named features.*")
        self.features.load_state_dict(found)

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, 1024, H/16, W/16), not negative."""
        return self.conv6(self.features(x)).relu()
