"""Write and read the result tables: Parquet files with a checked schema and the run's metadata, written atomically."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from robreg.tables.files import atomic_write, open_regular
from robreg.tables.parquet_bounds import open_footer, read_bounded
from robreg.tables.schemas import NULLABLE, SCHEMAS

_METADATA_KEY = b"robreg"
_MAX_NESTED = 300  # lists and mappings in a run's settings, so that they are not too deep for recursive functions


def write(path: Path, kind: str, columns: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Write a table whose columns are listed in SCHEMAS.

    kind: a key of SCHEMAS; columns: one sequence per column, all of the same length; metadata: plain values, stored as
    JSON in the Parquet schema.
    Raises ValueError if the columns are not exactly those of SCHEMAS[kind], if a value does not have its column's type,
    if a value is null in a column that is not in NULLABLE, or if a float is not finite.
    """
    schema = SCHEMAS[kind]
    if list(columns) != schema.names:
        raise ValueError(f"{path}: the columns are {list(columns)}, but must be {schema.names}")
    try:
        table = pa.table({key: _to_array(columns[key], schema.field(key).type) for key in columns}, schema=schema)
    except pa.ArrowException as error:
        raise ValueError(
            f"{path}: a value does not have the type of its column ({error}); nothing was written"
        ) from error
    for name in schema.names:
        _refuse_bad_values(path, name, table[name])
    write_frame(path, table, metadata)


def write_frame(path: Path, table: pa.Table, metadata: Mapping[str, Any]) -> None:
    """Write any Arrow table atomically, with metadata (plain values) added to its schema."""
    own = {_METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()}
    with atomic_write(path) as file:
        pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **own}), file)


def read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table, or only the given columns of it.

    Raises OSError if it cannot be opened, and ValueError if it is no regular file, is damaged, lacks a column, or would
    take more memory than a table of its name may (see robreg.tables.parquet_bounds).
    """
    with open_regular(path) as file, _explain_read_errors(path):
        return read_bounded(file, path, columns)


def read_history(path: Path) -> list[dict[str, Any]]:
    """Read a history as one row per epoch. Raises as read does, and ValueError for other columns than a history's."""
    table = read(path)
    if not table.schema.equals(SCHEMAS["history"]):
        raise ValueError(f"{path} has other columns than a history; delete it and make it again")
    return table.to_pylist()


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata that write stored in the table's schema, or {} if there are none. Raises as read does."""
    with open_regular(path) as file, _explain_read_errors(path):
        stored = (open_footer(file).schema_arrow.metadata or {}).get(_METADATA_KEY, b"{}")
        metadata = json.loads(stored)
        if not isinstance(metadata, dict):
            raise ValueError("its metadata are no names with values")
        return metadata


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings that write stored as text in the metadata, or {} if there are none. Raises as read does."""
    text = read_metadata(path).get("settings", "{}")
    with _explain_read_errors(path):
        if not isinstance(text, str) or text.count("{") + text.count("[") > _MAX_NESTED:
            raise ValueError("its settings are not as this package writes them")
        if not isinstance(settings := json.loads(text), dict):
            raise ValueError("its settings are not a mapping")
        return settings


@contextmanager
def _explain_read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)[:500]  # names of columns may have any length
        raise ValueError(f"{path} is damaged or lacks a column ({why}); delete it and make it again") from error


def _to_array(values: Any, kind: pa.DataType) -> pa.Array:  # noqa: ANN401 - anything that Arrow can read
    """Convert values without changing them: floats are not truncated to integers, and NaN does not become null."""
    array = pa.array(values, from_pandas=False)
    from_integer = pa.types.is_integer(array.type) and (pa.types.is_integer(kind) or pa.types.is_floating(kind))
    from_float = pa.types.is_floating(array.type) and pa.types.is_floating(kind)
    if array.type != kind and not (
        from_integer or from_float or pa.types.is_null(array.type) or pa.types.is_list(kind)
    ):
        raise pa.ArrowTypeError(f"{array.type} is not {kind}")
    return array.cast(kind, safe=not pa.types.is_floating(kind))


def _refuse_bad_values(path: Path, name: str, column: pa.ChunkedArray) -> None:
    if column.null_count and name not in NULLABLE:
        raise ValueError(f"{path}: column {name} has {column.null_count} missing values; nothing was written")
    values = column.combine_chunks()
    if pa.types.is_list(values.type):
        values = values.flatten()
    if pa.types.is_floating(values.type):
        numbers = values.drop_null().to_numpy(zero_copy_only=False)
        bad = ~(abs(numbers) < float("inf"))
        if bad.any():
            raise ValueError(f"{path}: column {name} has {bad.sum()} values that are not finite; nothing was written")
