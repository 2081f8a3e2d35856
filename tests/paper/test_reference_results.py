"""The results in `reference`: the documentation quotes them, and the networks of first light give them again."""

import re
from pathlib import Path

import pandas as pd
import pytest

from robreg.measures import spectra
from robreg.networks.tensor_file import load_file
from robreg.tables import parquet

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "reference/first-light"
STRENGTHS = (0, 4, 8, 16)
NETWORKS = ROOT.parent / "shared/h200"


def run(ar):
    return FOLDER / f"runs/c10short/ar{ar}"


def numbers(ar):
    """Return what README's table has of one network, as text."""
    (row,) = parquet.read(run(ar) / "metrics.parquet").to_pylist()
    spread = parquet.read(run(ar) / "svstd.parquet", ["std"]).to_pandas()["std"].sum()
    values = {"test_acc": 1, "train_acc": 1, "loss_gap": 3, "pgd_acc": 1, "robust_acc": 1}
    return [*(f"{row[key]:.{digits}f}" for key, digits in values.items()), f"{spread:.1f}"]


def test_the_numbers_of_the_readme_are_in_the_tables():
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", text.partition("**First light.**")[2].partition("\n## ")[0], re.MULTILINE)
    assert {int(ar): [cell.strip() for cell in cells.split("|")] for ar, cells in rows} == {
        ar: numbers(ar) for ar in STRENGTHS
    }


def test_the_documented_margins_and_verdicts_are_in_the_claims():
    text = " ".join((ROOT / "docs/explanation/conventions.md").read_text().split())
    claims = pd.read_csv(FOLDER / "claims.csv")
    ran = claims[(claims["id"] == "margin-std-falls") & (claims["verdict"] != "not run")]
    (row,) = ran.to_dict("records")
    assert (row["ar_low"], row["ar_high"]) == (4, 16)
    low, high = (f"{row[end]:.2f}" for end in ("at_low", "at_high"))
    assert f"from {low} at AR 4 to {high} at AR 16" in text
    verdicts = claims["verdict"].value_counts()
    assert f"{verdicts['seen']} are seen and {verdicts['not seen']} are not" in text


FAMILIES = {
    "loss gap falls": ("ge-gap-falls", 3),
    "adversarial accuracy (%) rises": ("adv-acc-rises", 1),
    "test accuracy (%) falls": ("test-acc-falls", 1),
    "std of test margins falls": ("margin-std-falls", 2),
    "mean std of singular values falls": ("svstd-falls-overall", 3),
    "mean loss variation falls": ("loss-variation-mean-falls", 3),
    "margins move less under random perturbations": ("logits-move-less-random", 2),
    "margins move less under PGD": ("logits-move-less-pgd", 2),
}


def test_the_documented_claims_of_other_families_are_those_of_the_study():
    text = (ROOT / "docs/explanation/beyond.md").read_text()
    claims = pd.read_csv(ROOT / "reference/architectures/claims.csv")
    claims = claims[claims["dataset"] == "digits"]
    heading, *lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    networks = [name.strip("`") for name in heading[1:]]
    assert networks == ["resnet8", "smallvgg", "smallvit", "smallmobilenet"]
    assert [line[0] for line in lines] == [*FAMILIES]
    for words, *cells in lines:
        name, digits = FAMILIES[words]
        of_claim = claims[claims["id"] == name].set_index("arch")
        for network, cell in zip(networks, cells, strict=True):
            row = of_claim.loc[network]
            assert cell == f"{row['at_low']:.{digits}f} → {row['at_high']:.{digits}f}, {row['verdict']}"
    counted = pd.crosstab(claims["arch"], claims["verdict"]).loc[networks]
    holds, fails = counted["holds"].tolist(), counted["fails"].tolist()
    flat = " ".join(text.split())
    numbers = re.search(r"(\d+) hold for `resnet8`, (\d+) for `smallvgg`, (\d+) for `smallvit` and (\d+) for", flat)
    assert [int(number) for number in numbers.groups()] == holds
    assert [int(number) for number in re.search(r"; (\d+), (\d+), (\d+) and (\d+) fail,", flat).groups()] == fails
    assert f"Of all {counted.sum(axis=1).unique().item()} claims" in flat


def test_the_tables_name_where_they_come_from():
    for ar in STRENGTHS:
        metas = [parquet.read_metadata(path) for path in run(ar).glob("*.parquet")]
        assert len(metas) >= 12
        assert {meta["variant"] for meta in metas} == {f"ar{ar}"}
        assert len({meta["settings_hash"] for meta in metas}) == 1
        history = parquet.read_metadata(run(ar) / "history.parquet")
        assert {"data_sha256", "torch", "device"} <= history.keys()
        assert history["data_sha256"] in (FOLDER / "README.md").read_text()


@pytest.mark.skipif(not NETWORKS.exists(), reason="needs the networks in ../shared/h200")
@pytest.mark.parametrize("ar", STRENGTHS)
def test_the_tables_are_made_again_from_the_networks(ar, tmp_path):
    checkpoint = NETWORKS / f"ar{ar}/checkpoint.pt"
    meta = parquet.read_metadata(run(ar) / "svstd.parquet")
    assert load_file(checkpoint, "cpu")["meta"]["settings_hash"] == meta["settings_hash"]
    kinds = ("sv", "svstd", "live", "padding")
    spectra.record(
        checkpoint=checkpoint, **{kind: tmp_path / f"{kind}.parquet" for kind in kinds}, dense=1024, device="cpu"
    )
    for kind in kinds[1:]:
        made, kept = (parquet.read(folder / f"{kind}.parquet").to_pandas() for folder in (tmp_path, run(ar)))
        pd.testing.assert_frame_equal(made[list(kept)], kept, rtol=1e-9)  # later versions have more columns
