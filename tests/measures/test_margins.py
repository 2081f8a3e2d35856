"""Compare margins, probabilities and losses with loops over examples and classes."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robreg.data.dataset import to_float
from robreg.measures.margins import margins, measure, read_clean, record
from robreg.tables import parquet


def test_the_margin_is_the_logit_of_the_label_minus_the_best_other() -> None:
    logits = torch.tensor([[1.0, 5.0, 3.0], [1.0, 5.0, 3.0], [1.0, 5.0, 3.0], [-1.0, -4.0, -2.0]])
    assert margins(logits, torch.tensor([1, 2, 0, 0])).tolist() == [2.0, -2.0, -4.0, 1.0]


def test_the_margin_of_a_tie_is_exactly_0() -> None:
    logits = torch.tensor([[2.0, 2.0, 1.0], [2.0, 2.0, 1.0], [2.0, 2.0, 1.0], [3.0, 3.0, 3.0]])
    assert margins(logits, torch.tensor([0, 1, 2, 1])).tolist() == [0.0, 0.0, -1.0, 0.0]


def test_the_margin_equals_a_loop_over_the_other_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(50, 7, generator=generator), torch.randint(7, (50,), generator=generator)
    expected = [
        float(row[label] - max(row[other] for other in range(7) if other != label))
        for row, label in zip(logits, y.tolist(), strict=True)
    ]
    before = logits.clone()
    assert margins(logits, y).tolist() == expected
    assert torch.equal(logits, before)


@pytest.mark.parametrize("batch", [1, 7, 20, 64])
def test_measure_equals_a_loop_over_examples(net: Callable[..., nn.Module], batch: int) -> None:
    model = net(shape=(2, 8, 8))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (20, 2, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (20,), generator=generator)
    found = measure(model, images, labels, batch=batch)
    assert list(found) == ["prediction", "margin", "prob", "loss"]
    for number, label in enumerate(labels.tolist()):
        logits = model(to_float(images[number : number + 1]))[0].tolist()
        total = math.fsum(math.exp(value - max(logits)) for value in logits)
        prob = math.exp(logits[label] - max(logits)) / total
        loss = math.log(total) - (logits[label] - max(logits))
        assert int(found["prediction"][number]) == logits.index(max(logits))
        others = logits[:label] + logits[label + 1 :]
        assert float(found["margin"][number]) == pytest.approx(logits[label] - max(others), abs=1e-4)
        assert float(found["prob"][number]) == pytest.approx(prob, rel=1e-4, abs=1e-6)
        assert float(found["loss"][number]) == pytest.approx(loss, rel=1e-4, abs=1e-4)
    right = found["prediction"] == labels
    assert torch.equal(right, found["margin"] > 0)
    assert {value.dtype for key, value in found.items() if key != "prediction"} == {torch.float32}
    assert not any(value.requires_grad for value in found.values())


class Giant(nn.Module):
    """A network whose logits are so large that exp overflows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1e4, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.expand(len(x), 2)


def test_huge_logits_give_finite_numbers() -> None:
    found = measure(Giant(), torch.zeros(2, 1, 1, 1, dtype=torch.uint8), torch.tensor([0, 1]), batch=2)
    assert found["loss"].tolist() == [0.0, 1e4]
    assert found["prob"].tolist() == [1.0, 0.0]
    assert found["margin"].tolist() == [1e4, -1e4]


def test_record_writes_every_example_of_both_splits(run, identity, tmp_path) -> None:
    record(checkpoint=run.checkpoint, data=run.prepared, margins=tmp_path / "margins.parquet", batch=16, device="cpu")
    frame = parquet.read(tmp_path / "margins.parquet").to_pandas()
    assert list(frame) == ["split", "index", "label", "prediction", "margin", "prob", "loss"]
    assert frame["split"].tolist() == ["train"] * 60 + ["test"] * 40
    assert frame["index"].tolist() == [*range(60), *range(40)]
    assert frame["label"].tolist() == run.data.train_labels.tolist() + run.data.test_labels.tolist()
    for split in ("train", "test"):
        own = frame[frame["split"] == split]
        for name, values in measure(run.model, *run.data.split(split), batch=1000).items():
            torch.testing.assert_close(
                torch.tensor(own[name].to_numpy()), values, rtol=1e-4, atol=1e-4, msg=f"{split} {name}"
            )
    assert parquet.read_metadata(tmp_path / "margins.parquet") == identity


def test_the_clean_pass_is_read_back_for_the_first_test_examples(run, margins_file) -> None:
    labels = run.data.test_labels[:30]
    right, loss = read_clean(margins_file, labels)
    measured = measure(run.model, run.data.test_images[:30], labels, batch=16)
    assert right.tolist() == (measured["prediction"] == labels).tolist()
    assert 0 < int(right.sum()) < 30
    torch.testing.assert_close(loss, measured["loss"])


@pytest.mark.parametrize("wrong", [lambda labels: labels.flip(0), lambda labels: torch.cat([labels, labels])])
def test_margins_of_other_examples_are_refused(run, margins_file, wrong) -> None:
    with pytest.raises(ValueError, match=r"margins\.parquet: its test examples are not .*; delete it"):
        read_clean(margins_file, wrong(run.data.test_labels))
