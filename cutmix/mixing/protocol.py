"""The interfaces of a drawn mix, of a batch transform, and of a mixing method in a training loop or a loader."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn
from torch.utils.data import default_collate

from cutmix.errors import InputError
from cutmix.mixing.targets import Targets, mixed_cross_entropy, per_image


class Drawn(Protocol):
    """A drawn mix; see ``Draw``."""

    def apply(self, x: Tensor, inplace: bool = False, *, nearest: bool | None = None) -> Tensor:
        """Mix a batch."""

    def targets(self, labels: Tensor) -> Targets:
        """Mix labels as the pixels were mixed."""


class BatchTransform(Protocol):
    """A transform of a batch of images: CutMix, its variants, Mixup, Cutout and RandomChoice."""

    @property
    def prob(self) -> float:
        """Probability that a batch, or a sample, is mixed."""

    @prob.setter
    def prob(self, prob: float) -> None: ...

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Targets]:
        """Return the mixed images and their targets."""

    def draw(self, shape: Sequence[int]) -> Drawn:
        """Draw for a batch of this shape."""

    def state_dict(self) -> dict[str, Any]:
        """Return the random state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a random state."""


class Mix:
    """A mixing method in a training loop; this base class mixes nothing.

        network = mix.prepare(network, images)
        for images, labels in loader:
            images, targets = mix.mix(images, labels, progress)
            loss = mix.loss(network, images, targets)

    A transform of images overrides ``mix``; a method that mixes inside the network overrides ``forward``, and one with
    a loss of its own ``loss``. ``mix`` takes a whole batch; the other two take the batch or, with accumulated
    gradients, a part.
    """

    uses_attention: ClassVar[bool] = False
    """Whether the method uses the network's attention, which previews then show."""

    def prepare(self, network: nn.Module, images: Tensor) -> nn.Module:
        """Return the module to train: the network, with the further modules that the method trains.

        Args:
            network: The network, not wrapped.
            images: (N, C, H, W), an example of its input; N is at least 2.

        Raises:
            InputError: If the method does not work with this network or with such images.
        """
        return network

    def mix(self, images: Tensor, labels: Tensor, progress: float = 0.0) -> tuple[Tensor, Targets]:
        """Return images and targets for ``loss``.

        Args:
            images: (N, ..., H, W).
            labels: Class ids (N,) or multi-label targets (N, K).
            progress: Share of the training that is done, in [0, 1].
        """
        return images, labels

    def loss(
        self,
        network: nn.Module,
        images: Tensor,
        targets: Targets,
        *,
        label_smoothing: float = 0.0,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Run the network on the result of ``mix`` and return the mean loss, a scalar.

        Args:
            network: The result of ``prepare``, also inside DistributedDataParallel or ``torch.compile``.
            images: (N, C, H, W).
            targets: The targets of these images.
            label_smoothing: Share of the target that is spread over all classes, in [0, 1].
            weight: (K,) weight of each class, or None. The sum of the weighted losses is divided by the number of
                images, so that the losses of parts of a batch add up.
        """
        logits, targets = self.forward(network, images, targets)
        targets = targets if weight is None else per_image(targets)
        return mixed_cross_entropy(logits, targets, label_smoothing=label_smoothing, weight=weight)

    def forward(self, network: nn.Module, images: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
        """Run the network on the result of ``mix``, and return its output and the targets."""
        return network(images), targets

    def on_images(self) -> BatchTransform | None:
        """Return the transform of images alone that a preview can show; None if the method has none."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the random state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict()`` returned."""


class ImageMix(Mix):
    """A mixing method that only transforms images."""

    prob: float

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Targets]:
        """Return the mixed images and their targets."""
        raise NotImplementedError

    def draw(self, shape: Sequence[int]) -> Drawn:
        """Draw for a batch of this shape."""
        raise NotImplementedError

    def advance(self, progress: float) -> None:
        """Set the share of the training that is done, in [0, 1]; only a schedule depends on it."""

    def mix(self, images: Tensor, labels: Tensor, progress: float = 0.0) -> tuple[Tensor, Targets]:
        """Apply the transform, at a share of the training; see ``Mix.mix``."""
        self.advance(progress)
        return self(images, labels)

    def draw_at(self, shape: Sequence[int], progress: float) -> Drawn:
        """Draw the mix of a batch of this shape, at a share of the training in [0, 1]."""
        self.advance(progress)
        return self.draw(shape)

    def on_images(self) -> BatchTransform:
        """Return the transform itself."""
        return self


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel, ``torch.compile`` or a moving average."""
    while isinstance(inner := getattr(network, "_orig_mod", getattr(network, "module", None)), nn.Module):
        network = inner
    return network


def collate(
    mix: BatchTransform, batch: Callable[[list[Any]], Any] = default_collate
) -> Callable[[list[Any]], tuple[Tensor, Targets]]:
    """Return a ``collate_fn`` for a ``DataLoader`` whose workers mix the batches.

        loader = DataLoader(dataset, batch_size=64, num_workers=4, collate_fn=cutmix.collate(cutmix.CutMix(seed=0)))

    It can be pickled, so that it works with workers that are forked, spawned or started by a fork server. Each worker
    draws from a generator of its own, seeded by the transform's seed, the process's rank and the worker's seed. The
    loader draws the workers' seeds from its ``generator`` at the start of every epoch: no worker or epoch repeats
    another, and a loader with a seeded ``generator`` repeats a run. Persistent workers continue their streams.

    Args:
        mix: A transform of images; later changes to it do not reach workers that have started.
        batch: Makes images (N, ..., H, W) and labels of the samples.

    Raises:
        InputError: If ``mix`` is not a transform of images, or, from the loader, if a batch is not images and labels.
    """
    if not callable(mix):
        raise InputError(f"mix is of type {type(mix).__name__}; expected a transform of images, such as CutMix")
    return partial(_collate, mix, batch)


def _collate(mix: BatchTransform, batch: Callable[[list[Any]], Any], samples: list[Any]) -> tuple[Tensor, Targets]:
    made = batch(samples)
    if not isinstance(made, tuple | list) or len(made) != 2:
        parts = f" of {len(made)} parts" if isinstance(made, tuple | list | dict) else ""
        raise InputError(f"the batch is of type {type(made).__name__}{parts}; expected images and labels")
    images, labels = made
    return mix(images, labels)
