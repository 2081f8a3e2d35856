"""Augment batches of training images on their device, with independent random draws for every example."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

SCALE = (0.08, 1.0)  # range of a crop's area, as a fraction of the image's; torchvision's default
RATIO = (3 / 4, 4 / 3)  # range of a crop's width divided by its height; torchvision's default
TRIES = 10  # random boxes per example, before the fallback


def random_crop_flip(images: Tensor, *, pad: int, generator: torch.Generator) -> Tensor:
    """Pad with zeros, crop to the original size at a random place, and flip left-right with probability 1/2 (D.1).

    images: (B, C, H, W), any dtype, on the generator's device; pad: pixels on each side. Every example has its own
    place and flip. Returns images of the same shape and dtype.
    """
    batch, _, height, width = images.shape
    draw = partial(torch.randint, size=(batch,), generator=generator, device=generator.device)
    top, left, flip = draw(2 * pad + 1), draw(2 * pad + 1), draw(2).bool()
    windows = (
        F.pad(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    )  # (B, C, places, places, H, W)
    crops = windows[torch.arange(batch, device=generator.device), :, top, left]  # (B, C, H, W)
    return torch.where(flip[:, None, None, None], crops.flip(3), crops)


def random_resized_crop_flip(images: Tensor, *, size: int, generator: torch.Generator) -> Tensor:
    """Crop a random box, resize it to a square of side `size`, and flip it left-right with probability 1/2 (D.1).

    images: uint8 (B, C, H, W) on the generator's device. Returns uint8 (B, C, size, size).

    Boxes are drawn as in torchvision's RandomResizedCrop (see `boxes`). The filter is also torchvision's default,
    bilinear with antialiasing: a triangle that extends one pixel of the coarser grid to each side. The filter is
    separable, so resizing multiplies each example by two matrices, and boxes of all sizes form one batch. Values are
    rounded once, and therefore differ from torchvision's by one grey level in some places.
    """
    height, width = images.shape[2:]
    top, left, rows, columns = draw_boxes(len(images), height, width, generator=generator)
    flip = torch.randint(2, (len(images),), generator=generator, device=generator.device).bool()
    down = _resize_matrices(top, rows, full=height, size=size)  # (B, size, H)
    across = _resize_matrices(left, columns, full=width, size=size)  # (B, size, W)
    across = torch.where(flip[:, None, None], across.flip(1), across)
    with torch.autocast(images.device.type, enabled=False):  # half precision would lose grey levels
        pixels = down[:, None] @ images.to(torch.float32) @ across[:, None].mT  # (B, C, size, size)
    return pixels.round_().clamp_(0, 255).to(torch.uint8)


def draw_boxes(
    batch: int, height: int, width: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw boxes inside images of height x width: top, left, rows, columns, each int64 (batch,).

    This follows torchvision's RandomResizedCrop: the area is uniform in SCALE, the ratio log-uniform in RATIO, and the
    place uniform among the boxes of that size. The first of TRIES draws that fits is taken, otherwise the largest
    centred box whose ratio is in RATIO. Here all tries are drawn at once, so that the number of draws does not depend
    on their values; the distribution is the same.
    """
    uniform = partial(torch.rand, generator=generator, device=generator.device)
    area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * uniform(TRIES, batch))
    low, high = map(math.log, RATIO)
    ratio = (low + (high - low) * uniform(TRIES, batch)).exp()
    columns, rows = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()  # (TRIES, batch)
    fits = (columns >= 1) & (columns <= width) & (rows >= 1) & (rows <= height)
    first = fits.int().argmax(0, keepdim=True)  # (1, batch); 0 where none fits
    rows, columns, has_fit = (values.gather(0, first)[0] for values in (rows, columns, fits))
    top, left = ((uniform(batch) * (n + 1)).long().minimum(n) for n in (height - rows, width - columns))
    whole_rows, whole_columns = _largest_box(height, width)
    centre = (height - whole_rows) // 2, (width - whole_columns) // 2, whole_rows, whole_columns
    top, left, rows, columns = (
        torch.where(has_fit, drawn, fixed) for drawn, fixed in zip((top, left, rows, columns), centre, strict=True)
    )
    return top, left, rows, columns


def _largest_box(height: int, width: int) -> tuple[int, int]:
    """Return the rows and columns of the largest box whose ratio is in RATIO."""
    if width < RATIO[0] * height:
        return round(width / RATIO[0]), width
    if width > RATIO[1] * height:
        return height, round(height * RATIO[1])
    return height, width


def _resize_matrices(start: Tensor, length: Tensor, *, full: int, size: int) -> Tensor:
    """Make matrices (B, size, full) that resize `length` pixels from `start` in a line of `full` pixels to `size`."""
    scale = (length / size)[:, None, None]  # pixels of the image per pixel of the result
    centre = scale * (torch.arange(size, device=start.device)[None, :, None] + 0.5)  # (B, size, 1), relative to the box
    pixel = (
        torch.arange(full, device=start.device)[None, None, :] - start[:, None, None]
    )  # (B, 1, full), relative to the box
    inside = (pixel >= 0) & (pixel < length[:, None, None])
    weights = (1 - (pixel + 0.5 - centre).abs() / scale.clamp(min=1)).clamp(min=0) * inside
    return weights / weights.sum(2, keepdim=True)
