"""Open the handwritten digits that are part of scikit-learn."""

import hashlib

import numpy as np

from robreg.data.errors import DataError
from robreg.data.source import Source, source_from_arrays

N_TEST = 500  # the last images, by other writers than the training images
_SHA256 = "0b7e9c3202d7bcd255d6a19a238d3743bf5e320ba74812a6679958a017c55382"  # of all images, then all labels, in order


def open_digits(where: str) -> Source:
    """Open scikit-learn's handwritten digits: 1797 images (1, 8, 8) with pixels round(255 v / 16), 500 for testing.

    The images come in the order of their writers, so other people wrote the last 500. A random split would give every
    writer a share of both splits, and test errors that are far too small for new writers. The labels repeat after about
    130 images, where the next writer begins: by that, the last ten training images are by the first writer of the test
    images, and all others by people who wrote none of these.

    where: the setting that errors name. Raises DataError if the images, their labels or their order are not the known
    ones, because the split by writers depends on them.
    """
    # Imported here because it takes two seconds, which other sources need not spend.
    from sklearn import __version__  # noqa: PLC0415
    from sklearn.datasets import load_digits  # noqa: PLC0415

    pixels, targets = load_digits(return_X_y=True)
    images = np.round(255 * pixels / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = targets.astype("<i8")
    if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != _SHA256:
        raise DataError(
            f"{where}: load_digits of scikit-learn {__version__} returns other images, or the images in another order, "
            "than those that were split by writer; install the version of scikit-learn in envs/run.txt"
        )
    train, test = slice(None, -N_TEST), slice(-N_TEST, None)
    names = [str(digit) for digit in range(10)]
    return source_from_arrays((images[train], labels[train]), (images[test], labels[test]), names)
