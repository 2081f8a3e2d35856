"""Augmentation: the random crop is compared with a plain loop, the random resized crop with torchvision."""

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2.functional import resized_crop

from robreg.data.augmentation import draw_boxes, random_crop_flip, random_resized_crop_flip

RNG = np.random.default_rng(0)


def plain_crop_flip(images: np.ndarray, pad: int, generator: torch.Generator) -> np.ndarray:
    """Crop and flip one example after another, with random draws in the order top, left, flip."""
    top, left = (torch.randint(2 * pad + 1, (len(images),), generator=generator).tolist() for _ in range(2))
    flip = torch.randint(2, (len(images),), generator=generator).tolist()
    result = np.empty_like(images)
    for i, image in enumerate(images):
        padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
        crop = padded[:, top[i] : top[i] + image.shape[1], left[i] : left[i] + image.shape[2]]
        result[i] = crop[:, :, ::-1] if flip[i] else crop
    return result


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(("pad", "shape"), [(4, (3, 32, 32)), (1, (1, 5, 9)), (0, (2, 4, 3))])
def test_crop_and_flip_equal_a_plain_loop(dtype: type, pad: int, shape: tuple[int, int, int]) -> None:
    images = RNG.integers(1, 256, (64, *shape)).astype(dtype)
    before = images.copy()
    new = random_crop_flip(torch.from_numpy(images), pad=pad, generator=torch.Generator().manual_seed(pad))
    expected = plain_crop_flip(images, pad, torch.Generator().manual_seed(pad))
    assert new.numpy().dtype == dtype
    np.testing.assert_array_equal(new, expected)
    np.testing.assert_array_equal(images, before)


def test_places_and_flips_are_equally_frequent() -> None:
    n, pad = 18_000, 1
    images = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3).expand(n, 1, 3, 3)
    generator = torch.Generator().manual_seed(0)
    outcomes, counts = (
        random_crop_flip(images, pad=pad, generator=generator).flatten(1).unique(dim=0, return_counts=True)
    )
    assert len(outcomes) == 2 * (2 * pad + 1) ** 2
    chi2 = float(((counts - n / 18) ** 2 / (n / 18)).sum())
    assert chi2 < 40.8  # the 99.9 % point at 17 degrees of freedom
    again = random_crop_flip(images, pad=pad, generator=generator)
    assert not again.equal(random_crop_flip(images, pad=pad, generator=generator))


def smooth_images(n: int, height: int, width: int) -> torch.Tensor:
    """Make random images (n, 3, height, width) with structure at all scales, as in photographs."""
    noise = torch.from_numpy(RNG.normal(size=(n, 3, height, width))).cumsum(2).cumsum(3)
    low, high = noise.amin((2, 3), keepdim=True), noise.amax((2, 3), keepdim=True)
    return (255 * (noise - low) / (high - low)).round().to(torch.uint8)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize(("height", "width", "size"), [(64, 64, 56), (40, 48, 24), (16, 16, 40)])
def test_resized_crops_equal_those_of_torchvision(height: int, width: int, size: int, *, rough: bool) -> None:
    n = 150
    images = smooth_images(n, height, width)
    if rough:
        images = torch.from_numpy(RNG.integers(0, 256, (n, 3, height, width), np.uint8))
    found = random_resized_crop_flip(images, size=size, generator=seeded(1))
    assert found.dtype == torch.uint8
    generator = seeded(1)
    box = torch.stack(draw_boxes(n, height, width, generator=generator), 1).tolist()
    flip = torch.randint(2, (n,), generator=generator).tolist()
    assert 0.3 < np.mean(flip) < 0.7
    for dtype, share in (
        (torch.float32, 0.001),
        (torch.uint8, 0.25),
    ):  # for uint8, torchvision also rounds after the first of the two directions
        crops = [resized_crop(x, *b, [size, size]) for x, b in zip(images.to(dtype), box, strict=True)]
        expected = torch.stack([x.flip(2) if f else x for x, f in zip(crops, flip, strict=True)])
        difference = (found.int() - expected.round().int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < share


def test_boxes_have_the_distribution_of_torchvision() -> None:
    n, height, width = 4000, 64, 48  # not square, so that the fallback sometimes occurs
    ours = torch.stack(draw_boxes(n, height, width, generator=seeded(0)), 1).numpy()
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)])
    top, left, rows, columns = ours.T
    assert (ours >= 0).all()
    assert (top + rows <= height).all()
    assert (left + columns <= width).all()
    for name, quantity in {
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "rows": lambda b: b[:, 2],
        "columns": lambda b: b[:, 3],
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
    }.items():
        assert ks_2samp(quantity(ours), quantity(theirs)).pvalue > 1e-3, name


@pytest.mark.parametrize(("height", "width", "fallback"), [(100, 10, (43, 0, 13, 10)), (10, 100, (0, 43, 10, 13))])
def test_if_no_draw_fits_the_box_is_the_fallback_of_torchvision(
    height: int, width: int, fallback: tuple[int, int, int, int]
) -> None:
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = {RandomResizedCrop.get_params(image, [0.9, 1.0], [3 / 4, 4 / 3]) for _ in range(5)}
    assert theirs == {fallback}  # an area of 0.9 or more never fits
    found = torch.stack(draw_boxes(3000, height, width, generator=seeded(0)), 1)
    shares = (found == torch.tensor(fallback)).all(1).float().mean()
    expected = np.mean(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) == fallback for _ in range(1000)]
    )
    assert abs(shares - expected) < 0.06


def test_every_example_has_its_own_box_which_depends_only_on_the_seed() -> None:
    images = smooth_images(1, 64, 64).expand(32, -1, -1, -1)
    first = random_resized_crop_flip(images, size=56, generator=seeded(0))
    assert len(first.flatten(1).unique(dim=0)) == 32
    assert first.equal(random_resized_crop_flip(images, size=56, generator=seeded(0)))
    assert not first.equal(random_resized_crop_flip(images, size=56, generator=seeded(1)))
    with torch.autocast("cpu", torch.bfloat16):
        assert first.equal(random_resized_crop_flip(images, size=56, generator=seeded(0)))
