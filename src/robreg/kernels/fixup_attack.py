"""PGD on a Fixup ResNet, with its forward pass and input gradient written out in Triton kernels."""

from dataclasses import dataclass
from typing import Any, cast

import torch
import triton
from torch import Tensor, nn

from robreg.attacks.pgd import Radius
from robreg.kernels import triton_kernels as kernels
from robreg.networks.classifier import Classifier, Normalise
from robreg.networks.fixup_resnet import FixupResNet, ResidualBlock

_LARGEST_HEAD = 2**15  # weights of the linear layer, which one program of the kernel holds
MULTIPLE = 16  # of which all numbers of channels but those of an image must be multiples


def refusal(model: nn.Module) -> str | None:
    """Say why a model cannot be attacked by these kernels; None if it can."""
    if not (isinstance(model, Classifier) and type(model.normalise) is Normalise):
        return "the network does not begin with the normalising layer"
    if type(model.network) is not FixupResNet:
        return "the network is no ResNet of this package without batch normalisation"
    width = model.network.stem.out_channels
    if width % MULTIPLE or width & (width - 1):
        return f"its width {width} is no power of 2 from {MULTIPLE} on"
    if triton.next_power_of_2(model.network.linear.out_features) * 4 * width > _LARGEST_HEAD:
        return f"it has {model.network.linear.out_features} classes, too many for its width {width}"
    return None


@dataclass
class _Conv:
    """A 3x3 convolution: its weights in the layout of the kernels, and as its transpose needs them."""

    module: nn.Conv2d
    forward: Tensor  # (3, 3, channels in, channels out)
    backward: Tensor  # (3, 3, channels out, channels in)

    def refresh(self) -> None:
        weight = self.module.weight.detach()
        self.forward.copy_(weight.permute(2, 3, 1, 0))
        self.backward.copy_(weight.permute(2, 3, 0, 1))


class FixupAttack:
    """PGD within an l_inf ball, for batches of one shape.

    The network's weights are read at every call. All buffers are allocated once, so that calls can be captured in a
    CUDA graph. Activations and the weights of convolutions have dtype, everything else is float32.
    """

    def __init__(  # noqa: PLR0913 - an attack is its settings
        self,
        model: nn.Module,
        like: Tensor,
        *,
        eps: Radius,
        step: Radius,
        steps: int,
        dtype: torch.dtype,
        tune: bool = False,
    ) -> None:
        """Allocate all buffers. like: a batch of pixels (B, C, H, W); eps, step: in pixel units, as pgd has them.

        tune: find the fastest block sizes by timing, on a GPU; the last bits of results may depend on them.
        Raises ValueError if refusal says so.
        """
        if reason := refusal(model):
            raise ValueError(f"the attack's kernels do not fit: {reason}")
        self.network, normalise = cast(FixupResNet, model.network), cast(Normalise, model.normalise)
        self.steps, self.dtype, self.tune = steps, dtype, tune
        network = self.network
        device, channels = like.device, like.shape[1]
        self.eps, self.step = (torch.as_tensor(one).to(like).flatten().expand(channels).clone() for one in (eps, step))
        self.mean, self.std = (part.detach().flatten().contiguous() for part in (normalise.mean, normalise.std))
        self.blocks = [block for block in network.modules() if isinstance(block, ResidualBlock)]
        self.convolutions = {
            id(module): self._convolution(module) for block in self.blocks for module in (block.conv1, block.conv2)
        }
        self.stem = torch.empty(3, 3, channels, network.stem.out_channels, device=device)
        self.linear = torch.empty(network.linear.weight.shape, device=device)
        sizes = [(like.shape[2], like.shape[3])]
        for block in self.blocks:
            height, width = (-(-size // block.stride) for size in sizes[-1])
            sizes.append((height, width))
        widths = [network.stem.out_channels, *(block.conv1.out_channels for block in self.blocks)]
        self.shapes = [(len(like), *size, width) for size, width in zip(sizes, widths, strict=True)]
        # After the ReLUs: of the stem and every block, and of the first convolution of every block.
        self.after = [torch.empty(shape, dtype=dtype, device=device) for shape in self.shapes]
        self.inner = [torch.empty(shape, dtype=dtype, device=device) for shape in self.shapes[1:]]
        largest = max(one.numel() for one in self.after)
        self.gradients = [torch.empty(largest, dtype=dtype, device=device) for _ in range(3)]

    def _convolution(self, module: nn.Conv2d) -> _Conv:
        c_out, c_in = module.weight.shape[:2]
        shapes = ((3, 3, c_in, c_out), (3, 3, c_out, c_in))
        return _Conv(module, *(torch.empty(shape, dtype=self.dtype, device=module.weight.device) for shape in shapes))

    def refresh(self) -> None:
        """Read the network's weights."""
        for one in self.convolutions.values():
            one.refresh()
        self.stem.copy_(self.network.stem.weight.detach().permute(2, 3, 1, 0))
        self.linear.copy_(self.network.linear.weight.detach())

    def __call__(self, x: Tensor, y: Tensor, noise: Tensor | None) -> Tensor:
        """Return adversarial examples, like x. x, y, noise: as TrainingStep has them."""
        self.refresh()
        start = x if noise is None else (x + self.eps.view(-1, 1, 1) * noise.to(x)).clamp(0, 1)
        x = _dense(x)
        point = torch.empty_like(x).copy_(start)
        for _ in range(self.steps):
            self._advance(x, point, y)
        return point

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of each example's cross entropy with respect to its pixels, like x; for tests."""
        self.refresh()
        x = _dense(x)
        found = torch.empty_like(x)
        self._advance(x, torch.empty_like(x).copy_(x), y, found)
        return found

    def _advance(self, clean: Tensor, point: Tensor, y: Tensor, found: Tensor | None = None) -> None:
        """Take one step, in place."""
        self._forward(point)
        self._backward(clean, point, y, found)

    def _forward(self, point: Tensor) -> None:
        network, (batch, height, width, c_out) = self.network, self.shapes[0]
        positions = batch * height * width
        kernels.stem[_grid(positions, _BM)](
            point, self.stem, self.mean, self.std, _scalar(network, "bias1"), self.after[0], positions, *point.stride(),
            H=height, W=width, CI=point.shape[1], CO=c_out, HAS_AFTER=network.has_biases, BM=_BM,
        )  # fmt: skip
        for number, block in enumerate(self.blocks):
            source, inner, target = self.after[number], self.inner[number], self.after[number + 1]
            self._convolve(
                source, self.convolutions[id(block.conv1)].forward, inner, stride=block.stride, relu=True,
                before=_scalar(block, "bias1a"), after=_scalar(block, "bias1b"),
            )  # fmt: skip
            changes = block.stride > 1 or block.new_channels > 0
            self._convolve(
                inner, self.convolutions[id(block.conv2)].forward, target, relu=True, before=_scalar(block, "bias2a"),
                scale=block.scale, after=_scalar(block, "bias2b"), residual=source, residual_stride=block.stride,
                residual_bias=_scalar(block, "bias1a") if changes else None,
            )  # fmt: skip

    def _backward(self, clean: Tensor, point: Tensor, y: Tensor, found: Tensor | None) -> None:
        """Go back from the last activation to the pixels; every gradient is one before a ReLU."""
        network, shape = self.network, self.shapes[-1]
        batch, height, width, c_in = shape
        current, other, inner = self.gradients
        bias = network.linear.bias.detach()
        kernels.head[(batch,)](
            self.after[-1], self.linear, bias, _scalar(network, "bias2"), y, current, HW=height * width, C=c_in,
            CLASSES=len(bias), HAS_BEFORE=network.has_biases, BP=min(64, triton.next_power_of_2(height * width)),
            BC=triton.next_power_of_2(c_in), BL=triton.next_power_of_2(len(bias)),
        )  # fmt: skip
        for number in reversed(range(len(self.blocks))):
            block, source = self.blocks[number], self.after[number]
            given = _view(current, self.shapes[number + 1])
            middle, result = _view(inner, self.shapes[number + 1]), _view(other, self.shapes[number])
            self._convolve(
                given, self.convolutions[id(block.conv2)].backward, middle, transposed=True, scale=block.scale,
                activation=self.inner[number],
            )  # fmt: skip
            self._convolve(
                middle, self.convolutions[id(block.conv1)].backward, result, transposed=True, stride=block.stride,
                residual=given, residual_stride=block.stride, activation=source,
            )  # fmt: skip
            current, other = other, current
        batch, height, width, c_out = self.shapes[0]
        positions = batch * height * width
        kernels.stem_step[_grid(positions, _BM)](
            current, self.stem, self.std, clean, point, point if found is None else found, self.eps, self.step,
            positions, *point.stride(), H=height, W=width, CI=point.shape[1], CO=c_out, KEEP=found is not None, BM=_BM,
        )  # fmt: skip

    def _convolve(  # noqa: PLR0913 - what follows a convolution in a network
        self,
        x: Tensor,
        w: Tensor,
        out: Tensor,
        *,
        stride: int = 1,
        transposed: bool = False,
        before: Tensor | None = None,
        scale: Tensor | None = None,
        after: Tensor | None = None,
        residual: Tensor | None = None,
        residual_stride: int = 1,
        residual_bias: Tensor | None = None,
        relu: bool = False,
        activation: Tensor | None = None,
    ) -> None:
        """Launch kernels.convolve; what is None is left out."""
        batch, height, width, c_out = out.shape
        positions, c_in = batch * height * width, x.shape[3]
        shortcut = (0, 1, 1) if residual is None else (residual.shape[3], *residual.shape[1:3])
        block_out = _block(c_out)
        kernel, blocks = (kernels.tuned_convolve, {}) if self.tune else (kernels.convolve, {"BM": _BM})

        def grid(chosen: dict[str, int]) -> tuple[int, int]:
            return triton.cdiv(positions, chosen["BM"]), c_out // block_out

        kernel[grid](
            x, w, out, _or(residual, x), _or(activation, x), _or(before, self.mean), _or(scale, self.mean),
            _or(after, self.mean), _or(residual_bias, self.mean), positions,
            H=x.shape[1], W=x.shape[2], OH=height, OW=width, CI=c_in, CO=c_out, STRIDE=stride, TRANSPOSED=transposed,
            HAS_BEFORE=before is not None, HAS_SCALE=scale is not None, HAS_AFTER=after is not None,
            CR=shortcut[0], RH=shortcut[1], RW=shortcut[2], RSTRIDE=residual_stride,
            HAS_RESIDUAL_BIAS=residual_bias is not None, RELU=relu, MASKED=activation is not None, PRECISION="ieee",
            BK=_block(c_in), BN=block_out, **blocks,
        )  # fmt: skip


_BM = 64  # positions per program


def _dense(x: Tensor) -> Tensor:
    """Return x in a layout that a tensor made like it has, too; the kernels use the same strides for both."""
    like = torch.empty_like(x)
    return x if x.stride() == like.stride() else like.copy_(x)


def _block(channels: int) -> int:
    """Return the largest power of 2 that divides a number of channels, up to 64."""
    return min(64, channels & -channels)


def _grid(positions: int, block: int) -> tuple[int]:
    return (triton.cdiv(positions, block),)


def _view(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    return buffer[: int(torch.Size(shape).numel())].view(shape)


def _scalar(module: nn.Module, name: str) -> Any:  # noqa: ANN401 - None where a network has no such scalar
    value = getattr(module, name, None)
    return None if value is None else value.detach()


def _or(given: Tensor | None, unused: Tensor) -> Tensor:
    """Return a tensor for a pointer that a kernel needs, but does not read if there is nothing given."""
    return unused if given is None else given.detach()
