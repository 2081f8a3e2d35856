"""Compare the loss variation with an attack that is written out here, example by example."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robreg.attacks.pgd import uniform_noise
from robreg.data.dataset import to_float
from robreg.measures import loss_variation
from robreg.tables import parquet

SPEC = {"eps": 8.0, "step": 2.0, "steps": 6, "seed": 3, "space": "pixel"}


@pytest.fixture(scope="module")
def examples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (13, 2, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.randint(10, (13,), generator=generator)


def probabilities(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the softmax of the labels, (N,)."""
    return model(to_float(images)).softmax(1).gather(1, labels[:, None])[:, 0].detach()


def losses(model: nn.Module, image: Tensor, label: Tensor, number: int, spec: dict[str, Any]) -> list[float]:
    """Return the loss at x, at the start and at every iterate."""
    unit = torch.full((2, 1, 1), 255.0)
    if spec["space"] == "normalised":
        unit = unit / model.normalise.std
    eps, step = spec["eps"] / unit, spec["step"] / unit
    x = to_float(image[None])
    noise = uniform_noise(torch.tensor([number]), (2, 8, 8), seed=spec["seed"]).float()
    found = [float(functional.cross_entropy(model(x), label[None]).detach())]
    point = (x + eps * noise).clamp(0, 1)
    for _ in range(spec["steps"] + 1):
        point = point.detach().requires_grad_()
        loss = functional.cross_entropy(model(point), label[None])
        loss.backward()
        found.append(float(loss.detach()))
        change = point + step * point.grad.sign() - x
        point = (x + torch.maximum(torch.minimum(change, eps), -eps)).clamp(0, 1)
    return found


@pytest.mark.parametrize("batch", [1, 5, 13, 100])
@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        SPEC | {"space": "normalised", "eps": 16.0},
        SPEC | {"steps": 0, "eps": 32.0},
        SPEC | {"steps": 1, "seed": 8},
        SPEC | {"steps": 5, "step": 64.0, "eps": 64.0},
    ],
)
def test_the_variation_is_the_maximum_over_x_the_start_and_the_iterates(
    net: Callable[..., nn.Module], examples: tuple[Tensor, Tensor], spec: dict[str, Any], batch: int
) -> None:
    model = net(shape=(2, 8, 8))
    found = loss_variation.measure(model, *examples, spec, batch=batch)
    every = [losses(model, *pair, number, spec) for number, pair in enumerate(zip(*examples, strict=True))]
    clean, highest = torch.tensor([row[0] for row in every]), torch.tensor([max(row) for row in every])
    torch.testing.assert_close(found["loss_clean"], clean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["loss_adv"], highest, rtol=1e-4, atol=1e-5)
    assert torch.equal(found["variation"], found["loss_adv"] - found["loss_clean"])
    assert (found["variation"] >= 0).all()
    torch.testing.assert_close(found["prob_clean"], probabilities(model, *examples), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["prob_adv"], (-highest).exp(), rtol=1e-4, atol=1e-6)
    assert torch.equal(found["prob_variation"], found["prob_clean"] - found["prob_adv"])


def test_an_iterate_in_the_middle_can_be_the_highest(
    net: Callable[..., nn.Module], examples: tuple[Tensor, Tensor]
) -> None:
    model, spec = net(shape=(2, 8, 8)), SPEC | {"steps": 5, "step": 64.0, "eps": 64.0}
    every = [losses(model, *pair, number, spec) for number, pair in enumerate(zip(*examples, strict=True))]
    places = {row.index(max(row)) for row in every}
    assert places & {2, 3, 4, 5}, (
        "no maximum is at an iterate before the last, so the comparison above does not test for one"
    )
    last = torch.tensor([row[-1] for row in every])
    assert (loss_variation.measure(model, *examples, spec, batch=13)["loss_adv"] > last + 1e-3).any()


class Tent(nn.Module):
    """A network whose loss for label 0 is highest at the grey level 128/255 and falls on all sides."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(100.0))
        self.normalise = nn.Identity()
        self.normalise.std = torch.ones(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        distance = (x.flatten(1) - 128 / 255).abs().sum(1)
        return torch.stack([self.weight * distance, torch.zeros_like(distance)], 1)


def test_x_itself_counts_if_every_iterate_has_a_lower_loss() -> None:
    images, labels = torch.full((5, 1, 2, 2), 128, dtype=torch.uint8), torch.zeros(5, dtype=torch.int64)
    spec = SPEC | {"step": 4.0}
    found = loss_variation.measure(Tent(), images, labels, spec, batch=5)
    assert found["variation"].tolist() == [0.0] * 5
    assert torch.equal(found["loss_adv"], found["loss_clean"])
    noise = uniform_noise(torch.arange(5), (1, 2, 2), seed=3).float()
    start = Tent()(to_float(images) + spec["eps"] / 255 * noise)
    assert (functional.cross_entropy(start, labels, reduction="none") < found["loss_clean"]).all()


def test_the_variation_is_0_for_eps_0(net: Callable[..., nn.Module], examples: tuple[Tensor, Tensor]) -> None:
    found = loss_variation.measure(net(shape=(2, 8, 8)), *examples, SPEC | {"eps": 0.0, "step": 0.0}, batch=4)
    assert found["variation"].tolist() == [0.0] * 13


def test_the_model_is_left_unchanged(net: Callable[..., nn.Module], examples: tuple[Tensor, Tensor]) -> None:
    model = net(shape=(2, 8, 8)).train()
    loss_variation.measure(model, *examples, SPEC, batch=4)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_record_writes_every_test_example_at_every_eps(run, identity, margins_file, tmp_path) -> None:
    attack = {"eps": [4.0, 16.0], "relative_step": 0.25, "steps": 3, "seed": 1, "space": "pixel", "n": None}
    path = tmp_path / "lossvar.parquet"
    files = {"checkpoint": run.checkpoint, "data": run.prepared, "margins": margins_file, "lossvar": path}
    loss_variation.record(**files, attack=attack, batch=16, device="cpu")
    frame = parquet.read(path).to_pandas()
    probabilities = ["prob_clean", "prob_adv", "prob_variation"]
    assert list(frame) == ["eps", "index", "loss_clean", "loss_adv", "variation", *probabilities]
    assert frame["eps"].tolist() == [4.0] * 40 + [16.0] * 40
    assert frame["index"].tolist() == [*range(40)] * 2
    for eps, rows in frame.groupby("eps"):
        spec = attack | {"eps": eps, "step": eps / 4}
        for name, values in loss_variation.measure(run.model, *run.data.split("test"), spec, batch=16).items():
            assert rows[name].tolist() == values.tolist()
    assert frame.groupby("eps")["variation"].mean().is_monotonic_increasing
    assert parquet.read_metadata(path).items() >= identity.items()
    loss_variation.record(**files, attack=attack | {"n": 7}, batch=16, device="cpu")
    assert parquet.read(path).to_pandas().equals(frame[frame["index"] < 7].reset_index(drop=True))


def test_known_losses_are_not_computed_again(net: Callable[..., nn.Module], examples: tuple[Tensor, Tensor]) -> None:
    model = net(shape=(2, 8, 8))
    known = torch.full(examples[1].shape, 1e6)
    assert torch.equal(loss_variation.measure(model, *examples, SPEC, batch=4, losses=known)["loss_adv"], known)
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    loss_variation.measure(model, *examples, SPEC, batch=len(examples[1]), losses=known)
    assert len(passes) == SPEC["steps"] + 1  # one for each iterate and none for the images themselves
