"""Write the singular values of every layer of one network: sv.parquet, svstd.parquet, live.parquet, padding.parquet."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robreg.networks.build import build_initial_network
from robreg.networks.checkpoint import load_network
from robreg.networks.device import choose_device
from robreg.spectra.lanczos import estimate_spectrum
from robreg.spectra.layers import Layer, list_layers, unmeasured
from robreg.spectra.live import dead_rows, frozen_columns, live_part, reachable_inputs
from robreg.spectra.singular_values import exact_singular_values, summarise_spectrum
from robreg.spectra.zero_padding import compare_with_circular
from robreg.tables import parquet, provenance, schemas

log = logging.getLogger(__name__)


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

    sv: every distinct singular value of the layers whose spectrum is exact; svstd: one row per layer, and in its
    metadata, as "unmeasured", the reasons why other parts of the network have none; live: the same layers without what
    training never used (see describe_live_part); padding: the same layers' operators with zero padding, compared with
    the circular ones; dense: the largest number of rows or columns up to which matrices of operators that are not
    circular are decomposed (see robreg.spectra.applied). Beyond it, svstd has estimates (robreg.spectra.lanczos).
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
        exact = exact_singular_values(layer, dense=dense)
        summary = _summarise(layer, exact)
        sigma, multiplicity = ([], []) if exact is None else (part.tolist() for part in exact)
        place = {"layer": number, "name": layer.name}
        frozen = _frozen_inputs(layer, first, reachable[layer.name])
        rows: dict[str, dict[str, list[Any]]] = {
            "sv": {**_repeat(place, len(sigma)), "sigma": sigma, "multiplicity": multiplicity},
            "svstd": _repeat({**place, **layer.facts(), **summary}),
            "live": _repeat({**place, **describe_live_part(layer, frozen, summary, dense=dense)}),
            "padding": _repeat({**place, **_describe_padding(layer, summary, dense=dense)}),
        }
        for kind, names in columns.items():
            for name, column in names.items():
                column.extend(rows[kind][name])
    own = unmeasured(model)
    _log_what_is_special(layers, own)
    for kind, path in paths.items():
        more = {"unmeasured": own} if kind == "svstd" else {}
        parquet.write(path, kind, columns[kind], provenance.run_metadata(meta, **more))


def describe_live_part(
    layer: Layer, frozen: Tensor, whole: Mapping[str, Any], *, dense: int
) -> dict[str, float | int | None]:
    """Return the columns of live.parquet for one layer.

    frozen: which input channels training never used, (c_in,) bool; whole: std and max of the whole layer; dense: as for
    record. rows, columns: the numbers of output and input channels; dead_rows: of output channels whose weights are all
    zero; frozen_columns: of frozen input channels; frozen_share: their share of the layer's squared weights; std_live,
    max_live: std and max without these rows and columns, null if nothing is left, or if a part is left of a layer with
    groups, and the spectrum of one of them would be an estimate.
    """
    kernels, kernel, groups = layer.kernels, layer.kernel, frozen.unflatten(0, (layer.groups, -1))
    dead, total = int(dead_rows(kernel).sum()), float(kernel.double().square().sum())
    unused = sum(float(one[:, gone].double().square().sum()) for one, gone in zip(kernels, groups, strict=True))
    live: Mapping[str, float | None] = whole
    if dead or bool(frozen.any()):
        rests = [live_part(one, gone) for one, gone in zip(kernels, groups, strict=True)]
        live = _summarise_parts([layer.with_kernels(rest[None]) for rest in rests if rest.numel()], dense=dense)
    return {
        "rows": kernel.shape[0],
        "columns": layer.input_channels,
        "dead_rows": dead,
        "frozen_columns": int(frozen.sum()),
        "frozen_share": unused / total if total else 0.0,
        "std": whole["std"],
        "max": whole["max"],
        "std_live": live["std"],
        "max_live": live["max"],
    }


def _summarise(layer: Layer, exact: tuple[Tensor, Tensor] | None) -> dict[str, Any]:
    """Return the columns of svstd.parquet that describe a layer's singular values; exact: all of them, if known."""
    if exact is None:
        return {"method": "lanczos", **estimate_spectrum(layer)}
    by_frequency = layer.operator == "circular" and layer.kernel.shape[2:] != (1, 1)
    method = "fft" if by_frequency else "dense"
    return {"method": method, **summarise_spectrum(*exact), "error_mean": None, "error_std": None}


def _summarise_parts(parts: list[Layer], *, dense: int) -> Mapping[str, float | None]:
    """Return std and max of the singular values of several layers together, as describe_live_part describes."""
    spectra = [exact_singular_values(part, dense=dense) for part in parts]
    if len(parts) == 1:
        return _summarise(parts[0], spectra[0])
    known = [spectrum for spectrum in spectra if spectrum is not None]
    if not parts or len(known) < len(parts):
        return {"std": None, "max": None}
    return summarise_spectrum(*(torch.cat(column) for column in zip(*known, strict=True)))


def _describe_padding(layer: Layer, summary: Mapping[str, Any], *, dense: int) -> dict[str, Any]:
    """Return the columns of padding.parquet for one layer; without a circular operator, those with "circular" are null.

    summary: of the layer's operator, which is the one that the network applies if it is not circular.
    """
    if layer.operator in ("circular", "matrix"):
        return compare_with_circular(layer, summary, dense=dense)
    columns = {"std_circular": None, "max_circular": None, "std_zero": summary["std"], "max_zero": summary["max"]}
    return {"method": summary["method"], **columns}


def _frozen_inputs(layer: Layer, initial: Layer, reachable: Tensor) -> Tensor:
    """Return which input channels of a layer training never used: (c_in,) bool."""
    kernels, firsts = layer.kernels, initial.kernels.to(layer.kernels.device)
    groups = zip(kernels, firsts, reachable.unflatten(0, (layer.groups, -1)), strict=True)
    return torch.cat([frozen_columns(*group) for group in groups])


def _log_what_is_special(layers: list[Layer], own: Mapping[str, str]) -> None:
    """Log which parts of a network are not measured, and which layers get inputs of several sizes."""
    for name, reason in own.items():
        log.warning("%s has no singular values in svstd.parquet: %s", name, reason)
    for layer in layers:
        if layer.other_sizes:
            sizes = ", ".join(f"{height} x {width}" for height, width in layer.other_sizes)
            first = f"{layer.height} x {layer.width}"
            log.warning("%s is measured on inputs of %s, but is also called on %s", layer.name, first, sizes)


def _repeat(row: Mapping[str, Any], times: int = 1) -> dict[str, list[Any]]:
    return {key: [value] * times for key, value in row.items()}
