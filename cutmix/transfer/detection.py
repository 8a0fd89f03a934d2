"""SSD300 and Faster R-CNN C4 on any of timm's ResNets, assembled from torchvision's parts.

Source: Yun et al. 2019, table 10. The paper puts SSD's first feature map at the output of layer2 and takes the rest
from its code bases; each setting of theirs is noted where it is used. The backbone keeps the preprocessing of its
weights: RGB in [0, 1], normalized within the model by the mean and standard deviation that they were trained with. (The
paper's code base for Faster R-CNN expects weights for BGR from 0 to 255; the paper does not say how it adapted them.)
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor
from torchvision.models.detection.ssd import SSD
from torchvision.ops import MultiScaleRoIAlign

from cutmix.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from cutmix.errors import InputError, reason

_STEM = ("conv1", "bn1", "act1", "maxpool")
_STAGES = ("layer1", "layer2", "layer3", "layer4")


class Detector(nn.Module):
    """One of torchvision's detectors with labels from 0, without a class for the background.

    The parameters and the statistics of ``frozen`` modules never change.
    """

    def __init__(self, network: nn.Module, frozen: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.network = network
        self._frozen = tuple(frozen)  # in a tuple, since the network registers them already
        for module in self._frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Detector":
        """Set training or eval mode, except for frozen modules, which stay in eval mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return the losses by name in training mode, whose sum is minimized, and the detections otherwise.

        Images are RGB (3, H, W), each of its own size: uint8, or floating point in [0, 1]. The targets of an image are
        ``boxes`` (n, 4), in its pixels, and ``labels`` (n,) int64; its detections are ``boxes`` (m, 4), in its pixels,
        ``scores`` (m,) and ``labels`` (m,), by falling score.
        """
        pixels = [image if image.is_floating_point() else image.float() / 255 for image in images]
        if self.training:
            if targets is None:
                raise InputError("targets is None; expected the boxes and labels of the images in training mode")
            shifted = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
            return self.network(pixels, shifted)
        return [found | {"labels": found["labels"] - 1} for found in self.network(pixels)]


def ssd300(
    backbone: nn.Module,
    num_classes: int,
    *,
    image_size: int = 300,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Detector:
    """Return SSD300 on a ResNet: feature maps of layer2, layer3, layer4 and three more, 8,732 default boxes.

    A smaller image gives fewer maps, which have the last of SSD300's box sizes; with a CIFAR stem, which has no stride,
    an image of 75 pixels gives SSD300's six maps. Nothing is frozen. The detector uses the layers of the backbone, one
    of timm's ResNets, and not copies. Images are resized to squares; their aspect ratio is not kept.

    Source: Liu et al. 2016; box sizes, thresholds and the scale of the first map follow the paper's code base for VOC.
    """
    _check_backbone(backbone, num_classes)
    if image_size < 1:
        raise InputError(f"image_size is {image_size}; expected 1 or more pixels")
    features = _SSDFeatures(backbone, image_size)
    maps = len(features.sides)
    boxes = DefaultBoxGenerator(
        [[2], [2, 3], [2, 3], [2, 3], [2], [2]][-maps:],
        scales=[0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05][-maps - 1 :],
        # boxes are one stride apart, 38 · 8 = 304 though the image has 300 pixels; the last maps span the image
        steps=[image_size / side if side <= 3 else stride for side, stride in features.sides],
    )
    network = SSD(
        features, boxes, (image_size, image_size), num_classes + 1, image_mean=list(mean), image_std=list(std),
        score_thresh=0.01, nms_thresh=0.45, topk_candidates=200, detections_per_img=200,
    )  # fmt: skip
    return Detector(network)


def faster_rcnn_c4(
    backbone: nn.Module,
    num_classes: int,
    *,
    min_size: int = 600,
    max_size: int = 1000,
    rois_per_image: int = 256,
    freeze: bool = True,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Detector:
    """Return Faster R-CNN on a ResNet: proposals from layer3, layer4 without its stride on each 7×7 region.

    Anchors have 128, 256 and 512 pixels for images of 600 and scale with ``min_size``. Where torchvision's parts differ
    from the paper's code base, torchvision's are used: RoIAlign averages sampled pixels (there: maximum), the
    convolution of the proposals is as wide as its input (there: 512), both box losses become linear at 1/9 (there: 1/9
    and 1), and proposals of any size are kept (there: from 8 pixels, in tests from 16). The detector uses the layers of
    the backbone, one of timm's ResNets, and not copies. ``freeze`` freezes conv1, bn1, layer1 and every batch
    normalization, as the paper's code base does for trained weights; a random backbone has to be trained. The head is
    trained on ``rois_per_image`` regions of an image.

    Source: Ren et al. 2015 with the settings of the paper's code base for ResNets.
    """
    _check_backbone(backbone, num_classes)
    if not 32 <= min_size <= max_size:
        raise InputError(f"min_size is {min_size} and max_size {max_size}; expected 32 ≤ min_size ≤ max_size")
    features = _C4Features(backbone)
    head = _C4Head(backbone, features.out_channels)
    sides = tuple(round(side * min_size / 600) for side in (128, 256, 512))
    network = FasterRCNN(
        features, min_size=min_size, max_size=max_size, image_mean=list(mean), image_std=list(std), size_divisible=1,
        rpn_anchor_generator=AnchorGenerator((sides,), ((0.5, 1.0, 2.0),)),
        rpn_pre_nms_top_n_train=12000, rpn_post_nms_top_n_train=2000,
        rpn_pre_nms_top_n_test=6000, rpn_post_nms_top_n_test=300,
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=7, sampling_ratio=2),
        box_head=head, box_predictor=FastRCNNPredictor(head.out_channels, num_classes + 1),
        box_batch_size_per_image=rois_per_image, box_score_thresh=0.0, box_nms_thresh=0.3, box_detections_per_img=100,
    )  # fmt: skip
    predictor = network.roi_heads.box_predictor
    for layer, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=deviation)
        nn.init.zeros_(layer.bias)
    if not freeze:
        return Detector(network)
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return Detector(network, [backbone.get_submodule("conv1"), backbone.get_submodule("layer1"), *norms])


class _SSDFeatures(nn.Module):
    """The maps from layer2 on, and further convolutions until a map is one pixel."""

    def __init__(self, backbone: nn.Module, image_size: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*(backbone.get_submodule(name) for name in (*_STEM, "layer1")))
        self.stages = nn.ModuleList(backbone.get_submodule(name) for name in _STAGES[1:])
        shapes = _shapes([self.stem, *self.stages], (3, image_size, image_size))[1:]
        self.out_channels = [shape[0] for shape in shapes]
        sides = [shape[-1] for shape in shapes]
        self.extras = nn.ModuleList()
        while sides[-1] > 1 and len(sides) < 7:
            narrow, wide = (256, 512) if not self.extras else (128, 256)
            squeeze = nn.Conv2d(self.out_channels[-1], narrow, 1)
            stride, padding = (1, 0) if sides[-1] == 3 else (2, 1)
            shrink = nn.Conv2d(narrow, wide, 3, stride, padding)
            self.extras.append(nn.Sequential(squeeze, nn.ReLU(inplace=True), shrink, nn.ReLU(inplace=True)))
            self.out_channels.append(wide)
            sides.append(1 if sides[-1] == 3 else (sides[-1] + 1) // 2)
        if sides[-1] > 1 or not 4 <= len(sides) <= 6:
            raise InputError(
                f"image_size is {image_size}, which gives maps of {', '.join(map(str, sides))} pixels with this "
                "backbone; expected a size with four to six maps, the first of 38 pixels or fewer"
            )
        stride = 2 ** round(math.log2(image_size / sides[0]))
        self.sides = [(side, stride * 2**i) for i, side in enumerate(sides)]  # side and stride of each map
        self.scale = nn.Parameter(torch.full((self.out_channels[0],), 20.0))  # initial value of the code base
        for module in self.extras.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        x = self.stem(x)
        maps = [x := layer(x) for layer in (*self.stages, *self.extras)]
        maps[0] = F.normalize(maps[0]) * self.scale.view(-1, 1, 1)  # as SSD does for its first map
        return OrderedDict((str(i), features) for i, features in enumerate(maps))


class _C4Features(nn.Sequential):
    """The layers from conv1 to layer3."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(*(backbone.get_submodule(name) for name in (*_STEM, *_STAGES[:3])))
        self.out_channels = _shapes(self, (3, 64, 64))[-1][0]


class _C4Head(nn.Module):
    """layer4 without its stride and an average pooling: regions (n, C, 7, 7) -> (n, C')."""

    def __init__(self, backbone: nn.Module, in_channels: int) -> None:
        super().__init__()
        self.layer4 = backbone.get_submodule("layer4")
        for module in self.layer4.modules():
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                module.stride = (1, 1)
            elif isinstance(module, nn.AvgPool2d):  # in the shortcut of a ResNet-D
                module.kernel_size = module.stride = 1
        shape = _shapes([self.layer4], (in_channels, 7, 7))[0]
        if shape[1:] != (7, 7):
            raise InputError(
                f"layer4 of this backbone gives {shape[1]}×{shape[2]} for a 7×7 region; expected a ResNet whose layer4 "
                "has its stride in a convolution or an average pooling"
            )
        self.out_channels = shape[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.layer4(x).mean((2, 3))


def _check_backbone(backbone: nn.Module, num_classes: int) -> None:
    missing = [name for name in (*_STEM, *_STAGES) if not isinstance(getattr(backbone, name, None), nn.Module)]
    if missing:
        raise InputError(
            f"the backbone is a {type(backbone).__name__} without {', '.join(missing)}; expected one of timm's "
            "ResNets, with conv1, bn1, act1, maxpool and layer1 to layer4"
        )
    first = next(module for module in backbone.get_submodule("conv1").modules() if isinstance(module, nn.Conv2d))
    if first.in_channels != 3:
        raise InputError(f"the backbone takes images of {first.in_channels} channels; expected 3, for RGB")
    if num_classes < 1:
        raise InputError(f"num_classes is {num_classes}; expected 1 or more, without the background")


def _shapes(layers: Iterable[nn.Module], shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """Return the output shape of each layer in turn, without the batch, for an input shape."""
    shapes, network = [], nn.Sequential(*layers)
    training = network.training
    network.eval()  # so that batch normalization does not take the zeros into its statistics
    x = torch.zeros(1, *shape, device=next(network.parameters()).device)
    try:
        with torch.no_grad():
            for layer in network:
                x = layer(x)
                shapes.append(tuple(x.shape[1:]))
    except RuntimeError as error:
        raise InputError(
            f"the input of the backbone is {shape[1]}×{shape[2]} ({reason(error)}); expected a size for its layers"
        ) from None
    finally:
        network.train(training)
    return shapes
