"""Open the handwritten digits that are part of scikit-learn."""

import numpy as np

from robreg.data.source import Source, source_from_arrays
from robreg.data.subset import stratified_subset

N_TEST = 500  # test images


def open_digits() -> Source:
    """Open scikit-learn's handwritten digits: 1797 images (1, 8, 8) with pixels round(255 v / 16), 500 for testing."""
    # Imported here because it takes two seconds, which other sources need not spend.
    from sklearn.datasets import load_digits  # noqa: PLC0415

    pixels, targets = load_digits(return_X_y=True)
    images = np.round(255 * pixels / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = targets.astype(np.int64)
    test = stratified_subset(labels, N_TEST, seed=0)  # not subset_seed: the split is part of the data set
    train = np.setdiff1d(np.arange(len(labels)), test)
    names = [str(digit) for digit in range(10)]
    return source_from_arrays((images[train], labels[train]), (images[test], labels[test]), names)
