"""Tests of PGD and FGSM: steps against two other libraries, guarantees as properties, evaluation against a loop."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
import torchattacks
from helpers.pixels import images
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from robreg.attacks import evaluation
from robreg.attacks.apgd import apgd
from robreg.attacks.evaluation import evaluate
from robreg.attacks.pgd import draw_noise, fgsm, pgd, pixel_radius, uniform_noise
from robreg.data.dataset import to_float
from robreg.measures import evaluation_attack, strong_attack
from robreg.tables import parquet, schemas
from robreg.tables.results import evaluation_row

EPS, STEP = 8 / 255, 2 / 255


def labels(n: int, classes: int = 10, seed: int = 2) -> Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(seed))


# Against torchattacks and foolbox


class StartingAt(foolbox.attacks.LinfPGD):
    """foolbox's PGD from a given start."""

    def __init__(self, noise: Tensor, **kwargs: Any) -> None:
        super().__init__(random_start=True, **kwargs)
        self.noise = noise

    def get_random_start(self, x0: Any, epsilon: float) -> Any:
        return x0 + epsilon * type(x0)(self.noise)


def torchattacks_pgd(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor | None, steps: int) -> Tensor:
    other = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=steps, random_start=noise is not None)
    with pytest.MonkeyPatch.context() as patch:
        if noise is not None:
            patch.setattr(Tensor, "uniform_", lambda self, low, high: self.copy_(high * noise))
        return other(x, y)


def foolbox_pgd(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor | None, steps: int) -> Tensor:
    kwargs = {"abs_stepsize": STEP, "steps": steps}
    other = foolbox.attacks.LinfPGD(random_start=False, **kwargs) if noise is None else StartingAt(noise, **kwargs)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    return other.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=EPS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("start", ["clean", "random"])
@pytest.mark.parametrize("other", [torchattacks_pgd, foolbox_pgd])
def test_pgd_equals_another_library_after_every_step(
    net: Callable[..., nn.Module], other: Callable[..., Tensor], start: str, dtype: torch.dtype
) -> None:
    model, x, y = net(shape=(3, 8, 8), dtype=dtype), images(5, (3, 8, 8), dtype=dtype), labels(5)
    noise = uniform_noise(torch.arange(5), (3, 8, 8), seed=3).to(dtype) if start == "random" else None
    previous = x
    for steps in range(1, 11):
        ours = pgd(model, x, y, eps=EPS, step=STEP, steps=steps, noise=noise)
        torch.testing.assert_close(ours, other(model, x, y, noise, steps), atol=1e-6, rtol=0)
        assert not torch.equal(ours, previous), "the step changed nothing, so the comparison shows nothing"
        previous = ours


def test_fgsm_equals_torchattacks_and_foolbox(net: Callable[..., nn.Module]) -> None:
    model, x, y = net(dtype=torch.float64), images(6), labels(6)
    ours = fgsm(model, x, y, eps=EPS)
    torch.testing.assert_close(ours, torchattacks.FGSM(model, eps=EPS)(x, y), atol=1e-6, rtol=0)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    theirs = foolbox.attacks.FGSM(random_start=False).run(
        wrapped, x, foolbox.criteria.Misclassification(y), epsilon=EPS
    )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_one_step_raises_the_loss_of_a_linear_model_by_eps_times_the_l1_norm_of_its_gradient() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).double()
    x, y = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64), torch.tensor([0])
    difference = model[1].weight[1] - model[1].weight[0]  # the direction in which the margin decreases
    adversarial = fgsm(model, x, y, eps=0.1)
    torch.testing.assert_close(adversarial.flatten(), 0.5 + 0.1 * difference.sign().detach())


# Properties


def dense(shape: tuple[int, ...], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 7), nn.Tanh(), nn.Linear(7, 3))


shapes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
strengths = st.floats(0, 1, width=32) | st.sampled_from([0.0, 1 / 255, 8 / 255, 1.0])
seeds = st.integers(0, 2**32)


@given(shape=shapes, eps=strengths, step=strengths, steps=st.integers(0, 4), seed=seeds, random=st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_result_is_in_the_ball_and_in_the_box(shape, eps, step, steps, seed, random) -> None:
    x = images(shape[0], shape[1:], seed=seed, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed) if random else None
    y = labels(shape[0], 3, seed)
    adversarial = pgd(dense(shape[1:], seed), x, y, eps=eps, step=step, steps=steps, generator=generator)
    assert adversarial.shape == x.shape
    assert adversarial.dtype == x.dtype
    assert (adversarial - x).abs().max() <= eps + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1


@given(shape=shapes, eps=strengths, step=strengths, steps=st.integers(0, 3), seed=seeds, random=st.booleans())
@settings(max_examples=80, deadline=None)
def test_eps_0_and_steps_0_return_the_input_unchanged(shape, eps, step, steps, seed, random) -> None:
    x, y = images(shape[0], shape[1:], seed=seed, dtype=torch.float32), labels(shape[0], 3, seed)
    noise = uniform_noise(torch.arange(shape[0]), shape[1:], seed=seed) if random else None
    generator = None if random else torch.Generator().manual_seed(seed)
    start = {"noise": noise, "generator": generator}
    model = dense(shape[1:], seed)
    assert torch.equal(pgd(model, x, y, eps=0.0, step=step, steps=steps, **start), x)
    assert torch.equal(fgsm(model, x, y, eps=0.0, step=step, **start), x)
    untouched = pgd(model, x, y, eps=eps, step=step, steps=0, **start)
    assert torch.equal(untouched, x)
    assert untouched.data_ptr() != x.data_ptr()  # a copy: changing it does not change x


def test_the_input_is_not_written_to(net: Callable[..., nn.Module]) -> None:
    x, noise = images(3), uniform_noise(torch.arange(3), (1, 8, 8), seed=0)
    before = x.clone(), noise.clone()
    pgd(net(dtype=torch.float64), x, labels(3), eps=EPS, step=STEP, steps=3, noise=noise)
    assert torch.equal(x, before[0])
    assert torch.equal(noise, before[1])


def test_a_step_of_size_0_returns_the_random_start(net: Callable[..., nn.Module]) -> None:
    x, noise = images(3), uniform_noise(torch.arange(3), (1, 8, 8), seed=0)
    start = pgd(net(dtype=torch.float64), x, labels(3), eps=EPS, step=0.0, steps=1, noise=noise)
    torch.testing.assert_close(start, (x + EPS * noise).clamp(0, 1), atol=1e-12, rtol=0)


def test_fgsm_with_noise_takes_one_step_of_the_given_size_from_the_start(net: Callable[..., nn.Module]) -> None:
    model, x, y = net(dtype=torch.float64), images(4), labels(4)
    noise = uniform_noise(torch.arange(4), (1, 8, 8), seed=0)
    begin = (x + EPS * noise).clamp(0, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(model(begin), y), begin)
    expected = x + (begin + 1.25 * EPS * gradient.sign() - x).clamp(-EPS, EPS)  # Wong et al. 2020
    ours = fgsm(model, x, y, eps=EPS, step=1.25 * EPS, noise=noise)
    torch.testing.assert_close(ours, expected.clamp(0, 1).detach(), atol=1e-12, rtol=0)


def test_a_generator_determines_the_start_reproducibly(net: Callable[..., nn.Module]) -> None:
    model, x, y = net(dtype=torch.float64), images(3), labels(3)

    def start(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return pgd(model, x, y, eps=EPS, step=0.0, steps=1, generator=generator)

    assert torch.equal(start(0), start(0))
    assert not torch.equal(start(0), start(1))
    expected = x + EPS * draw_noise(x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(start(0), expected.clamp(0, 1))


def test_each_channel_has_its_own_radius_and_step(net: Callable[..., nn.Module]) -> None:
    model, y = net(shape=(3, 8, 8), dtype=torch.float64), labels(4)
    x = images(4, (3, 8, 8)) * 0.4 + 0.3  # so that no pixel reaches 0 or 1
    eps = torch.tensor([0.01, 0.0, 0.05], dtype=torch.float64).view(3, 1, 1)
    adversarial = pgd(model, x, y, eps=eps, step=eps / 2, steps=5)
    change = (adversarial - x).abs().amax((0, 2, 3))
    torch.testing.assert_close(change, eps.flatten(), atol=1e-12, rtol=0)
    single = pgd(model, x, y, eps=eps, step=eps / 2, steps=1)
    reached = (single - x).abs().amax((0, 2, 3))
    torch.testing.assert_close(reached, eps.flatten() / 2, atol=1e-12, rtol=0)


# Refusals

Y = labels(2)
X = images(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X + 0.5}, r"\[0, 1\]"),
        ({"x": X - 1e-3}, r"\[0, 1\]"),
        ({"x": 255 * X}, r"\[0, 1\]"),
        ({"x": X.where(X > 0.5, torch.nan)}, r"\[0, 1\]"),
        ({"x": X.where(X > 0.5, torch.inf)}, r"\[0, 1\]"),
        ({"x": X.where(X > 0.5, -torch.inf)}, r"\[0, 1\]"),
        ({"x": X.round().byte()}, r"\[0, 1\]"),
        ({"x": X[0]}, "x must be"),
        ({"y": Y.int()}, "y .*int64"),
        ({"y": Y.double()}, "y .*int64"),
        ({"y": Y[:1]}, "y .*int64"),
        ({"y": functional.one_hot(Y, 10)}, "y .*int64"),
        ({"eps": -0.1}, "eps"),
        ({"eps": 8}, "eps .*255"),
        ({"eps": float("nan")}, "eps"),
        ({"eps": torch.tensor([[[0.1]], [[-0.1]]])}, "eps"),
        ({"step": -0.1}, "step "),
        ({"step": 2}, "step .*255"),
        ({"step": float("nan")}, "step "),
        ({"steps": -1}, "steps"),
        ({"noise": torch.full_like(X, 1.1)}, "noise"),
        ({"noise": torch.full_like(X, -1.1)}, "noise"),
        ({"noise": torch.full_like(X, torch.nan)}, "noise"),
        ({"noise": X[:1]}, "noise"),
        ({"noise": X[:, 0]}, "noise"),
    ],
)
def test_a_bad_argument_is_refused_by_its_name(
    net: Callable[..., nn.Module], change: dict[str, object], message: str
) -> None:
    arguments: dict[str, Any] = {"x": X, "y": Y, "eps": EPS, "step": STEP, "steps": 2} | change
    x, y = arguments.pop("x"), arguments.pop("y")
    with pytest.raises(ValueError, match=message):
        pgd(net(dtype=torch.float64), x, y, **arguments)


@pytest.mark.parametrize("change", [{"x": X + 1}, {"y": Y.int()}, {"eps": 8}, {"step": -1.0}, {"noise": X[:1]}])
def test_fgsm_refuses_what_pgd_refuses(net: Callable[..., nn.Module], change: dict[str, object]) -> None:
    arguments: dict[str, Any] = {"x": X, "y": Y, "eps": EPS} | change
    x, y = arguments.pop("x"), arguments.pop("y")
    with pytest.raises(ValueError, match=r"attack|noise"):
        fgsm(net(dtype=torch.float64), x, y, **arguments)


# The model is left unchanged


class Exploding(nn.Module):
    """Raise an error after a number of calls."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise FloatingPointError
        return x


def mixed(calls: int = 1000) -> nn.Sequential:
    """Return a model with some modules in training mode, one frozen parameter, and a gradient on one parameter only."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), Exploding(calls), nn.Linear(108, 10)
        ).double()
    model.train()
    model[0].eval()
    model[3].eval()
    model[0].bias.requires_grad_(False)
    model[5].weight.grad = torch.ones_like(model[5].weight)
    return model


def fingerprint(model: nn.Module) -> dict[str, object]:
    return {
        "modes": [module.training for module in model.modules()],
        "wants": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [None if p.grad is None else p.grad.sum().item() for p in model.parameters()],
        "state": [value.sum().item() for value in model.state_dict().values()],
    }


@pytest.mark.parametrize("run_attack", [pgd, fgsm, apgd])
def test_the_model_is_left_unchanged(run_attack: Callable[..., Tensor]) -> None:
    model = mixed()
    before, gradient = fingerprint(model), model[5].weight.grad
    right = mixed().eval()(images(4)).argmax(1)  # apgd does not change misclassified examples
    settings = {pgd: {"step": STEP, "steps": 3}, fgsm: {}, apgd: {"steps": 3, "loss": "dlr"}}[run_attack]
    adversarial = run_attack(model, images(4), right, eps=EPS, **settings)
    assert fingerprint(model) == before
    assert model[5].weight.grad is gradient
    assert not torch.equal(adversarial, images(4))


@pytest.mark.parametrize("calls", [0, 2])
def test_the_model_is_left_unchanged_if_it_raises_an_error(calls: int) -> None:
    model = mixed(calls)
    before = fingerprint(model)
    with pytest.raises(FloatingPointError):
        pgd(model, images(4), labels(4), eps=EPS, step=STEP, steps=5)
    assert fingerprint(model) == before


def test_the_model_is_attacked_in_eval_mode() -> None:
    model = mixed()
    x, y = images(4), labels(4)
    by_training_model = pgd(model, x, y, eps=EPS, step=STEP, steps=3)
    assert torch.equal(by_training_model, pgd(model.eval(), x, y, eps=EPS, step=STEP, steps=3))  # no dropout


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_result_is_detached_even_if_the_input_requires_a_gradient(
    net: Callable[..., nn.Module], steps: int
) -> None:
    x = images(2).requires_grad_()
    adversarial = pgd(net(dtype=torch.float64), x, labels(2), eps=EPS, step=STEP, steps=steps)
    assert not adversarial.requires_grad
    assert adversarial.grad_fn is None
    assert x.grad is None


def test_pgd_works_where_gradients_are_disabled(net: Callable[..., nn.Module]) -> None:
    model, x, y = net(dtype=torch.float64), images(2), labels(2)
    expected = pgd(model, x, y, eps=EPS, step=STEP, steps=3)
    with torch.no_grad():
        assert torch.equal(pgd(model, x, y, eps=EPS, step=STEP, steps=3), expected)
        assert not torch.is_grad_enabled()


# The random start


def test_an_examples_noise_does_not_depend_on_its_batch() -> None:
    everything = uniform_noise(torch.arange(20), (3, 4, 4), seed=5, restart=1)
    split = [uniform_noise(part, (3, 4, 4), seed=5, restart=1) for part in torch.arange(20).split(7)]
    assert torch.equal(torch.cat(split), everything)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniform_noise(order, (3, 4, 4), seed=5, restart=1), everything[order])


def test_noise_differs_between_seeds_restarts_and_examples() -> None:
    drawn = [
        uniform_noise(torch.arange(6), (1, 4, 4), seed=seed, restart=restart).flatten(1)
        for seed in range(4)
        for restart in range(4)
    ]
    values = torch.cat(drawn).flatten()
    assert len(values) == 4 * 4 * 6 * 16
    assert len(values.unique()) == len(values)  # 53 random bits each: without repetitions, no two streams overlap


def test_noise_is_uniform() -> None:
    noise = uniform_noise(torch.arange(2000), (1, 5, 5), seed=0)
    n = noise.numel()
    assert noise.dtype == torch.float64
    assert noise.min() >= -1
    assert noise.max() < 1
    assert abs(noise.mean()) < 5 * (1 / 3 / n) ** 0.5
    assert abs(noise.pow(2).mean() - 1 / 3) < 5 * (4 / 45 / n) ** 0.5
    assert abs(noise.pow(4).mean() - 1 / 5) < 5 * (16 / 225 / n) ** 0.5
    between = (
        noise.flatten(1).mean(1).std() * 25**0.5 * 3**0.5
    )  # scaled std of the examples' means, which is 1 if entries are independent
    assert abs(between - 1) < 0.1


def test_training_noise_is_uniform_too() -> None:
    noise = draw_noise(torch.zeros(2000, 1, 5, 5, dtype=torch.float64), torch.Generator().manual_seed(0))
    assert -1 <= noise.min() < -0.99
    assert 0.99 < noise.max() <= 1
    assert abs(noise.mean()) < 5 * (1 / 3 / noise.numel()) ** 0.5
    assert abs(noise.pow(2).mean() - 1 / 3) < 5 * (4 / 45 / noise.numel()) ** 0.5


def test_results_are_bit_identical_for_every_batch_size(net: Callable[..., nn.Module]) -> None:
    model, x, y, index = net(dtype=torch.float64), images(64), labels(64), torch.arange(64)

    def attacked(batch: int) -> Tensor:
        parts = []
        for part in index.split(batch):
            noise = uniform_noise(part, (1, 8, 8), seed=0)
            parts.append(pgd(model, x[part], y[part], eps=EPS, step=STEP, steps=10, noise=noise))
        return torch.cat(parts)

    assert torch.equal(attacked(1), attacked(64))
    assert torch.equal(attacked(7), attacked(64))


# Evaluation


def spec(**changes: object) -> dict[str, Any]:
    fixed = {"attack": "pgd", "space": "pixel", "start": "random", "loss": "cross_entropy", "seed": 0}
    return {**fixed, "eps": 2.0, "step": 0.5, "steps": 4, "restarts": 1, **changes}


@pytest.fixture(scope="module")
def victim(net: Callable[..., nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network, 60 images, and labels of which it predicts three quarters correctly."""
    model = net(shape=(2, 8, 8))
    x = torch.randint(256, (60, 2, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        y = model(to_float(x)).argmax(1)
    y[::4] = (y[::4] + 1) % 10
    return model, x, y


def naive(model: nn.Module, x: Tensor, y: Tensor, setting: dict[str, Any]) -> tuple[int, int]:
    """Attack every example separately; it is robust if it is classified correctly before and after all restarts."""
    correct = robust = 0
    unit = 255 * torch.ones(2, 1, 1)
    if setting["space"] == "normalised":
        unit = unit / model.normalise.std
    for number in range(len(x)):
        image, label = to_float(x[number : number + 1]), y[number : number + 1]
        hits = [bool(model(image).argmax() == label)]
        for restart in range(setting["restarts"]):
            noise = uniform_noise(torch.tensor([number]), (2, 8, 8), seed=setting["seed"], restart=restart)
            adversarial = pgd(
                *(model, image, label),
                eps=setting["eps"] / unit,
                step=setting["step"] / unit,
                steps=setting["steps"],
                noise=noise if setting["start"] == "random" else None,
            )
            hits.append(bool(model(adversarial).argmax() == label))
        correct += hits[0]
        robust += all(hits)
    return correct, robust


@pytest.mark.parametrize(
    "setting",
    [
        spec(),
        spec(restarts=3),
        spec(restarts=3, steps=1, eps=16.0, step=0.5, seed=4),
        spec(start="clean"),
        spec(space="normalised", eps=8.0, step=2.0),
    ],
)
def test_evaluation_equals_a_loop_over_examples_and_restarts(victim, setting: dict[str, Any]) -> None:
    counts = evaluate(*victim, setting, batch=16)
    correct, robust = naive(*victim, setting)
    assert (counts["n"], counts["n_correct"], counts["n_robust"]) == (60, correct, robust)
    assert counts["acc_conditional"] == 100 * robust / correct
    assert counts["acc_robust"] == 100 * robust / 60
    assert correct == 45
    assert 5 <= robust <= 40, "the attack is too strong or too weak for a comparison"


def test_evaluation_does_not_depend_on_the_batch_size(victim) -> None:
    counts = [evaluate(*victim, spec(restarts=2), batch=batch) for batch in (1, 7, 64)]
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize("batch", [7, 15, 45, 64])
def test_every_attack_runs_on_full_batches_of_the_examples_that_still_stand(batch: int) -> None:
    bright = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))  # 1 for a bright image, 0 for a dark one
    with torch.no_grad():
        bright[1].weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
        bright[1].bias.copy_(torch.tensor([2.0, -2.0]))
    x, y = torch.arange(60, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 2, 2), torch.zeros(60, dtype=torch.int64)
    correct = torch.arange(60) % 4 > 0
    seen: list[list[Tensor]] = [[], [], []]

    def attack(index: Tensor, image: Tensor, label: Tensor, *, number: int) -> Tensor:
        assert torch.equal(image, to_float(x[index]))
        assert torch.equal(label, y[index])
        seen[number].append(index)
        return torch.where((index % 5 == number).view(-1, 1, 1, 1), torch.ones_like(image), image)

    attacks = [partial(attack, number=number) for number in range(3)]
    robust = evaluation.survivors(bright, x, y, attacks, correct=correct, batch=batch)
    standing = torch.arange(60)[correct]
    for number, parts in enumerate(seen):
        assert [part.tolist() for part in parts] == [part.tolist() for part in standing.split(batch)]
        standing = standing[standing % 5 != number]
    assert robust.nonzero()[:, 0].tolist() == standing.tolist()
    assert int(correct.sum()) == 45  # the caller's mask is not changed


def test_the_start_of_an_evaluation_depends_on_its_seed(victim) -> None:
    model, x, y = victim
    robust = {
        evaluate(model, x, y, spec(seed=seed, steps=1, step=0.0, eps=8.0), batch=64)["n_robust"] for seed in range(8)
    }
    assert len(robust) > 1


def test_more_restarts_never_raise_robustness(victim) -> None:
    robust = [
        evaluate(*victim, spec(restarts=n, steps=1, step=0.0, eps=8.0), batch=64)["n_robust"] for n in range(1, 7)
    ]
    assert robust == sorted(robust, reverse=True)
    assert robust[-1] < robust[0]


def test_a_stronger_attack_leaves_fewer_robust_examples_and_eps_0_leaves_all(victim) -> None:
    robust = [evaluate(*victim, spec(eps=eps, step=eps / 4), batch=64)["n_robust"] for eps in (0.0, 1.0, 2.0, 32.0)]
    assert robust[0] == 45
    assert robust == sorted(robust, reverse=True)
    assert robust[-1] == 0


@pytest.mark.parametrize("batch", [7, 64])
def test_conditional_accuracy_is_none_if_no_example_is_correct(victim, batch: int) -> None:
    model, x, _ = victim
    with torch.no_grad():
        wrong = (model(to_float(x)).argmax(1) + 1) % 10
    counts = evaluate(model, x, wrong, spec(restarts=2), batch=batch)
    assert counts == {"n": 60, "n_correct": 0, "n_robust": 0, "acc_conditional": None, "acc_robust": 0.0}


def test_evaluation_does_not_change_the_models_mode(victim) -> None:
    model, x, y = victim
    model.train()
    try:
        evaluate(model, x[:4], y[:4], spec(), batch=2)
        assert all(module.training for module in model.modules())
    finally:
        model.eval()


def test_a_radius_is_divided_by_255_and_scaled_as_its_space_says() -> None:
    std = torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    assert pixel_radius(8, "pixel", std) == 8 / 255
    assert pixel_radius(16, "symmetric", std) == 8 / 255  # x in [-1, 1] is twice as wide
    torch.testing.assert_close(pixel_radius(8, "normalised", std), torch.tensor([1.6, 2.0, 2.4]).view(3, 1, 1) / 255)


NONE = {"eps": [], "relative_step": 0.25, "steps": 3, "n": None, "seed": 0}


@pytest.fixture
def strong(run, margins_file, tmp_path) -> Path:
    setting = {"eps": 16.0, "steps": 2, "restarts": 1, "n": 30, "seed": 0, "space": "pixel"}
    out = tmp_path / "apgd.parquet"
    files = {"checkpoint": run.checkpoint, "data": run.prepared, "margins": margins_file, "apgd": out}
    strong_attack.record(**files, attack=setting, batch=16, device="cpu")
    return tmp_path / "apgd.parquet"


def files(run, strong: Path) -> dict[str, Path]:
    """Return the input files of the evaluation attack."""
    tables = {"margins": strong.parent / "margins.parquet", "apgd": strong}
    return {"checkpoint": run.checkpoint, "data": run.prepared} | tables


def test_record_writes_a_row_for_the_evaluation_followed_by_those_of_apgd(run, identity, strong, tmp_path) -> None:
    setting = spec(eps=16.0, step=4.0, restarts=2)
    out = tmp_path / "attacks.parquet"
    evaluation_attack.record(**files(run, strong), attacks=out, attack=setting, radii=NONE, batch=16, device="cpu")
    found = parquet.read(out)
    assert found.column_names == schemas.SCHEMAS["attacks"].names
    row, *others = found.to_pylist()
    counts = evaluate(run.model, run.data.test_images, run.data.test_labels, setting, batch=40)
    assert row == {**setting, "split": "test", **counts}
    assert row["n"] == 40
    assert others == parquet.read(strong).to_pylist()
    assert [other["loss"] for other in others] == ["cross_entropy", "dlr", "worst"]
    assert parquet.read_metadata(out).items() >= identity.items()


@pytest.mark.parametrize("n", [None, 13, 100])
def test_every_network_is_attacked_at_radii_in_pixels_whatever_its_space(n, run, strong, tmp_path) -> None:
    setting = spec(eps=16.0, step=4.0, restarts=2, space="normalised", start="clean")
    out = tmp_path / "attacks.parquet"
    radii = NONE | {"eps": [2.0, 8.0], "n": n}
    options = {"attack": setting, "radii": radii, "batch": 16, "device": "cpu"}
    evaluation_attack.record(**files(run, strong), attacks=out, **options)
    first, *others = parquet.read(out).to_pylist()
    assert first["space"] == "normalised"
    used = min(n or 40, 40)
    for row, eps in zip(others[:2], (2.0, 8.0), strict=True):
        own = setting | {"eps": eps, "step": eps / 4, "steps": 3, "space": "pixel", "start": "random", "restarts": 1}
        images, labels = run.data.test_images[:used], run.data.test_labels[:used]
        counts = evaluate(run.model, images, labels, own, batch=40)
        assert row == {**own, "split": "test", **counts}
        assert row["n"] == used
    assert [row["attack"] for row in others[2:]] == ["apgd"] * 3
    assert evaluation_row(parquet.read(out).to_pandas()) == first


@pytest.mark.parametrize(("n", "rows"), [(None, 1), (13, 2)])
def test_a_radius_in_pixels_that_repeats_the_evaluation_attack_is_left_out(n, rows, run, strong, tmp_path) -> None:
    setting = spec(eps=8.0, step=2.0, steps=3, restarts=1, space="pixel", start="random", seed=0)
    out = tmp_path / "attacks.parquet"
    options = {"attack": setting, "radii": NONE | {"eps": [8.0], "n": n}, "batch": 16, "device": "cpu"}
    evaluation_attack.record(**files(run, strong), attacks=out, **options)
    assert parquet.read(out)["attack"].to_pylist().count("pgd") == rows


def test_the_clean_predictions_are_read_from_the_margins_and_decide_which_examples_are_attacked(
    run, strong, monkeypatch, tmp_path
) -> None:
    frame = parquet.read(strong.parent / "margins.parquet").to_pandas()
    frame["prediction"] = (frame["label"] + 1) % 10
    some = frame[frame["split"] == "test"].index[3:38:5]  # 7 of the 40 examples
    frame.loc[some, "prediction"] = frame.loc[some, "label"]
    columns = {name: frame[name].tolist() for name in frame}
    parquet.write(strong.parent / "margins.parquet", "margins", columns, {})
    passes = []
    monkeypatch.setattr(evaluation, "_is_correct", lambda model, x, y: passes.append(len(x)) or torch.ones_like(y) > 0)
    out = tmp_path / "attacks.parquet"
    options = {"attack": spec(restarts=2), "radii": NONE, "batch": 16, "device": "cpu"}
    evaluation_attack.record(**files(run, strong), attacks=out, **options)
    assert parquet.read(out)["n_correct"][0].as_py() == 7
    assert sum(passes) == 2 * 7  # once after each restart, and not before


def test_record_refuses_data_other_than_those_trained_on(run, strong, tmp_path) -> None:
    meta = run.meta | {"data_sha256": "0" * 64}
    torch.save({"model": run.model.state_dict(), "meta": meta}, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"was not trained on the data that .* now holds"):
        evaluation_attack.record(
            **files(run, strong) | {"checkpoint": tmp_path / "checkpoint.pt"},
            attacks=tmp_path / "a.parquet",
            attack=spec(),
            radii=NONE,
            batch=16,
            device="cpu",
        )
    assert not (tmp_path / "a.parquet").exists()


def test_a_radius_of_a_wrong_shape_is_refused(net: nn.Module) -> None:
    x, y = torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"eps must be one number or \(C, 1, 1\)"):
        pgd(net, x, y, eps=torch.full((8,), 0.1), step=0.1, steps=1)


def test_an_unknown_space_is_refused() -> None:
    with pytest.raises(ValueError, match="space must be one of pixel, symmetric, normalised, not 'pixels'"):
        pixel_radius(8, "pixels", torch.ones(3, 1, 1))
