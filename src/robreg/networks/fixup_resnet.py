"""Residual networks for CIFAR with Fixup initialisation (Zhang et al. 2019; paper, appendix D)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

# Which of Fixup's scalars a network has, by its family. Without biases, the channels that its stages add stay 0 for
# ever: the shortcut fills them with zeros, and the last convolution of each branch starts at zero, where ReLU has no
# gradient.
SCALARS = {"fixup": "all", "resnet": "biases", "nobias": "none"}


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights.

    Where the block changes the size, the shortcut is subsampled and padded with channels of zeros. The scalars have the
    names that they have in Fixup's code: bias1a and bias2a are added to what each convolution reads, bias1b and bias2b
    to what it returns, and the second one's result is multiplied by scale. They have no dimension, so that activations
    in bfloat16 stay in bfloat16.
    """

    bias1a: nn.Parameter
    bias1b: nn.Parameter
    bias2a: nn.Parameter
    bias2b: nn.Parameter

    def __init__(self, c_in: int, c_out: int, stride: int, scalars: str = "none") -> None:
        """Build a block that maps (B, c_in, H, W) to (B, c_out, H / stride, W / stride); scalars: as in FixupResNet."""
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.stride = stride
        self.new_channels = c_out - c_in
        self.has_biases = scalars != "none"
        if self.has_biases:
            for name in ("bias1a", "bias1b", "bias2a", "bias2b"):
                self.register_parameter(name, nn.Parameter(torch.zeros(())))
        self.scale = nn.Parameter(torch.ones(())) if scalars == "all" else None

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to the residual branch and apply ReLU."""
        read = x + self.bias1a if self.has_biases else x
        branch = self.conv1(read)
        branch = functional.relu(branch + self.bias1b) + self.bias2a if self.has_biases else functional.relu(branch)
        branch = self.conv2(branch)  # (B, C, H, W)
        branch = branch if self.scale is None else branch * self.scale
        branch = branch + self.bias2b if self.has_biases else branch
        if self.stride == 1 and not self.new_channels:
            return functional.relu(branch + x)
        shortcut = read[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, 0, self.new_channels))
        return functional.relu(branch + shortcut)


class FixupResNet(nn.Module):
    """A ResNet of depth 6n+2 with Fixup initialisation, with all of Fixup's scalars, with its biases only, or neither.

    The paper omits Fixup's "scalar layers, since it changes spectral norms" (appendix D), which the multipliers do and
    the biases do not.
    """

    def __init__(self, depth: int, channels: int, classes: int, width: int = 16, scalars: str = "biases") -> None:
        """Build the stem, three stages of n blocks with width, 2 width and 4 width channels, and the linear layer.

        scalars: "all", "biases" or "none". Raises ValueError if depth is not 6n+2 with n >= 1, or for other scalars.
        """
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"the depth of this kind of ResNet must be 6n+2 with n >= 1, not {depth}")
        if scalars not in SCALARS.values():
            raise ValueError(f"scalars must be all, biases or none, not {scalars!r}")
        blocks = (depth - 2) // 6
        self.stem = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        widths = [width, 2 * width, 4 * width]
        self.stages = nn.Sequential(*[_stage(width, c_out, blocks, scalars) for c_out in widths])
        self.linear = nn.Linear(4 * width, classes)
        self.has_biases = scalars != "none"
        if self.has_biases:
            self.bias1, self.bias2 = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.reset(3 * blocks)

    def reset(self, blocks: int) -> None:
        """Initialise the weights as Fixup does for a network of this many residual blocks.

        The first convolution of each branch gets He initialisation (fan out) times blocks^(-1/2). The last convolution
        of each branch and the linear layer are zero, so all logits are exactly 0 at first, and so are the biases. The
        multipliers are 1. The stem keeps PyTorch's default.
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
        first = self.stem(x)
        first = first + self.bias1 if self.has_biases else first
        features = self.stages(functional.relu(first)).mean((2, 3))  # (B, 4 width)
        return self.linear(features + self.bias2 if self.has_biases else features)


def _stage(width: int, c_out: int, blocks: int, scalars: str) -> nn.Sequential:
    first = ResidualBlock(c_out if c_out == width else c_out // 2, c_out, 1 if c_out == width else 2, scalars)
    return nn.Sequential(first, *[ResidualBlock(c_out, c_out, 1, scalars) for _ in range(blocks - 1)])
