"""The baseline: a plain training loop on PIL images in a DataLoader, and PyramidNet-110 with zeros concatenated."""

from collections.abc import Iterator
from itertools import count

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cutmix.config.recipe import Recipe
from cutmix.data import ArraySet
from cutmix.models import create_model
from images import open_images


class PilImages(Dataset[tuple[Tensor, int]]):
    """Images as ``torchvision.datasets.CIFAR100`` returns them: PIL images, transformed."""

    def __init__(self, data: ArraySet) -> None:
        self.images, self.labels = data.images.permute(0, 2, 3, 1).contiguous().numpy(), data.labels.tolist()
        self.transform = transforms.Compose([
            transforms.RandomCrop(data.images.shape[2:], 4), transforms.RandomHorizontalFlip(),
            transforms.ToTensor(), transforms.Normalize(data.mean, data.std),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    """Take a plain training step."""
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()


def plain_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)


def plain_blocks(recipe: Recipe, workers: int, device: str, steps: int) -> Iterator[None]:
    """Run a plain loop, a block of steps at a time: DataLoader, PIL, float32, SGD, no mixing."""
    data = open_images(recipe.data, "train")
    model = create_model(recipe.model, data.num_classes).to(device).train()
    optimizer = plain_optimizer(model)
    pin = device != "cpu"
    loader = DataLoader(PilImages(data), recipe.batch_size, shuffle=True, num_workers=workers, pin_memory=pin)
    for step, (images, labels) in enumerate((batch for _ in count() for batch in loader), 1):
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        plain_step(model, optimizer, images, labels)
        if step % steps == 0:
            yield


class PlainBottleneck(nn.Module):
    """PyramidNet's bottleneck, with zeros concatenated to the shortcut."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, width, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3, self.conv3 = nn.BatchNorm2d(width), nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn4, self.relu = nn.BatchNorm2d(4 * width), nn.ReLU(inplace=True)
        self.downsample = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, 4 width, H/stride, W/stride)."""
        out = self.conv1(self.bn1(x))
        out = self.conv2(self.relu(self.bn2(out)))
        out = self.bn4(self.conv3(self.relu(self.bn3(out))))
        shortcut = self.downsample(x) if self.downsample else x
        n, channels, height, width = out.shape
        zeros = torch.zeros(n, channels - shortcut.shape[1], height, width, device=out.device)
        return out + torch.cat((shortcut, zeros), 1)


class PlainPyramidNet(nn.Module):
    """PyramidNet-110 with α̃ = 64, written plainly; its parameters have the names of ours."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        channels, width, stages = 16, 16.0, []
        for stage in range(3):
            blocks = []
            for block in range(12):
                width += 64 / 36
                blocks.append(PlainBottleneck(channels, round(width), 2 if stage > 0 and block == 0 else 1))
                channels = 4 * round(width)
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn_final, self.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_chans, H, W) -> logits (N, num_classes)."""
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)))))
        return self.fc(self.pool(self.relu(self.bn_final(x))).flatten(1))


def plain_network_steps(recipe: Recipe, device: str) -> Iterator[None]:
    """Run steps of the plainly written model, in a process that does nothing else."""
    data = open_images(recipe.data, "train")
    labels = data.labels[: recipe.batch_size].to(device)
    images = data.images[: recipe.batch_size].to(device) / 255
    plain = PlainPyramidNet(data.num_classes, images.shape[1]).to(device)
    optimizer = plain_optimizer(plain)
    while True:
        plain_step(plain, optimizer, images, labels)
        yield


def check_twins(name: str) -> None:
    """Check that the plainly written model and ours have the same outputs with the same weights."""
    ours, images = create_model(name, 100), torch.rand(4, 3, 32, 32)
    plain = PlainPyramidNet(100, 3)
    plain.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(ours(images), plain(images), rtol=1e-3, atol=1e-4)
