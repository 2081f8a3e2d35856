"""Launch the kernel of a convolution and of what follows it in a network."""

import torch
import triton
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input

from robreg.kernels import triton_kernels as kernels

# Positions per program and warps, by the number of channels that a program computes, where they are not found by
# timing. They were the fastest of a prototype on an H200.
_FIXED = {16: (256, 2), 32: (256, 8), 64: (128, 8), 128: (128, 8)}


def convolve(  # noqa: PLR0913 - what follows a convolution in a network
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
    tune: bool = False,
) -> None:
    """Launch kernels.convolve, which describes the arguments; what is None is left out.

    tune: find the fastest block sizes by timing, on a GPU; the last bits of results may depend on them.
    Raises ValueError for an image with more values than 32 bits can count.
    """
    if max(x.numel(), out.numel()) >= 2**31:
        raise ValueError(f"the kernels compute at most 2^31 - 1 values, not {max(x.numel(), out.numel())}")
    batch, height, width, c_out = out.shape
    positions, c_in = batch * height * width, x.shape[3]
    shortcut = (0, 1, 1) if residual is None else (residual.shape[3], *residual.shape[1:3])
    block_out = largest_block(c_out, 128)
    fixed, warps = _FIXED[block_out]
    fixed = fixed // 2 if x.dtype == torch.float32 else fixed  # shared memory must hold it
    kernel, blocks = (kernels.tuned_convolve, {}) if tune else (kernels.convolve, {"BM": fixed, "num_warps": warps})

    def grid(chosen: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(positions, chosen["BM"]), c_out // block_out

    def or_unused(given: Tensor | None) -> Tensor:  # a kernel needs every pointer, also those that it does not read
        return x if given is None else given.detach()

    kernel[grid](
        x, w, out, or_unused(residual), or_unused(activation), or_unused(before), or_unused(scale), or_unused(after),
        or_unused(residual_bias), positions,
        H=x.shape[1], W=x.shape[2], OH=height, OW=width, CI=c_in, CO=c_out, SIZE=w.shape[0], STRIDE=stride,
        TRANSPOSED=transposed, HAS_BEFORE=before is not None, HAS_SCALE=scale is not None,
        AFTER=0 if after is None else after.numel(), CR=shortcut[0], RH=shortcut[1], RW=shortcut[2],
        RSTRIDE=residual_stride, HAS_RESIDUAL_BIAS=residual_bias is not None, RELU=relu, MASKED=activation is not None,
        BK=largest_block(c_in, 64), BN=block_out, **blocks,
    )  # fmt: skip


def plain_convolution(  # noqa: PLR0913 - as convolve
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
) -> Tensor:
    """Return in float32, with torch's operations, what convolve writes to out, of which only the shape is used."""
    kernel, images = w.float(), x.float().permute(0, 3, 1, 2)
    images = images if before is None else images + before
    if transposed:
        shape = [out.shape[0], out.shape[3], out.shape[1], out.shape[2]]
        total = conv2d_input(shape, kernel.permute(2, 3, 0, 1), images, stride, len(w) // 2)
    else:
        total = functional.conv2d(images, kernel.permute(3, 2, 0, 1), None, stride, len(w) // 2)
    total = total.permute(0, 2, 3, 1)
    total = total if scale is None else total * scale
    total = total if after is None else total + after
    if residual is not None:
        spread = torch.zeros_like(total)
        common = min(total.shape[3], residual.shape[3])
        if transposed:
            spread[:, ::residual_stride, ::residual_stride, :common] = residual[..., :common].float()
        else:
            read = residual[:, ::residual_stride, ::residual_stride].float()
            spread[..., :common] = read if residual_bias is None else read + residual_bias
        total = total + spread
    total = total.relu() if relu else total
    return total if activation is None else torch.where(activation > 0, total, 0)


def largest_block(channels: int, most: int) -> int:
    """Return the largest power of 2 that divides a number of channels, up to most."""
    return min(most, channels & -channels)
