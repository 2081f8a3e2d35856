"""Singular values of convolutions as networks apply them, zero-padded, beside those of the circular operators."""

import copy
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from robreg.spectra.layers import Layer

_RESIDUAL = 1e-5  # of the largest eigenvalue, whose own error is of the residual's square; below 2e-7 on those checked
_CHUNK = 2**27  # bytes of unit images, and of what they become, at a time
Vector = npt.NDArray[np.float64]


def compare_with_circular(layer: Layer, circular: Mapping[str, float], *, dense: int) -> dict[str, str | float | None]:
    """Compare a layer's zero-padded operator with its circular one, whose std and max are given.

    method "same": a linear layer or 1x1 convolution, which padding does not touch. "dense": the exact spectrum, every
    value once, where the smaller side of the operator is at most dense and the larger at most 4 dense. "lanczos": the
    largest value alone, to a relative 1e-6; std_zero is None.
    """
    found = {"std_circular": circular["std"], "max_circular": circular["max"]}
    if layer.kernel.shape[2:] == (1, 1):
        return {"method": "same", **found, "std_zero": circular["std"], "max_zero": circular["max"]}
    operator = _Operator(layer)
    if min(operator.shape) <= dense and max(operator.shape) <= 4 * dense:
        sigma = torch.linalg.svdvals(operator.matrix().cpu())  # one large matrix of float64: no work for a GPU
        exact = {"std_zero": float(sigma.std(correction=0)), "max_zero": float(sigma[0])}
        return {"method": "dense", **found, **exact}
    return {"method": "lanczos", **found, "std_zero": None, "max_zero": _largest(operator)}


class _Operator:
    """A convolution without its bias, in float64: the linear map between one image and its output, flattened."""

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
        """Return the matrix (rows, columns), made by convolving unit images."""
        rows, columns = self.shape
        transposed = self._point.new_empty(columns, rows)
        few = max(1, _CHUNK // (8 * max(self.shape)))
        for begin in range(0, columns, few):
            part = transposed[begin : begin + few]
            units = part.new_zeros(len(part), columns)
            units[:, begin : begin + few].fill_diagonal_(1)
            part.copy_(self._module(units.view(-1, *self._size)).flatten(1))
        return transposed.T

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Apply the operator to a vector (columns,)."""
        return self._module(x.view_as(self._point)).flatten()

    def transposed(self, y: Tensor) -> Tensor:
        """Apply the transpose to a vector (rows,): the gradient of y . forward(x), which no x enters."""
        (gradient,) = torch.autograd.grad(self._image, self._point, y.view_as(self._image), retain_graph=True)
        return gradient.flatten()


def _largest(operator: _Operator) -> float:
    """Return the largest singular value, as the root of the largest eigenvalue of the smaller Gram matrix."""
    rows, columns = operator.shape
    pair = (operator.forward, operator.transposed)
    first, second = reversed(pair) if rows < columns else pair
    start = torch.randn(min(rows, columns), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if not bool(second(first(start.to(operator.device))).any()):  # a layer of zeros, from which eigsh cannot start
        return 0.0

    def gram(vector: Vector) -> Vector:
        return second(first(torch.from_numpy(vector).to(operator.device))).cpu().numpy()

    matrix = LinearOperator((len(start), len(start)), matvec=gram, dtype=np.float64)
    (square,) = eigsh(matrix, k=1, which="LA", tol=_RESIDUAL, v0=start.numpy(), return_eigenvectors=False)
    return float(square) ** 0.5
