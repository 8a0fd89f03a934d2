"""Definitions of the metrics: name, unit, better direction, text and source, as tables and the page show them."""

from dataclasses import dataclass
from typing import Literal

from cutmix.runs.record import Record

Better = Literal["lower", "higher", ""]
At = Literal["", "ε", "side", "side kept", "λ", "severity", "threshold"]
Check = Literal["", "true", "within ε", "none"]

_ROUNDING = 1e-6  # of float32, beside a largest change of ε


@dataclass(frozen=True)
class Metric:
    """The definition of a metric."""

    suite: str  # suite of ``cutmix evaluate`` or task of ``cutmix transfer`` that computes it
    label: str  # name in a table
    definition: str  # one to three sentences, with the source
    unit: str = "%"  # "%", another unit, or "" for a plain number
    digits: int = 1  # decimals in a table
    better: Better = "lower"  # better direction; "" where there is none
    at: At = ""  # meaning of a record's ``at``, where it is part of the metric
    check: Check = ""  # condition under which a check of an attack holds: the value is 1, at most ε, or 0

    @property
    def heading(self) -> str:
        """The name with the unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def holds(self, line: Record) -> bool:
        """Whether a check holds."""
        if self.check == "within ε":
            return line.value is not None and line.at is not None and line.value <= line.at + _ROUNDING
        return line.value == (1 if self.check == "true" else 0)


def name_of(line: Record) -> str:
    """Return a record's key in ``METRICS``: the metric, with a score or convention other than the default."""
    other = [name for name in (line.convention, line.score) if name not in (None, "exact", "max-softmax")]
    return "_".join([line.metric, *map(str, other)])


def metric_of(name: str) -> Metric:
    """Return a metric by its key; an unknown one has its key as its name and no definition."""
    return METRICS.get(name) or Metric("", name.replace("_", " "), "", unit="", digits=3, better="")


def _calibration(label: str, definition: str, unit: str = "%", digits: int = 2, better: Better = "lower") -> Metric:
    return Metric("calibration", label, definition, unit, digits, better)


def _robustness(label: str, definition: str, at: At = "", better: Better = "lower") -> Metric:
    return Metric("robustness", label, definition, at=at, better=better)


def _check(label: str, definition: str, check: Check, at: At = "") -> Metric:
    return Metric("robustness", label, definition, unit="", better="", check=check, at=at)


def _ood(label: str, definition: str, better: Better = "higher") -> Metric:
    return Metric("ood", label, definition, better=better)


def _by_other_programs() -> dict[str, Metric]:
    """Return the metrics that ``--convention`` adds."""
    programs = {
        "odin": "the program of Liang et al. 2018 (ODIN): 100,000 thresholds, ties in favour of the test images",
        "confident": "the program of Lee et al. 2018 (Confident classifier): 200,000 thresholds between the scores",
        "mahalanobis": "the program of Lee et al. 2018 (Mahalanobis detector): ties against the test images",
        "openood": "OpenOOD v1.5: the other images are positive, areas under precision by trapezoids",
    }
    labels = {"tnr95": "TNR at TPR 95 %", "auroc": "AUROC", "detection_acc": "Detection accuracy",
              "aupr_in": "AUPR, test images positive", "aupr_out": "AUPR, other images positive"}  # fmt: skip
    return {
        f"ood_{name}_{convention}": _ood(f"{label}, convention {convention}", f"The same as counted by {program}.")
        for convention, program in programs.items() for name, label in labels.items()
        if not (convention == "mahalanobis" and name in ("tnr95", "auroc"))
    }  # fmt: skip


def _labels(label: str, definition: str, better: Better = "higher") -> Metric:
    return Metric("labels", label, definition, better=better)


def _localization(label: str, definition: str, at: At = "", better: Better = "higher") -> Metric:
    return Metric("localization", label, definition, better=better, at=at)


def _detection(label: str, definition: str) -> Metric:
    return Metric("detection", label, definition, digits=2, better="higher")


def _coco_metrics() -> dict[str, Metric]:
    """Return COCO's metrics beside its mAP: at one overlap, of objects of one size, and recalls."""
    sizes = {"small": "at most 32²", "medium": "32² to 96²", "large": "at least 96²"}
    recall = "The mean over overlaps and classes, as in mAP, COCO, of the highest recall with at most {} of an image."
    return {
        **{f"coco_map_{at}": _detection(f"mAP at 0.{at}, COCO", f"As mAP, COCO, at an overlap of 0.{at} alone.")
           for at in (50, 75)},
        **{f"coco_map_{size}": _detection(f"mAP, {size}, COCO", f"As mAP, COCO, of objects of {area} pixels.")
           for size, area in sizes.items()},
        **{f"coco_ar_{most}": _detection(f"AR, {most}, COCO", recall.format(f"{most} detections"))
           for most in (1, 10, 100)},
        **{f"coco_ar_{size}": _detection(f"AR, {size}, COCO", f"As AR, 100, COCO, of objects of {area} pixels.")
           for size, area in sizes.items()},
    }  # fmt: skip


def _captioning(label: str, definition: str) -> Metric:
    return Metric("captioning", label, definition, unit="×\u00a0100", digits=2, better="higher")


def _bleu(n: int) -> Metric:
    runs = "the share of words" if n == 1 else f"the geometric mean of the shares of 1 to {n} words in a row"
    return _captioning(
        f"BLEU-{n}",
        f"Over all captions at once, {runs} that are in a reference of the same image too; made smaller where "
        "captions are shorter than the references closest in length. The interval is the bootstrap’s over the "
        "images. Source: Papineni et al. 2002; Yun et al. 2019, Table A2.",
    )


_HELD_OUT = "on the random half of the test images that the temperature was not fitted on"
_CENTRE = (
    "with the same Gaussian in the centre in place of every map, as a floor that needs no model (Choe et al. 2020)"
)
_SUBSET = "on the random images that PGD attacks"

METRICS = {
    # calibration
    "ece": _calibration("Expected calibration error (ECE)",
        "Images are put into bins of equal width by the confidence, the largest probability; ECE is the mean over "
        "images of the gap between a bin’s accuracy and its mean confidence. Noise makes it larger, the more the "
        "fewer images there are. Source: Guo et al. 2017.",
    ),
    "ece_adaptive": _calibration("ECE, bins of equal mass",
        "ECE with bins that hold equally many images instead of equally wide ones. Source: Nguyen and O’Connor 2015.",
    ),
    "ece_debiased": _calibration("ECE, debiased",
        "ECE less what the noise of the bins’ accuracies adds to it on average; it can be below 0. Source: Kumar et "
        "al. 2019.",
    ),
    "mce": _calibration("Maximum calibration error (MCE)",
        "The largest gap between accuracy and mean confidence of any bin, however few images it holds. Source: Guo et "
        "al. 2017.",
    ),
    "signed_gap": _calibration("Mean confidence − accuracy",
        "Above 0 the model is overconfident, below 0 underconfident, in percentage points; 0 is best, but does not "
        "imply calibration. Source: Guo et al. 2017, who plot both.",
        better="",
    ),
    "nll": _calibration("Negative log-likelihood (NLL)",
        "The mean of −log of the true class’s probability, in nats. It needs no bins, and mixes calibration with "
        "accuracy. Source: a proper score, Gneiting and Raftery 2007.",
        unit="nats", digits=3,
    ),
    "brier": _calibration("Brier score",
        "The mean over images of the squared distance between the probabilities and the true class, from 0 to 2. "
        "Source: Brier 1950.",
        unit="", digits=3,
    ),
    "temperature": _calibration("Temperature",
        "The number by which the logits are divided before the softmax, with the least NLL on a random half of the "
        "test images; above 1 the model was overconfident. It changes no predicted class. Source: Guo et al. 2017.",
        unit="", digits=3, better="",
    ),
    "ece_unscaled": _calibration("ECE before", f"ECE {_HELD_OUT}, without the temperature. Source: Guo et al. 2017."),
    "ece_scaled": _calibration("ECE after", f"ECE {_HELD_OUT}, with the temperature. Source: Guo et al. 2017."),
    "signed_gap_unscaled": _calibration(
        "Confidence − accuracy before", f"Mean confidence − accuracy {_HELD_OUT}, without the temperature.", better=""
    ),
    "signed_gap_scaled": _calibration(
        "Confidence − accuracy after", f"Mean confidence − accuracy {_HELD_OUT}, with the temperature.", better=""
    ),
    "nll_unscaled": _calibration("NLL before", f"NLL {_HELD_OUT}, without the temperature.", "nats", 3),
    "nll_scaled": _calibration("NLL after", f"NLL {_HELD_OUT}, with the temperature.", "nats", 3),
    "brier_unscaled": _calibration("Brier score before", f"Brier score {_HELD_OUT}, without the temperature.", "", 3),
    "brier_scaled": _calibration("Brier score after", f"Brier score {_HELD_OUT}, with the temperature.", "", 3),
    # robustness: attacks
    "clean_err": _robustness("Error on unchanged images",
        "Top-1 error of the same images without any change: where each attack and occlusion starts.",
    ),
    "fgsm_err": _robustness("FGSM error",
        "Top-1 error after one step by which every pixel goes ε up or down, whichever raises the loss; ε is in the "
        "space of the pixels, from 0 to 1, which the result is kept in. Source: Goodfellow et al. 2015; Yun et al. "
        "2019, Table 11.",
        "ε",
    ),
    "noise_err": _robustness("Random noise error",
        "Top-1 error when every pixel goes ε up or down at random; FGSM has to exceed it to be an attack. Source: "
        "Carlini et al. 2019.",
        "ε",
    ),
    "fgsm_subset_err": _robustness("FGSM error, PGD’s images", f"FGSM error {_SUBSET}, to compare the two.", "ε"),
    "pgd_err": _robustness("PGD error",
        "Top-1 error after a random start within ±ε and several steps of FGSM, each taken back to ±ε, on a random part "
        "of the images. Source: Madry et al. 2018.",
        "ε",
    ),
    "apgd_err": _robustness("APGD error",
        "Top-1 error after Auto-PGD on the cross-entropy, which chooses its own steps. Source: Croce and Hein 2020, by "
        "the package pyautoattack.",
        "ε",
    ),
    "worst_case_err": _robustness("Worst-case error",
        f"The share, {_SUBSET}, that are wrong unchanged or under any of the attacks. Source: Carlini et al. 2019.",
        "ε",
    ),
    "pgd_unbounded_err": _robustness("PGD error without a bound",
        "PGD with ε = 1, which may change an image into any other: below 100 % the gradients mislead, and every "
        "smaller error is in doubt. Source: Carlini et al. 2019.",
        "ε", better="",
    ),
    # robustness: checks
    "fgsm_max_perturbation": _check(
        "FGSM stays within ε", "Holds if no pixel of any image changed by more than ε.", "within ε", "ε"
    ),
    "pgd_max_perturbation": _check(
        "PGD stays within ε", "Holds if no pixel of any image changed by more than ε.", "within ε", "ε"
    ),
    "pgd_unbounded_max_perturbation": _check(
        "Unbounded PGD stays in the pixels’ range", "Holds if no pixel changed by more than 1.", "within ε", "ε"
    ),
    "apgd_max_perturbation": _check(
        "APGD stays within ε", "Holds if no pixel of any image changed by more than ε.", "within ε", "ε"
    ),
    "fgsm_zero_gradients": _check("Every image has a gradient",
        "Holds if no image has a gradient of exactly zero, which rounding makes of very confident predictions; such "
        "an image cannot be attacked. Source: Carlini et al. 2019.",
        "none",
    ),
    "pgd_not_weaker_than_fgsm": _check("PGD is at least as strong as FGSM",
        "Holds if PGD makes at least as many of its images wrong as FGSM does. Source: Carlini et al. 2019.",
        "true", "ε",
    ),
    "fgsm_sweep_monotone": _check("FGSM error never falls as ε grows",
        "Holds if the error at each ε is at least that at the one before. Source: Carlini et al. 2019.",
        "true",
    ),
    "unbounded_attack_fools_all": _check("Unbounded PGD succeeds on every image",
        "Holds if PGD without a bound makes every image wrong. Source: Carlini et al. 2019.",
        "true", "ε",
    ),
    "same_classes_twice": _check("Same predictions twice",
        "Holds if the model predicts the same classes again: attacks on a random model are misleading. Source: "
        "Carlini et al. 2019.",
        "true",
    ),
    # robustness: occlusion, in between, corruptions
    "occlusion_center_err": _robustness("Center occlusion error",
        "Top-1 error when a centred square is filled with black or with the data set’s mean colour. Source: Yun et al. "
        "2019, Figure 5, which does not name the fill.",
        "side",
    ),
    "occlusion_boundary_err": _robustness("Boundary occlusion error",
        "Top-1 error when all but a centred square is filled with black or with the data set’s mean colour; the side "
        "is that of the square that is kept. Source: Yun et al. 2019, Figure 5.",
        "side kept",
    ),
    "between_mixup_neither": _robustness("Mixup of two images: class of neither",
        "The share of random pairs of test images, blended as λ of one and 1 − λ of the other, whose predicted class "
        "is that of neither image. Source: Yun et al. 2019, Figure 5.",
        "λ",
    ),
    "between_mixup_err": _robustness("Mixup of two images: error",
        "The same pairs: the share whose predicted class is not that of the image with the larger λ; at λ = 0.5 the "
        "first image counts. Not in the paper.",
        "λ",
    ),
    "between_cutmix_neither": _robustness("CutMix of two images: class of neither",
        "The share of random pairs of test images, one of them shown through a centred hole in the other, whose "
        "predicted class is that of neither image. Source: Yun et al. 2019, Figure 5.",
        "side",
    ),
    "between_cutmix_err": _robustness("CutMix of two images: error",
        "The same pairs: the share whose predicted class is not that of the image with more pixels; of equal shares "
        "the first image counts. Not in the paper.",
        "side",
    ),
    "corruption_err": _robustness("Corruption error",
        "Top-1 error on the published corrupted images of one kind and severity. Source: Hendrycks and Dietterich "
        "2019.",
        "severity",
    ),
    "corruption_mean_err": _robustness("Corruption error, mean of severities",
        "Top-1 error on one kind of corruption, averaged over its five severities. Source: Hendrycks and Dietterich "
        "2019.",
    ),
    "mean_corruption_err": _robustness("Mean corruption error (not relative)",
        "Top-1 error averaged over the benchmark’s 15 corruptions and five severities. Source: Hendrycks and "
        "Dietterich 2019.",
    ),
    "corruption_ce": _robustness("Corruption error, AlexNet = 100",
        "Top-1 error on one kind of corruption, over its severities, in per cent of AlexNet’s. Source: Hendrycks and "
        "Dietterich 2019.",
    ),
    "mean_corruption_ce": _robustness("mCE, AlexNet = 100",
        "The mean over 15 corruptions of the error in per cent of AlexNet’s. Source: Hendrycks and Dietterich 2019.",
    ),
    # out-of-distribution detection
    "ood_auroc": _ood("AUROC",
        "The probability that a test image has a higher score, its largest softmax probability, than an image of other "
        "data; a tie counts as half. 50 % is chance. Source: Hendrycks and Gimpel 2017; Yun et al. 2019, Table 12.",
    ),
    "ood_tnr95": _ood("TNR at TPR 95 %",
        "The share of the other images below the highest threshold that keeps at least 95 % of the test images. "
        "Source: Liang et al. 2018; Yun et al. 2019, Table 12.",
    ),
    "ood_detection_acc": _ood("Detection accuracy",
        "The mean of the shares of test and of other images on the right side of the threshold that is best for these "
        "images; 50 % is chance. Source: Lee et al. 2018; Yun et al. 2019, Table 12.",
    ),
    "ood_aupr_in": _ood("AUPR, test images positive",
        "Average precision of the score for finding the test images; it depends on the numbers of images of both "
        "sides. Source: Hendrycks and Gimpel 2017.",
    ),
    "ood_aupr_out": _ood("AUPR, other images positive",
        "Average precision of the negative score for finding the other images; it depends on the numbers of images of "
        "both sides. Source: Hendrycks and Gimpel 2017.",
    ),
    "ood_ties": _ood("Tied scores",
        "The share of scores that occur on both sides; with many, the convention for ties decides.",
        better="",
    ),
    "ood_tnr95_mahalanobis": _ood("TNR at TPR 95 %, as Lee et al. count",
        "The same as the program of Lee et al. 2018 (Mahalanobis detector) counts: ties against the test images, and "
        "the threshold whose TPR is nearest to 95 %.",
    ),
    "ood_auroc_mahalanobis": _ood("AUROC, as Lee et al. count",
        "The same as the program of Lee et al. 2018 (Mahalanobis detector) counts: a tie is lost.",
    ),
    **_by_other_programs(),
    "ood_auroc_energy": _ood("AUROC of the energy",
        "AUROC with the logarithm of the sum of the exponentials of the logits for a score. Source: Liu et al. 2020, "
        "temperature 1.",
    ),
    "ood_auroc_odin-temperature": _ood("AUROC with ODIN’s temperature",
        "AUROC with the largest probability of the softmax at temperature 1,000 for a score, without ODIN’s change of "
        "the images. Source: Liang et al. 2018.",
    ),
    # labels
    "label_map": _labels("mAP",
        "The mean over labels of the average precision: the mean of the precision at the rank of each image with the "
        "label. The interval is the bootstrap’s over the images. Labels without test images are left out.",
    ),
    "f1_macro": _labels("F1, mean of the labels",
        "The mean over labels of 2 TP / (2 TP + FP + FN) at the threshold of each label.",
    ),
    "f1_micro": _labels("F1, all labels together",
        "The ratio 2 TP / (2 TP + FP + FN) of the labels of all images together.",
    ),
    "f1_images": _labels("F1, mean of the images",
        "The mean over images of the F1 of their labels; 1 where an image has none and none is predicted.",
    ),
    "hamming": _labels("Wrong labels",
        "The share of wrong answers among all labels of all images (Hamming loss).", better="lower",
    ),
    "label_ap": _labels("Average precision of a label",
        "The average precision of one label; mAP is the mean over the labels.",
    ),
    "label_f1": _labels("F1 of a label", "The ratio 2 TP / (2 TP + FP + FN) of one label at its threshold."),
    "label_threshold": Metric("labels", "Threshold",
        "The probability from which on a label is predicted, chosen for the largest F1 on the validation images.",
        unit="", digits=3, better="",
    ),
    # localization
    "top1_loc": _localization("Top-1 localization accuracy",
        "The share of images whose predicted class is right and whose box fits a true one with an intersection over "
        "union above 0.5. The box is the tightest around the largest part of the class activation map above a share "
        "of its maximum. Source: Yun et al. 2019, Table 9 and appendix B.",
        "threshold",
    ),
    "gt_known_loc": _localization("GT-known localization accuracy",
        "The same with the map of the true class, for any predicted class. Source: Singh and Lee 2017.",
        "threshold",
    ),
    "top1_cls": _localization("Top-1 accuracy, of these images",
        "The share of the same images whose predicted class is right, which top-1 localization cannot exceed.",
    ),
    "max_box_acc": _localization("MaxBoxAcc",
        "GT-known localization at an intersection over union of 0.5 with maps between 0 and 1, at the threshold that "
        "is best for these very images. Source: Choe et al. 2020 (wsolevaluation).",
    ),
    "max_box_acc_v2": _localization("MaxBoxAccV2",
        "The mean over intersections over union of 0.3, 0.5 and 0.7, each at its own best threshold for these very "
        "images, where the best box of any contour counts. Source: Choe et al. 2020, journal version.",
    ),
    "center_max_box_acc": _localization("MaxBoxAcc of a centred box", f"MaxBoxAcc {_CENTRE}.", better=""),
    "center_max_box_acc_v2": _localization("MaxBoxAccV2 of a centred box", f"MaxBoxAccV2 {_CENTRE}.", better=""),
    # detection
    "map": _detection("mAP, 11 recalls",
        "The mean over classes of VOC 2007’s average precision: the mean, over recalls of 0, 0.1, …, 1, of the highest "
        "precision from there on. A detection is right if it overlaps a free object of its class by more than half; "
        "difficult objects do not count. The interval is the bootstrap’s over the images. Source: Everingham et al. "
        "2010; Yun et al. 2019, Table 10.",
    ),
    "map_all_point": _detection("mAP, all recalls",
        "The same with the area below the curve in place of eleven recalls, as in VOC from 2010 on. Source: "
        "Everingham et al. 2010.",
    ),
    "coco_map": _detection("mAP, COCO",
        "The mean over overlaps of 0.50, 0.55, …, 0.95 and over classes of the average precision at 101 recalls, by "
        "COCO’s own program. Source: Lin et al. 2014.",
    ),
    **_coco_metrics(),
    "ap": _detection("Average precision",
        "The average precision of one class at 11 recalls; mAP is its mean over the classes with objects. "
        "Source: Everingham et al. 2010.",
    ),
    # captioning
    **{f"bleu_{n}": _bleu(n) for n in range(1, 5)},
    "meteor": _captioning("METEOR",
        "Matches of words, stems and synonyms, as METEOR 1.5’s own program in Java computes them; without Java it is "
        "not run, and no other metric has its name. Source: Denkowski and Lavie 2014.",
    ),
    "rouge_l": _captioning("ROUGE-L",
        "The mean over images of the F-measure (β = 1.2) of the longest common subsequence of words, with the best "
        "precision and the best recall over the references. Source: Lin 2004.",
    ),
    "cider_d": _captioning("CIDEr-D",
        "The mean over images of the cosine between the caption’s and each reference’s counts of 1 to 4 words in a "
        "row, each weighted by how rare it is among the images, less for another length; at most 10, so 1000 as "
        "shown. Source: Vedantam et al. 2015.",
    ),
}  # fmt: skip
