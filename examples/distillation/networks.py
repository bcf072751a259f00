"""The ConvNet of the method, and running several of them at once."""

import collections
import contextlib

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from . import fused

#: Parameters of one network by name, or of R networks with a leading dimension R.
Weights = dict[str, Tensor]

#: Images run together where no gradient is wanted, by kind of device; assign an entry to change it.
#: Few on a CPU, which then reuses the memory it has in its caches.
AT_ONCE = collections.defaultdict(lambda: 4096, cpu=128)


class ConvNet(nn.Module):
    """`depth` blocks of convolution, instance norm, ReLU and 2x2 average pooling, then one layer.

    Instance norm, because batch statistics of a few synthetic images say nothing about the real
    ones, and matching through batch norm fails for that reason.

    Args:
        channels: of the images.
        size: side of the images in pixels, divisible by 2^depth.
        num_classes: C.
        width: channels of every block.
        depth: number of blocks.
        amp: form products in bfloat16. Norms, features and logits stay in float32.
    """

    def __init__(
        self,
        channels: int,
        size: int,
        num_classes: int,
        width: int,
        depth: int,
        amp: bool = False,
    ) -> None:
        super().__init__()
        self.amp = amp
        blocks: list[nn.Module] = []
        for k in range(depth):
            blocks += [
                nn.Conv2d(channels if k == 0 else width, width, kernel_size=3, padding=1),
                nn.GroupNorm(width, width),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        self.blocks = nn.Sequential(*blocks)
        #: Features of each block, once flattened.
        self.features = [width * (size // 2 ** (k + 1)) ** 2 for k in range(depth)]
        self.num_features = self.features[-1]
        self.classifier = nn.Linear(self.num_features, num_classes)

    def forward(self, images: Tensor, layers: int = 1) -> tuple[Tensor, Tensor]:
        """Map (N, channels, size, size) to features (N, D) and logits (N, C).

        With `layers` > 1 the features of that many last blocks, side by side, the last block last.
        """
        if self.is_fused(images):
            return self._forward_fused(images, layers)
        x, ends = images, []
        with self._precision(images):
            for k, module in enumerate(self.blocks):
                if self.amp and isinstance(module, nn.GroupNorm):
                    x = x.float()
                x = module(x)
                if k % 4 == 3 and len(self.features) - k // 4 <= layers:
                    ends.append(x.flatten(1))
            features = ends[0] if layers == 1 else torch.cat(ends, 1)
            logits = self.classifier(ends[-1])
        return (features.float(), logits.float()) if self.amp else (features, logits)

    def is_fused(self, images: Tensor) -> bool:
        """Whether the blocks are run by `fused.py` on such images."""
        whole = images.dtype == torch.float32 and not torch.compiler.is_compiling()
        return whole and fused.why_not(self, images.device, images.shape[-1]) is None

    def _forward_fused(self, images: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        products = torch.bfloat16 if self.amp else torch.float32
        depth = len(self.features)
        x, ends = images, []
        for k in range(depth):
            conv, norm = self.blocks[4 * k], self.blocks[4 * k + 1]
            if k == 0 and x.shape[1] in fused.FEW_CHANNELS:
                x = fused.first_convolution(x, conv.weight, products)
            else:
                x = F.conv2d(x.to(products), conv.weight.to(products), padding=1)
            given = k >= depth - layers  # features, in float32
            x = fused.norm_relu_pool(x, conv.bias, norm, torch.float32 if given else products)
            if given:
                ends.append(x.flatten(1))
        features = ends[0] if layers == 1 else torch.cat(ends, 1)
        with self._precision(images):
            logits = self.classifier(ends[-1])
        return features, logits.float()

    def _precision(self, images: Tensor) -> contextlib.AbstractContextManager[object]:
        if not self.amp:
            return contextlib.nullcontext()
        return torch.autocast(images.device.type, torch.bfloat16)


def default_depth(size: int) -> int:
    """Blocks that leave a final map of at least 4x4: 2 at 16 pixels, 3 at 32, 4 at 64, 5 at 128."""
    return max(1, (size // 4).bit_length() - 1)


def initial_weights(network: nn.Module, generator: torch.Generator) -> Weights:
    """Draw fresh weights as PyTorch's layers do: uniform in ±1/√fan_in, norms at identity."""
    weights: Weights = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            for part in ("weight",) if module.bias is None else ("weight", "bias"):
                u = torch.rand(getattr(module, part).shape, generator=generator)
                weights[f"{name}.{part}"] = (2 * u - 1) * bound
        elif isinstance(module, nn.GroupNorm):
            weights[f"{name}.weight"] = torch.ones(module.num_channels)
            weights[f"{name}.bias"] = torch.zeros(module.num_channels)
    device = next(network.parameters()).device
    return {name: value.to(device) for name, value in weights.items()}


def stack(networks: list[Weights]) -> Weights:
    """Stack the weights of R networks: every tensor gains a leading dimension R."""
    return {name: torch.stack([w[name] for w in networks]) for name in networks[0]}


def run(
    network: nn.Module, weights: Weights, images: Tensor, layers: int = 1
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and logits (N, C) of one network with the given weights."""
    # Twice as fast on a CPU, and what tensor cores want.
    images = images.contiguous(memory_format=torch.channels_last)
    options = {"layers": layers} if layers > 1 else {}
    features, logits = functional_call(network, weights, (images,), options)
    return features, logits


def run_stacked(network: nn.Module, weights: Weights, images: Tensor) -> Tensor:
    """Logits (R, N, C) of R networks, each on its own images (R, N, channels, H, W)."""
    if len(images) == 1:  # nothing to batch: spare the cost of grouped convolutions
        return run(network, {name: w[0] for name, w in weights.items()}, images[0])[1][None]
    # Without `run`, since vmap refuses to change the memory format.
    _, logits = torch.vmap(lambda w, x: functional_call(network, w, (x,)))(weights, images)
    stacked: Tensor = logits
    return stacked


def run_in_chunks(
    network: nn.Module, weights: Weights, images: Tensor, layers: int = 1
) -> tuple[Tensor, Tensor]:
    """Like `run`, without gradients and in pieces of `AT_ONCE` images."""
    with torch.no_grad():
        pieces = images.split(AT_ONCE[images.device.type])
        parts = [run(network, weights, piece, layers) for piece in pieces]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
