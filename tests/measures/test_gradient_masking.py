"""Networks that hide their gradients, in each of several ways, are detected and flagged; other networks are not."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.figure_tables import make_runs
from helpers.study_files import write_masking
from torch import Tensor, nn

from robreg.attacks import apgd, evaluation
from robreg.figures.paper_figures import compose
from robreg.measures import gradient_masking, loss_variation, strong_attack
from robreg.measures.gradient_masking import LIMITS, AttackedNetwork, masking_checks
from robreg.measures.margins import record
from robreg.tables import parquet, study_tables

SPEC = {"eps": [32.0, 64.0, 128.0], "steps": 10, "more_steps": 50, "restarts": 3, "seed": 0}
SPEC |= {"attack_eps": 32.0, "strength": 32.0, "space": "pixel"}


def attacked(model, run, **spec):
    images, labels = run.data.test_images, run.data.test_labels
    labels = attack_labels(model, images)
    correct = torch.ones(len(labels), dtype=torch.bool)
    return AttackedNetwork(model, images, labels, correct, SPEC | spec, 16)


def attack_labels(model, images):
    with torch.no_grad():
        return model(images.float() / 255).argmax(1)


def verdicts(rows):
    return {row["check"]: row["passed"] for row in rows}


class Hidden(nn.Module):
    """A network whose gradients are hidden by a staircase before it or by a scale after it."""

    def __init__(self, model, levels=None, scale=1.0):
        super().__init__()
        self.model, self.levels, self.scale = model, levels, scale
        self.normalise = model.normalise

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.model(x if self.levels is None else (x * self.levels).round() / self.levels)


def test_a_network_that_hides_nothing_passes(run):
    rows = masking_checks(attacked(run.model, run, strength=16.0))  # without training, one step misses more at 32
    assert verdicts(rows) == dict.fromkeys([check for check in LIMITS if check != "other_loss"], True)
    assert {row["n"] for row in rows} == {40}


def test_a_network_that_rounds_its_input_is_detected(run):
    failed = {
        check
        for check, passed in verdicts(masking_checks(attacked(Hidden(run.model, levels=2).eval(), run))).items()
        if not passed
    }
    assert failed >= {"zero_gradient", "large_eps"}


def test_a_network_whose_loss_saturates_is_detected(run):
    model = Hidden(run.model, scale=1e5).eval()
    one = attacked(model, run)
    assert not verdicts(masking_checks(one))["zero_gradient"]
    assert one.zero_gradients() == 100
    rows = apgd.evaluate(
        model,
        one.images,
        one.labels,
        {"eps": 32, "steps": 20, "restarts": 1, "seed": 0, "space": "pixel"},
        losses=list(apgd.LOSSES),
        batch=16,
        correct=one.correct,
    )
    (row,) = gradient_masking.other_loss(rows)
    assert not row["passed"]
    assert row["before"] - row["after"] == row["value"] > LIMITS["other_loss"]
    assert gradient_masking.other_loss([row for row in rows if row["loss"] != "dlr"]) == []


class Ditch(nn.Module):
    """Correct everywhere except in a ditch, which a step of the whole radius skips and small steps find."""

    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = low, high
        self.normalise = nn.Identity()
        self.normalise.std = torch.ones(1, 1, 1)
        self.unused = nn.Parameter(torch.zeros(1))  # shows on which device the network is

    def forward(self, x: Tensor) -> Tensor:
        shift = (x - 0.5).flatten(1).mean(1)  # all pixels move together
        inside = torch.minimum(shift - self.low, self.high - shift)  # > 0 in the ditch
        margin = 0.02 - 1e-3 * shift - torch.clamp(20 * inside, min=0)
        return torch.stack([margin, -margin, -margin - 1], 1)


def test_a_network_that_only_small_steps_fool_is_detected(run):
    images, labels = torch.full((8, 1, 2, 2), 128, dtype=torch.uint8), torch.zeros(8, dtype=torch.int64)
    model = Ditch(low=0.03, high=0.06)
    one = AttackedNetwork(model, images, labels, torch.ones(8, dtype=torch.bool), SPEC | {"strength": 32.0}, 8)
    rows = {row["check"]: row for row in masking_checks(one)}
    assert rows["fgsm_collapse"]["before"] == 100
    assert not rows["fgsm_collapse"]["passed"]
    assert "fgsm_collapse" not in verdicts(
        masking_checks(AttackedNetwork(model, images, labels, one.correct, SPEC | {"strength": 0.0}, 8))
    )


ACCURACY = {  # of a network that hides nothing, by (eps, steps, restarts)
    (32.0, 1, 1): 60.0,
    (32.0, 10, 1): 50.0,
    (32.0, 50, 1): 49.0,
    (32.0, 10, 3): 48.0,
    (64.0, 10, 1): 20.0,
    (128.0, 10, 1): 1.0,
    (16.0, 1, 1): 80.0,
    (16.0, 50, 1): 75.0,
}


@pytest.mark.parametrize(
    ("check", "place", "last", "first"),
    [
        ("large_eps", (128.0, 10, 1), 5.0, 5.1),
        ("larger_eps", (64.0, 10, 1), 55.0, 55.1),
        ("more_steps", (32.0, 50, 1), 45.0, 44.9),
        ("more_restarts", (32.0, 10, 3), 40.0, 39.9),
        ("one_step", (32.0, 1, 1), 45.0, 44.9),
        ("fgsm_collapse", (16.0, 50, 1), 60.0, 59.9),
    ],
)
def test_each_check_fails_only_beyond_its_limit(check, place, last, first, run, monkeypatch):
    for value, passes in ((last, True), (first, False)):
        found = ACCURACY | {place: value}
        monkeypatch.setattr(
            AttackedNetwork,
            "accuracy",
            lambda _, eps, *, steps, restarts=1, space=None, found=found: found[eps, steps, restarts],
        )
        rows = masking_checks(attacked(run.model, run, strength=16.0))
        assert [row["check"] for row in rows if not row["passed"]] == ([] if passes else [check])
        (row,) = [row for row in rows if row["check"] == check]
        assert value in (row["before"], row["after"])
        assert row["limit"] == LIMITS[check]


def test_increasing_radii_are_in_pixel_space_whatever_the_space_of_the_run(run):
    one = attacked(run.model, run, space="normalised")
    pixel = attacked(run.model, run)
    assert one.accuracy(64.0, steps=10, space="pixel") == pixel.accuracy(64.0, steps=10)
    assert one.accuracy(64.0, steps=10) > pixel.accuracy(64.0, steps=10)


def test_accuracy_equals_that_of_the_evaluation_attack(run):
    """PGD with the settings of the evaluation attack counts the same images, out of all images."""
    images, labels = run.data.test_images, run.data.test_labels
    spec = {"eps": 32.0, "step": 8.0, "steps": 10, "restarts": 2, "start": "random", "space": "pixel", "seed": 0}
    known = evaluation.evaluate(run.model, images, labels, spec, batch=16)
    correct = evaluation.correctly_classified(run.model, images, labels, batch=16)
    one = AttackedNetwork(run.model, images, labels, correct, SPEC, 16)
    assert one.accuracy(32.0, steps=10, restarts=2) == known["acc_robust"]
    assert math.isclose(100 * known["n_correct"] / 40, 100 * float(correct.float().mean()), abs_tol=1e-4)


def test_the_table_has_a_row_per_check(run, margins_file, identity, tmp_path):
    spec = {"eps": 32.0, "steps": 5, "restarts": 1, "n": 30, "seed": 0, "space": "pixel"}
    files = {"checkpoint": run.checkpoint, "data": run.prepared, "batch": 16, "device": "cpu"}
    files |= {"margins": margins_file, "apgd": tmp_path / "apgd.parquet"}
    strong_attack.record(**files, attack=spec)
    out = tmp_path / "masking.parquet"
    gradient_masking.record(**files, masking=out, spec=SPEC | {"n": 20})
    frame = parquet.read(out).to_pandas()
    assert set(frame["check"]) == set(LIMITS)
    assert frame.set_index("check")["n"].to_dict() == {check: 30 if check == "other_loss" else 20 for check in LIMITS}
    assert (frame["passed"] == (frame["value"] <= frame["limit"])).all()
    assert {key: parquet.read_metadata(out)[key] for key in identity} == identity
    assert parquet.read_metadata(out)["std"] == list(run.data.std)


def flagged(folder):
    runs = make_runs(folder, [8, 16, 32], [0, 1])
    write_masking(Path(runs[3]["folder"]), {}, large_eps=True)  # ar16-s1
    return runs


def test_tables_count_failed_checks(tmp_path):
    runs = flagged(tmp_path)
    for name, ar, means in (("table3", "ar", {8: 0.0, 16: 0.5, 32: 0.0}), ("b2", "ar_high", {16: 0.5})):
        study_tables.record(name, runs, compare=[8, 16], folder=tmp_path, study="made")
        found = parquet.read(tmp_path / f"{name}.parquet").to_pandas()
        assert found.columns[-1] == "masking_failed"
        assert found.groupby(ar)["masking_failed"].mean().to_dict() == means
        assert (
            pd.read_csv(tmp_path / f"{name}_summary.csv").groupby(ar)["masking_failed_mean"].mean().to_dict() == means
        )


@pytest.mark.parametrize("name", ["fig1", "fig3", "fig4", "fig5", "fig8", "fig12", "spread"])
def test_figures_name_failed_networks_below_everything_else(name, tmp_path):
    def warnings(figure):
        return [text for text in figure.texts if text.get_text().startswith("Adversarial accuracies say little")]

    runs = flagged(tmp_path)
    figure = compose(name, runs)
    (warning,) = warnings(figure)
    assert warning.get_text().endswith("hidden: digits/ar16-s1")
    figure.draw_without_rendering()
    box = warning.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= 0
    for ax in [*figure.axes, *(ax for part in figure.subfigs for ax in part.axes)]:
        if not ax.get_label() or "inset" not in ax.get_label():
            assert ax.get_tightbbox().y0 >= box.y1 - 1
    assert warnings(compose(name, [run for run in runs if run["variant"] != "ar16-s1"])) == []


class Overflow(nn.Module):
    """A network whose output, or only whose gradient, is not finite."""

    def __init__(self, model, *, gradient: bool):
        super().__init__()
        self.model, self.normalise, self.gradient = model, model.normalise, gradient

    def forward(self, x: Tensor) -> Tensor:
        zero = x.flatten(1).amax(1, keepdim=True) - x.flatten(1).amax(1, keepdim=True).detach()
        return self.model(x) + (zero.sqrt() if self.gradient else zero + torch.nan)  # sqrt's slope at 0 is infinite


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("measure", ["pgd", "apgd", "lossvar", "masking"])
def test_values_that_are_not_finite_stop_an_attack_and_do_not_count_as_misclassified(measure, gradient, run):
    model = Overflow(run.model, gradient=gradient).eval()
    one = AttackedNetwork(
        model, run.data.test_images, attack_labels(run.model, run.data.test_images), torch.ones(40) > 0, SPEC, 16
    )
    spec = SPEC | {"eps": 8.0, "step": 2.0, "restarts": 1, "start": "random"}
    whole = (model, one.images, one.labels, spec)
    measures = {
        "pgd": lambda: evaluation.evaluate(*whole, batch=16),
        "apgd": lambda: apgd.evaluate(*whole, losses=["cross_entropy"], batch=16),
        "lossvar": lambda: loss_variation.measure(*whole, batch=16),
        "masking": lambda: masking_checks(one),
    }
    # masking_checks gets the correct images as an argument, so it computes a gradient first.
    message = (
        r"gradient is not finite"
        if gradient or measure in ("lossvar", "masking")
        else r"outputs are not finite on \d+ of"
    )
    with pytest.raises(ValueError, match=f"{message}.*train it again"):
        measures[measure]()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_checkpoint_that_is_not_finite_is_not_measured(value, run, tmp_path):
    content = torch.load(run.checkpoint, weights_only=True)
    content["model"]["network.linear.weight"][0, 0] = value
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint.pt: network.linear.weight holds values that are not finite"):
        record(
            checkpoint=tmp_path / "checkpoint.pt",
            data=run.prepared,
            margins=tmp_path / "a.parquet",
            batch=16,
            device="cpu",
        )
    assert not (tmp_path / "a.parquet").exists()
