"""The kernels as operators of torch, which have gradients, and which torch.compile and users can call."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from robreg.kernels.blocks import MULTIPLE, Block, ResidualNetwork, UnsuitableError, describe
from robreg.kernels.convolution import convolve as launch


@torch.library.custom_op("robreg::residual_convolution", mutates_args=())
def residual_convolution(  # noqa: PLR0913, PLR0917 - an operator has no arguments by name
    x: Tensor,
    weight: Tensor,
    before: Tensor | None,
    after: Tensor | None,
    shortcut: Tensor | None,
    shortcut_bias: Tensor | None,
    stride: int,
    shortcut_stride: int,
    tune: bool = False,
) -> Tensor:
    """Return relu(conv(x + before) + after + shortcut + shortcut_bias), (B, CO, H', W') like x.

    H' and W' are H / stride and W / stride, rounded up.
    x: (B, CI, H, W), channels last in memory, in bfloat16 or float32; weight: (CO, CI, K, K), K 1 or 3, of any floating
    type; the padding, K // 2, stays 0. before and shortcut_bias: scalars; after: a scalar, or (CO,). shortcut: read at
    every shortcut_stride-th position, and channels that it lacks are 0. What is None is left out. Channels must be
    multiples of 16. All tensors have gradients. tune: as in robreg.kernels.convolution.convolve.
    Raises ValueError for shapes that do not fit.
    """
    _check_shapes(x, weight, after, shortcut, stride, shortcut_stride)
    out = _like(x, _shape(x, weight, stride))
    kernel = weight.permute(2, 3, 1, 0).to(x.dtype).contiguous()
    launch(
        _last(x), kernel, _last(out), stride=stride, before=before, after=after, relu=True, tune=tune,
        residual=None if shortcut is None else _last(shortcut), residual_stride=shortcut_stride,
        residual_bias=shortcut_bias,
    )  # fmt: skip
    return out


@residual_convolution.register_fake
def _(  # noqa: PLR0913, PLR0917 - as the operator
    x: Tensor,
    weight: Tensor,
    before: Tensor | None,
    after: Tensor | None,
    shortcut: Tensor | None,
    shortcut_bias: Tensor | None,
    stride: int,
    shortcut_stride: int,
    tune: bool = False,
) -> Tensor:
    _check_shapes(x, weight, after, shortcut, stride, shortcut_stride)
    return _like(x, _shape(x, weight, stride))


@torch.library.custom_op("robreg::convolution_input_gradient", mutates_args=())
def convolution_input_gradient(
    gradient: Tensor, weight: Tensor, height: int, width: int, stride: int, tune: bool = False
) -> Tensor:
    """Return the gradient of what a convolution reads, (B, CI, height, width), given that of its result.

    gradient: (B, CO, H, W), channels last in memory; weight: (CO, CI, K, K), with padding K // 2. Raises ValueError for
    shapes that do not fit.
    """
    _check_gradient(gradient, weight, height, width, stride)
    out = _like(gradient, (len(gradient), weight.shape[1], height, width))
    kernel = weight.permute(2, 3, 0, 1).to(gradient.dtype).contiguous()
    launch(_last(gradient), kernel, _last(out), transposed=True, stride=stride, tune=tune)
    return out


@convolution_input_gradient.register_fake
def _(gradient: Tensor, weight: Tensor, height: int, width: int, stride: int, tune: bool = False) -> Tensor:
    _check_gradient(gradient, weight, height, width, stride)
    return _like(gradient, (len(gradient), weight.shape[1], height, width))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401 - torch's context
    x, weight, before, after, shortcut, shortcut_bias, ctx.stride, ctx.shortcut_stride, ctx.tune = inputs
    ctx.save_for_backward(x, weight, before, output)
    ctx.after = None if after is None else after.shape
    ctx.shortcut = None if shortcut is None else shortcut.shape
    ctx.has_shortcut_bias = shortcut_bias is not None


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's context
    """Return the gradient of every argument of residual_convolution; that of the weights is torch's."""
    x, weight, before, output = ctx.saved_tensors
    gradient = torch.where(output > 0, gradient, 0).contiguous(memory_format=torch.channels_last)
    of_x = convolution_input_gradient(gradient, weight, x.shape[2], x.shape[3], ctx.stride, ctx.tune)
    read = x if before is None else (x + before).to(x.dtype)
    padding, stride = [weight.shape[2] // 2] * 2, [ctx.stride] * 2
    _, of_weight, _ = torch.ops.aten.convolution_backward(
        gradient, read, weight.to(x.dtype), None, stride, padding, [1, 1], False, [0, 0], 1, [False, True, False]
    )
    of_before = None if before is None else of_x.sum(dtype=torch.float32)
    of_after = None
    if ctx.after is not None:
        of_after = gradient.sum((0, 2, 3), dtype=torch.float32) if ctx.after else gradient.sum(dtype=torch.float32)
    of_shortcut = of_shortcut_bias = None
    if ctx.shortcut is not None:
        of_shortcut = gradient[:, : ctx.shortcut[1]]
        if ctx.has_shortcut_bias:
            of_shortcut_bias = of_shortcut.sum(dtype=torch.float32)
        if ctx.shortcut_stride > 1:
            spread = gradient.new_zeros(ctx.shortcut)
            spread[:, :, :: ctx.shortcut_stride, :: ctx.shortcut_stride] = of_shortcut
            of_shortcut = spread
    return of_x, of_weight.to(weight.dtype), of_before, of_after, of_shortcut, of_shortcut_bias, None, None, None


residual_convolution.register_autograd(_differentiate, setup_context=_keep)


class FusedNetwork(nn.Module):
    """A classifier whose residual blocks are these operators; it shares the classifier's weights.

    Raises UnsuitableError for a network that they do not fit: with batch normalisation, multipliers or projections.
    """

    def __init__(self, model: nn.Module, *, tune: bool = False) -> None:
        """Describe the network. tune: as in robreg.kernels.convolution.convolve."""
        super().__init__()
        self.model, self.tune = model, tune
        described = describe(model)
        for block in described.blocks:
            if block.projection is not None or any(layer.scale is not None for layer in block.layers):
                raise UnsuitableError("it has multipliers or projections")
        self._described = [described]  # in a list, because its layers are the model's already

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, classes) for pixels (B, C, H, W) in [0, 1]."""
        network: ResidualNetwork = self._described[0]
        first = network.stem.conv(network.normalise(x))
        x = functional.relu(first if network.stem.after is None else first + network.stem.after)
        x = x.contiguous(memory_format=torch.channels_last)
        for block in network.blocks:
            x = self._block(block, x)
        features = x.mean((2, 3))
        return network.linear(features if network.before_linear is None else features + network.before_linear)

    def _block(self, block: Block, x: Tensor) -> Tensor:
        source, end = x, block.layers[-1]
        for layer in block.layers[:-1]:
            rest = (None, None, layer.stride, 1, self.tune)
            x = residual_convolution(x, layer.conv.weight, layer.before, layer.after, *rest)
        shortcut = (source, block.shortcut_bias, end.stride, block.shortcut_stride, self.tune)
        return residual_convolution(x, end.conv.weight, end.before, end.after, *shortcut)


def _check_shapes(
    x: Tensor, weight: Tensor, after: Tensor | None, shortcut: Tensor | None, stride: int, shortcut_stride: int
) -> None:
    """Raise ValueError for shapes with which the kernel would read memory of others."""
    shape = _shape(x, weight, stride)
    fits = (
        x.shape[1] == weight.shape[1]
        and _fits_kernels(weight)
        and (after is None or after.shape in ((), (len(weight),)))
    )
    if shortcut is not None:
        read = tuple(-(-size // shortcut_stride) for size in shortcut.shape[2:])
        fits = fits and len(shortcut) == len(x) and shortcut.shape[1] <= len(weight) and read == shape[2:]
    if not fits:
        _refuse("residual_convolution", x, weight, after, shortcut)


def _check_gradient(gradient: Tensor, weight: Tensor, height: int, width: int, stride: int) -> None:
    shape = (len(gradient), len(weight), -(-height // stride), -(-width // stride))
    if gradient.shape != shape or not _fits_kernels(weight):
        _refuse("convolution_input_gradient", gradient, weight)


def _fits_kernels(weight: Tensor) -> bool:
    c_out, c_in, height, width = weight.shape
    return height == width and width in (1, 3) and not c_out % MULTIPLE and not c_in % MULTIPLE


def _refuse(name: str, *given: Tensor | None) -> None:
    shapes = ", ".join(str(tuple(one.shape)) for one in given if one is not None)
    raise ValueError(f"{name}: these shapes do not fit: {shapes}")


def _shape(x: Tensor, weight: Tensor, stride: int) -> tuple[int, int, int, int]:
    return len(x), len(weight), -(-x.shape[2] // stride), -(-x.shape[3] // stride)


def _like(x: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _last(x: Tensor) -> Tensor:
    """Return an image as the kernels read it, (B, H, W, C), contiguous."""
    return x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
