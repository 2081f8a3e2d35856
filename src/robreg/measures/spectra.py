"""Write the singular values of every layer of one network: sv.parquet, svstd.parquet, live.parquet, padding.parquet."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from robreg.networks.build import build_initial_network
from robreg.networks.checkpoint import load_network
from robreg.networks.device import choose_device
from robreg.spectra.layers import Layer, list_layers
from robreg.spectra.live import dead_rows, frozen_columns, live_part, reachable_inputs
from robreg.spectra.singular_values import circular_singular_values, summarise_spectrum
from robreg.spectra.zero_padding import compare_with_circular
from robreg.tables import parquet, provenance, schemas


def record(  # noqa: PLR0913 - one argument per file and setting
    *,
    checkpoint: Path,
    sv: Path,
    svstd: Path,
    live: Path,
    padding: Path,
    dense: int,
    device: str,
    network: Mapping[str, Any] | None = None,
) -> None:
    """Write sv.parquet, svstd.parquet, live.parquet and padding.parquet of one network.

    sv: every distinct singular value; svstd: one row per layer; live: the same layers without what training never used
    (see describe_live_part); padding: the same layers' operators with zero padding, compared with the circular ones;
    dense: the largest number of rows or columns up to which these are computed exactly (see
    robreg.spectra.zero_padding).
    """
    model, meta = load_network(checkpoint, architecture=network)
    model.to(choose_device(device, meta["threads"]))
    shape = tuple(meta["shape"])
    layers = list_layers(model, shape)
    keys = ("arch", "seed", "width", "shape", "classes", "mean", "std", "factory")
    initial = list_layers(build_initial_network(**{key: meta[key] for key in keys}), shape)
    reachable = reachable_inputs(model.network, layers, shape)
    paths = {"sv": sv, "svstd": svstd, "live": live, "padding": padding}
    columns: dict[str, dict[str, list[Any]]] = {
        kind: {name: [] for name in schemas.SCHEMAS[kind].names} for kind in paths
    }
    for number, (layer, first) in enumerate(zip(layers, initial, strict=True), start=1):
        sigma, multiplicity = circular_singular_values(layer.kernel, layer.height, layer.width, layer.stride)
        circular = summarise_spectrum(sigma, multiplicity)
        values = {"sigma": sigma.tolist(), "multiplicity": multiplicity.tolist()}
        place = {"layer": number, "name": layer.name}
        frozen = frozen_columns(layer.kernel, first.kernel.to(layer.kernel.device), reachable[layer.name])
        rows: dict[str, dict[str, list[Any]]] = {
            "sv": {"layer": [number] * len(sigma), "name": [layer.name] * len(sigma), **values},
            "svstd": _as_columns({**place, **layer.facts(), **circular}),
            "live": _as_columns({**place, **describe_live_part(layer, frozen, circular)}),
            "padding": _as_columns({**place, **compare_with_circular(layer, circular, dense=dense)}),
        }
        for kind, names in columns.items():
            for name, column in names.items():
                column.extend(rows[kind][name])
    for kind, path in paths.items():
        parquet.write(path, kind, columns[kind], provenance.run_metadata(meta))


def describe_live_part(layer: Layer, frozen: Tensor, circular: Mapping[str, float]) -> dict[str, float | int | None]:
    """Return the columns of live.parquet for one layer.

    frozen: which input channels training never used, (c_in,) bool; circular: std and max of the whole layer. rows,
    columns: the numbers of output and input channels; dead_rows: of output channels whose weights are all zero;
    frozen_columns: of frozen input channels; frozen_share: their share of the layer's squared weights; std_live,
    max_live: std and max without these rows and columns, null if nothing is left.
    """
    kernel = layer.kernel
    dead, squares = int(dead_rows(kernel).sum()), kernel.double().square()
    total = float(squares.sum())
    live: Mapping[str, float | None] = circular
    if dead or bool(frozen.any()):
        rest = live_part(kernel, frozen)
        spectrum = circular_singular_values(rest, layer.height, layer.width, layer.stride) if rest.numel() else None
        live = summarise_spectrum(*spectrum) if spectrum else {"std": None, "max": None}
    return {
        "rows": kernel.shape[0],
        "columns": kernel.shape[1],
        "dead_rows": dead,
        "frozen_columns": int(frozen.sum()),
        "frozen_share": float(squares[:, frozen].sum()) / total if total else 0.0,
        "std": circular["std"],
        "max": circular["max"],
        "std_live": live["std"],
        "max_live": live["max"],
    }


def _as_columns(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {key: [value] for key, value in row.items()}
