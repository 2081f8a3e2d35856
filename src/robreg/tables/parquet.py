"""Write and read the result tables: Parquet with a checked schema and the run's metadata, renamed into place."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from robreg.tables.files import atomic_write
from robreg.tables.schemas import NULLABLE, SCHEMAS

_KEY = b"robreg"


def write(path: Path, kind: str, columns: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Write one of the contract's tables.

    columns: one sequence of equal length per column; metadata: plain values, kept as JSON in the Parquet schema.
    Raises ValueError if the columns are not exactly those of SCHEMAS[kind] with values of its types, or if one is null
    where the contract has none, or a float that is not finite.
    """
    schema = SCHEMAS[kind]
    if list(columns) != schema.names:
        raise ValueError(f"{path}: columns {list(columns)} are not the contract's {schema.names}")
    try:
        table = pa.table({key: _array(columns[key], schema.field(key).type) for key in columns}, schema=schema)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: a value does not have its column's type; nothing was written ({error})") from error
    for name in schema.names:
        _refuse_bad_values(path, name, table[name])
    write_frame(path, table, metadata)


def write_frame(path: Path, table: pa.Table, metadata: Mapping[str, Any]) -> None:
    """Write any Arrow table atomically, with metadata (plain values) in its schema."""
    own = {_KEY: json.dumps(metadata, sort_keys=True).encode()}
    with atomic_write(path) as temporary:
        pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **own}), temporary)


def read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table, or only the named columns of it; raises ValueError if it is damaged or lacks one."""
    with _readable(path):
        return pq.read_table(path, columns=list(columns) if columns else None)


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata that write put into the table's schema; {} if there is none. Errors as for read."""
    with _readable(path):
        found = (pq.read_schema(path).metadata or {}).get(_KEY)
        return json.loads(found) if found else {}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"{path} is damaged, or lacks a column ({why}); delete it and make it again") from error


def _array(values: Any, kind: pa.DataType) -> pa.Array:  # noqa: ANN401 - whatever Arrow reads
    """Convert without changing a value: a float is not cut to a whole number, NaN does not become null."""
    array = pa.array(values, from_pandas=False)
    whole = pa.types.is_integer(array.type) and (pa.types.is_integer(kind) or pa.types.is_floating(kind))
    real = pa.types.is_floating(array.type) and pa.types.is_floating(kind)
    if array.type != kind and not (whole or real or pa.types.is_null(array.type) or pa.types.is_list(kind)):
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
