"""Write and read the result tables: Parquet with a checked schema, run metadata and an atomic rename."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from robreg import job

_KEY = b"robreg"
NULLABLE = (
    "sigma_max",
    "acc_conditional",
    "pgd_acc",
    "spectral_complexity",
    "std_zero",
    "log10_u_min_upper",
    "log10_sigma_min_product",
    "w_min",
    "v_min_upper",
    "first_term_lower",
    "lemma_share",
    "lemma_residual",
    "lemma_slack",
    "before",
    "after",
)
_ATTACKS = pa.schema(
    [(key, pa.string()) for key in ("attack", "space", "start", "loss")]
    + [("eps", pa.float64()), ("step", pa.float64())]
    + [(key, pa.int64()) for key in ("steps", "restarts", "seed")]
    + [("split", pa.string()), ("n", pa.int64()), ("n_correct", pa.int64()), ("n_robust", pa.int64())]
    + [("acc_conditional", pa.float64()), ("acc_robust", pa.float64())]
)

SCHEMAS = {
    "history": pa.schema(
        [
            ("epoch", pa.int64()),
            ("lr", pa.float64()),
            ("loss", pa.float64()),
            ("acc", pa.float64()),
            ("sigma_max", pa.list_(pa.float64())),
            ("seconds", pa.float64()),
            ("examples_per_s", pa.float64()),
        ]
    ),
    "margins": pa.schema(
        [
            ("split", pa.string()),
            ("index", pa.int64()),
            ("label", pa.int64()),
            ("prediction", pa.int64()),
            ("margin", pa.float32()),
            ("prob", pa.float32()),
            ("loss", pa.float32()),
        ]
    ),
    "attacks": _ATTACKS,
    "apgd": _ATTACKS,  # the rows that apgd adds to attacks
    "lossvar": pa.schema(
        [
            ("eps", pa.float64()),
            ("index", pa.int64()),
            ("loss_clean", pa.float32()),
            ("loss_adv", pa.float32()),
            ("variation", pa.float32()),
        ]
    ),
    "sv": pa.schema(
        [("layer", pa.int64()), ("name", pa.string()), ("sigma", pa.float64()), ("multiplicity", pa.int64())]
    ),
    "svstd": pa.schema(
        [("layer", pa.int64()), ("name", pa.string()), ("kind", pa.string())]
        + [(key, pa.int64()) for key in ("c_in", "c_out", "kernel", "stride", "height", "width", "n")]
        + [(key, pa.float64()) for key in ("mean", "std", "min", "max")]
    ),
    "padding": pa.schema(
        [("layer", pa.int64()), ("name", pa.string()), ("method", pa.string())]
        + [(key, pa.float64()) for key in ("std_circular", "std_zero", "max_circular", "max_zero")]
    ),
    "spread": pa.schema(
        [
            ("layer", pa.int64()),
            ("name", pa.string()),
            ("perturbation", pa.string()),
            ("eps", pa.float64()),
            ("n", pa.int64()),
            ("mean", pa.float64()),
            ("std", pa.float64()),
        ]
    ),
    "theory": pa.schema(
        [("n", pa.int64()), ("m", pa.int64())]
        + [(key, pa.float64()) for key in ("gamma", "eta", "c_x", "k", "eps")]
        + [("sigma_min_zero_layers", pa.int64())]
        + [
            (key, pa.float64())
            for key in (
                "log10_sigma_min_product",
                "w_min",
                "v_min_upper",
                "log10_u_min_upper",
                "first_term_lower",
                "log10_second_term",
                "ramp_risk_train",
                "ramp_risk_test",
                "ramp_gap",
            )
        ]
        + [("lemma_pairs", pa.int64()), ("lemma_pieces", pa.int64())]
        + [("lemma_share", pa.float64()), ("lemma_residual", pa.float64()), ("lemma_slack", pa.float64())]
    ),
    "masking": pa.schema(
        [("check", pa.string()), ("eps", pa.float64()), ("n", pa.int64())]
        + [(key, pa.float64()) for key in ("before", "after", "value", "limit")]
        + [("passed", pa.bool_())]
    ),
    "checks": pa.schema(
        [
            ("check", pa.string()),
            ("what", pa.string()),
            ("found", pa.float64()),
            ("relation", pa.string()),
            ("expected", pa.float64()),
            ("tolerance", pa.float64()),
            ("passed", pa.bool_()),
        ]
    ),
    "metrics": pa.schema(
        [
            (key, pa.float64())
            for key in (
                "train_acc",
                "test_acc",
                "acc_gap",
                "train_loss",
                "test_loss",
                "loss_gap",
                "pgd_acc",
                "robust_acc",
                "spectral_complexity",
                "log10_spectral_complexity",
            )
        ]
    ),
}


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Hand out a temporary name beside path; rename it to path only if the block succeeds, remove it otherwise.

    Raises OSError, which names path, where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise job.unwritten(path, error) from error
    finally:
        if temporary.exists():
            temporary.unlink()


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
    with atomic(path) as temporary:
        pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **own}), temporary)


def read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table, or only the named columns of it; raises ValueError if it is damaged or lacks one."""
    with _readable(path):
        return pq.read_table(path, columns=list(columns) if columns else None)


def metadata(path: Path) -> dict[str, Any]:
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
