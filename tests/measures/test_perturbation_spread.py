"""Compare the spread of perturbations with a loop over examples and with layers whose ratios are known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from torch import Tensor, nn

from robreg.attacks.pgd import pgd as pgd_attack
from robreg.attacks.pgd import uniform_noise
from robreg.data.dataset import to_float
from robreg.measures import perturbation_spread
from robreg.networks.classifier import Classifier, Normalise
from robreg.spectra.applied import AppliedOperator
from robreg.spectra.layers import list_layers
from robreg.tables import parquet, schemas

SPEC = {"eps": 8.0, "step": 2.0, "steps": 4, "n": 500, "seed": 3, "space": "pixel"}


@pytest.fixture(scope="module")
def examples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (11, 2, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.randint(10, (11,), generator=generator)


def plain(*network: nn.Module) -> Classifier:
    return Classifier(Normalise([0.5, 0.5], [1.0, 1.0]), nn.Sequential(*network)).eval()


def moved(model: Classifier, image: Tensor, label: Tensor, number: int, spec: dict[str, Any]) -> dict[str, Tensor]:
    """Return both perturbations of one example, with the radius of the ball written out."""
    unit = 255 if spec["space"] == "pixel" else 255 / model.normalise.std
    eps, step = spec["eps"] / unit, spec["step"] / unit
    noise = uniform_noise(torch.tensor([number]), tuple(image.shape), seed=spec["seed"])
    x = to_float(image[None])
    pgd = pgd_attack(model, x, label[None], eps=eps, step=step, steps=spec["steps"], noise=noise)
    return {"random": (x + eps * noise.float()).clamp(0, 1), "pgd": pgd}


@torch.no_grad()
def passing(model: Classifier, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the input and output of a layer in a separate forward pass."""
    kept = []
    hook = model.get_submodule(name).register_forward_hook(lambda _, args, out: kept.extend([args[0], out]))
    model(x)
    hook.remove()
    return kept[0].double(), kept[1].double()


def logit_margin(model: Classifier, x: Tensor, label: Tensor) -> float:
    logits = model(x).detach()[0].double().tolist()
    own = logits.pop(int(label))
    return own - max(logits)


@pytest.mark.parametrize("batch", [1, 4, 100])
@pytest.mark.parametrize("spec", [SPEC, SPEC | {"space": "normalised", "eps": 32.0}])
def test_every_ratio_equals_that_of_a_plain_loop(
    net: Callable[..., Classifier], examples: tuple[Tensor, Tensor], spec: dict[str, Any], batch: int
) -> None:
    model = net(shape=(2, 8, 8))
    found = perturbation_spread.measure(model, *examples, spec, batch=batch)
    names = [layer.name for layer in list_layers(model, (2, 8, 8))]
    assert list(found) == ["random", "pgd"]
    for number, (image, label) in enumerate(zip(*examples, strict=True)):
        for kind, other in moved(model, image, label, number, spec).items():
            assert set(found[kind]) == {"margin", *names}
            change = logit_margin(model, other, label) - logit_margin(model, to_float(image[None]), label)
            assert float(found[kind]["margin"][number]) == pytest.approx(abs(change), rel=1e-3, abs=1e-5)
            for name in names:
                before, after = passing(model, name, to_float(image[None])), passing(model, name, other)
                expected = (after[1] - before[1]).norm() / (after[0] - before[0]).norm()
                assert float(found[kind][name][number]) == pytest.approx(float(expected), rel=1e-3)
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["random", "pgd"])
def test_an_orthogonal_layer_passes_every_perturbation_on_with_ratio_1(
    examples: tuple[Tensor, Tensor], kind: str
) -> None:
    model = plain(nn.Conv2d(2, 2, 3, padding=1), nn.Flatten(), nn.Linear(128, 128), nn.Linear(128, 10))
    with torch.no_grad():
        nn.init.dirac_(model.network[0].weight)
        model.network[2].weight.copy_(torch.from_numpy(ortho_group.rvs(128, random_state=0)))
    found = perturbation_spread.measure(model, *examples, SPEC, batch=5)[kind]
    for name in ("network.0", "network.2"):
        assert len(found[name]) == 11
        assert float(found[name].mean()) == pytest.approx(1, abs=1e-5)
        assert float(found[name].std(correction=0)) < 1e-5
    assert float(found["network.3"].std(correction=0)) > 1e-3


def test_ratios_lie_between_the_zero_padded_operators_singular_values(examples: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    model = plain(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(192, 10))
    found = perturbation_spread.measure(model, *examples, SPEC | {"eps": 32.0}, batch=5)
    sigma = torch.linalg.svdvals(AppliedOperator(list_layers(model, (2, 8, 8))[0]).matrices()[0])
    for ratios in found.values():
        assert float(sigma[-1]) * (1 - 1e-5) <= float(ratios["network.0"].min())
        assert float(ratios["network.0"].max()) <= float(sigma[0]) * (1 + 1e-5)
        assert float(ratios["network.0"].std(correction=0)) > 0


def test_a_convolution_with_a_zero_singular_value_has_smaller_ratios(examples: tuple[Tensor, Tensor]) -> None:
    model = plain(nn.Conv2d(2, 1, 1), nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        model.network[0].weight.copy_(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1))  # singular values 5 and 0
    ratios = perturbation_spread.measure(model, *examples, SPEC, batch=5)["random"]["network.0"]
    assert float(ratios.max()) <= 5
    assert float(ratios.square().mean()) == pytest.approx(
        25 / 2, rel=0.1
    )  # for independent noise: the mean square of the singular values


def test_examples_whose_perturbation_does_not_reach_a_layer_are_left_out(examples: tuple[Tensor, Tensor]) -> None:
    model = plain(nn.Flatten(), nn.Linear(128, 3), nn.ReLU(), nn.Linear(3, 10))
    with torch.no_grad():
        model.network[1].weight[1:] = 0
        model.network[1].bias.zero_()
    found = perturbation_spread.measure(model, *examples, SPEC, batch=4)["random"]
    with torch.no_grad():
        unit = model.network[1](model.normalise(to_float(examples[0])).flatten(1))[:, 0]
    on = int((unit > 0.2).sum())  # far from the edge, so that it stays on or off
    assert 0 < on <= len(found["network.3"]) < 11
    assert len(found["margin"]) == len(found["network.1"]) == 11
    assert all(bool(torch.isfinite(values).all()) for values in found.values())


def test_pgd_moves_the_margin_more_than_noise(net: Callable[..., Classifier], examples: tuple[Tensor, Tensor]) -> None:
    found = perturbation_spread.measure(net(shape=(2, 8, 8)), *examples, SPEC, batch=11)
    assert float(found["pgd"]["margin"].mean()) > 3 * float(found["random"]["margin"].mean())


def test_batch_statistics_and_training_mode_are_left_unchanged(examples: tuple[Tensor, Tensor]) -> None:
    model = plain(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 10)).train()
    perturbation_spread.measure(model, *examples, SPEC, batch=4)
    assert model.training
    assert int(model.network[1].num_batches_tracked) == 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("n", "counted"), [(500, 40), (7, 7)])
def test_record_writes_a_row_per_layer_and_perturbation(run, identity, tmp_path, n: int, counted: int) -> None:
    out, spec = tmp_path / "spread.parquet", SPEC | {"n": n}
    perturbation_spread.record(
        checkpoint=run.checkpoint, data=run.prepared, spread=out, spec=spec, batch=16, device="cpu"
    )
    frame = parquet.read(out).to_pandas()
    assert list(frame) == schemas.SCHEMAS["spread"].names
    assert parquet.read_metadata(out) == identity | {"spread": spec}
    names = ["margin", *(layer.name for layer in list_layers(run.model, (1, 8, 8)))]
    assert frame["name"].tolist() == 2 * names
    assert frame["layer"].tolist() == 2 * list(range(9))
    assert frame["perturbation"].tolist() == 9 * ["random"] + 9 * ["pgd"]
    assert set(frame["eps"]) == {8.0}
    assert frame["n"].tolist() == 18 * [counted]
    found = perturbation_spread.measure(run.model, *(part[:n] for part in run.data.split("test")), spec, batch=100)
    for row in frame.to_dict("records"):
        values = found[row["perturbation"]][row["name"]].numpy()
        assert row["mean"] == pytest.approx(np.mean(values), rel=1e-3)
        assert row["std"] == pytest.approx(np.std(values), rel=1e-2)


def test_a_layer_that_nothing_reaches_has_no_row_and_the_log_says_so(run, tmp_path, caplog) -> None:
    content = torch.load(run.checkpoint, weights_only=True)
    content["model"]["network.stem.weight"].zero_()
    checkpoint, out = tmp_path / "checkpoint.pt", tmp_path / "spread.parquet"
    torch.save(content, checkpoint)
    perturbation_spread.record(checkpoint=checkpoint, data=run.prepared, spread=out, spec=SPEC, batch=16, device="cpu")
    frame = parquet.read(out).to_pandas()
    assert set(frame["name"]) == {"margin", "network.stem"}
    assert "no pgd perturbation reaches layer network.linear" in caplog.text


class Tokens(nn.Module):
    """A network that cuts images into 16 tokens, with a layer that is called twice, and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.twice = nn.Conv2d(2, 6, 2, stride=2), nn.Linear(6, 6)
        self.attention, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(input=self.patch(x).flatten(2).mT))
        return self.head(self.attention(x, x, x)[0].mean(1))


def test_ratios_of_tokens_are_per_example_and_attentions_matrices_are_left_out(examples: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    model = plain(Tokens())
    found = perturbation_spread.measure(model, *examples, SPEC, batch=4)["random"]
    assert {name: len(values) for name, values in found.items()} == {
        "margin": 11,
        "network.0.patch": 11,
        "network.0.twice": 22,
        "network.0.head": 11,
    }
