"""What the paper prints of localization, robustness and the unknown: Tables 9, 11, 12 and A3. No torch here.

Source: Yun et al., ICCV 2019, arXiv:1905.04899v2 (Table A3 is that of version 1, A2 in version 2). The classification
tables are in :mod:`cutmix.paper`.
"""

from typing import NamedTuple

METHODS = ("Baseline", "Mixup", "Cutout", "CutMix")


class PaperRow(NamedTuple):
    """A line of a table: its heading, and for each method its numbers, in per cent."""

    label: str
    numbers: tuple[tuple[float, ...], ...]


class PaperTable(NamedTuple):
    """A table of the paper.

    Attributes:
        title: What it is of, and of which network and data.
        measures: What the numbers of a cell are.
        rows: Its lines; a cell for each of ``METHODS``.
        notes: What a reader has to know before comparing.
        digits: Decimals, as printed.
    """

    title: str
    measures: tuple[str, ...]
    rows: tuple[PaperRow, ...]
    notes: tuple[str, ...]
    digits: int = 1


LOCALIZATION = PaperTable(
    "Table 9: localization of fine-tuned ResNet-50 and VGG-GAP on CUB-200-2011 and ImageNet",
    ("top-1 localization accuracy, %",),
    (
        PaperRow("ResNet-50, CUB-200-2011", ((49.41,), (49.30,), (52.78,), (54.81,))),
        PaperRow("ResNet-50, ImageNet", ((46.30,), (45.84,), (46.69,), (47.25,))),
        PaperRow("VGG-GAP, CUB-200-2011", ((37.12,), (41.73,), (44.83,), (52.53,))),
        PaperRow("VGG-GAP, ImageNet", ((42.73,), (42.54,), (43.13,), (43.45,))),
    ),
    (
        "The paper does not say how a map is enlarged, whether it is of the predicted or of the true class, nor which "
        "epoch was measured.",
        "The code’s README prints 46.25 for ResNet-50 with CutMix on ImageNet, where the paper has 47.25.",
        "In the same group’s later benchmark (wsolevaluation), CutMix is 0.3 points below the plain class activation "
        "map, 60.8 against 61.2 on average over three networks and ImageNet, CUB and OpenImages; for ResNet-50 "
        "MaxBoxAccV2 is 63.3 against 63.7 on ImageNet and 62.8 against 63.0 on CUB.",
    ),
    digits=2,
)

FGSM = PaperTable(
    "Table 11: FGSM at ε = 8/255 on ResNet-50, ImageNet, 50,000 images",
    ("top-1 accuracy, %",),
    (PaperRow("Top-1 accuracy under FGSM", ((8.2,), (24.4,), (11.5,), (31.0,))),),
    (
        "The paper does not say whether ε is in the space of the pixels or after the normalisation, nor whether images "
        "were kept within [0, 1]; an attack after the normalisation is several times weaker.",
        "It prints accuracies: 100 % less them are the errors above. PGD and the checks, without which FGSM is no "
        "claim of robustness, are not in the paper.",
        "Figure 5, occlusion and samples in between, has no printed values; the fill (black or the mean) and the steps "
        "are not given.",
    ),
)

UNKNOWN = PaperTable(
    "Tables 12 and A3: PyramidNet-200 on CIFAR-100",
    ("TNR at TPR 95 %", "AUROC", "detection accuracy, %"),
    (
        PaperRow(
            "mean of seven sets", ((26.3, 87.3, 82.0), (11.8, 49.3, 60.9), (18.8, 68.7, 71.3), (69.0, 94.4, 89.1))
        ),
        PaperRow(
            "tiny-imagenet-crop", ((43.0, 88.9, 81.3), (22.6, 71.6, 69.8), (30.5, 85.6, 79.0), (57.1, 92.4, 85.0))
        ),
        PaperRow(
            "tiny-imagenet-resize", ((29.8, 84.2, 77.0), (12.3, 56.8, 61.0), (22.0, 82.8, 77.1), (55.4, 91.9, 84.5))
        ),
        PaperRow("lsun-crop", ((34.6, 86.5, 79.5), (22.9, 76.3, 72.3), (33.2, 85.7, 78.5), (47.6, 90.3, 82.8))),
        PaperRow("lsun-resize", ((34.3, 86.4, 79.0), (13.0, 59.0, 61.8), (23.7, 84.0, 78.4), (62.8, 93.7, 86.7))),
        PaperRow("isun", ((32.0, 85.1, 77.8), (11.8, 57.0, 61.0), (22.2, 82.8, 76.8), (60.1, 93.0, 85.7))),
        PaperRow("uniform", ((0.0, 89.2, 89.2), (0.0, 0.8, 50.0), (0.0, 35.6, 59.1), (100.0, 99.8, 99.7))),
        PaperRow("gaussian", ((10.4, 90.7, 89.9), (0.0, 23.4, 50.5), (0.0, 24.3, 50.0), (100.0, 99.7, 99.0))),
    ),
    (
        "The paper does not say which program measured; those that use its names count ties differently, which matters "
        "for over-confident networks. Its noise sets decide much of the mean.",
        "That the noise was drawn as ODIN draws it is inferred, not stated. Detection accuracy is at the threshold "
        "that is best for the test images.",
    ),
)
