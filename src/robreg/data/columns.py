"""Choose the columns of a Parquet file that have the images and the labels."""

import json
import re
from pathlib import Path

import pyarrow as pa

from robreg.data.errors import DataError
from robreg.data.source import Column, Columns, Settings, config_key
from robreg.runs.settings import describe_unknown_name

LABEL_NAMES = ("label", "fine_label")
_UNNAMED_INDEX = re.compile(r"__index_level_\d+__")  # pandas' names for index columns that have no name


def choose_columns(schema: pa.Schema, settings: Settings, path: Path) -> Columns:
    """Choose the columns of images and of labels in the file `path`. Raises DataError if a choice is not clear.

    The keys image_column and label_column decide. Without them, the images are the only structs with a binary field
    `bytes`, otherwise the only column of binary values. The labels, whole numbers or text, are the column label or
    fine_label, otherwise the only column of whole numbers, but never an index of pandas, which numbers the rows.
    """
    labels = _choose_labels(schema, settings, path)
    return Columns(_choose_images(schema, settings, path), labels, path)


def check_same_columns(found: Columns, first: Columns) -> None:
    """Raise DataError if a file of a data set has its images or labels in other columns than the first file."""
    if found.labels.text != first.labels.text and found.labels.path == first.labels.path:
        problem = f"the column {found.labels.path} has text here or in {first.file}, and whole numbers in the other"
        raise DataError(f"{found.file}: {problem}; write all files with the same type of labels")
    if (found.images.path, found.labels.path) != (first.images.path, first.labels.path):
        raise DataError(
            f"{found.file}: expected one column of images, {first.images.path}, and one of labels, "
            f"{first.labels.path}, as in {first.file}, but found {found.images.path} and {found.labels.path}; "
            "write all files with the same columns"
        )


def _choose_labels(schema: pa.Schema, settings: Settings, path: Path) -> Column:
    """Choose the column of labels, which has whole numbers, or text where its name says that it is meant."""
    whole = [field.name for field in schema if pa.types.is_integer(field.type)]
    text = [field.name for field in schema if _is_text(field.type)]
    index = _index_columns(schema)
    remaining = [name for name in whole if name not in index]
    named = [name for name in LABEL_NAMES if name in schema.names and name not in index]
    key = config_key(settings, "label_column")
    if (chosen := settings.get("label_column")) is not None:
        # An index is taken where it is named: labels may be a named index, and nobody writes its name by mistake.
        _check_known(chosen, schema, f"{path}: {key}")
        candidates, reason = [chosen], f"{key} names it"
    elif named:
        # A column that is called label has the labels, even if they are text: another column would be a wrong guess.
        usable = [name for name in named if name in whole] or [name for name in named if name in text]
        candidates, reason = usable or named, "it has the usual name of labels"
    else:
        candidates, reason = remaining, "it is the only column of whole numbers"
        reason += f", apart from pandas' index {', '.join(sorted(index))}" if index else ""
    if len(candidates) != 1 or candidates[0] not in whole + text:
        why = f", because {candidates[0]} has neither whole numbers nor text" if len(candidates) == 1 else ""
        fix = f"name a column of whole numbers or of text in {key}, or add one that numbers the classes from 0"
        raise DataError(f"{path}: cannot tell which column has the labels{why}: {_list_columns(schema)}; {fix}")
    name = str(candidates[0])
    return Column(name, name, reason, guessed=chosen is None and not named, text=name in text)


def _choose_images(schema: pa.Schema, settings: Settings, path: Path) -> Column:
    """Choose the column of encoded images: structs with a binary field `bytes`, as Hugging Face writes, or binary."""
    structs = [field.name for field in schema if _has_bytes(field.type)]
    binary = [field.name for field in schema if _is_binary(field.type)]
    key = config_key(settings, "image_column")
    if (chosen := settings.get("image_column")) is not None:
        _check_known(chosen, schema, f"{path}: {key}")
        candidates, reason = [chosen], f"{key} names it"
    else:
        candidates, reason = structs or binary, "it is the only one with encoded images"
    if len(candidates) != 1 or candidates[0] not in structs + binary:
        fix = f"name the right one in {key}" if structs + binary else "write the content of image files into one"
        raise DataError(
            f"{path}: expected one column of images, which has binary values, or structs with a binary field bytes, "
            f"but found {_list_columns(schema)}; {fix}"
        )
    name = str(candidates[0])
    return Column(name, f"{name}.bytes" if name in structs else name, reason)


def _check_known(chosen: str, schema: pa.Schema, where: str) -> None:
    """Raise DataError, whose message begins with `where`, if the file has no column of the chosen name."""
    if chosen not in schema.names:
        raise DataError(f"{where}: {describe_unknown_name('column', chosen, schema.names)}")


def _index_columns(schema: pa.Schema) -> set[str]:
    """List the columns that are an index of pandas: those that pandas' metadata names, and those with its own names.

    A file has no such metadata if another program wrote it again. An index that is only a range has no column.
    """
    described = json.loads((schema.metadata or {}).get(b"pandas", b"{}")).get("index_columns", [])
    named = {name for name in described if isinstance(name, str)}
    return named | {name for name in schema.names if _UNNAMED_INDEX.fullmatch(name)}


def _list_columns(schema: pa.Schema) -> str:
    """List the columns of a file with their types, for a message."""
    index = _index_columns(schema)
    return ", ".join(
        f"{field.name} ({field.type}{', an index of pandas' if field.name in index else ''})" for field in schema
    )


def _has_bytes(kind: pa.DataType) -> bool:
    """Return whether a column's type is that of Hugging Face images."""
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)


def _is_binary(kind: pa.DataType) -> bool:
    """Return whether a column's values are bytes of any length."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    """Return whether a column's values are text, each stored by itself or as the number of one (pandas' category)."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value))
