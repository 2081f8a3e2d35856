"""Figure 2: its illustration is consistent, and the regions, edges and maps of its network are computed correctly."""

import itertools
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.text import Text

from robreg.figures import figure2, style

NET = figure2.network()
T = figure2.edges(NET, figure2.START, figure2.END)
DIRECTION = figure2.END - figure2.START


def points(t: np.ndarray) -> np.ndarray:
    return figure2.START + np.asarray(t)[:, None] * DIRECTION


def jacobian(x: np.ndarray) -> np.ndarray:
    """Compute the Jacobian by finite differences, which does not use the masks of the code under test."""
    h = 1e-6
    return np.stack(
        [(NET.features((x + h * e)[None]) - NET.features((x - h * e)[None]))[0] / (2 * h) for e in np.eye(2)], 1
    )


def test_the_boundary_avoids_every_ball_and_the_rejected_line_does_not() -> None:
    x = np.linspace(-3, 13, 8001)
    examples = np.vstack([figure2.SQUARES, figure2.CIRCLES])
    above = np.arange(len(examples)) < len(figure2.SQUARES)
    nearest = []
    for line in (figure2.boundary, figure2.rejected):
        assert np.array_equal(examples[:, 1] > line(examples[:, 0]), above)  # both separate the examples
        distance = np.linalg.norm(np.stack([x, line(x)], 1) - examples[:, None], axis=2).min(1)
        nearest.append(distance.min())
    assert nearest[0] >= 1
    assert nearest[1] < 0.5


def test_the_map_is_constant_on_each_piece_and_equals_the_induced_map() -> None:
    for begin, end in itertools.pairwise(T):
        inside = points(np.linspace(begin, end, 7)[1:-1])
        for x in inside:
            assert np.allclose(jacobian(x), NET.induced(inside[0]), atol=1e-6)


def test_neighbouring_pieces_have_different_maps() -> None:
    maps = [NET.induced(x) for x in points((T[:-1] + T[1:]) / 2)]
    assert len(maps) == 4
    assert all(np.abs(one - next_).max() > 0.1 for one, next_ in itertools.pairwise(maps))
    assert all(np.linalg.svd(one, compute_uv=False)[1] > 0.1 for one in maps)  # no map is singular


def test_the_identity_of_the_lemma_holds_and_fails_for_a_wrong_edge() -> None:
    def sum_over_pieces(t: np.ndarray) -> np.ndarray:
        maps = [NET.induced(x) for x in points((T[:-1] + T[1:]) / 2)]
        return sum(width * one @ DIRECTION for width, one in zip(np.diff(t), maps, strict=True))

    before, after = NET.features(np.stack([figure2.START, figure2.END]))
    assert np.allclose(sum_over_pieces(T), after - before, rtol=0, atol=1e-12)
    wrong = T.copy()
    wrong[2] += 0.01
    assert np.abs(sum_over_pieces(wrong) - (after - before)).max() > 1e-3
    lengths = [np.linalg.norm(step) for step in np.diff(NET.features(points(T)), axis=0)]
    assert sum(lengths) > 1.1 * np.linalg.norm(after - before)  # the printed equality is an inequality


def test_regions_cover_the_square_exactly_once_and_have_one_map_each() -> None:
    square = 2.0 * np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    cells = figure2.regions(NET, square)
    areas = []
    for cell in cells:
        x, y = cell.T
        areas.append((x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
        shares = np.random.default_rng(0).dirichlet(np.full(len(cell), 0.5), 20)
        inside = 0.98 * shares @ cell + 0.02 * cell.mean(0)
        assert all(np.allclose(NET.induced(each), NET.induced(inside[0]), atol=1e-12) for each in inside)
    assert min(areas) > 0
    assert sum(areas) == pytest.approx(16)
    assert len(cells) > 10


def test_drawing_twice_gives_identical_files_with_legible_text(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        with mpl.rc_context(style.THEME):
            figure = figure2.fig2()
            style.save(figure, tmp_path / f"{name}.svg", tmp_path / f"{name}.png")
        files.append([(tmp_path / f"{name}.{kind}").read_bytes() for kind in ("svg", "png")])
    assert files[0] == files[1]
    assert figure.get_figwidth() == style.WIDTH
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert len(texts) > 25
    assert min(text.get_fontsize() for text in texts) >= 8
    assert len(figure.axes) == 5


def test_no_text_is_cut_off_by_the_edge_of_the_file(tmp_path: Path) -> None:
    with mpl.rc_context(style.THEME):
        style.save(figure2.fig2(), tmp_path / "a.svg", tmp_path / "a.png")
    heights = [float(y) for y in re.findall(r'<text [^>]* y="([^"]+)"', (tmp_path / "a.svg").read_text())]
    assert len(heights) > 25
    assert min(heights) >= style.THEME["font.size"]  # y is the baseline of a text
    assert max(heights) <= 72 * 3.45
