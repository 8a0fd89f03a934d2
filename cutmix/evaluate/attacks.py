"""Attacks on the pixels: FGSM, PGD and, through an extra, APGD; all bounded by ε in the largest change of a pixel.

ε is in pixel space, images in [0, 1]: the normalisation belongs into the model. An ε applied after the normalisation is
several times smaller, and out of the range of pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutmix.errors import InputError, missing_extra
from cutmix.evaluate.logits import as_logits, class_ids
from cutmix.runtime.seeding import derive_seed


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Return the images after one step: clamp(x + ε · sign(∂CE/∂x), 0, 1).

    Args:
        model: In eval mode; maps pixels (n, C, H, W) in [0, 1] to logits (n, K).
        images: (n, C, H, W), floating point, in [0, 1]; left as they are.
        labels: True class ids, (n,) int64.
        eps: ε, in [0, 1].

    Raises:
        InputError: If an argument is out of its range, or the model gives no finite, differentiable logits.

    Source: Goodfellow et al. 2015; Yun et al. 2019 §4.4 use ε = 8/255, without the space.
    """
    check_attack(model, images, labels, eps)
    return step(images, loss_gradient(model, images, labels), eps)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    *,
    steps: int = 10,
    step_size: float | None = None,
    seed: int = 0,
) -> Tensor:
    """Return the images after a random start within ±ε and some steps of FGSM, each projected back to ±ε and [0, 1].

    Args:
        model: As for :func:`fgsm`.
        images: As for :func:`fgsm`.
        labels: As for :func:`fgsm`.
        eps: ε, in [0, 1].
        steps: At least 1.
        step_size: Of each step, positive; None is 2.5 · ε / steps.
        seed: Of the start.

    Raises:
        InputError: As for :func:`fgsm`.

    Source: Madry et al. 2018.
    """
    check_attack(model, images, labels, eps)
    if steps < 1 or not (step_size is None or step_size > 0):
        raise InputError(f"PGD has {steps} steps of {step_size}: expected at least 1 step of a positive size")
    size = 2.5 * eps / steps if step_size is None else step_size
    low, high = (images - eps).clamp(min=0), (images + eps).clamp(max=1)
    generator = torch.Generator().manual_seed(derive_seed(seed, "pgd"))
    start = torch.rand(images.shape, generator=generator).to(images) * 2 - 1
    attacked = torch.clamp(images + eps * start, low, high)
    for _ in range(steps):
        attacked = torch.clamp(attacked + size * loss_gradient(model, attacked, labels).sign(), low, high)
    return attacked


def apgd(model: nn.Module, images: Tensor, labels: Tensor, eps: float, *, steps: int = 20, seed: int = 0) -> Tensor:
    """Return the images after APGD on the cross entropy (Auto-PGD), by the package pyautoattack.

    Images that are misclassified already are left alone.

    Args:
        model: As for :func:`fgsm`.
        images: As for :func:`fgsm`, but float32.
        labels: As for :func:`fgsm`.
        eps: ε, in [0, 1].
        steps: At least 1.
        seed: Of the start; the global generators are left as they were.

    Raises:
        InputError: As for :func:`fgsm`, or if the package is not installed.

    Source: Croce and Hein 2020.
    """
    check_attack(model, images, labels, eps)
    if steps < 1:
        raise InputError(f"APGD has {steps} steps: expected at least 1")
    try:
        from pyautoattack.autopgd_base import APGDAttack
    except ImportError:
        raise missing_extra("APGD", "attacks") from None
    if images.dtype != torch.float32:
        raise InputError(f"images are {images.dtype}: expected float32, in which the package pyautoattack computes")
    loss_gradient(model, images, labels)  # for what it refuses: the package looks at nothing
    attack = APGDAttack(model, n_iter=steps, eps=eps, seed=derive_seed(seed, "apgd"), device=images.device)
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # it seeds the global generators
        return attack.perturb(images, labels).detach()


def step(images: Tensor, gradient: Tensor, eps: float) -> Tensor:
    """Return clamp(x + ε · sign(g), 0, 1)."""
    return (images + eps * gradient.sign()).clamp_(0, 1)


def loss_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient, in the pixels, of the cross entropy: of its sum, so that no sample depends on their number.

    Raises:
        InputError: If the model gives anything but finite logits that depend on the pixels and know every label.
    """
    if torch.is_inference_mode_enabled():
        raise InputError("torch.inference_mode is on, in which there are no gradients: attack outside of it")
    pixels = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = _run(model, pixels)
        class_ids(labels, as_logits(logits))
        loss = F.cross_entropy(logits, labels, reduction="sum")
    gradient = torch.autograd.grad(loss, pixels, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        raise InputError("the model's logits cannot be differentiated in its pixels, so no gradient attack is possible")
    if not bool(gradient.isfinite().all()):
        raise InputError("the gradient in the pixels is not finite, so no gradient attack is possible")
    return gradient


def check_attack(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> None:
    """Refuse what would be no attack within ε on pixels in [0, 1].

    Raises:
        InputError: If it is none.
    """
    check_eps(eps)
    training = [name for name, part in model.named_modules() if part.training]
    if training:
        what = f"the model's part '{training[0]}'" if training[0] else "the model"
        raise InputError(f"{what} is in training mode: call model.eval(), or another network is attacked")
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"images are {tuple(images.shape)} {images.dtype}: expected (n, C, H, W), floating point, in [0, 1]"
        )
    if not images.numel() or not bool(((images >= 0) & (images <= 1)).all()):
        raise InputError("images have pixels outside [0, 1], or none: expected pixels before any normalisation")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise InputError(
            f"labels are {tuple(labels.shape)} {labels.dtype}: expected ({len(images)},) int64, one for each image"
        )


def check_eps(eps: float) -> None:
    """Refuse an ε outside [0, 1].

    Raises:
        InputError: If it is.
    """
    if not 0 <= eps <= 1:
        raise InputError(f"ε is {eps}: expected 0 to 1, in the unit of the pixels, e.g. 8/255")


def _run(model: nn.Module, pixels: Tensor) -> Tensor:
    """Return the logits; that the weights are of another dtype is said in a sentence, where the model minds it."""
    try:
        return model(pixels)
    except RuntimeError as error:
        weights = next((each.dtype for each in model.parameters() if each.is_floating_point()), pixels.dtype)
        if weights == pixels.dtype:
            raise
        raise InputError(f"images are {pixels.dtype} and the model's weights {weights}: expected the same") from error
