"""PGD on a residual network, with its forward pass and input gradient written out in Triton kernels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
from torch import Tensor, nn
from torch.nn import functional

from robreg.attacks.pgd import Radius
from robreg.kernels import triton_kernels as kernels
from robreg.kernels.blocks import Layer, UnsuitableError, describe
from robreg.kernels.convolution import convolve

_LARGEST_HEAD = 2**15  # values that one program of the head's kernel holds; larger heads are torch's
_BUFFERS = 4  # for gradients
_BM = 64  # positions per program of the stem
Shape = tuple[int, int, int, int]


@dataclass
class _Weights:
    """The weights of a convolution in the layout of the kernels, and as its transpose needs them."""

    module: nn.Conv2d
    forward: Tensor  # (K, K, channels in, channels out)
    backward: Tensor  # (K, K, channels out, channels in)

    def refresh(self) -> None:
        weight = self.module.weight.detach()
        self.forward.copy_(weight.permute(2, 3, 1, 0))
        self.backward.copy_(weight.permute(2, 3, 0, 1))


@dataclass
class Activations:
    """What a forward pass computes, all of it after a ReLU; images are (B, H, W, C)."""

    after: list[Tensor]  # of the stem and every block
    inner: list[list[Tensor]]  # of all layers of every block but its last


class ResidualAttack:
    """PGD within an l_inf ball, for batches of one shape.

    The network's weights are read at every call. Calls can be captured in a CUDA graph, which then holds all their
    memory. Activations and the weights of convolutions have dtype, everything else is float32.
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
        """Prepare attacks on batches like `like`, pixels (B, C, H, W). eps, step: in pixel units, as pgd has them.

        tune: find the fastest block sizes by timing, on a GPU; the last bits of results may depend on them.
        Raises UnsuitableError for a network that the kernels do not fit.
        """
        self.network = describe(model)
        self.steps, self.dtype, self.tune, self.device = steps, dtype, tune, like.device
        channels = like.shape[1]
        self.eps, self.step = (torch.as_tensor(one).to(like).flatten().expand(channels).clone() for one in (eps, step))
        normalise = self.network.normalise
        self.mean, self.std = (part.detach().flatten().contiguous() for part in (normalise.mean, normalise.std))
        self.weights = {id(conv): self._weights(conv) for conv in self.network.convolutions}
        stem = self.network.stem.conv
        self.stem = torch.empty(3, 3, channels, stem.out_channels, device=self.device)
        self.linear = torch.empty(self.network.linear.weight.shape, device=self.device)
        # The shapes of Activations.after and of Activations.inner.
        self.after: list[Shape] = [(len(like), like.shape[2], like.shape[3], stem.out_channels)]
        self.inner: list[list[Shape]] = []
        for block in self.network.blocks:
            shapes = [self.after[-1]]
            for layer in block.layers:
                height, width = (-(-size // layer.stride) for size in shapes[-1][1:3])
                shapes.append((len(like), height, width, layer.conv.out_channels))
            self.inner.append(shapes[1:-1])
            self.after.append(shapes[-1])
        everything = [*self.after, *(shape for shapes in self.inner for shape in shapes)]
        self.largest = max(torch.Size(shape).numel() for shape in everything)
        if max(self.largest, like.numel()) >= 2**31:
            raise UnsuitableError("its activations have more values than the kernels can count, 2^31 - 1")
        self.memory = sum(torch.Size(shape).numel() for shape in everything) + _BUFFERS * self.largest
        self.convolve: Callable[..., None] = convolve

    def _weights(self, conv: nn.Conv2d) -> _Weights:
        c_out, c_in, size, _ = conv.weight.shape
        shapes = ((size, size, c_in, c_out), (size, size, c_out, c_in))
        return _Weights(conv, *(torch.empty(shape, dtype=self.dtype, device=self.device) for shape in shapes))

    def refresh(self) -> None:
        """Read the network's weights."""
        for one in self.weights.values():
            one.refresh()
        self.stem.copy_(self.network.stem.conv.weight.detach().permute(2, 3, 1, 0))
        self.linear.copy_(self.network.linear.weight.detach())

    def __call__(self, x: Tensor, y: Tensor, noise: Tensor | None) -> Tensor:
        """Return adversarial examples, like x. x, y, noise: as TrainingStep has them."""
        self.refresh()
        start = x if noise is None else (x + self.eps.view(-1, 1, 1) * noise.to(x)).clamp(0, 1)
        x = _dense(x)
        point = torch.empty_like(x).copy_(start)
        memory = self._allocate()
        for _ in range(self.steps):
            self._advance(memory, x, point, y)
        return point

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the gradient of each example's cross entropy with respect to its pixels, like x."""
        self.refresh()
        x = _dense(x)
        found = torch.empty_like(x)
        self._advance(self._allocate(), x, torch.empty_like(x).copy_(x), y, found)
        return found

    def activations(self, x: Tensor) -> Activations:
        """Return what the forward pass computes for pixels; for tests."""
        self.refresh()
        found, buffers = self._allocate()
        self._forward(x, found, buffers[0])
        return found

    def _allocate(self) -> tuple[Activations, list[Tensor]]:
        """Allocate activations, and buffers for gradients, each as large as the largest activation.

        All are parts of one tensor, because deterministic algorithms fill every new tensor.
        """
        memory = torch.empty(self.memory, dtype=self.dtype, device=self.device)

        def new(*shape: int) -> Tensor:
            nonlocal memory
            size = torch.Size(shape).numel()
            part, memory = memory[:size].view(shape), memory[size:]
            return part

        after = [new(*shape) for shape in self.after]
        inner = [[new(*shape) for shape in shapes] for shapes in self.inner]
        return Activations(after, inner), [new(self.largest) for _ in range(_BUFFERS)]

    def _advance(
        self,
        memory: tuple[Activations, list[Tensor]],
        clean: Tensor,
        point: Tensor,
        y: Tensor,
        found: Tensor | None = None,
    ) -> None:
        """Take one step, in place."""
        activations, buffers = memory
        self._forward(point, activations, buffers[0])
        gradient = self._backward(y, activations, buffers)
        positions, shape = torch.Size(self.after[0][:3]).numel(), self.after[0]
        kernels.stem_step[(triton.cdiv(positions, _BM),)](
            gradient, self.stem, self.std, clean, point, point if found is None else found, self.eps, self.step,
            positions, *point.stride(), H=shape[1], W=shape[2], CI=point.shape[1], CO=shape[3], KEEP=found is not None,
            BM=_BM,
        )  # fmt: skip

    def _forward(self, point: Tensor, found: Activations, buffer: Tensor) -> None:
        """Fill activations. buffer: for shortcuts."""
        positions, shape = torch.Size(self.after[0][:3]).numel(), self.after[0]
        after = self.network.stem.after
        kernels.stem[(triton.cdiv(positions, _BM),)](
            point, self.stem, self.mean, self.std, self.mean if after is None else after.detach(), found.after[0],
            positions, *point.stride(), H=shape[1], W=shape[2], CI=point.shape[1], CO=shape[3],
            AFTER=0 if after is None else after.numel(), BM=_BM,
        )  # fmt: skip
        for number, block in enumerate(self.network.blocks):
            x, target, stride = found.after[number], found.after[number + 1], block.shortcut_stride
            shortcut = x
            if block.projection is not None:
                shortcut, stride = _view(buffer, target.shape), 1
                self._forward_layer(x, block.projection, shortcut)
            for layer, out in zip(block.layers[:-1], found.inner[number], strict=True):
                self._forward_layer(x, layer, out, relu=True)
                x = out
            options = {"residual": shortcut, "residual_stride": stride, "residual_bias": block.shortcut_bias}
            self._forward_layer(x, block.layers[-1], target, relu=True, **options)

    def _forward_layer(self, x: Tensor, layer: Layer, out: Tensor, **options: object) -> None:
        parts = {"before": layer.before, "scale": layer.scale, "after": layer.after, "stride": layer.stride}
        self.convolve(x, self.weights[id(layer.conv)].forward, out, tune=self.tune, **parts, **options)

    def _backward(self, y: Tensor, found: Activations, buffers: list[Tensor]) -> Tensor:
        """Go back from the last activation to the first, and return the gradient; every one is before a ReLU."""
        current, other, *inner = buffers
        self._head(y, found.after[-1], _view(current, self.after[-1]))
        for number in reversed(range(len(self.network.blocks))):
            block, source = self.network.blocks[number], found.after[number]
            given = gradient = _view(current, self.after[number + 1])
            for layer, activation in zip(block.layers[:0:-1], found.inner[number][::-1], strict=True):
                result = _view(inner[0], activation.shape)
                self._backward_layer(gradient, layer, result, activation=activation, stride=layer.stride)
                gradient = result
                inner.reverse()  # so that inner[0] is free
            shortcut, stride = given, block.shortcut_stride
            if block.projection is not None:  # of size 1, so that its gradient is 0 between the positions that it reads
                shortcut = _view(inner[0], (*given.shape[:3], source.shape[3]))
                self._backward_layer(given, block.projection, shortcut)
            options = {"residual": shortcut, "residual_stride": stride, "activation": source}
            first = block.layers[0]
            self._backward_layer(gradient, first, _view(other, source.shape), stride=first.stride, **options)
            current, other = other, current
        return _view(current, self.after[0])

    def _backward_layer(self, gradient: Tensor, layer: Layer, out: Tensor, **options: object) -> None:
        weights = self.weights[id(layer.conv)].backward
        self.convolve(gradient, weights, out, transposed=True, scale=layer.scale, tune=self.tune, **options)

    def _head(self, y: Tensor, activation: Tensor, out: Tensor) -> None:
        """Compute the gradient of the cross entropy before the last ReLU."""
        bias, before = self.network.linear.bias.detach(), self.network.before_linear
        batch, height, width, c_in = activation.shape
        sizes = {
            "BP": min(64, triton.next_power_of_2(height * width)),
            "BC": triton.next_power_of_2(c_in),
            "BL": triton.next_power_of_2(len(bias)),
        }
        if sizes["BC"] * max(sizes["BL"], sizes["BP"]) <= _LARGEST_HEAD:
            kernels.head[(batch,)](
                activation, self.linear, bias, self.mean if before is None else before.detach(), y, out,
                HW=height * width, C=c_in, CLASSES=len(bias), HAS_BEFORE=before is not None, **sizes,
            )  # fmt: skip
            return
        features = activation.float().mean((1, 2))
        features = features if before is None else features + before.detach()
        classes = torch.arange(len(bias), device=self.device)
        change = functional.linear(features, self.linear, bias).softmax(1) - (y[:, None] == classes).float()
        spread = change @ self.linear / (height * width)
        out.copy_(torch.where(activation > 0, spread[:, None, None, :], 0.0))


def _dense(x: Tensor) -> Tensor:
    """Return x in a layout that a tensor made like it has, too; the kernels use the same strides for both."""
    like = torch.empty_like(x)
    return x if x.stride() == like.stride() else like.copy_(x)


def _view(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    return buffer[: int(torch.Size(shape).numel())].view(shape)
