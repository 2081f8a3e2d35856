"""Write the singular values of every layer of one network: sv.parquet, svstd.parquet and padding.parquet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robreg.networks.checkpoint import load_network
from robreg.networks.device import choose_device
from robreg.spectra.layers import list_layers
from robreg.spectra.singular_values import circular_singular_values, summarise_spectrum
from robreg.spectra.zero_padding import compare_with_circular
from robreg.tables import parquet, provenance, schemas


def record(*, checkpoint: Path, sv: Path, svstd: Path, padding: Path, dense: int, device: str) -> None:
    """Write sv.parquet, svstd.parquet and padding.parquet of one network.

    sv: every distinct singular value; svstd: one row per layer; padding: the same layers' operators with
    zero padding, compared with the circular ones; dense: the largest number of rows or columns up to which these are
    computed exactly (see robreg.spectra.zero_padding).
    """
    model, meta = load_network(checkpoint)
    model.to(choose_device(device, meta["threads"]))
    columns: dict[str, dict[str, list[Any]]] = {
        kind: {name: [] for name in schemas.SCHEMAS[kind].names} for kind in ("sv", "svstd", "padding")
    }
    for number, layer in enumerate(list_layers(model, tuple(meta["shape"])), start=1):
        sigma, multiplicity = circular_singular_values(layer.kernel, layer.height, layer.width, layer.stride)
        circular = summarise_spectrum(sigma, multiplicity)
        values = {"sigma": sigma.tolist(), "multiplicity": multiplicity.tolist()}
        rows: dict[str, dict[str, list[Any]]] = {
            "sv": {"layer": [number] * len(sigma), "name": [layer.name] * len(sigma), **values},
            "svstd": {"layer": [number], **_as_columns({**layer.facts(), **circular})},
            "padding": {
                "layer": [number],
                "name": [layer.name],
                **_as_columns(compare_with_circular(layer, circular, dense=dense)),
            },
        }
        for kind, names in columns.items():
            for name, column in names.items():
                column.extend(rows[kind][name])
    for kind, path in (("sv", sv), ("svstd", svstd), ("padding", padding)):
        parquet.write(path, kind, columns[kind], provenance.run_metadata(meta))


def _as_columns(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {key: [value] for key, value in row.items()}
