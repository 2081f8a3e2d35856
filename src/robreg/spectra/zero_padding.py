"""Singular values of zero-padded convolutions, as networks apply them, compared with those of circular ones."""

from collections.abc import Mapping

from robreg.spectra.applied import AppliedOperator, dense_singular_values
from robreg.spectra.lanczos import largest_singular_value
from robreg.spectra.layers import Layer


def compare_with_circular(layer: Layer, circular: Mapping[str, float], *, dense: int) -> dict[str, str | float | None]:
    """Compare the singular values of a layer's zero-padded operator with the std and max of its circular operator.

    Returns std_circular, max_circular, std_zero, max_zero and the method. "same": a linear layer or 1x1 convolution,
    which padding does not change. "dense": the exact spectrum, if the matrices are not too large (see
    dense_singular_values). "lanczos": only the largest value, with a relative error of at most 1e-6; std_zero is None.
    """
    columns = {"std_circular": circular["std"], "max_circular": circular["max"]}
    if layer.kernel.shape[2:] == (1, 1):
        return {"method": "same", **columns, "std_zero": circular["std"], "max_zero": circular["max"]}
    if (sigma := dense_singular_values(layer, dense=dense)) is not None:
        return {
            "method": "dense",
            **columns,
            "std_zero": float(sigma.std(correction=0)),
            "max_zero": float(sigma[0]),
        }
    largest = largest_singular_value(AppliedOperator(layer))
    return {"method": "lanczos", **columns, "std_zero": None, "max_zero": largest}
