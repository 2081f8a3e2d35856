"""The kernels themselves. Images are (B, H, W, C) in memory, kernels of convolutions (K, K, channels in, channels out).

A module that imports this one needs Triton, which comes with torch for NVIDIA GPUs. With TRITON_INTERPRET=1 in the
environment before this module is imported, the kernels run on a CPU, in fp32 only.
"""

from collections.abc import Callable, Sequence
from typing import Any

import triton
import triton.language as tl


@triton.jit
def convolve(
    x,
    w,
    out,
    residual,
    activation,
    before,
    scale,
    after,
    residual_bias,
    positions,
    H: tl.constexpr,
    W: tl.constexpr,
    OH: tl.constexpr,
    OW: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
    SIZE: tl.constexpr,
    STRIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    HAS_BEFORE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    AFTER: tl.constexpr,
    CR: tl.constexpr,
    RH: tl.constexpr,
    RW: tl.constexpr,
    RSTRIDE: tl.constexpr,
    HAS_RESIDUAL_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    MASKED: tl.constexpr,
    BK: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
):
    """Convolve with a kernel of odd SIZE and padding SIZE // 2, or its transpose, and with what follows in a network.

    out = mask(relu(scale * conv(x + before) + after + residual + residual_bias)), each part if its constant says so.
    x (B, H, W, CI), out (B, OH, OW, CO), w (SIZE, SIZE, CI, CO), residual (B, RH, RW, CR), activation (B, OH, OW, CO);
    before, scale, residual_bias: pointers to a scalar; after: to AFTER numbers, none, one, or CO; positions: B * OH *
    OW. Not TRANSPOSED: residual is read at every RSTRIDE-th position, and channels that it lacks are 0. TRANSPOSED: x
    is the gradient of a convolution of this STRIDE, and residual is added at every RSTRIDE-th position. CR 0: there is
    none. MASKED: 0 where activation is not above 0.
    """
    place = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    inside = place < positions
    column = place % OW
    row = (place // OW) % OH
    image = place // (OW * OH)
    total = tl.zeros((BM, BN), dtype=tl.float32)
    for part in range(SIZE * SIZE * (CI // BK)):  # a loop of its own, which Triton can pipeline
        tap, block = part // (CI // BK), part % (CI // BK)
        r, c = tap // SIZE, tap % SIZE
        if TRANSPOSED:
            up, left = row + SIZE // 2 - r, column + SIZE // 2 - c
            valid = inside & (up >= 0) & (up % STRIDE == 0) & (left >= 0) & (left % STRIDE == 0)
            up, left = up // STRIDE, left // STRIDE
            valid = valid & (up < H) & (left < W)
        else:
            up, left = row * STRIDE + r - SIZE // 2, column * STRIDE + c - SIZE // 2
            valid = inside & (up >= 0) & (up < H) & (left >= 0) & (left < W)
        k = block * BK + tl.arange(0, BK)
        start = ((image * H + up) * W + left) * CI
        a = tl.load(x + start[:, None] + k[None, :], mask=valid[:, None], other=0.0)
        if HAS_BEFORE:  # the padding stays 0
            a = tl.where(valid[:, None], a.to(tl.float32) + tl.load(before), 0.0).to(a.dtype)
        b = tl.load(w + (tap * CI + k[:, None]) * CO + n[None, :])
        total = tl.dot(a, b, total, input_precision="ieee")
    if HAS_SCALE:
        total *= tl.load(scale)
    if AFTER > 1:
        total += tl.load(after + n)[None, :]
    elif AFTER == 1:
        total += tl.load(after)
    there = place[:, None] * CO + n[None, :]
    if CR > 0:
        if TRANSPOSED:
            given = inside & (row % RSTRIDE == 0) & (column % RSTRIDE == 0)
            start = ((image * RH + row // RSTRIDE) * RW + column // RSTRIDE) * CR
        else:
            given = inside
            start = ((image * RH + row * RSTRIDE) * RW + column * RSTRIDE) * CR
        known = given[:, None] & (n < CR)[None, :]
        shortcut = tl.load(residual + start[:, None] + n[None, :], mask=known, other=0.0).to(tl.float32)
        if HAS_RESIDUAL_BIAS:
            shortcut = tl.where(known, shortcut + tl.load(residual_bias), 0.0)
        total += shortcut
    if RELU:
        total = tl.maximum(total, 0.0)
    if MASKED:
        active = tl.load(activation + there, mask=inside[:, None], other=0.0) > 0
        total = tl.where(active, total, 0.0)
    tl.store(out + there, total.to(out.dtype.element_ty), mask=inside[:, None])


# The fastest block sizes for each layer are found by timing at its first call, and kept in Triton's cache. The order in
# which products are added may depend on them. There are few, because each takes half a second to compile.
_NARROW = ((128, 4), (256, 2), (256, 4), (256, 8))  # positions and warps, for programs of up to 32 channels
_WIDE = ((64, 4), (128, 4), (128, 8), (256, 8))
_BLOCKS = [triton.Config({"BM": block}, num_warps=warps) for block, warps in dict.fromkeys((*_NARROW, *_WIDE))]
_LAYER = ["positions", "H", "W", "CI", "CO", "SIZE", "STRIDE", "TRANSPOSED"]


def _suitable(configs: Sequence[triton.Config], _: object, **named: Any) -> list[triton.Config]:  # noqa: ANN401
    wanted = _NARROW if named["BN"] <= 32 else _WIDE
    return [one for one in configs if (one.kwargs["BM"], one.num_warps) in wanted]


def _time(run: Callable[[], object], quantiles: Sequence[float]) -> Any:  # noqa: ANN401 - what Triton returns
    try:
        return triton.testing.do_bench(run, warmup=2, rep=10, quantiles=quantiles)
    except RuntimeError:  # the compiler fails for these sizes; Triton itself expects only some errors
        return [float("inf")] * len(quantiles)


tuned_convolve = triton.autotune(
    _BLOCKS, _LAYER, prune_configs_by={"early_config_prune": _suitable}, do_bench=_time, cache_results=True
)(convolve)


@triton.jit
def stem(
    x,
    w,
    mean,
    std,
    after,
    out,
    positions,
    SB,
    SC,
    SH,
    SW,
    H: tl.constexpr,
    W: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
    AFTER: tl.constexpr,
    BM: tl.constexpr,
):
    """Normalise pixels, convolve with a 3x3 kernel and padding 1, add AFTER numbers, and apply ReLU.

    x: float32 of any layout, with strides SB, SC, SH, SW; w: (3, 3, CI, CO) float32; mean, std: (CI,);
    out: (B, H, W, CO), CO a power of 2; after: as in convolve.
    """
    place = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.arange(0, CO)
    inside = place < positions
    column = place % W
    row = (place // W) % H
    image = place // (W * H)
    total = tl.zeros((BM, CO), dtype=tl.float32)
    for r in tl.static_range(3):
        for c in tl.static_range(3):
            up, left = row + r - 1, column + c - 1
            valid = inside & (up >= 0) & (up < H) & (left >= 0) & (left < W)
            start = image * SB + up * SH + left * SW
            for k in tl.static_range(CI):
                a = tl.load(x + start + k * SC, mask=valid, other=0.0)
                a = tl.where(valid, (a - tl.load(mean + k)) / tl.load(std + k), 0.0)
                total += a[:, None] * tl.load(w + ((r * 3 + c) * CI + k) * CO + n)[None, :]
    if AFTER > 1:
        total += tl.load(after + n)[None, :]
    elif AFTER == 1:
        total += tl.load(after)
    total = tl.maximum(total, 0.0)
    tl.store(out + place[:, None] * CO + n[None, :], total.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def stem_step(
    gradient,
    w,
    std,
    clean,
    point,
    found,
    eps,
    step,
    positions,
    SB,
    SC,
    SH,
    SW,
    H: tl.constexpr,
    W: tl.constexpr,
    CI: tl.constexpr,
    CO: tl.constexpr,
    KEEP: tl.constexpr,
    BM: tl.constexpr,
):
    """Finish the gradient of the pixels, and take a signed step that is projected onto the ball and onto [0, 1].

    gradient: (B, H, W, CO), with respect to the stem's result before ReLU; clean, point: float32 with the strides SB,
    SC, SH, SW, of which point is changed; eps, step: (CI,); KEEP: store the gradient of the pixels in found, which has
    the same strides.
    """
    place = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.arange(0, CO)
    inside = place < positions
    column = place % W
    row = (place // W) % H
    image = place // (W * H)
    for k in tl.static_range(CI):
        total = tl.zeros((BM,), dtype=tl.float32)
        for r in tl.static_range(3):
            for c in tl.static_range(3):
                up, left = row + 1 - r, column + 1 - c
                valid = inside & (up >= 0) & (up < H) & (left >= 0) & (left < W)
                start = ((image * H + up) * W + left) * CO
                g = tl.load(gradient + start[:, None] + n[None, :], mask=valid[:, None], other=0.0).to(tl.float32)
                total += tl.sum(g * tl.load(w + ((r * 3 + c) * CI + k) * CO + n)[None, :], axis=1)
        there = image * SB + k * SC + row * SH + column * SW
        if KEEP:
            tl.store(found + there, total / tl.load(std + k), mask=inside)
        sign = (total > 0).to(tl.float32) - (total < 0).to(tl.float32)
        x = tl.load(clean + there, mask=inside, other=0.0)
        radius = tl.load(eps + k)
        low, high = tl.maximum(x - radius, 0.0), tl.minimum(x + radius, 1.0)
        moved = tl.load(point + there, mask=inside, other=0.0) + tl.load(step + k) * sign
        tl.store(point + there, tl.minimum(tl.maximum(moved, low), high), mask=inside)


@triton.jit
def head(
    activation,
    w,
    bias,
    before,
    label,
    out,
    HW: tl.constexpr,
    C: tl.constexpr,
    CLASSES: tl.constexpr,
    HAS_BEFORE: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
    BL: tl.constexpr,
):
    """Compute the gradient of the cross entropy of one image per program, down to before the last ReLU.

    activation, out: (B, HW, C), after the last ReLU, and its gradient before it; w: (CLASSES, C) and bias: (CLASSES,)
    of the linear layer, float32; before: a scalar that is added to the mean; label: (B,) int64; BP, BC, BL: powers of
    2, BC and BL not below C and CLASSES.
    """
    image = tl.program_id(0)
    c, j = tl.arange(0, BC), tl.arange(0, BL)
    total = tl.zeros((BC,), dtype=tl.float32)
    for block in tl.static_range((HW + BP - 1) // BP):
        p = block * BP + tl.arange(0, BP)
        there = (image * HW + p[:, None]) * C + c[None, :]
        known = (p < HW)[:, None] & (c < C)[None, :]
        total += tl.sum(tl.load(activation + there, mask=known, other=0.0).to(tl.float32), axis=0)
    mean = total / HW
    if HAS_BEFORE:
        mean += tl.load(before)
    known = (j < CLASSES)[:, None] & (c < C)[None, :]
    weights = tl.load(w + j[:, None] * C + c[None, :], mask=known, other=0.0)
    logits = tl.sum(weights * mean[None, :], axis=1) + tl.load(bias + j, mask=j < CLASSES, other=0.0)
    logits = tl.where(j < CLASSES, logits, float("-inf"))
    odds = tl.exp(logits - tl.max(logits, axis=0))
    change = odds / tl.sum(odds, axis=0) - (j == tl.load(label + image)).to(tl.float32)
    spread = tl.sum(change[:, None] * weights, axis=0) / HW
    for block in tl.static_range((HW + BP - 1) // BP):
        p = block * BP + tl.arange(0, BP)
        there = (image * HW + p[:, None]) * C + c[None, :]
        known = (p < HW)[:, None] & (c < C)[None, :]
        active = tl.load(activation + there, mask=known, other=0.0) > 0
        tl.store(out + there, tl.where(active, spread[None, :], 0.0).to(out.dtype.element_ty), mask=known)
