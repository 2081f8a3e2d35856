"""Figure 2: what adversarial robustness requires of a decision boundary, and how a ReLU network divides a segment.

(a) is an illustration; (b) is computed with NumPy from a small network with two inputs:
I_2(x) = g(W_2 g(W_1 x + b_1) + b_2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch, Polygon, Wedge

from robreg.figures.style import WIDTH

Array = npt.NDArray[np.float64]

# (a), in units of the radius eps
SQUARES = np.array([[1.31, 5.09], [4.03, 4.95], [7.27, 3.0], [8.6, 3.36], [6.4, 5.0], [2.7, 6.4]])
CIRCLES = np.array([[1.01, 2.65], [2.67, 3.19], [4.39, 2.24], [8.59, 1.03], [1.6, 0.9], [6.3, 0.7]])
_BALL, _MARGIN, _REJECTED = "#e8a800", "#bfe6ea", "#c8102e"
_RINGS = 14  # rings per ball, darker towards its edge

# (b)
START, END = np.array([-1.75, -1.1]), np.array([1.7, 1.25])
_HALF = 2.1  # half the side of the square that is shown
_RADIUS = 0.28  # radius of the circles whose images illustrate the induced maps
_PRIME = "\N{PRIME}"
_SEED = 12793  # gives four pieces of similar length with visibly different maps


@dataclass(frozen=True)
class Net:
    """A ReLU network: weights (n_out, n_in) and biases (n_out,) per layer, each layer followed by a ReLU."""

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]

    def inputs(self, x: Array, layer: int) -> Array:
        """Return the inputs (n, units) of the ReLUs of a layer (0 is the first) for points x (n, 2)."""
        for weight, bias in zip(self.weights[:layer], self.biases[:layer], strict=True):
            x = np.maximum(x @ weight.T + bias, 0)
        return np.asarray(x @ self.weights[layer].T + self.biases[layer])

    def features(self, x: Array) -> Array:
        """Return I(x), the activations (n, 2) of the last layer, for points x (n, 2)."""
        return np.maximum(self.inputs(x, len(self.weights) - 1), 0)

    def induced(self, x: Array) -> Array:
        """Return the linear map (2, 2) of the region of x (2,): the product of diag(tau_l) W_l; tau_l: active units."""
        product = np.eye(2)
        for layer, weight in enumerate(self.weights):
            on = self.inputs(x[None], layer)[0] > 0
            product = on[:, None] * weight @ product
        return product


def network(seed: int = _SEED) -> Net:
    """Make the network of the figure: two layers of five and two units, with random weights and biases."""
    rng = np.random.default_rng(seed)
    first, bias = rng.normal(size=(5, 2)), rng.normal(scale=0.7, size=5)
    return Net((first, rng.normal(size=(2, 5))), (bias, rng.normal(scale=0.3, size=2) + 0.5))


def edges(net: Net, start: Array, end: Array) -> Array:
    """Return 0, every t at which start + t (end - start) enters another linear region, and 1, in ascending order."""
    t = np.array([0.0, 1.0])
    for layer in range(len(net.weights)):  # a layer's input is affine between two edges of the previous layers
        z = net.inputs(start + t[:, None] * (end - start), layer)  # (n, units)
        piece, unit = np.nonzero(z[:-1] * z[1:] < 0)
        before, after = z[piece, unit], z[piece + 1, unit]
        t = np.union1d(t, t[piece] + (t[piece + 1] - t[piece]) * before / (before - after))
    return np.asarray(t)


def regions(net: Net, square: Array) -> list[Array]:
    """Divide a convex polygon, given by its corners (n, 2) in order, into the network's linear regions."""
    cells = [square]
    for layer, weight in enumerate(net.weights):
        for unit in range(len(weight)):
            cells = [part for cell in cells for part in _split(cell, net.inputs(cell, layer)[:, unit])]
    return cells


def fig2() -> Figure:
    """Draw the paper's Figure 2."""
    figure = Figure(figsize=(WIDTH, 3.45), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=[2.5, 1])
    _draw_margin(figure.add_subplot(grid[0, 0]))
    _draw_legend(figure.add_subplot(grid[1, 0]))
    net = network()
    t = edges(net, START, END)
    colors = [mpl.colors.to_hex(mpl.colormaps["viridis"](share)) for share in np.linspace(0.05, 0.75, len(t) - 1)]
    _draw_instances(figure.add_subplot(grid[0, 1]), net, t, colors)
    _draw_features(figure.add_subplot(grid[0, 2]), net, t, colors)
    _draw_maps(figure.add_subplot(grid[1, 1:]), net, t, colors)
    return figure


def boundary(x: Array) -> Array:
    """Return the height of the decision boundary in (a) at x."""
    return np.asarray(rejected(x) + 0.75 * np.sin(0.75 * x - 0.6))


def rejected(x: Array) -> Array:
    """Return the height at x of the line in (a) that separates the examples, but not their balls."""
    return np.asarray(3.6 - 0.17 * (x - 2))


def _draw_margin(ax: Axes) -> None:
    """Draw (a): examples, their balls, the boundary with its margin, and a hypothesis that robustness rules out."""
    x = np.linspace(-1, 11, 400)
    curve = np.stack([x, boundary(x)], 1)
    slope = np.gradient(curve[:, 1], x)
    normal = np.stack([-slope, np.ones_like(x)], 1) / np.sqrt(1 + slope**2)[:, None]
    ax.add_patch(Polygon(np.vstack([curve + normal, (curve - normal)[::-1]]), color=_MARGIN, zorder=1))
    for center in np.vstack([SQUARES, CIRCLES]):
        for outer in np.linspace(0, 1, _RINGS + 1)[1:]:
            ring = Wedge(tuple(center), outer, 0, 360, width=1 / _RINGS, color=_BALL, alpha=0.75 * outer**2)
            ring.set(linewidth=0, zorder=2)
            ax.add_patch(ring)
    ax.plot(*curve.T, color="#333333", zorder=3)
    ax.plot(x, rejected(x), color=_REJECTED, linestyle=(0, (4, 2)), zorder=3)
    ax.plot(*SQUARES.T, "s", color="#1f4e9c", zorder=4)
    ax.plot(*CIRCLES.T, "o", color="#1b7837", zorder=4)
    ax.set(xlim=(-0.15, 9.75), ylim=(-1.35, 8.55), title="(a) instance space: margin")
    _show_frame_only(ax)


def _draw_legend(ax: Axes) -> None:
    handles = [
        Patch(color=_BALL, alpha=0.6, label="ball of radius ε around an example"),
        Line2D([], [], color="#333333", label="decision boundary"),
        Patch(color=_MARGIN, label="its instance-space margin"),
        Line2D([], [], color=_REJECTED, linestyle=(0, (4, 2)), label="rejected: too little margin"),
    ]
    ax.legend(handles=handles, loc="upper center", fontsize=8, borderaxespad=0, handlelength=1.8)
    ax.axis("off")


def _draw_instances(ax: Axes, net: Net, t: Array, colors: Sequence[str]) -> None:
    """Draw (b), left: the network's linear regions in the plane, and the pieces of the segment."""
    corners = _HALF * np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    middles = _points_at((t[:-1] + t[1:]) / 2)
    for cell in regions(net, corners):
        crossing = [color for color, middle in zip(colors, middles, strict=True) if _inside(middle, cell)]
        face = mpl.colors.to_rgba(crossing[0], 0.22) if crossing else "#f2f2f2"
        ax.add_patch(Polygon(cell, facecolor=face, edgecolor="#9a9a9a", lw=0.6, zorder=1))
    _draw_segment(ax, _points_at(t), colors)
    for number, (middle, color) in enumerate(zip(middles, colors, strict=True), start=1):
        ax.add_patch(Circle(tuple(middle), _RADIUS, fill=False, edgecolor=color, lw=1, zorder=3))
        _label_piece(ax, middle - np.array([0, _RADIUS]), number, color, "top")
    ax.annotate("x", (START[0], START[1]), (-9, -3), textcoords="offset points")
    ax.annotate(f"x{_PRIME}", (END[0], END[1]), (4, 2), textcoords="offset points")
    ax.set(xlim=(-_HALF, _HALF), ylim=(-_HALF, _HALF), title="(b) instance space: regions")
    _show_frame_only(ax)


def _draw_features(ax: Axes, net: Net, t: Array, colors: Sequence[str]) -> None:
    """Draw (b), right: the image of the segment, and the images of the circles under the pieces' linear maps."""
    angle = np.linspace(0, 2 * np.pi, 80)
    circle = _RADIUS * np.stack([np.cos(angle), np.sin(angle)], 1)
    for number, (middle, color) in enumerate(zip(_points_at((t[:-1] + t[1:]) / 2), colors, strict=True), start=1):
        ellipse = net.features(middle[None]) + circle @ net.induced(middle).T
        ax.plot(*ellipse.T, color=color, lw=1, zorder=3)
        _label_piece(ax, ellipse[ellipse[:, 1].argmax()], number, color, "bottom")
    image = net.features(_points_at(t))
    _draw_segment(ax, image, colors)
    ax.annotate("I(x)", image[0], (7, -5), textcoords="offset points")
    ax.annotate(f"I(x{_PRIME})", image[-1], (0, 6), textcoords="offset points", ha="center")
    ax.set(title="(b) feature space")
    _equalise_scales(ax)
    _show_frame_only(ax)


def _draw_maps(ax: Axes, net: Net, t: Array, colors: Sequence[str]) -> None:
    """Draw (b), bottom: the matrix of each piece."""
    middles = _points_at((t[:-1] + t[1:]) / 2)
    ax.set(xlim=(0, len(middles)), ylim=(0, 1))
    ax.axis("off")
    for index, (middle, color) in enumerate(zip(middles, colors, strict=True)):
        left, right = index + 0.05, index + 0.95
        ax.text(index + 0.5, 0.98, f"map of piece {index + 1}", color=color, ha="center", va="top")
        for x, inward in ((left, 0.04), (right, -0.04)):
            ax.plot([x + inward, x, x, x + inward], [0.7, 0.7, 0.1, 0.1], color=color, lw=1)
        for (row, column), value in np.ndenumerate(net.induced(middle)):
            text = f"{value:.1f}".replace("-", "\N{MINUS SIGN}")
            ax.text(index + 0.48 + 0.38 * column, 0.54 - 0.28 * row, text, ha="right", va="center", fontsize=8)


def _draw_segment(ax: Axes, points: Array, colors: Sequence[str]) -> None:
    for begin, end, color in zip(points[:-1], points[1:], colors, strict=True):
        ax.plot(*np.stack([begin, end]).T, color=color, lw=2.4, solid_capstyle="butt", zorder=4)
    ax.plot(*points[1:-1].T, "o", color="white", markeredgecolor="#333333", markersize=3, zorder=5)
    ax.plot(*points[[0, -1]].T, "o", color="#333333", markersize=4, zorder=5)


def _label_piece(ax: Axes, at: Array, number: int, color: str, edge: Literal["top", "bottom"]) -> None:
    """Write the number of a piece, with the edge of its text at a point."""
    ax.annotate(
        f"{number}",
        (at[0], at[1]),
        (0, -2 if edge == "top" else 1),
        textcoords="offset points",
        color=color,
        ha="center",
        va=edge,
    )


def _points_at(t: Array) -> Array:
    return np.asarray(START + t[:, None] * (END - START))  # (n, 2)


def _split(polygon: Array, values: Array) -> list[Array]:
    """Divide a convex polygon along the zeros of an affine function, which is given by its values at the corners."""
    parts: tuple[list[Array], list[Array]] = ([], [])
    for point, value, other, beyond in zip(polygon, values, np.roll(polygon, -1, 0), np.roll(values, -1), strict=True):
        for sign, part in zip((1, -1), parts, strict=True):
            if sign * value >= 0:
                part.append(point)
            if value * beyond < 0:
                part.append(point + value / (value - beyond) * (other - point))
    return [np.array(part) for part in parts if len(part) > 2]


def _inside(point: Array, polygon: Array) -> bool:
    """Return whether a convex polygon, with corners in counter-clockwise order, contains a point."""
    side, to_point = np.roll(polygon, -1, 0) - polygon, point - polygon
    return bool((side[:, 0] * to_point[:, 1] - side[:, 1] * to_point[:, 0] > 0).all())


def _equalise_scales(ax: Axes) -> None:
    """Set limits so that both axes have the same scale, with room for labels."""
    limits = np.array([ax.get_xlim(), ax.get_ylim()])
    half = 0.58 * np.ptp(limits, axis=1).max()
    (x, y) = limits.mean(1)
    ax.set(xlim=(x - half, x + half), ylim=(y - half, y + half))


def _show_frame_only(ax: Axes) -> None:
    ax.set_box_aspect(1)
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[["top", "right"]].set_visible(True)
