"""Compare Theorem 3.1's quantities with analytic cases and Lemma 3.1 with regions found in another way."""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robreg.measures import lemma, theorem
from robreg.measures.margins import margins as logit_margins
from robreg.measures.margins import measure
from robreg.measures.margins import record as record_margins
from robreg.networks.classifier import Classifier, Normalise
from robreg.spectra import layers, singular_values
from robreg.tables import parquet, schemas

SPEC = {"n": 40, "steps": 40, "gamma": 1, "eta": 0.05, "c_x": 1, "k": 2, "eps": 32.0}
SPEC |= {"pairs": 2, "pieces": 20000, "seed": 0}


def plain(*weights: list[list[float]] | Tensor) -> Classifier:
    """Return a ReLU net without biases, eq. (2), for images of one row, without normalisation."""
    stack: list[nn.Module] = [nn.Flatten()]
    for weight in weights:
        matrix = torch.as_tensor(weight, dtype=torch.float32)
        stack += [nn.Linear(matrix.shape[1], matrix.shape[0], bias=False), nn.ReLU()]
        stack[-2].weight = nn.Parameter(matrix)
    return Classifier(Normalise([0.0], [1.0]), nn.Sequential(*stack[:-1])).eval()


def rows(model: nn.Module, shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    return [
        {
            **layer.facts(),
            **singular_values.summarise_spectrum(
                *singular_values.circular_singular_values(layer.kernel, layer.height, layer.width, layer.stride)
            ),
        }
        for layer in layers.list_layers(model, shape)
    ]


# Definitions 3 to 5


def test_ramp_loss_is_the_papers_piecewise_one() -> None:
    r = torch.tensor([-3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.1])
    assert theorem.ramp(r, 2.0).tolist() == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1])


def test_ramp_risk_is_the_mean_ramp_loss_of_the_negative_margins() -> None:
    logits = torch.tensor([[3.0, 0.0, 1.0], [1.0, 1.5, 0.0], [0.0, 0.0, 5.0]])
    margins = logit_margins(logits, torch.tensor([0, 1, 0]))
    assert margins.tolist() == [2.0, 0.5, -5.0]
    assert theorem.ramp_risk(margins, 2.0) == pytest.approx((0 + 0.75 + 1) / 3)


# Theorem 3.1


def test_second_term_is_the_printed_formula() -> None:
    constants = {"c_x": 1.5, "k": 2.0, "eps": 0.1, "eta": 0.05}
    printed = math.sqrt(2 * math.log(2) * 1.5**2 / (0.1**2 * 1000) + 2 * math.log(1 / 0.05) / 1000)
    assert theorem.log10_second_term(constants, 1000) == pytest.approx(math.log10(printed), abs=1e-12)


def test_second_term_is_finite_even_if_the_covering_number_overflows() -> None:
    constants = {"c_x": 1.0, "k": 3072.0, "eps": 8 / 255, "eta": 0.05}
    assert theorem.log10_second_term(constants, 50000) == pytest.approx(1536 * math.log10(255 / 8) - 2.278, abs=1e-3)


def test_first_term_of_a_net_worked_out_by_hand() -> None:
    model = plain([[3.0, 0.0], [0.0, 0.5]], [[1.0, 0.0], [0.0, 0.0], [0.0, 3.0]])
    model.normalise = Normalise([0.2], [0.25])
    found = theorem.first_term(model, rows(model, (1, 1, 2)), 0.1, gamma=1.0)
    assert 10 ** found["log10_sigma_min_product"] == pytest.approx(0.5 / 0.25)  # in units of pixels
    assert found["w_min"] == pytest.approx(1.0)
    assert 10 ** found["log10_u_min_upper"] == pytest.approx(0.2)
    assert found["first_term_lower"] == pytest.approx(0.8)
    assert theorem.first_term(model, rows(model, (1, 1, 2)), 0.1, gamma=0.1)["first_term_lower"] == 0


def test_a_product_below_the_smallest_float_has_its_logarithm() -> None:
    model = plain([[1.0, 0.0], [0.0, 1.0]])
    small = rows(model, (1, 1, 2))[0] | {"min": 1e-5}
    found = theorem.first_term(model, [small] * 100 + rows(model, (1, 1, 2)), 1.0, gamma=1.0)
    assert found["log10_sigma_min_product"] == pytest.approx(-500)
    assert found["first_term_lower"] == 1


def test_a_singular_layer_makes_u_min_0_and_an_unknown_distance_makes_it_unknown() -> None:
    model = plain([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]], [[1.0, 0.0], [0.0, 1.0]])
    singular = theorem.first_term(model, rows(model, (1, 1, 3)), None, gamma=1.0)
    assert singular["sigma_min_zero_layers"] == 1
    assert singular["log10_sigma_min_product"] is None
    assert singular["first_term_lower"] == 1
    model = plain([[1.0, 0.0], [0.0, 1.0]])
    unknown = theorem.first_term(model, rows(model, (1, 1, 2)), None, gamma=1.0)
    assert unknown["log10_sigma_min_product"] == 0
    assert unknown["first_term_lower"] is None


def normalised_net(norm: nn.Module) -> Classifier:
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 3, padding=1, bias=False), norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    return Classifier(Normalise([0.0], [1.0]), nn.Sequential(*layers)).eval()


def test_batch_normalisation_counts_as_the_linear_layer_that_it_is_in_evaluation() -> None:
    norm = nn.BatchNorm2d(4)
    norm.running_var.copy_(torch.tensor([0.5, 1.0, 2.0, 4.0]))
    norm.weight = nn.Parameter(torch.tensor([1.0, -3.0, 2.0, 3.0]))
    model = normalised_net(norm)
    layers = rows(model, (1, 2, 2))
    found = theorem.first_term(model, layers, 0.1, gamma=1.0)
    bare = theorem.first_term(normalised_net(nn.Identity()), layers, 0.1, gamma=1.0)
    scale = 2 / math.sqrt(2)  # the smallest of 1.41, 3, 1.41 and 1.5
    assert found["log10_u_min_upper"] == pytest.approx(bare["log10_u_min_upper"] + math.log10(scale), abs=1e-5)
    norm.weight.data *= 0.001
    smaller = theorem.first_term(model, layers, 0.1, gamma=1.0)
    assert smaller["log10_u_min_upper"] == pytest.approx(found["log10_u_min_upper"] - 3, abs=1e-5)
    norm.weight.data[1] = 0
    assert theorem.first_term(model, layers, 0.1, gamma=1.0)["sigma_min_zero_layers"] == 1


def test_a_part_without_singular_values_leaves_u_min_undefined(caplog: pytest.LogCaptureFixture) -> None:
    model = plain([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]])
    model.network.append(nn.GLU())
    found = theorem.first_term(model, rows(model, (1, 1, 2)), 0.1, gamma=1.0)
    assert found["log10_sigma_min_product"] is found["log10_u_min_upper"] is None
    assert "u_min is null: network.4 has no singular values (GLU multiplies features" in caplog.text


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False)])
def test_a_normalisation_that_depends_on_the_image_leaves_u_min_undefined(
    norm: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    model = normalised_net(norm)
    found = theorem.first_term(model, rows(model, (1, 2, 2)), 0.1, gamma=1.0)
    assert found["log10_sigma_min_product"] is found["log10_u_min_upper"] is found["first_term_lower"] is None
    assert f"u_min is null: network.1 ({type(norm).__name__}) depends on the image" in caplog.text


def test_channels_that_are_always_0_are_left_out() -> None:
    small = plain([[1.0, 2.0], [3.0, 1.0]], [[1.0, 0.5], [0.5, 3.0]], [[1.0, 0.0], [0.0, 3.0]])
    large = plain(
        [[1.0, 2.0], [0.0, 0.0], [3.0, 1.0]],  # the second unit is 0 for every image
        [[1.0, 9.0, 0.5], [0.5, 9.0, 3.0], [0.0, 0.0, 0.0]],  # it is read by weights that have no effect
        [[1.0, 0.0, 5.0], [0.0, 3.0, 8.0]],
    )
    images = torch.rand(20, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    assert small(images).equal(large(images))
    expected = theorem.first_term(small, rows(small, (1, 1, 2)), 0.1, gamma=1.0)
    assert theorem.first_term(large, rows(large, (1, 1, 2)), 0.1, gamma=1.0)["first_term_lower"] == 1
    found = theorem.first_term(
        large, theorem.restrict_to_live_part(large, rows(large, (1, 1, 2)), (1, 1, 2)), 0.1, gamma=1.0
    )
    assert found == pytest.approx(expected)
    assert found["sigma_min_zero_layers"] == 0


def test_the_network_of_the_paper_has_a_u_min_without_the_channels_that_a_stage_adds(
    net: Callable[..., Classifier],
) -> None:
    model = net()
    for name, convolution in model.named_modules():
        if isinstance(convolution, nn.Conv2d) and name.endswith("conv2"):
            convolution.weight.data[4:] = 0  # all channels but those of the first stage, as training leaves them
    layers = rows(model, (1, 8, 8))
    whole = theorem.first_term(model, layers, 0.1, gamma=1.0)
    live = theorem.first_term(model, theorem.restrict_to_live_part(model, layers, (1, 8, 8)), 0.1, gamma=1.0)
    assert (whole["sigma_min_zero_layers"], whole["log10_u_min_upper"]) == (2, None)
    assert live["sigma_min_zero_layers"] == 0
    assert live["w_min"] < whole["w_min"]
    assert -30 < live["log10_u_min_upper"] < 0


def test_a_net_that_does_not_end_in_a_linear_layer_has_no_w_min() -> None:
    model = Classifier(Normalise([0.0], [1.0]), nn.Sequential(nn.Conv2d(1, 3, 2, padding="same"), nn.Flatten()))
    found = theorem.first_term(model, rows(model, (1, 1, 2)), 0.1, gamma=1.0)
    assert found["w_min"] is None
    assert found["first_term_lower"] is None


def test_distance_is_exact_for_a_linear_classifier() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(4, 30, generator=generator)
    images = torch.randint(100, 156, (25, 1, 5, 6), generator=generator, dtype=torch.uint8)
    x = images.flatten(1).double() / 255
    weight = weight - torch.outer(weight @ x.mean(0).float(), x.mean(0).float()) / x.mean(0).float().norm() ** 2
    model = plain(weight)
    logits = x @ weight.double().T
    labels = logits.argmax(1)
    labels[:5] = (labels[:5] + 1) % 4  # misclassified images are not counted
    gaps = logits.max(1).values[:, None] - logits
    apart = (weight[:, None] - weight).double().norm(dim=2)
    distance = gaps / apart[logits.argmax(1)]  # 0 / 0 for the class itself
    exact = distance.nan_to_num(torch.inf).where(gaps > 0, torch.inf).amin(1)[5:].min()
    found, n = theorem.smallest_distance(model, images, labels, steps=100)
    assert n == 20
    assert found is not None
    # Never below the exact distance, except for the rounding of two logits, which the network computes in float32.
    rounding = (model(x.float().view(25, 1, 5, 6)).double() - logits).abs().max()
    assert exact <= found + 2 * rounding / apart[apart > 0].min()
    assert found == pytest.approx(float(exact), rel=0.01)


def test_a_missing_adversarial_example_gives_none_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = plain([[1.0, 1.0], [0.0, 0.0]])  # class 0 everywhere except at the origin
    images = torch.full((3, 1, 1, 2), 200, dtype=torch.uint8)
    assert theorem.smallest_distance(model, images, torch.ones(3, dtype=torch.int64), steps=5) == (None, 0)
    assert "none of 3 training images is correct and has an adversarial example" in caplog.text


def test_without_foolbox_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("foolbox", "foolbox.attacks.ddn"):
        monkeypatch.setitem(sys.modules, name, None)
    images = torch.full((1, 1, 1, 2), 200, dtype=torch.uint8)
    with pytest.raises(ImportError, match=r"pip install robreg\[theory\]"):
        theorem.smallest_distance(plain([[1.0, 1.0], [0.0, 0.0]]), images, torch.tensor([0]), steps=5)


# The bound on plain ReLU nets


def trained(run: Any) -> tuple[Classifier, Tensor, Tensor]:
    """Train a small plain ReLU net, with every layer narrower than the one before, on the run's digits."""
    torch.manual_seed(0)
    model = plain(*(torch.randn(n, m) * (2 / m) ** 0.5 for m, n in ((64, 24), (24, 16), (16, 10))))
    x, y = run.data.train_images / 255, run.data.train_labels
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    for _ in range(150):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, run.data.train_images, y


def test_u_min_is_below_every_margin_of_a_trained_plain_net(run: Any) -> None:
    model, images, labels = trained(run)
    margins = measure(model, images, labels, batch=60)["margin"]
    assert (margins > 0).all()
    v_min, n = theorem.smallest_distance(model, images, labels, steps=50)
    assert n == len(images)
    found = theorem.first_term(model, rows(model, (1, 8, 8)), v_min, gamma=1.0)
    assert 0 < 10 ** found["log10_u_min_upper"] < float(margins.min())


def test_u_min_is_the_margin_if_all_units_are_on_and_the_layer_stretches_evenly() -> None:
    model = plain([[0.0, 2.0], [2.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]])
    x = torch.tensor([[[[0.6, 0.4]]]])
    distance = 0.2 / math.sqrt(2)  # to the diagonal
    found = theorem.first_term(model, rows(model, (1, 1, 2)), distance, gamma=1.0)
    assert logit_margins(model(x), torch.tensor([1])).item() == pytest.approx(10 ** found["log10_u_min_upper"])


def test_u_min_is_not_a_bound_if_a_unit_that_matters_is_off() -> None:
    model = plain(torch.diag(torch.tensor([1.0, 1.0, -1.0])), [[1.0, -1.0, 1.0], [0.0, 0.0, 0.0]])
    images, label = torch.tensor([230, 102, 255], dtype=torch.uint8).view(1, 1, 1, 3), torch.tensor([0])
    own = logit_margins(model(images / 255), label).item()
    v_min, _ = theorem.smallest_distance(model, images, label, steps=50)
    assert v_min == pytest.approx(own / math.sqrt(2), rel=1e-3)  # the boundary is x_1 = x_2
    found = theorem.first_term(model, rows(model, (1, 1, 3)), v_min, gamma=1.0)
    assert 10 ** found["log10_u_min_upper"] == pytest.approx(own * math.sqrt(3 / 2), rel=1e-3)


# Lemma 3.1


class Mixed(nn.Module):
    """A network that calls ReLU in every possible way, has batch normalisation, and adds in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.third = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.linear = nn.ReLU(inplace=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        y = torch.relu(self.second(x)) + torch.relu_(self.second(-x))
        y = functional.relu(input=self.third(y).add_(x))
        narrow, wide = y[:, :, ::2, ::2].mean((2, 3)), y.mean((2, 3))
        return self.linear(torch.cat([(narrow - 1).relu(), (1 - wide).relu_(), functional.relu_(wide)], 1))


def mixed() -> nn.Module:
    torch.manual_seed(3)
    model = Mixed()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return model.double().eval()


def segment(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, target = torch.rand(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x, target


def residual(model: nn.Module, x: Tensor, target: Tensor, pieces: lemma.Pieces) -> float:
    """Return the relative error of the identity."""
    before, after = model(torch.stack([x, x + pieces.share * (target - x)])).detach()
    return float((after - before - pieces.difference()).norm() / (after - before).norm())


def by_reverse_mode(model: nn.Module, x: Tensor, direction: Tensor, t: Tensor) -> Tensor:
    """Return the Jacobian times direction at the points t, in reverse mode; the tested code uses forward mode."""
    jacobian = torch.func.vmap(torch.func.jacrev(lambda point: model(point[None])[0]))
    points = x + t[:, None, None, None] * direction
    return jacobian(points).flatten(2) @ direction.flatten()


def test_edges_of_one_hidden_layer_are_at_the_zeros_of_its_units() -> None:
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(2))
    model = plain(weight, torch.eye(3, 40)).double()
    x, target = segment()
    crossing = -(weight.double() @ x.flatten()) / (weight.double() @ (target - x).flatten())
    inside = crossing[(crossing > 0) & (crossing < 1)]
    found = lemma.trace(model, x, target, pieces=1000)
    assert found is not None
    assert found.count == len(inside) + 1 > 5
    assert (inside[:, None] - found.end).abs().amin(1).max() < 1e-12


class Between(nn.Module):
    """Two linear layers with a function between them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(64, 40), nn.Linear(40, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x.flatten(1))))


@pytest.mark.parametrize(
    "function",
    [nn.ReLU(), nn.ReLU(inplace=True), functional.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_],
    ids=["module", "module in place", "functional.relu_", "torch.relu", "torch.relu_", "Tensor.relu", "Tensor.relu_"],
)
def test_relu_is_detected_however_it_is_called(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Between(function).double().eval()
    plainly = Between(lambda z: functional.relu(input=z)).double().eval()
    plainly.load_state_dict(model.state_dict())
    x, target = segment()
    found, expected = (lemma.trace(each, x, target, pieces=1000) for each in (model, plainly))
    assert found is not None
    assert expected is not None
    assert found.count == expected.count > 5
    assert residual(model, x, target, found) < 1e-12


@pytest.mark.parametrize("name", ["mixed", "resnet8"])
def test_each_piece_has_one_linear_map(name: str, net: Callable[..., Classifier]) -> None:
    model = mixed() if name == "mixed" else net(dtype=torch.float64)
    x, target = segment(1)
    found = lemma.trace(model, x, target, pieces=20000)
    assert found is not None
    assert found.start[0] == 0
    assert found.end[-1] == found.share == 1
    assert torch.equal(found.start[1:], found.end[:-1])
    t = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = by_reverse_mode(model, x, target - x, t)
    own = found.image[torch.searchsorted(found.end, t)]
    assert (own - expected).abs().max() < 1e-9 * expected.abs().max()
    assert 1 < found.count <= len(found.start)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_identity_holds_and_the_printed_sum_is_an_upper_bound(seed: int, net: Callable[..., Classifier]) -> None:
    x, target = segment(seed)
    for model in (mixed(), net(seed=seed)):
        found = lemma.check_lemma(model, x.float(), target.float(), pieces=20000)
        assert found is not None
        assert found["residual"] < 1e-10
        assert found["slack"] > 0
        assert found["share"] == 1


def test_the_identity_fails_for_a_wrong_edge_a_merged_piece_and_a_missing_relu(
    net: Callable[..., Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net(dtype=torch.float64)
    x, target = segment()
    found = lemma.trace(model, x, target, pieces=20000)
    assert found is not None
    assert residual(model, x, target, found) < 1e-10
    middle = int((found.image[1:] - found.image[:-1]).norm(dim=1).argmax())  # the sharpest edge
    shift = (found.end[middle + 1] - found.start[middle + 1]) / 2
    end, start = found.end.clone(), found.start.clone()
    end[middle] += shift
    start[middle + 1] += shift
    assert residual(model, x, target, replace(found, start=start, end=end)) > 1e-6
    image = found.image.clone()
    image[middle + 1] = image[middle]
    assert residual(model, x, target, replace(found, image=image)) > 1e-6
    monkeypatch.setattr(lemma, "_RELUS", ())
    monkeypatch.setattr(lemma, "_refuse_nonlinear", lambda *_: None)
    blind = lemma.trace(model, x, target, pieces=20000)
    assert blind is not None
    assert residual(model, x, target, blind) > 1e-6


def test_the_printed_equality_holds_only_if_all_pieces_are_parallel() -> None:
    even = plain([[1.0, 1.0], [-1.0, -1.0]], [[1.0, -1.0], [0.0, 0.0]]).double()
    ends = torch.tensor([[[[0.0, 0.0]]], [[[1.0, 0.5]]]], dtype=torch.float64)
    found = lemma.check_lemma(even, ends[0], ends[1], pieces=10)
    assert found is not None
    assert found["slack"] == pytest.approx(0, abs=1e-12)
    bent = plain([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]).double()
    found = lemma.check_lemma(bent, torch.tensor([[[-1.0, 1.0]]]), torch.tensor([[[2.0, -2.0]]]), pieces=10)
    assert found is not None  # from (0, 1) through (0, 0) to (2, 0)
    assert found["count"] == 2
    assert found["slack"] == pytest.approx(3 / math.sqrt(5) - 1)


def test_a_segment_with_too_many_pieces_is_shortened(
    net: Callable[..., Classifier], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net(dtype=torch.float64)
    x, target = segment()
    whole = lemma.trace(model, x, target, pieces=20000)
    assert whole is not None
    found = lemma.trace(model, x, target, pieces=whole.count // 2)
    assert found is not None
    assert found.share in {1 / 2**k for k in range(1, 11)}
    assert found.count <= whole.count // 2
    assert residual(model, x, target, found) < 1e-10
    monkeypatch.setattr(lemma, "_FIRST_SHARE", 0.5)
    shorter = lemma.trace(model, x, target, pieces=whole.count // 4)
    assert shorter is not None
    assert shorter.share < 0.5
    assert residual(model, x, target, shorter) < 1e-10
    monkeypatch.setattr(lemma, "_SMALLEST_SHARE", 0.6)
    assert lemma.trace(model, x, target, pieces=whole.count // 4) is None


@pytest.mark.parametrize(
    ("nonlinear", "name"),
    [(nn.GELU(), "gelu"), (nn.MaxPool2d(2), "max_pool2d"), (nn.Softmax(1), "softmax"), (nn.LayerNorm(4), "layer_norm")],
)
def test_another_nonlinearity_is_refused_by_name(nonlinear: nn.Module, name: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 5), nonlinear, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).eval()
    x, target = segment()
    model(x[None].float())
    with pytest.raises(lemma.NotPiecewiseLinear, match=name):
        lemma.check_lemma(model, x, target, pieces=100)


# The table


@pytest.fixture(scope="module")
def tables(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    record_margins(
        checkpoint=run.checkpoint, data=run.prepared, margins=folder / "margins.parquet", batch=60, device="cpu"
    )
    more = {"method": "fft", "error_mean": None, "error_std": None}
    found = [{"layer": number, **row, **more} for number, row in enumerate(rows(run.model, (1, 8, 8)), start=1)]
    columns = {name: [row[name] for row in found] for name in schemas.SCHEMAS["svstd"].names}
    parquet.write(folder / "svstd.parquet", "svstd", columns, {})
    return folder


def record(run: Any, tables: Path, out: Path, **spec: Any) -> dict[str, Any]:
    files = {name: tables / f"{name}.parquet" for name in ("svstd", "margins")}
    files |= {"checkpoint": run.checkpoint, "data": run.prepared, "theory": out}
    theorem.record(**files, spec={**SPEC, **spec}, device="cpu")
    (row,) = parquet.read(out).to_pylist()
    return row


def test_record_writes_one_row_that_identifies_its_run(
    run: Any, tables: Path, tmp_path: Path, identity: Mapping[str, Any]
) -> None:
    row = record(run, tables, tmp_path / "theory.parquet")
    assert identity.items() <= parquet.read_metadata(tmp_path / "theory.parquet").items()
    assert row["m"] == 60
    assert 0 < row["n"] <= 40
    assert row["eps"] == 32
    expected = 0.5 * math.log10((2 * math.log(2) * (255 / 32) ** 2 + 2 * math.log(20)) / 60)
    assert row["log10_second_term"] == pytest.approx(expected)
    assert row["ramp_gap"] == row["ramp_risk_test"] - row["ramp_risk_train"]
    assert row["lemma_pairs"] == 2
    assert row["lemma_residual"] < 1e-6
    weight = run.model.network.linear.weight.double()
    least = min(float((a - b).norm()) for k, a in enumerate(weight) for b in weight[:k])
    assert row["w_min"] == pytest.approx(least)
    inner = [layer["min"] for layer in parquet.read(tables / "svstd.parquet").to_pylist()][:-1]
    log10_product = sum(map(math.log10, inner)) - math.log10(max(run.data.std))
    assert row["log10_sigma_min_product"] == pytest.approx(log10_product)
    assert row["log10_u_min_upper"] == pytest.approx(log10_product + math.log10(least * row["v_min_upper"]))


def test_the_ramp_risk_is_that_of_each_split(run: Any, tables: Path, tmp_path: Path) -> None:
    row = record(run, tables, tmp_path / "theory.parquet", pairs=0)
    for split in ("train", "test"):
        images, labels = run.data.split(split)
        found = logit_margins(run.model(images / 255), labels)
        assert row[f"ramp_risk_{split}"] == pytest.approx(float((1 - found).clamp(0, 1).mean()), abs=1e-6)


def test_a_lemma_that_cannot_be_checked_is_null(run: Any, tables: Path, tmp_path: Path) -> None:
    row = record(run, tables, tmp_path / "theory.parquet", pairs=0)
    assert row["lemma_pairs"] == row["lemma_pieces"] == 0
    assert row["lemma_share"] is row["lemma_residual"] is row["lemma_slack"] is None
