"""Estimates of the spectrum of operators that are too large for a decomposition of their matrix."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from robreg.spectra.applied import AppliedOperator
from robreg.spectra.layers import Layer

# Relative residual of the largest eigenvalue. The eigenvalue's own relative error is of the order of the residual's
# square, and was below 2e-7 on the layers checked.
_RESIDUAL = 1e-5
_PROBES = 24  # random vectors
_STEPS = 48  # of the bidiagonalisation from each of them
_BREAKDOWN = 1e-12  # norm of what a step adds, relative to the first, below which nothing is left to find
Vector = npt.NDArray[np.float64]
Map = Callable[[Tensor], Tensor]


def estimate_spectrum(layer: Layer) -> dict[str, float | int]:
    """Estimate the spectrum of a convolution as the network applies it.

    Returns n, mean, std (of the population), min and max of its n = min(rows, columns) singular values, and error_mean
    and error_std. The mean is a stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017): each random vector of signs
    gives an unbiased estimate of it, up to the quadrature, which a Gauss and a Gauss-Radau rule bound from above and
    below (Golub and Meurant 2010); and an estimate of the mean of the squares. That one is known exactly from the
    weights if the layer pads with zeros, so what the two errors have in common is subtracted. error_mean is the
    standard error over the random vectors plus half of the bounds' distance, and error_std what follows from it for the
    std. max has a relative error of at most 1e-6; min is an upper bound.
    """
    operator = AppliedOperator(layer)
    n = min(operator.shape)
    maps = _towards_smaller_side(operator)
    generator = torch.Generator().manual_seed(0)
    rules = np.array([_quadrature(*maps, _signs(n, generator).to(operator.device)) for _ in range(_PROBES)])
    lower, upper, squares, smallest = rules.T
    means, free = (lower + upper) / 2, 1
    square, error_square = squares.mean(), squares.std(ddof=1) / _PROBES**0.5
    if layer.operator == "zero-padded":
        square, error_square = _sum_of_squares(layer) / n, 0.0
        known = squares - square
        if known.var() > 0:
            means, free = means - known * (np.cov(means, known)[0, 1] / known.var(ddof=1)), 2
    mean = means.mean()
    error = means.std(ddof=free) / _PROBES**0.5 + (upper - lower).mean() / 2
    std, least, most = (
        max(0.0, square + sign * error_square - (mean - sign * error) ** 2) ** 0.5 for sign in (0, -1, 1)
    )
    return {
        "n": n,
        "mean": float(mean),
        "std": float(std),
        "min": float(min(smallest)),
        "max": largest_singular_value(operator),
        "error_mean": float(error),
        "error_std": float(max(most - std, std - least)),
    }


def largest_singular_value(operator: AppliedOperator) -> float:
    """Return the largest singular value: the square root of the largest eigenvalue of the smaller Gram matrix."""
    first, second = _towards_smaller_side(operator)
    n = min(operator.shape)
    start = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if not bool(second(first(start.to(operator.device))).any()):  # all weights are zero, and eigsh cannot start
        return 0.0
    if n == 1:  # eigsh needs at least two dimensions
        return float(second(first(start.to(operator.device))).cpu() / start) ** 0.5

    def gram(vector: Vector) -> Vector:
        return second(first(torch.from_numpy(vector).to(operator.device))).cpu().numpy()

    matrix = LinearOperator((n, n), matvec=gram, dtype=np.float64)
    (square,) = eigsh(matrix, k=1, which="LA", tol=_RESIDUAL, v0=start.numpy(), return_eigenvectors=False)
    return float(square) ** 0.5


def _towards_smaller_side(operator: AppliedOperator) -> tuple[Map, Map]:
    """Return two maps whose product, the second after the first, is the smaller Gram matrix."""
    rows, columns = operator.shape
    pair = (operator.forward, operator.transposed)
    return (pair[1], pair[0]) if rows < columns else pair


def _signs(n: int, generator: torch.Generator) -> Tensor:
    """Return a random vector of length 1 whose elements differ only in sign."""
    return (torch.randint(2, (n,), generator=generator).double() * 2 - 1) / n**0.5


def _sum_of_squares(layer: Layer) -> float:
    """Return the sum of the squares of a zero-padded operator's matrix, in which every entry is one weight or 0."""
    squares = layer.with_kernels(layer.kernels.double().square())
    return float(squares.module(squares.kernels.new_ones(1, *squares.input_shape)).sum())


def _quadrature(first: Map, second: Map, start: Tensor) -> tuple[float, float, float, float]:
    """Return v^T sqrt(G) v, from below and above, v^T G v, and an upper bound on the smallest singular value.

    G is the Gram matrix of first and second, v = start, of length 1. Golub and Kahan's bidiagonalisation gives U and V
    with first(V) = U B and second(U) = V [B, b]^T. The squared singular values of B are the nodes of Gauss's rule,
    those of [B, b], with 0, the nodes of the Gauss-Radau rule that has one at 0.
    """
    right, left = [start], list[Tensor]()
    diagonal, above = list[float](), list[float]()
    singular = False
    for _ in range(_STEPS):
        image, alpha = _orthogonalise(first(right[-1]), left)
        if singular := alpha <= _BREAKDOWN * max([1e-300, *diagonal, *above]):
            break  # the last of the right vectors is mapped into the span of the left ones
        left.append(image)
        diagonal.append(alpha)
        back, beta = _orthogonalise(second(image), right)
        above.append(beta)
        if beta <= _BREAKDOWN * max(diagonal):
            break
        right.append(back)
    if not diagonal:
        return 0.0, 0.0, 0.0, 0.0
    k = len(diagonal)
    extended = np.zeros((k, k + 1))
    extended[range(k), range(k)], extended[range(k), range(1, k + 1)] = diagonal, above
    lower, _ = _rule(extended)
    upper, smallest = (lower, 0.0) if singular else _rule(extended[:, :k])
    return lower, upper, diagonal[0] ** 2, smallest


def _orthogonalise(vector: Tensor, basis: list[Tensor]) -> tuple[Tensor, float]:
    """Return the part of a vector that is orthogonal to a basis, scaled to length 1, and its length."""
    if basis:
        columns = torch.stack(basis)
        for _ in range(2):  # once leaves rounding errors
            vector = vector - columns.T @ (columns @ vector)
    length = float(vector.norm())
    return vector / max(length, 1e-300), length


def _rule(matrix: Vector) -> tuple[float, float]:
    """Return the sum of the singular values times the squares of their right vectors' first elements, and the least."""
    _, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    return float((sigma * right[:, 0] ** 2).sum()), float(sigma.min())
