"""Compare attacked images with another library's attack, and check which images and radii are kept."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchattacks
from torch import Tensor

from robreg.attacks.pgd import pgd, uniform_noise
from robreg.data.dataset import to_float
from robreg.measures import examples
from robreg.networks.classifier import Classifier
from robreg.tables import parquet, schemas

ATTACK = {"eps": 32.0, "step": 8.0, "steps": 10, "restarts": 3, "start": "random", "seed": 5, "space": "pixel"}


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (6, 2, 8, 8), generator=generator, dtype=torch.uint8), torch.arange(6)


def measured(model: Classifier, images: tuple[Tensor, Tensor], **changes: Any) -> dict[str, Tensor]:
    return examples.attacked_images(model, *images, torch.arange(6) + 40, ATTACK | changes)


def margin(model: Classifier, x: Tensor, y: Tensor) -> list[float]:
    found = []
    for logits, label in zip(model(x).detach().tolist(), y.tolist(), strict=True):
        own = logits.pop(label)
        found.append(own - max(logits))
    return found


def test_without_a_random_start_the_images_are_those_of_torchattacks(
    net: Callable[..., Classifier], images: tuple[Tensor, Tensor]
) -> None:
    model = net(shape=(2, 8, 8))
    found = measured(model, images, start="clean", restarts=1)
    attack = torchattacks.PGD(model, eps=32 / 255, alpha=8 / 255, steps=10, random_start=False)
    expected = attack(to_float(images[0]), images[1])
    torch.testing.assert_close(found["adversarial"], expected, atol=1e-5, rtol=0)
    assert found["adversarial_margin"].tolist() == pytest.approx(margin(model, expected, images[1]), abs=1e-4)
    assert found["margin"].tolist() == pytest.approx(margin(model, to_float(images[0]), images[1]), abs=1e-5)
    assert found["prediction"].tolist() == model(to_float(images[0])).argmax(1).tolist()
    assert found["adversarial_prediction"].tolist() == model(expected).argmax(1).tolist()
    assert torch.equal(found["image"], images[0])


def test_of_all_restarts_the_one_with_the_smallest_margin_is_kept(
    net: Callable[..., Classifier], images: tuple[Tensor, Tensor]
) -> None:
    model = net(shape=(2, 8, 8))
    found = measured(model, images, steps=2)  # so few that the restarts end at different margins
    best: list[int] = []
    for number in range(6):
        x, y = to_float(images[0][number : number + 1]), images[1][number : number + 1]
        tried = []
        for restart in range(3):
            noise = uniform_noise(torch.tensor([40 + number]), (2, 8, 8), seed=5, restart=restart)
            attacked = pgd(model, x, y, eps=32 / 255, step=8 / 255, steps=2, noise=noise)
            tried.append((margin(model, attacked, y)[0], restart, attacked))
        smallest = min(tried, key=lambda one: one[0])
        best.append(smallest[1])
        assert float(found["adversarial_margin"][number]) == pytest.approx(smallest[0], abs=1e-4)
        torch.testing.assert_close(found["adversarial"][number], smallest[2][0], atol=1e-5, rtol=0)
    assert len(set(best)) > 1


def test_the_images_are_the_first_of_the_first_two_classes() -> None:
    assert examples.first_of_classes(torch.tensor([4, 2, 2, 7, 1, 4, 1])).tolist() == [4, 1]
    assert examples.first_of_classes(torch.tensor([3, 3])).tolist() == [0]


@pytest.mark.parametrize(
    ("trained", "second"),
    [
        ({"eps": 0, "space": "pixel"}, None),
        ({"eps": 8, "space": "pixel"}, {"eps": 8.0, "step": 2.0, "space": "pixel"}),
        ({"eps": 8, "space": "normalised"}, {"eps": 8.0, "step": 2.0, "space": "normalised"}),
    ],
)
def test_record_keeps_both_radii(run, identity, tmp_path, trained, second) -> None:
    out = tmp_path / "examples.parquet"
    examples.record(
        checkpoint=run.checkpoint, data=run.prepared, examples=out, attack=ATTACK, trained=trained, device="cpu"
    )
    table = parquet.read(out)
    assert table.schema.equals(schemas.SCHEMAS["examples"])
    assert parquet.read_metadata(out) == identity
    frame = table.to_pandas()
    assert frame["radius"].tolist() == ["evaluation"] * 2 + (["training"] * 2 if second else [])
    kept, labels = run.data.split("test")
    first = [(labels == label).nonzero()[0].item() for label in (0, 1)]
    for radius, spec in {"evaluation": ATTACK, "training": second and ATTACK | second}.items():
        rows = frame[frame["radius"] == radius]
        if spec is None:
            assert rows.empty
            continue
        assert rows["index"].tolist() == first
        assert rows["label"].tolist() == [0, 1]
        for name in ("eps", "step", "space", "steps", "restarts"):
            assert rows[name].tolist() == [spec[name]] * 2
        scale = run.model.normalise.std.max() if spec["space"] == "normalised" else 1
        for row in rows.to_dict("records"):
            assert (row["channels"], row["height"], row["width"]) == (1, 8, 8)
            assert row["image"].tolist() == kept[row["index"]].flatten().tolist()
            change = np.abs(row["adversarial"] - row["image"] / 255).max()
            assert 0.9 * spec["eps"] / 255 * scale < change <= spec["eps"] / 255 * scale + 1e-6
            assert 0 <= row["adversarial"].min() <= row["adversarial"].max() <= 1
            assert row["adversarial_margin"] < row["margin"]


def test_a_radius_of_0_leaves_the_share_of_a_step_to_the_training(run, tmp_path) -> None:
    still, trained = ATTACK | {"eps": 0.0, "step": 2.0}, {"eps": 8, "space": "pixel"}
    out = tmp_path / "examples.parquet"
    examples.record(
        checkpoint=run.checkpoint, data=run.prepared, examples=out, attack=still, trained=trained, device="cpu"
    )
    rows = parquet.read(out).to_pylist()
    assert [(row["eps"], row["step"]) for row in rows] == [(0.0, 2.0)] * 2 + [(8.0, 2.0)] * 2
    assert rows[0]["adversarial"] == pytest.approx(np.array(rows[0]["image"]) / 255, abs=1e-7)


def test_images_that_are_too_large_are_refused(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(examples, "LARGEST", 63)
    with pytest.raises(ValueError, match="8 x 8 pixels are too large to be kept; remove the figure examples"):
        examples.record(
            checkpoint=run.checkpoint,
            data=run.prepared,
            examples=tmp_path / "examples.parquet",
            attack=ATTACK,
            trained={"eps": 0, "space": "pixel"},
            device="cpu",
        )
