"""Count the images of each class: what the log says of them, and the counts that wrong labels have."""

import logging
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from robreg.data.errors import MAX_NAME, DataError
from robreg.data.source import OFFICIAL, Labels, Settings, Source, config_key

LISTED = 20  # classes that a message lists one by one
MAX_NAMES = 2**15  # names of classes; ImageNet-21k has 21,841

log = logging.getLogger(__name__)


def refuse_untrained(names: Iterable[str], known: Container[str], where: str) -> None:
    """Raise DataError, which begins with `where`, if a class of the test split is not among the known training ones."""
    if unknown := sorted(name for name in names if name not in known):
        listed = ", ".join(repr(name[:MAX_NAME]) for name in unknown[:LISTED])
        more = f" and {len(unknown) - LISTED} more" if len(unknown) > LISTED else ""
        raise DataError(
            f"{where}: test images have class {listed}{more}, but no training image has it; add training images of "
            "every class, or leave these test images out"
        )


def describe_classes(labels: Labels, source: Source) -> str:
    """Say how many images each class has, as the end of a sentence; labels: (N,) of some images, not empty."""
    counts, names, classes = _count(labels), source.class_names or [], source.classes
    total = f"{len(labels)} images of {classes} classes"
    most = max(counts, key=lambda label: (counts[label], -label))
    fewest = next(_absent(counts, classes), min(counts, key=lambda label: (counts[label], label)))
    if counts[fewest] == counts[most]:
        return f"{total}, {counts[most]} of each"
    titles = {label: f"class {label} ({name})" for label, name in enumerate(names) if name != str(label)}
    each = [f"{titles.get(label, f'class {label}')}: {counts[label]}" for label in range(min(classes, LISTED))]
    more = f", and {classes - LISTED} classes more" if classes > LISTED else ""
    extremes = f"from {counts[fewest]} (class {fewest}) to {counts[most]} (class {most}) of each"
    return f"{total}, {extremes}; {', '.join(each)}{more}"


def check_guess(source: Source, settings: Settings) -> None:
    """Refuse, or warn of, labels from a Parquet file that give more classes than half the training images.

    So many classes mean that the numbers name images and not classes. A column that was only taken because no other
    has whole numbers is then refused. One that has the usual name of labels, or that the configuration names, may be
    meant: there are data sets with one image of each person. The classes of a published data set are known.
    """
    columns = source.columns
    if columns is None or settings["kind"] in OFFICIAL or 2 * source.classes <= len(source.train_labels):
        return
    name, key = columns.labels.name, config_key(settings, "label_column")
    problem = f"the column {name} has {source.classes} classes for {len(source.train_labels)} training images"
    if columns.labels.guessed:
        raise DataError(
            f"{columns.file}: {problem}, so it hardly has the labels, and was only taken because "
            f"{columns.labels.reason}; name the column of labels in {key}, {name} itself if it is meant"
        )
    log.warning("%s: %s; if these are not the labels, name their column in %s", columns.file, problem, key)


def check_training_images(source: Source, settings: Settings) -> None:
    """Raise DataError for a class that only the test split has, and warn of one with no training image or with one.

    No network can learn a class that only the test split has, so all its images would count as errors. A class that
    neither split has costs an output, which is learnt to be never right, and one image is little to learn from; both
    can be meant.
    """
    counts, where, fix = _count(source.train_labels), config_key(settings, "source"), other_column(source, settings)
    if unknown := sorted(_count(source.test_labels).keys() - counts.keys()):
        listed = _listing(unknown, len(unknown), source.class_names)
        raise DataError(
            f"{where}: test images have class {listed}, but no training image has it; "
            f"add training images of every class, or leave these test images out{fix}"
        )
    if missing := source.classes - len(counts):
        listed = _listing(_absent(counts, source.classes), missing, source.class_names)
        if source.columns is not None and source.columns.labels.guessed:
            raise DataError(
                f"{where}: no image has class {listed}, so the column {source.columns.labels.name}, which was only "
                f"taken because {source.columns.labels.reason}, hardly has the labels; name their column in "
                f"{config_key(settings, 'label_column')}, {source.columns.labels.name} itself if it is meant"
            )
        _refuse_offset(source, settings, fix)
        log.warning("%s: no image has class %s; number the classes from 0 without gaps%s", where, listed, fix)
    if single := [label for label in counts if counts[label] == 1]:
        listed = _listing(single, len(single), source.class_names)
        log.warning("%s: only one training image has class %s; add images of it%s", where, listed, fix)


def _refuse_offset(source: Source, settings: Settings, fix: str) -> None:
    """Raise DataError if the numbers of a Parquet file's labels begin above 0 and no name or key says that they do."""
    low = int(min(source.train_labels.min(), source.test_labels.min()))
    if low == 0 or source.columns is None or source.class_names is not None or "label_offset" in settings:
        return
    key = config_key(settings, "label_offset")
    below = "class 0" if low == 1 else f"the classes below {low}"
    raise DataError(
        f"{config_key(settings, 'source')}: the labels begin at {low} and not at 0; give {key}: {low}, or {key}: 0 if "
        f"{below} should stay without an image{fix}"
    )


def check_subset(source: Source, chosen: Labels, settings: Settings) -> None:
    """Warn of classes of which a subset of the training images has none; chosen: the labels (N,) of the subset.

    Raises DataError if it has only one class.
    """
    key, present = config_key(settings, "max_train"), _count(chosen).keys()
    if len(present) == 1:
        only = _listing(present, 1, source.class_names)
        what = f"all {len(chosen)} training images have class {only}, of which no network can learn anything"
        fix = f"give a larger number, or null, and a source with two classes or more{other_column(source, settings)}"
        raise DataError(f"{key}: {what}; {fix}")
    if lost := sorted(_count(source.train_labels).keys() - present):
        listed = _listing(lost, len(lost), source.class_names)
        log.warning("%s: none of the %d images has class %s; give a larger number, or null", key, len(chosen), listed)


def other_column(source: Source, settings: Settings) -> str:
    """Return the end of a message about labels that may come from the wrong column of a Parquet file."""
    if source.columns is None:
        return ""
    key = config_key(settings, "label_column")
    return f"; if the column {source.columns.labels.name} does not have the labels, name theirs in {key}"


def _count(labels: Labels) -> Counter[int]:
    """Count the images of each class that occurs in labels (N,); the largest label may be any number."""
    present, counts = np.unique(labels, return_counts=True)
    return Counter(dict(zip(present.tolist(), counts.tolist(), strict=True)))


def _absent(counts: Counter[int], classes: int) -> Iterator[int]:
    """Yield the classes without an image, from the lowest."""
    return (label for label in range(classes) if label not in counts)


def _listing(labels: Iterable[int], n: int, names: Sequence[str] | None) -> str:
    """List the first of n labels, with the names of their classes if they have any."""
    first = islice(labels, LISTED)
    listed = ", ".join(
        f"{label} ({names[label]})" if names and names[label] != str(label) else f"{label}" for label in first
    )
    return f"{listed} and {n - LISTED} more" if n > LISTED else listed
