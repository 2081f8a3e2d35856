"""Convolutions as a network applies them, with their own padding: as a linear map, and as a matrix."""

import torch
from torch import Tensor

from robreg.spectra.layers import Layer

_CHUNK = 2**27  # bytes of unit images, of their outputs, or of matrices, at a time


class AppliedOperator:
    """A convolution without its bias, as a linear map in float64 from one flattened image to its flattened output."""

    def __init__(self, layer: Layer, groups: slice = slice(None)) -> None:
        """Prepare the operator of a layer, or of some of its groups of channels alone."""
        kernels = layer.kernels[groups].double()
        own = layer.with_kernels(kernels)
        self._module, self._size, self._groups = own.module, own.input_shape, own.groups
        self._point = kernels.new_zeros(1, *self._size, requires_grad=True)
        with torch.enable_grad():
            self._image = self._module(self._point)
        self.device = self._point.device
        self.shape = (self._image.numel(), self._point.numel())  # rows, columns

    @torch.no_grad()
    def matrices(self) -> Tensor:
        """Return the matrix of every group, (g, rows / g, columns / g), computed by convolving unit images.

        Groups do not mix, so that one image has a unit in each.
        """
        rows, columns = (length // self._groups for length in self.shape)
        transposed = self._point.new_empty(columns, self._groups, rows)
        batch = max(1, _CHUNK // (8 * max(self.shape)))
        for begin in range(0, columns, batch):
            part = transposed[begin : begin + batch]
            units = part.new_zeros(len(part), columns)
            units[:, begin : begin + batch].fill_diagonal_(1)
            images = units.repeat(1, self._groups).view(-1, *self._size)
            part.copy_(self._module(images).view(len(part), self._groups, rows))
        return transposed.permute(1, 2, 0)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Apply the operator to a vector (columns,)."""
        return self._module(x.view_as(self._point)).flatten()

    def transposed(self, y: Tensor) -> Tensor:
        """Apply the transpose to a vector (rows,), as the gradient of y . forward(x), which is the same for every x."""
        (gradient,) = torch.autograd.grad(self._image, self._point, y.view_as(self._image), retain_graph=True)
        return gradient.flatten()


def dense_singular_values(layer: Layer, *, dense: int) -> Tensor | None:
    """Return the singular values of a convolution as the network applies it, from the matrix of every group.

    dense: the largest number of rows or columns of one group's matrix; the other may have 4 times as many. Returns
    (min(rows, columns) of the operator,) float64 on the CPU, in descending order, or None if the matrices are larger.
    """
    facts = layer.facts()
    rows, columns = (int(facts[key]) // layer.groups for key in ("rows", "columns"))
    if min(rows, columns) > dense or max(rows, columns) > 4 * dense:
        return None
    some = max(1, _CHUNK // (8 * rows * columns))
    operators = (AppliedOperator(layer, slice(begin, begin + some)) for begin in range(0, layer.groups, some))
    # Large float64 matrices are slow on a GPU.
    sigma = torch.cat([torch.linalg.svdvals(operator.matrices().cpu()).flatten() for operator in operators])
    return sigma.sort(descending=True).values
