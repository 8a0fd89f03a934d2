"""The end that the networks here share: global average pooling and a linear layer."""

from torch import Tensor, nn


class PooledClassifier(nn.Module):
    """Logits = fc(mean over positions of ``forward_features``); the methods have the names of timm's.

    A network of it makes ``fc`` and ``num_features``, its width, and says its ``forward_features``.
    """

    num_features: int
    fc: nn.Linear

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) -> feature maps (N, num_features, h, w)."""
        raise NotImplementedError

    def forward_head(self, x: Tensor) -> Tensor:
        """(N, num_features, h, w) -> logits (N, num_classes)."""
        return self.fc(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) -> logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Linear:
        """The layer that depends on the number of classes."""
        return self.fc
