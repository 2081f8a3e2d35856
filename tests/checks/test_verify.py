"""What a run's tables may differ in when they are measured again on another machine, and what they may not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robreg.checks.verify import Comparison, _main, compare, verify
from robreg.tables.schemas import SCHEMAS

N = {"train": 3000, "test": 2000}
APGD = {"attack": "apgd", "space": "pixel", "start": "random", "loss": "worst", "eps": 8.0, "step": 2.0, "steps": 5}
APGD |= {"restarts": 1, "seed": 0, "split": "test", "n": 1000, "n_correct": 800, "n_robust": 400}
APGD |= {"acc_conditional": 50.0, "acc_robust": 40.0}
METRICS = {"train_acc": 90.0, "test_acc": 80.0, "acc_gap": 10.0, "train_loss": 0.1, "test_loss": 0.5, "loss_gap": 0.4}
METRICS |= {"pgd_acc": 50.0, "robust_acc": 40.0, "spectral_complexity": 1e9, "log10_spectral_complexity": 9.0}
LOOK = {"check": "more_steps", "eps": 8.0, "n": 1000, "before": 44.0, "after": 39.1, "value": 4.9, "limit": 5.0}
LAYER = {"layer": 1, "name": "conv1", "perturbation": "pgd", "eps": 8.0, "n": 10, "mean": 1.0, "std": 0.1}
ATTACKED = {"radius": "evaluation", "space": "pixel", "eps": 8.0, "step": 2.0, "steps": 10, "restarts": 1, "index": 0}
ATTACKED |= {"label": 1, "prediction": 1, "margin": 5.0, "adversarial_prediction": 2, "adversarial_margin": -1.0}
ATTACKED |= {"channels": 1, "height": 2, "width": 2, "image": [0, 1, 2, 255], "adversarial": [0.0, 0.1, 0.2, 1.0]}
ROWS = {"apgd": APGD, "metrics": METRICS, "masking": LOOK | {"passed": True}, "spread": LAYER, "examples": ATTACKED}
VALUES = {"sigma": 1.5, "multiplicity": 2, "layer": 1, "name": "conv1"}


MEASURE = """
import sys, torch
from robreg.measures import loss_variation
from robreg.networks.build import build_network
from robreg.tables.parquet import write
torch.manual_seed(0)
model = build_network("resnet14", width=8, shape=(1, 8, 8), classes=10, mean=[0.5], std=[0.25]).eval()
for weight in model.parameters():
    if weight.ndim > 1:
        torch.nn.init.normal_(weight, std=(3 / weight[0].numel()) ** 0.5)
x, y = torch.randint(256, (1000, 1, 8, 8), dtype=torch.uint8), torch.arange(1000) % 10
columns = {"eps": [8.0] * 1000, "index": range(1000)}
spec = {"eps": 8.0, "step": 2.0, "steps": 10, "seed": 0, "space": "pixel"}
found = loss_variation.measure(model, x, y, spec, batch=500)
from pathlib import Path
write(Path(sys.argv[1]), "lossvar", {**columns, **{name: values.tolist() for name, values in found.items()}}, {})
"""


def margins():
    frame = pd.DataFrame([(split, index) for split, n in N.items() for index in range(n)], columns=["split", "index"])
    frame = frame.assign(label=1, prediction=1, margin=5.0, prob=0.9, loss=0.1)
    frame.loc[frame.index[::5], ["prediction", "margin"]] = 2, -1.0
    frame.loc[[7, 3007], "margin"] = 1e-5  # these are undecided, one of each split
    return frame


def table(kind, rows):
    return pa.Table.from_pandas(pd.DataFrame(rows), SCHEMAS[kind], preserve_index=False)


def compared(kind, **changes):
    """Compare a table with its copy in which columns have other values in the first row."""
    rows = margins() if kind == "margins" else pd.DataFrame([ROWS.get(kind, VALUES)])
    return compare(kind, table(kind, rows.assign(**changes)), table(kind, rows), margins())


@pytest.mark.parametrize("kind", ["margins", "sv", *ROWS])
def test_a_table_is_equal_to_itself(kind):
    assert compared(kind) == Comparison(wrong=())


@pytest.mark.parametrize(
    ("kind", "column", "value", "equal"),
    [
        ("apgd", "n_robust", 403, True),  # two, and one that is undecided
        ("apgd", "n_robust", 404, False),
        ("apgd", "n_correct", 801, True),
        ("apgd", "n_correct", 802, False),
        ("apgd", "acc_robust", 39.7, True),
        ("apgd", "acc_robust", 39.6, False),
        ("apgd", "acc_conditional", 50.5, True),
        ("apgd", "acc_conditional", 50.6, False),
        ("apgd", "acc_conditional", np.nan, False),
        ("apgd", "n", 999, False),
        ("apgd", "attack", "pgd", False),
        ("apgd", "steps", 6, False),
        ("apgd", "eps", 8.000001, False),
        ("metrics", "test_acc", 80.05, True),
        ("metrics", "test_acc", 80.1, False),
        ("metrics", "train_acc", 90.1, False),
        ("metrics", "acc_gap", 10.1, False),
        ("metrics", "robust_acc", 40.25, True),
        ("metrics", "robust_acc", 40.3, False),
        ("metrics", "pgd_acc", 50.3, True),
        ("metrics", "pgd_acc", 50.5, False),
        ("metrics", "pgd_acc", np.nan, False),
        ("metrics", "test_loss", 0.5001, True),
        ("metrics", "test_loss", 0.51, False),
        ("metrics", "test_loss", np.inf, False),
        ("metrics", "test_loss", np.nan, False),
        ("masking", "after", 39.3, True),
        ("masking", "after", 39.6, False),
        ("masking", "value", 5.4, True),
        ("masking", "value", 6.0, False),
        ("masking", "passed", False, True),
        ("masking", "limit", 5.000001, False),
        ("masking", "check", "one_step", False),
        ("spread", "mean", 1.009, True),
        ("spread", "mean", 1.02, False),
        ("spread", "layer", 2, False),
        ("examples", "adversarial_margin", -1.009, True),
        ("examples", "adversarial_margin", -1.02, False),
        ("examples", "margin", 5.1, False),
        ("examples", "adversarial_prediction", 1, False),
        ("examples", "image", [0, 1, 3, 255], False),
        ("examples", "adversarial", [0.0, 0.1, 0.2, 1.0, 1.0], False),
        ("examples", "prediction", 2, False),
        ("sv", "multiplicity", 3, False),
        ("sv", "name", "conv2", False),
        ("sv", "sigma", 1.5001, True),
    ],
)
def test_a_value_may_differ_only_by_so_much(kind, column, value, equal):
    found = compared(kind, **{column: [value]})
    assert found.wrong == (() if equal else (column,))
    assert not equal or found.floats > 0 or found.cells == 1


def attacked(other, **changes):
    """Compare two attacked images, of which the second is changed."""
    rows = pd.DataFrame([ATTACKED | changes, ATTACKED | changes | {"adversarial_margin": -1e-6}])
    received = rows.copy()
    for name, value in other.items():
        received[name] = [ATTACKED.get(name), value]
    return compare("examples", table("examples", received), table("examples", rows), margins())


@pytest.mark.parametrize(
    ("pixels", "restarts", "wrong"),
    [
        ([0.03, 0.1, 0.2, 1.0], 1, ()),
        ([0.03, 0.07, 0.2, 1.0], 1, ()),
        ([0.03, 0.07, 0.17, 1.0], 1, ("adversarial",)),
        ([0.03, 0.07, 0.17, 1.0], 2, ()),  # another restart may be the best one
        ([0.5, 0.1, 0.2, 1.0], 1, ("adversarial",)),  # farther than the attack goes
        ([1e30, 0.1, 0.2, 1.0], 1, ("adversarial",)),
        ([-0.01, 0.1, 0.2, 1.0], 1, ("adversarial",)),
        ([float("nan"), 0.1, 0.2, 1.0], 1, ("adversarial",)),
        (None, 1, ("adversarial",)),
    ],
)
def test_a_few_pixels_of_an_attacked_image_may_differ(pixels, restarts, wrong):
    found = attacked({"adversarial": pixels}, restarts=restarts, image=[10, 20, 50, 250])
    assert found.wrong == wrong
    assert wrong or found.cells == sum(one != other for one, other in zip(pixels, ATTACKED["adversarial"], strict=True))


def test_the_class_of_an_image_on_the_boundary_may_differ():
    assert attacked({"adversarial_prediction": 1}).wrong == ()
    assert compared("examples", adversarial_prediction=[1]).wrong == ("adversarial_prediction",)


def varied(*changed):
    """Compare the loss variation of 2000 examples at two radii; changed: indices of rows, and the factor of each."""
    rows = pd.DataFrame({"eps": [1.0] * 2000 + [2.0] * 2000, "index": [*range(2000)] * 2})
    rows = rows.assign(loss_clean=0.1, loss_adv=0.5, variation=0.4, prob_clean=0.9, prob_adv=0.6, prob_variation=0.3)
    other = rows.copy()
    for index, factor in changed:
        other.loc[index, ["loss_adv", "variation"]] *= factor
    return compare("lossvar", table("lossvar", other), table("lossvar", rows), margins())


def test_a_few_examples_may_have_another_loss_variation_if_the_mean_is_the_same():
    assert varied((0, 1.1), (1, 0.9), (5, 1.1), (2000, 1.1)) == Comparison((), 0.0, 8)
    assert varied(*[(index, 1.02) for index in range(41)]).wrong == ("loss_adv", "variation")  # 2 % are 40
    assert varied((0, 50.0)).wrong == ("loss_adv", "variation")  # which changes the mean by 2 %
    assert varied((0, np.nan)).wrong == ("loss_adv", "variation")


def test_what_other_kernels_compute_is_the_same_run(tmp_path):
    """Measure the loss variation of a network in processes that may use other instructions of the processor."""
    script = tmp_path / "measure.py"
    script.write_text(MEASURE)
    tables = []
    for number, other in enumerate(({}, {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"})):
        out = tmp_path / f"{number}.parquet"
        subprocess.run([sys.executable, script, out], env={**os.environ, **other}, check=True)
        tables.append(pq.read_table(out))
    assert compare("lossvar", *tables, margins()).wrong == ()


def test_a_look_that_is_far_from_its_limit_must_pass_or_fail_as_before():
    rows = [ROWS["masking"] | {"value": 3.0}]
    found = compare("masking", table("masking", [rows[0] | {"passed": False}]), table("masking", rows), margins())
    assert found.wrong == ("passed",)


@pytest.mark.parametrize(("row", "equal"), [(7, True), (3007, True), (8, False), (5, False)])
def test_a_prediction_may_differ_only_where_the_margin_is_nearly_0(row, equal):
    forged = margins()["prediction"]
    forged[row] = 3
    assert compared("margins", prediction=forged) == Comparison(
        (() if equal else ("prediction",)), 0.0, int(equal or 1)
    )


@pytest.mark.parametrize("column", ["split", "index", "label"])
def test_one_other_key_is_found_among_many(column):
    forged = margins()[column]
    forged[100] = {"split": "test"}.get(column, 4000)
    assert compared("margins", **{column: forged}).wrong == (column,)


def test_other_columns_types_or_rows_are_found():
    rows = pd.DataFrame([VALUES])
    right = table("sv", rows)
    as_text = right.set_column(2, "sigma", pa.array(["1.5"]))
    for other in (right.drop_columns("name"), right.append_column("x", right["layer"]), as_text, right.slice(1)):
        (said,) = compare("sv", other, right, margins()).wrong
        assert said.startswith("all columns")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the folder of a run with a checkpoint and two tables; measuring them again is an error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("the run is measured again"))
    path = Path("results/digits/ar8")
    path.mkdir(parents=True)
    (path / "checkpoint.pt").write_text("a network")
    pq.write_table(table("sv", [VALUES]), path / "sv.parquet")
    pq.write_table(table("margins", margins()), path / "margins.parquet")
    return path


@pytest.mark.usefixtures("alarm")
@pytest.mark.parametrize("name", ["sv.parquet", "checkpoint.pt"])
@pytest.mark.parametrize("plant", [lambda path: path.symlink_to("/dev/zero"), os.mkfifo, Path.mkdir])
def test_what_is_no_file_is_not_measured_again(plant, name, folder):
    (folder / name).unlink()
    plant(folder / name)
    with pytest.raises(ValueError, match=f"{folder}/{name} is a link, or no file: put a copy"):
        list(verify("digits/ar8", cores=1))


def test_a_damaged_table_is_refused_before_the_run_is_measured_again(folder, monkeypatch, capsys):
    (folder / "sv.parquet").write_bytes(b"\x1b[2J")
    monkeypatch.setattr(sys, "argv", ["verify", "digits/ar8"])
    with pytest.raises(SystemExit, match="2"):
        _main()
    assert re.search(r"received-\w+/sv\.parquet is damaged", capsys.readouterr().err)


def test_an_error_is_printed_without_control_characters(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["verify", "digits/\x1b[2J"])
    with pytest.raises(SystemExit, match="2"):
        _main()
    assert r"results/digits/\x1b[2J has no checkpoint.pt" in capsys.readouterr().err


def test_only_the_tables_of_a_run_are_measured_again(folder, monkeypatch, capsys):
    (folder / "\x1b[2J.parquet").write_text("no table")
    os.mkfifo(folder / "checks.parquet")
    monkeypatch.setattr(sys, "argv", ["verify", "digits/ar8"])
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    assert _main() == 0
    files = [f"{folder}/{kind}.parquet" for kind in ("margins", "sv")]
    assert commands[0][-2:] == files
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "margins.parquet: equal in every value"
    assert said[-2:] == [
        "Not compared: history.parquet, checks.parquet, and tables and figures of studies.",
        "digits/ar8: verified",
    ]
