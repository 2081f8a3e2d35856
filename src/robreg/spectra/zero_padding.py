"""Singular values of zero-padded convolutions, as networks apply them, compared with those of circular ones."""

import copy
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from robreg.spectra.layers import Layer

# Relative residual of the largest eigenvalue. The eigenvalue's own relative error is of the order of the residual's
# square, and was below 2e-7 on the layers checked.
_RESIDUAL = 1e-5
_CHUNK = 2**27  # bytes of unit images, or of their outputs, at a time
Vector = npt.NDArray[np.float64]


def compare_with_circular(layer: Layer, circular: Mapping[str, float], *, dense: int) -> dict[str, str | float | None]:
    """Compare the singular values of a layer's zero-padded operator with the std and max of its circular operator.

    Returns std_circular, max_circular, std_zero, max_zero and the method. "same": a linear layer or 1x1 convolution,
    which padding does not change. "dense": the exact spectrum, if the smaller side of the operator is at most dense and
    the larger side at most 4 dense. "lanczos": only the largest value, with a relative error of at most 1e-6; std_zero
    is None.
    """
    columns = {"std_circular": circular["std"], "max_circular": circular["max"]}
    if layer.kernel.shape[2:] == (1, 1):
        return {"method": "same", **columns, "std_zero": circular["std"], "max_zero": circular["max"]}
    operator = _Operator(layer)
    if min(operator.shape) <= dense and max(operator.shape) <= 4 * dense:
        sigma = torch.linalg.svdvals(operator.matrix().cpu())  # one large float64 matrix: slow on a GPU
        exact = {"std_zero": float(sigma.std(correction=0)), "max_zero": float(sigma[0])}
        return {"method": "dense", **columns, **exact}
    return {"method": "lanczos", **columns, "std_zero": None, "max_zero": _largest_singular_value(operator)}


class _Operator:
    """A convolution without its bias, as a linear map in float64 from one flattened image to its flattened output."""

    def __init__(self, layer: Layer) -> None:
        self._module: nn.Module = copy.deepcopy(layer.module).double().requires_grad_(False)
        self._module.bias = None
        self._size = (layer.kernel.shape[1], layer.height, layer.width)
        self._point = layer.kernel.new_zeros(1, *self._size, dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            self._image = self._module(self._point)
        self.device = self._point.device
        self.shape = (self._image.numel(), self._point.numel())  # rows, columns

    @torch.no_grad()
    def matrix(self) -> Tensor:
        """Return the matrix (rows, columns), computed by convolving unit images."""
        rows, columns = self.shape
        transposed = self._point.new_empty(columns, rows)
        batch = max(1, _CHUNK // (8 * max(self.shape)))
        for begin in range(0, columns, batch):
            part = transposed[begin : begin + batch]
            units = part.new_zeros(len(part), columns)
            units[:, begin : begin + batch].fill_diagonal_(1)
            part.copy_(self._module(units.view(-1, *self._size)).flatten(1))
        return transposed.T

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Apply the operator to a vector (columns,)."""
        return self._module(x.view_as(self._point)).flatten()

    def transposed(self, y: Tensor) -> Tensor:
        """Apply the transpose to a vector (rows,), as the gradient of y . forward(x), which is the same for every x."""
        (gradient,) = torch.autograd.grad(self._image, self._point, y.view_as(self._image), retain_graph=True)
        return gradient.flatten()


def _largest_singular_value(operator: _Operator) -> float:
    """Return the largest singular value: the square root of the largest eigenvalue of the smaller Gram matrix."""
    rows, columns = operator.shape
    pair = (operator.forward, operator.transposed)
    first, second = reversed(pair) if rows < columns else pair
    start = torch.randn(min(rows, columns), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if not bool(second(first(start.to(operator.device))).any()):  # all weights are zero, and eigsh cannot start
        return 0.0

    def gram(vector: Vector) -> Vector:
        return second(first(torch.from_numpy(vector).to(operator.device))).cpu().numpy()

    matrix = LinearOperator((len(start), len(start)), matvec=gram, dtype=np.float64)
    (square,) = eigsh(matrix, k=1, which="LA", tol=_RESIDUAL, v0=start.numpy(), return_eigenvectors=False)
    return float(square) ** 0.5
