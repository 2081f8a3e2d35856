"""Residual networks for CIFAR with Fixup initialisation (Zhang et al. 2019; paper, appendix D)."""

import math

from torch import Tensor, nn
from torch.nn import functional


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters.

    Where the block changes the size, the shortcut is subsampled and padded with channels of zeros.
    """

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        """Build a block that maps (B, c_in, H, W) to (B, c_out, H / stride, W / stride)."""
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.stride = stride
        self.new_channels = c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to the residual branch and apply ReLU."""
        branch = self.conv2(functional.relu(self.conv1(x)))  # (B, C, H, W)
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
        return functional.relu(branch + shortcut)


class FixupResNet(nn.Module):
    """A ResNet of depth 6n+2 with Fixup initialisation but without Fixup's scalar layers (paper, appendix D)."""

    def __init__(self, depth: int, channels: int, classes: int, width: int = 16) -> None:
        """Build the stem, three stages of n blocks with width, 2 width and 4 width channels, and the linear layer.

        Raises ValueError if depth is not 6n+2 with n >= 1.
        """
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"the depth of this kind of ResNet must be 6n+2 with n >= 1, not {depth}")
        blocks = (depth - 2) // 6
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        widths = [width, 2 * width, 4 * width]
        self.stages = nn.Sequential(*[_stage(width, c_out, blocks) for c_out in widths])
        self.linear = nn.Linear(4 * width, classes)
        self.reset(3 * blocks)

    def reset(self, blocks: int) -> None:
        """Initialise the weights as Fixup does for a network of this many residual blocks.

        The first convolution of each branch gets He initialisation (fan out) times blocks^(-1/2). The last convolution
        of each branch and the linear layer are zero, so all logits are exactly 0 at first. The stem keeps PyTorch's
        default.
        """
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                fan_out = module.conv1.out_channels * math.prod(module.conv1.kernel_size)
                nn.init.normal_(module.conv1.weight, std=math.sqrt(2 / fan_out / blocks))
                nn.init.zeros_(module.conv2.weight)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, classes) for images (B, C, H, W)."""
        features = self.stages(functional.relu(self.stem(x)))  # (B, 4 width, H / 4, W / 4)
        return self.linear(features.mean((2, 3)))


def _stage(width: int, c_out: int, blocks: int) -> nn.Sequential:
    first = ResidualBlock(c_out if c_out == width else c_out // 2, c_out, stride=1 if c_out == width else 2)
    return nn.Sequential(first, *[ResidualBlock(c_out, c_out, stride=1) for _ in range(blocks - 1)])
