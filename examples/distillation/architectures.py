"""Networks that a distilled set has not seen: AlexNet, VGG-11 and ResNet-18 for small images.

The forms of the distillation literature: the kernels and widths of the originals, the first layer
and the pooling adapted to 32 pixels, and instance norm in place of batch norm (statistics of a few
synthetic images say nothing about the real ones). AlexNet has no norm. Larger images are pooled to
the map that 32 pixels give before the classifier.

Source: Krizhevsky et al., NeurIPS 2012; Simonyan & Zisserman, ICLR 2015, column A; He et al., CVPR
2016; the small forms after Zhao et al., "Dataset Condensation with Gradient Matching", ICLR 2021.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .networks import ConvNet

#: By what `--eval-networks` calls them.
NAMES = ("convnet", "alexnet", "vgg11", "resnet18")


def make(
    name: str,
    channels: int,
    size: int,
    num_classes: int,
    *,
    width: int,
    depth: int,
    amp: bool = False,
) -> nn.Module:
    """Return a network that maps images to (features, logits).

    `width`, `depth` and `amp` are the ConvNet's.
    """
    if name == "convnet":
        return ConvNet(channels, size, num_classes, width, depth, amp)
    if size < 16:
        raise ValueError(
            f"--eval-networks {name} needs images of 16 pixels or more, since it halves them four "
            f"times; got {size}"
        )
    kinds = {"alexnet": AlexNet, "vgg11": VGG11, "resnet18": ResNet18}
    if name not in kinds:
        raise ValueError(f"--eval-networks must be among {', '.join(NAMES)}; got {name}")
    return kinds[name](channels, size, num_classes)


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(channels, channels)


class AlexNet(nn.Module):
    """Five convolutions, three max poolings, one layer. `width`: of the first convolution."""

    def __init__(self, channels: int, size: int, num_classes: int, width: int = 128) -> None:
        super().__init__()
        a, b, c = width, width * 3 // 2, width * 2
        self.blocks = nn.Sequential(
            nn.Conv2d(channels, a, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(a, b, kernel_size=5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(b, c, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(c, b, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(b, b, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.shrink = max(1, size // 32)
        self.num_features = b * (size // 8 // self.shrink) ** 2
        self.classifier = nn.Linear(self.num_features, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, channels, size, size) to features (N, D) and logits (N, C)."""
        x = F.avg_pool2d(self.blocks(images), self.shrink)
        features = x.flatten(1)
        return features, self.classifier(features)


class VGG11(nn.Module):
    """Eight convolutions of 3x3 in five stages, each halved at its end, and one layer."""

    def __init__(self, channels: int, size: int, num_classes: int, width: int = 64) -> None:
        super().__init__()
        stages = ([width], [2 * width], [4 * width] * 2, [8 * width] * 2, [8 * width] * 2)
        # No more halvings than leave 2x2 to the last norm: of a single value it leaves nothing.
        halvings = min(5, size.bit_length() - 1)
        blocks: list[nn.Module] = []
        for k, stage in enumerate(stages):
            for out in stage:
                blocks += [
                    nn.Conv2d(channels, out, kernel_size=3, padding=1),
                    _norm(out),
                    nn.ReLU(),
                ]
                channels = out
            if k >= 5 - halvings:
                blocks.append(nn.MaxPool2d(2))
        self.blocks = nn.Sequential(*blocks)
        self.num_features = channels
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, channels, size, size) to features (N, D) and logits (N, C)."""
        features = self.blocks(images).mean((2, 3))
        return features, self.classifier(features)


class ResidualBlock(nn.Module):
    """Two convolutions of 3x3 beside a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, out, kernel_size=3, stride=stride, padding=1, bias=False),
            _norm(out),
            nn.ReLU(),
            nn.Conv2d(out, out, kernel_size=3, padding=1, bias=False),
            _norm(out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, kernel_size=1, stride=stride, bias=False), _norm(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.residual(x) + self.shortcut(x))


class ResNet18(nn.Module):
    """A convolution of 3x3, four stages of two residual blocks, the mean, a layer."""

    def __init__(self, channels: int, _size: int, num_classes: int, width: int = 64) -> None:
        super().__init__()
        blocks: list[nn.Module] = [
            nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
            _norm(width),
            nn.ReLU(),
        ]
        before = width
        for k in range(4):
            for stride in (1 if k == 0 else 2, 1):
                blocks.append(ResidualBlock(before, width << k, stride))
                before = width << k
        self.blocks = nn.Sequential(*blocks)
        self.num_features = before
        self.classifier = nn.Linear(before, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, channels, size, size) to features (N, D) and logits (N, C)."""
        features = self.blocks(images).mean((2, 3))
        return features, self.classifier(features)
