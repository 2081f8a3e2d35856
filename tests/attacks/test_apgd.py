"""Tests of APGD: its iterates against torchattacks, a linear model's optimum, its evaluation against a loop."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchattacks
from helpers.pixels import images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from robreg.attacks import evaluation
from robreg.attacks.apgd import LOSSES, _windows, apgd, apgd_iterates, dlr, evaluate
from robreg.attacks.pgd import pgd as pgd_attack
from robreg.attacks.pgd import uniform_noise
from robreg.data.dataset import load_dataset, to_float
from robreg.data.preparation import prepare
from robreg.measures import strong_attack
from robreg.measures.margins import record
from robreg.networks.frozen import frozen
from robreg.tables import parquet, schemas

EPS = 8 / 255
TORCHATTACKS = {"cross_entropy": "ce", "dlr": "dlr"}


def noise_like(x: Tensor, seed: int = 3) -> Tensor:
    """Return uniform noise whose largest entry is 1 or -1 in every example, as torchattacks scales its start."""
    noise = uniform_noise(torch.arange(len(x)), tuple(x.shape[1:]), seed=seed).to(x)
    return noise / noise.abs().amax((1, 2, 3), keepdim=True)


@torch.no_grad()
def predicted(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).argmax(1)


# Against torchattacks


def theirs(
    model: nn.Module, x: Tensor, y: Tensor, noise: Tensor, *, steps: int, loss: str, eps: float = EPS
) -> tuple[list[Tensor], Any]:
    """Run torchattacks from our start; return all inputs that it gave the model, and its result."""
    asked: list[Tensor] = []
    other = torchattacks.APGD(model, eps=eps, steps=steps, loss=TORCHATTACKS[loss])
    watch = model.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0].detach().clone()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda _: (noise + 1) / 2)
        result = other.attack_single_run(x, y)
    watch.remove()
    return asked, result


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("steps", "eps"), [(1, EPS), (3, 24 * EPS), (10, EPS), (37, EPS), (100, EPS)])
@pytest.mark.parametrize("loss", ["cross_entropy", "dlr"])
def test_every_iterate_and_the_best_point_are_those_of_torchattacks(
    net: Callable[..., nn.Module], loss: str, steps: int, eps: float, dtype: torch.dtype
) -> None:
    model, x = net(shape=(3, 8, 8), dtype=dtype), images(12, (3, 8, 8), dtype=dtype)
    y, noise = predicted(model, x), noise_like(x)
    asked, (best, _, best_loss, _) = theirs(model, x, y, noise, steps=steps, loss=loss, eps=eps)
    found, halved = [], []  # with 24 EPS, the first step lowers the loss
    with frozen(model):
        for state in apgd_iterates(model, x, y, eps=eps, steps=steps, loss=LOSSES[loss], noise=noise):
            found.append(state.point)
            halved.append(state.step[:, 0, 0, 0] / (2 * eps))
    assert len(found) == steps + 1 == len(asked)
    torch.testing.assert_close(torch.stack(found), torch.stack(asked), atol=1e-6, rtol=0)
    torch.testing.assert_close(state.best, best, atol=1e-6, rtol=0)
    torch.testing.assert_close(state.best_loss, best_loss, atol=1e-5, rtol=1e-5)
    if steps > 10:
        assert halved[-1].min() < halved[-1].max() < 1, "all steps were halved alike, so the comparison shows little"


@pytest.mark.parametrize("loss", ["cross_entropy", "dlr"])
def test_the_result_is_the_first_misclassified_iterate_or_else_the_best_one(
    net: Callable[..., nn.Module], loss: str
) -> None:
    model, x = net(shape=(3, 8, 8), dtype=torch.float64), images(40, (3, 8, 8))
    y, noise = predicted(model, x), noise_like(x)
    asked, (best, still_correct, _, _) = theirs(model, x, y, noise, steps=20, loss=loss, eps=4 * EPS)
    fooled = torch.stack([predicted(model, point) != y for point in asked])
    first = torch.stack(asked)[fooled.int().argmax(0), torch.arange(40)]
    expected = torch.where(fooled.any(0).view(-1, 1, 1, 1), first, best)
    found = apgd(model, x, y, eps=4 * EPS, steps=20, loss=loss, noise=noise)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert torch.equal(predicted(model, found) == y, still_correct)
    assert 5 <= still_correct.sum() <= 35, "the attack is too strong or too weak for a comparison"


class Scripted(nn.Module):
    """Return the next given probabilities at every call, with a gradient towards brighter pixels."""

    def __init__(self, *probabilities: list[float]) -> None:
        super().__init__()
        self.logits = iter(torch.tensor(probabilities).log())

    def forward(self, x: Tensor) -> Tensor:
        return next(self.logits) - 1e-6 * x.sum((1, 2, 3))[:, None] * torch.tensor([1.0, 0.0, 0.0])


def test_a_misclassified_iterate_is_returned_even_if_another_has_a_higher_loss() -> None:
    model, x = Scripted([0.34, 0.33, 0.33], [0.45, 0.5, 0.05]), torch.full((1, 1, 2, 2), 0.5)
    found = apgd(model, x, torch.tensor([0]), eps=0.25, steps=5, loss="cross_entropy")
    assert torch.equal(found, torch.full_like(x, 0.75))  # the second point; a third call would exhaust the script


def test_the_step_size_of_100_steps_is_checked_when_the_paper_says() -> None:
    windows = _windows(100)  # section 3.1 of the APGD paper gives these numbers, as fractions of the steps
    assert list(windows) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(windows.values()) == [22, 19, 16, 13, 10, 7, 6, 6]


# Losses


def test_dlr_is_the_ratio_defined_in_the_paper() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0, -5.0], [1.0, 4.0, 2.0, -5.0], [3.0, 3.0, 3.0, 0.0]])
    y = torch.tensor([1, 0, 2])
    torch.testing.assert_close(dlr(logits, y), torch.tensor([-2 / 3, 1.0, 0.0]))


@given(st.integers(0, 2**31), st.integers(3, 12), st.floats(0.01, 100), st.floats(-10, 10))
@settings(max_examples=50, deadline=None)
def test_dlr_does_not_depend_on_scale_and_shift_and_is_positive_only_if_misclassified(seed, classes, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(20, classes, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (20,), generator=generator)
    value = dlr(logits, y)
    torch.testing.assert_close(dlr(scale * logits + shift, y), value)
    assert torch.equal(value > 0, logits.argmax(1) != y)
    assert (value[value < 0] >= -1).all()


def test_dlr_of_equal_logits_has_a_finite_gradient() -> None:
    logits = torch.zeros(2, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(dlr(logits, torch.tensor([0, 4])).sum(), logits)
    assert gradient.isfinite().all()


def test_dlr_of_two_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 classes, not 2: use cross_entropy"):
        dlr(torch.zeros(1, 2), torch.tensor([0]))


# Properties


def linear(pixels: int, classes: int, seed: int) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes, dtype=torch.float64))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return model


strengths = st.floats(0, 1) | st.sampled_from([0.0, 1 / 255, 8 / 255, 1.0])


@given(st.integers(0, 2**31), st.tuples(strengths, strengths), st.booleans())
@settings(max_examples=80, deadline=None)
def test_the_optimum_of_a_linear_model_is_found_with_a_radius_per_channel(seed, strength, random):
    model, x = linear(18, 2, seed), images(5, (2, 3, 3), seed=seed)
    y, eps = predicted(model, x), torch.tensor(strength, dtype=torch.float64).view(2, 1, 1)
    weight = (model[1].weight[1] - model[1].weight[0]).detach().view(1, 2, 3, 3) * (1 - 2 * y).view(-1, 1, 1, 1)
    corner = torch.where(weight > 0, (x + eps).clamp_max(1), (x - eps).clamp_min(0))
    noise = noise_like(x) if random else None
    found = apgd(model, x, y, eps=eps, steps=5, loss="cross_entropy", noise=noise)
    assert torch.equal(predicted(model, found) == y, predicted(model, corner) == y)
    robust = predicted(model, corner) == y
    torch.testing.assert_close(found[robust], corner[robust], atol=1e-12, rtol=0)


@given(
    st.integers(0, 2**31), st.tuples(strengths, strengths), st.integers(0, 6), st.sampled_from(["cross_entropy", "dlr"])
)
@settings(max_examples=80, deadline=None)
def test_the_result_is_in_the_ball_and_in_the_box(seed, strength, steps, loss):
    model, x = linear(18, 4, seed), images(5, (2, 3, 3), seed=seed)
    y, eps = (x.sum((1, 2, 3)) * 100).long() % 4, torch.tensor(strength, dtype=torch.float64).view(2, 1, 1)
    before = x.clone()
    found = apgd(model, x, y, eps=eps, steps=steps, loss=loss, noise=noise_like(x, seed))
    assert torch.equal(x, before)
    assert ((found - x).abs() <= eps + 1e-12).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad
    unchanged = apgd(model, x, y, eps=0.0, steps=steps, loss=loss, noise=noise_like(x, seed))
    assert torch.equal(unchanged, x)


@pytest.mark.parametrize("loss", ["cross_entropy", "dlr"])
def test_the_best_loss_never_falls_with_more_steps(net: Callable[..., nn.Module], loss: str) -> None:
    model, x = net(dtype=torch.float64), images(20)
    y = predicted(model, x)
    with frozen(model):
        bests = [
            state.best_loss
            for state in apgd_iterates(model, x, y, eps=EPS, steps=30, loss=LOSSES[loss], noise=noise_like(x))
        ]
    assert (torch.stack(bests).diff(dim=0) >= 0).all()
    assert (bests[-1] > bests[0]).all()


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": images(2) + 0.5}, r"\[0, 1\]"),
        ({"y": torch.zeros(2)}, "y .*int64"),
        ({"eps": 8}, "eps .*255"),
        ({"eps": torch.zeros(8)}, r"\(C, 1, 1\)"),
        ({"steps": -1}, "steps"),
        ({"noise": torch.full((2, 1, 8, 8), 1.1)}, "noise"),
        ({"loss": "ce"}, "loss must be cross_entropy or dlr, not 'ce'"),
    ],
)
def test_a_bad_argument_is_refused_by_its_name(
    net: Callable[..., nn.Module], change: dict[str, Any], message: str
) -> None:
    y = torch.zeros(2, dtype=torch.int64)
    arguments = {"x": images(2), "y": y, "eps": EPS, "steps": 2, "loss": "dlr"} | change
    x, y = arguments.pop("x"), arguments.pop("y")
    with pytest.raises(ValueError, match=message):
        apgd(net(dtype=torch.float64), x, y, **arguments)


# Evaluation

BOTH = ["cross_entropy", "dlr"]


def spec(**changes: object) -> dict[str, Any]:
    return {"eps": 4.0, "steps": 4, "restarts": 1, "n": 60, "seed": 0, "space": "pixel", **changes}


@pytest.fixture(scope="module")
def victim(net: Callable[..., nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network, 60 images, and labels of which it predicts three quarters correctly."""
    model = net(shape=(2, 8, 8))
    x = torch.randint(256, (60, 2, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    y = predicted(model, to_float(x))
    y[::4] = (y[::4] + 1) % 10
    return model, x, y


def naive(model: nn.Module, x: Tensor, y: Tensor, setting: dict[str, Any]) -> tuple[int, dict[str, int]]:
    """Attack every example separately with every loss and restart, whatever the results of the others."""
    eps = setting["eps"] / 255 * (model.normalise.std if setting["space"] == "normalised" else torch.ones(2, 1, 1))
    correct, robust = 0, {"cross_entropy": 0, "dlr": 0, "worst": 0}
    for number in range(len(x)):
        image, label = to_float(x[number : number + 1]), y[number : number + 1]
        if predicted(model, image) != label:
            continue
        correct += 1
        held = {}
        for place, loss in enumerate(BOTH, 1):
            held[loss] = True
            for restart in range(setting["restarts"]):
                stream = place * 2**32 + restart
                noise = uniform_noise(torch.tensor([number]), (2, 8, 8), seed=setting["seed"], restart=stream)
                adversarial = apgd(model, image, label, eps=eps, steps=setting["steps"], loss=loss, noise=noise.float())
                held[loss] &= bool(predicted(model, adversarial) == label)
            robust[loss] += held[loss]
        robust["worst"] += all(held.values())
    return correct, robust


@pytest.mark.parametrize(
    "setting",
    [
        spec(eps=8.0, steps=1),
        spec(eps=8.0, steps=2, restarts=3),
        spec(eps=6.0, steps=2, seed=1),
        spec(eps=32.0, steps=2, space="normalised"),
    ],
)
def test_evaluation_equals_a_loop_over_examples_losses_and_restarts(victim, setting: dict[str, Any]) -> None:
    rows = evaluate(*victim, setting, losses=BOTH, batch=16)
    correct, robust = naive(*victim, setting)
    assert {row["loss"]: row["n_robust"] for row in rows} == robust
    for row in rows:
        assert (row["n"], row["n_correct"]) == (60, correct)
        assert row["acc_conditional"] == 100 * row["n_robust"] / correct
        assert row["acc_robust"] == 100 * row["n_robust"] / 60
    assert 0 < robust["worst"] < min(robust["cross_entropy"], robust["dlr"]) < correct == 45


def test_evaluation_does_not_depend_on_the_batch_size(victim) -> None:
    rows = [evaluate(*victim, spec(restarts=2), losses=BOTH, batch=batch) for batch in (1, 7, 64)]
    assert rows[0] == rows[1] == rows[2]


def test_the_starts_depend_on_the_seed_and_differ_between_losses_and_from_pgds(victim, monkeypatch) -> None:
    drawn: list[Tensor] = []

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        drawn.append(uniform_noise(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr("robreg.attacks.apgd.uniform_noise", watched)
    model, x, y = victim
    for seed in (0, 1):
        evaluate(model, x[1:4], y[1:4], spec(seed=seed, eps=0.0, restarts=2), losses=BOTH, batch=8)
    pgds = [uniform_noise(torch.arange(3), (2, 8, 8), seed=0, restart=restart) for restart in (0, 1)]
    values = torch.stack([*drawn, *pgds]).flatten()
    assert len(values) == (8 + 2) * 3 * 128
    assert len(values.unique()) == len(values)


def test_the_log_states_how_many_examples_remain_correct(victim, caplog) -> None:
    with caplog.at_level(logging.INFO):
        rows = evaluate(*victim, spec(), losses=BOTH, batch=64)
    assert f"cross_entropy: {rows[0]['n_robust']} of 45 correctly classified examples remain correct" in caplog.text


def test_conditional_accuracy_is_none_if_no_example_is_correct(victim) -> None:
    model, x, _ = victim
    wrong = (predicted(model, to_float(x)) + 1) % 10
    for row in evaluate(model, x, wrong, spec(restarts=2), losses=BOTH, batch=7):
        assert (row["n_correct"], row["n_robust"], row["acc_conditional"], row["acc_robust"]) == (0, 0, None, 0.0)


# Tables


def test_record_writes_a_row_per_loss_and_the_worst_case_of_the_first_n(run, identity, margins_file, tmp_path) -> None:
    setting = spec(eps=8.0, restarts=2, n=30)
    out = tmp_path / "apgd.parquet"
    files = {"checkpoint": run.checkpoint, "data": run.prepared, "margins": margins_file, "apgd": out}
    strong_attack.record(**files, attack=setting, batch=16, device="cpu")
    found = parquet.read(tmp_path / "apgd.parquet")
    assert found.column_names == schemas.SCHEMAS["attacks"].names
    first = run.data.test_images[:30], run.data.test_labels[:30]
    rows = evaluate(run.model, *first, setting, losses=BOTH, batch=30)
    assert found.to_pylist() == [{name: row[name] for name in found.column_names} for row in rows]
    assert [row["loss"] for row in rows] == ["cross_entropy", "dlr", "worst"]
    same = {"attack": "apgd", "space": "pixel", "start": "random", "split": "test", "n": 30, "eps": 8.0, "step": 16.0}
    for row in rows:
        assert row.items() >= (same | {"steps": 4, "restarts": 2, "seed": 0}).items()
    assert parquet.read_metadata(tmp_path / "apgd.parquet").items() >= identity.items()


def test_n_larger_than_the_split_means_all_of_it(run, margins_file, tmp_path) -> None:
    setting = spec(n=10_000)
    out = tmp_path / "apgd.parquet"
    files = {"checkpoint": run.checkpoint, "data": run.prepared, "margins": margins_file, "apgd": out}
    strong_attack.record(**files, attack=setting, batch=16, device="cpu")
    assert parquet.read(tmp_path / "apgd.parquet")["n"].to_pylist() == [40] * 3


def test_with_two_classes_cross_entropy_is_the_worst_case(run, net, tmp_path, monkeypatch, caplog) -> None:
    labels = {name: getattr(run.data, name) % 2 for name in ("train_labels", "test_labels")}
    two = replace(run.data, **labels, classes=2)
    opened = net(classes=2, seed=1), run.meta, two
    monkeypatch.setattr("robreg.measures.margins.open_run", lambda *_: opened)
    monkeypatch.setattr("robreg.measures.strong_attack.open_run", lambda *_: opened)
    files = {"checkpoint": run.checkpoint, "data": run.prepared, "margins": tmp_path / "margins.parquet"}
    record(**files, batch=16, device="cpu")
    options = {"attack": spec(n=40, eps=8.0), "batch": 16, "device": "cpu"}
    with caplog.at_level(logging.INFO):
        strong_attack.record(**files, apgd=tmp_path / "apgd.parquet", **options)
    cross_entropy, worst = parquet.read(tmp_path / "apgd.parquet").to_pylist()
    assert (cross_entropy["loss"], worst["loss"]) == ("cross_entropy", "worst")
    assert cross_entropy | {"loss": "worst"} == worst
    assert 0 < worst["n_robust"] < worst["n_correct"]
    assert "dlr needs 3 classes and there are 2" in caplog.text


# A trained network


@pytest.fixture(scope="module")
def trained(
    net: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network trained adversarially on the digits for some seconds, and all 500 test digits."""
    folder, generator = tmp_path_factory.mktemp("digits"), torch.Generator().manual_seed(0)
    prepare(
        {"kind": "digits", "max_train": None, "max_test": None, "subset_seed": 0, "name": "d"},
        data_root=folder,
        out=folder,
    )
    digits = load_dataset(folder)
    torch.set_num_threads(1)  # pytest sets up this fixture before those with function scope
    model = net(width=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.network.reset(3)
    nn.init.normal_(model.network.linear.weight, std=0.1, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(10):
        for index in torch.randperm(len(digits.train_labels), generator=generator).split(64):
            x, y = to_float(digits.train_images[index]), digits.train_labels[index]
            x = pgd_attack(model, x, y, eps=16 / 255, step=8 / 255, steps=3, generator=generator)
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model, *digits.split("test")


def test_on_a_trained_network_apgd_is_as_strong_as_torchattacks_and_stronger_than_pgd(trained) -> None:
    model, x, y = trained
    strong = spec(eps=32.0, steps=50)
    ours = {row["loss"]: row["n_robust"] for row in evaluate(model, x, y, strong, losses=BOTH, batch=500)}
    weak = {**strong, "start": "random", "step": 8.0, "steps": 10}
    pgd = evaluation.evaluate(model, x, y, weak, batch=500)
    assert pgd["n_correct"] > 400
    assert 50 < ours["worst"] <= min(ours["cross_entropy"], ours["dlr"])
    assert ours["worst"] < pgd["n_robust"]
    for loss in BOTH:  # other starts change a count by some examples, and a mean over three starts by fewer
        means = {"ours": 0.0, "theirs": 0.0}
        for seed in range(3):
            other = torchattacks.APGD(model, eps=32 / 255, steps=50, loss=TORCHATTACKS[loss], seed=seed)
            means["theirs"] += int((predicted(model, other(to_float(x), y)) == y).sum()) / 3
            means["ours"] += evaluate(model, x, y, strong | {"seed": seed}, losses=[loss], batch=500)[0]["n_robust"] / 3
        assert abs(means["ours"] - means["theirs"]) <= 8
