"""Adversarial attacks in pixel space: FGSM, PGD and, through an extra, APGD, all bounded by ε in the maximum norm.

Images are in [0, 1] and the normalization is part of the model. The same ε applied after the normalization would be
several times smaller and could leave the range of pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutmix.errors import InputError, missing_extra
from cutmix.evaluation.classifier import as_logits, class_ids
from cutmix.runtime.seeding import derive_seed


def fgsm(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Return the images after one step: clamp(x + ε · sign(∂CE/∂x), 0, 1).

    Args:
        model: In eval mode; maps pixels (n, C, H, W) in [0, 1] to logits (n, K).
        images: (n, C, H, W), floating point, in [0, 1]; not modified.
        labels: True class ids, (n,) int64.
        eps: ε, in [0, 1].

    Raises:
        InputError: If an argument is out of its range, or the logits are not finite and differentiable.

    Source: Goodfellow et al. 2015; Yun et al. 2019 §4.4 use ε = 8/255 and do not name the space.
    """
    check_attack(model, images, labels, eps)
    return step(images, checked_gradient(model, images, labels), eps)


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
    """Return the images after a random start within ±ε and FGSM steps, each projected back to ±ε and [0, 1].

    Args:
        model: As for :func:`fgsm`.
        images: As for :func:`fgsm`.
        labels: As for :func:`fgsm`.
        eps: ε, in [0, 1].
        steps: Number of steps, at least 1.
        step_size: Size of each step, positive; None is 2.5 · ε / steps.
        seed: Seed of the random start, which is drawn in float32 on the device of the images.

    Raises:
        InputError: As for :func:`fgsm`.

    Source: Madry et al. 2018.
    """
    check_attack(model, images, labels, eps)
    check_steps(steps, step_size)
    attacked, finite = ascend(model, images, labels, eps, steps, seed, step_size, check=True)
    check_gradients(finite)
    return attacked


def ascend(
    model: nn.Module, images: Tensor, labels: Tensor, eps: float, steps: int, seed: int | Sequence[int],
    step_size: float | None = None, *, check: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the images attacked by PGD and whether all gradients were finite, () bool; nothing waits for a GPU.

    With a seed for each image, its start does not depend on the batch that it is in. With ``check``, the logits of the
    start are checked, which does wait.
    """
    size = 2.5 * eps / steps if step_size is None else step_size
    low, high = (images - eps).clamp(min=0), (images + eps).clamp(max=1)
    start = uniform(images, [seed] if isinstance(seed, int) else seed).to(images) * 2 - 1
    attacked = torch.clamp(images + eps * start, low, high)
    finite = torch.ones((), dtype=torch.bool, device=images.device)
    for number in range(steps):
        gradient = (checked_gradient if check and number == 0 else loss_gradient)(model, attacked, labels)
        finite &= gradient.isfinite().all()
        attacked = torch.clamp(attacked + size * gradient.sign(), low, high)
    return attacked, finite


def uniform(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Return numbers in [0, 1) of the shape of images, float32 on their device, from a seed for each or for all."""
    device, shape = images.device, (len(images) // len(seeds), *images.shape[1:])
    generator = torch.Generator(device)

    def draw(seed: int) -> Tensor:
        generator.manual_seed(derive_seed(seed, "pgd"))
        return torch.rand(shape, generator=generator, device=device, dtype=torch.float32)

    return torch.cat([draw(seed) for seed in seeds])


def apgd(model: nn.Module, images: Tensor, labels: Tensor, eps: float, *, steps: int = 20, seed: int = 0) -> Tensor:
    """Return the images after APGD on the cross-entropy (Auto-PGD), as the package pyautoattack computes it.

    Images that are misclassified already are returned unchanged.

    Args:
        model: As for :func:`fgsm`.
        images: As for :func:`fgsm`, but float32.
        labels: As for :func:`fgsm`.
        eps: ε, in [0, 1].
        steps: Number of steps, at least 1.
        seed: Seed of the random start; the global generators are restored.

    Raises:
        InputError: As for :func:`fgsm`, or if the package is not installed.

    Source: Croce and Hein 2020.
    """
    check_attack(model, images, labels, eps)
    if steps < 1:
        raise InputError(f"APGD has {steps} steps; expected at least 1")
    try:
        from pyautoattack.autopgd_base import APGDAttack
    except ImportError:
        raise missing_extra("APGD", "attacks") from None
    if images.dtype != torch.float32:
        raise InputError(f"images are {images.dtype}; expected float32, in which the package pyautoattack computes")
    checked_gradient(model, images, labels)  # the package checks nothing
    attack = APGDAttack(model, n_iter=steps, eps=eps, seed=derive_seed(seed, "apgd"), device=images.device)
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # it seeds the global generators
        return attack.perturb(images, labels).detach()


def step(images: Tensor, direction: Tensor, eps: float) -> Tensor:
    """Return clamp(x + ε · sign(d), 0, 1)."""
    return (images + eps * direction.sign()).clamp_(0, 1)


def loss_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of the summed cross-entropy in the pixels; a sample does not depend on the batch size.

    Only what costs no wait for a GPU is checked; :func:`checked_gradient` checks the logits and the gradient too.

    Raises:
        InputError: If gradients are disabled by ``torch.inference_mode`` or do not reach the pixels.
    """
    return _gradient(*_forward(model, images), labels)


def checked_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return :func:`loss_gradient` after checks of the logits, the labels and the gradient.

    Raises:
        InputError: If the model returns anything but finite logits that depend on the pixels and cover every label.
    """
    pixels, logits = _forward(model, images)
    class_ids(labels, as_logits(logits))
    gradient = _gradient(pixels, logits, labels)
    check_gradients(gradient.isfinite().all())
    return gradient


def check_gradients(finite: Tensor) -> None:
    """Raise an InputError unless all gradients of an attack were finite."""
    if not bool(finite):
        raise InputError("the gradient in the pixels is not finite, so no gradient attack is possible")


def _forward(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return a copy of the images that requires a gradient, and its logits."""
    if torch.is_inference_mode_enabled():
        raise InputError("torch.inference_mode is on, in which there are no gradients: attack outside of it")
    pixels = images.detach().clone().requires_grad_()
    try:
        with torch.enable_grad():
            return pixels, model(pixels)
    except RuntimeError as error:
        weights = next((each.dtype for each in model.parameters() if each.is_floating_point()), pixels.dtype)
        if weights == pixels.dtype:
            raise
        raise InputError(f"images are {pixels.dtype} and the model's weights {weights}; expected the same") from error


def _gradient(pixels: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    with torch.enable_grad():
        loss = F.cross_entropy(logits, labels, reduction="sum")
    gradient = torch.autograd.grad(loss, pixels, allow_unused=True)[0] if loss.requires_grad else None
    if gradient is None:
        raise InputError("the model's logits cannot be differentiated in its pixels, so no gradient attack is possible")
    return gradient


def check_attack(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> None:
    """Refuse a model in training mode, images outside [0, 1], labels that do not fit them and an ε outside [0, 1].

    Raises:
        InputError: With the argument that is wrong.
    """
    check_eps(eps)
    training = [name for name, part in model.named_modules() if part.training]
    if training:
        what = f"the model's part '{training[0]}'" if training[0] else "the model"
        raise InputError(f"{what} is in training mode: call model.eval(), or another model is attacked")
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"images are {tuple(images.shape)} {images.dtype}; expected (n, C, H, W), floating point, in [0, 1]"
        )
    if not images.numel() or not bool(((images >= 0) & (images <= 1)).all()):
        raise InputError("images have pixels outside [0, 1], or none; expected pixels before any normalization")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise InputError(
            f"labels are {tuple(labels.shape)} {labels.dtype}; expected ({len(images)},) int64, one for each image"
        )


def check_eps(eps: float) -> None:
    """Raise an InputError if ε is outside [0, 1]."""
    if not 0 <= eps <= 1:
        raise InputError(f"ε is {eps}; expected 0 to 1, in the unit of the pixels, e.g. 8/255")


def check_steps(steps: int, step_size: float | None = None) -> None:
    """Raise an InputError if PGD has no step or a step of no size."""
    if steps < 1 or not (step_size is None or step_size > 0):
        raise InputError(f"PGD has {steps} steps of {step_size}; expected at least 1 step of a positive size")
