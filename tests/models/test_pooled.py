import pytest
import torch
from torch import Tensor, nn

from cutmix.models.cifar import PooledClassifier
from cutmix.models.localization import find_head


class Network(PooledClassifier):
    def __init__(self) -> None:
        super().__init__()
        self.num_features, self.conv = 4, nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


def test_logits_are_the_mean_of_the_linear_layer_over_positions():
    network, images = Network().eval(), torch.rand(2, 3, 9, 7)
    maps = torch.einsum("nchw,kc->nkhw", network.forward_features(images), network.get_classifier().weight)
    torch.testing.assert_close(network(images), maps.mean((2, 3)) + network.fc.bias)
    assert torch.equal(network(images), network.forward_head(network.forward_features(images)))


def test_its_class_activation_maps_are_found():
    network = Network()
    assert find_head(network, (3, 9, 7)).classifier is network.fc


def test_feature_maps_are_the_networks_own():
    with pytest.raises(NotImplementedError):
        PooledClassifier()(torch.rand(1, 3, 8, 8))
