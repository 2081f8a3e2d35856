"""Claims: which exist, where they are judged, and their verdicts on networks with made-up tables."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import yaml
from helpers.claim_tables import make, run

from robreg.claims import quantities
from robreg.claims.claim import FALLS, RISES
from robreg.claims.contrasts import AtStrength, Change, Outcome, weaker_outcome
from robreg.claims.registry import CLAIMS
from robreg.claims.uncertainty import Effect, Part
from robreg.claims.verdicts import claim_settings, judge_all, record, verdict
from robreg.runs import config
from robreg.tables import parquet

ROOT = Path(__file__).parents[2]
VERDICTS = {"holds", "fails", "undecided", "seen", "not seen", "not clear", "not run"}
CONTRACT = ["id", "claim", "source", "dataset", "statistic", "effect", "ci_low", "ci_high", "ci_over", "n_seeds"]
# The claims that the issue lists, each with the id of the claim that judges it.
LISTED = {
    "GE gap falls with AR": "ge-gap-falls",
    "training loss rises": "train-loss-rises",
    "test loss falls on c10/c100": "test-loss-falls",
    "and not on tin": "test-loss-rises-tin",
    "test accuracy falls": "test-acc-falls",
    "adversarial accuracy rises": "adv-acc-rises",
    "the error gap rises on c10 uncontrolled": "error-gap-rises",
    "and falls with sn 1": "error-gap-falls-bound-1",
    "falls on c100 and tin": "error-gap-falls",
    "margins concentrate: std falls": "margin-std-falls",
    "mode moves to 0": "margin-mode-to-zero",
    "c10 training margins are skewed": "margin-skewed-c10",
    "c100's less": "margin-skewed-less-c100",
    "probability mass moves to the middle": "prob-middle-rises",
    "svstd falls in most layers": "svstd-falls-in-most-layers",
    "and the accumulated decrease is about ten times the increase": "svstd-decrease-tenfold",
    "loss variation falls in mean": "loss-variation-mean-falls",
    "and std": "loss-variation-std-falls",
    "large test losses become fewer": "prob-large-losses-fewer",
    "confident wrong predictions become fewer": "margin-confident-errors-fewer",
    "the std of the loss variation is of the size of its mean": "loss-variation-std-like-mean",
    "most svstd are around 1": "svstd-around-1",
    "the svstd reduction is smaller on c100 than on c10": "svstd-less-on-c100",
    "the error gap turns from rising to falling as the bound shrinks": "error-gap-turns",
    "layers pass perturbations on more evenly": "layers-even-out-pgd",
    "and of the margins' change": "logits-move-less-pgd",
}
BEYOND = {  # kind of networks: the claims that the paper repeats for it
    "FGSM": {"ge-gap-falls", "test-acc-falls", "margin-std-falls", "margin-mode-to-zero", "prob-middle-rises"}
    | {"margin-std-train-falls", "prob-large-losses-fewer", "margin-confident-errors-fewer"}
    | {"margin-indecisive-errors-more", "svstd-falls-in-most-layers", "svstd-falls-overall"},
    "deeper": {"ge-gap-falls", "train-loss-rises", "test-loss-falls", "error-gap-rises", "error-gap-falls"}
    | {"test-acc-falls", "adv-acc-rises"},
    "bounded": {"ge-gap-falls", "error-gap-falls-bound-1", "error-gap-turns"},
}


def study(name: str) -> list[dict[str, Any]]:
    return config.study_runs(yaml.safe_load((ROOT / "config.yaml").read_text()), name)


def judged(runs: list[dict[str, Any]], low: int = 4, high: int = 16) -> pd.DataFrame:
    return pd.DataFrame(judge_all(claim_settings(runs), low, high))


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return make(tmp_path_factory.mktemp("paper"), study("paper"))


@pytest.fixture(scope="module")
def verdicts(paper: list[dict[str, Any]]) -> pd.DataFrame:
    return judged(paper)


# The registry.


def test_every_claim_has_a_unique_id_and_a_direction():
    assert Counter(entry.id for entry in CLAIMS).most_common(1)[0][1] == 1
    assert {entry.sign for entry in CLAIMS} == {RISES, FALLS}
    assert all(place.source and place.datasets for entry in CLAIMS for place in entry.places)


def test_a_source_with_a_panel_of_figure_1_also_names_section_1_1():
    sources = {
        place.source for entry in CLAIMS for place in entry.places if re.search(r"Figures? 1[abc]", place.source)
    }
    assert len(sources) >= 3
    assert [source for source in sources if "1.1" not in source] == []


@pytest.mark.parametrize("words", LISTED)
def test_every_claim_that_the_issue_lists_is_registered(words):
    assert LISTED[words] in {entry.id for entry in CLAIMS}


@pytest.mark.parametrize("kind", BEYOND)
def test_the_paper_repeats_these_claims_and_no_others(kind):
    assert {entry.id for entry in CLAIMS if any(place.kind == kind for place in entry.places)} == BEYOND[kind]


def test_claims_that_chance_may_decide_turn_around_if_the_strengths_are_swapped(paper):
    networks = {ar: {0: quantities.Network("c10", Path(folder(paper, ar)))} for ar in (4, 16)}
    swapped = {4: networks[16], 16: networks[4]}
    for claim in CLAIMS:
        values = [claim.contrast(each, 4, 16).effect.value for each in (networks, swapped)]
        turns = not isinstance(claim.contrast, AtStrength) and bool(np.isclose(values[0], -values[1]))
        assert claim.zero_if_equal == (turns and claim.against != "no bound"), claim.id


# Settings and rows.


def test_the_paper_study_judges_every_claim_in_every_setting_of_the_paper(verdicts):
    assert set(verdicts["verdict"]) <= VERDICTS
    assert set(verdicts["id"]) == {entry.id for entry in CLAIMS}
    assert not (verdicts["verdict"] == "not run").any()
    assert not verdicts.duplicated(["id", "dataset", "arch", "train_attack", "space", "spectral_norm"]).any()
    own = verdicts[verdicts["source"] != "extension"]
    gap = own[own["id"] == "ge-gap-falls"]
    assert len(gap) == 10  # 3 plain, 2 ResNet-110, 3 bounds, 2 FGSM
    assert set(gap[gap["spectral_norm"].notna()]["source"]) == {"B.4.2, Figure 6, Table 6"}
    assert set(own[own["id"] == "margin-std-falls"]["dataset"]) == {"c10", "c100"}
    assert own[own["id"] == "error-gap-falls-bound-1"]["spectral_norm"].tolist() == [1.0]
    assert set(verdicts[verdicts["id"].str.startswith("l") & verdicts["id"].str.contains("pgd")]["source"]) == {
        "extension"
    }
    assert "extension" in set(
        verdicts[(verdicts["id"] == "margin-std-falls") & (verdicts["dataset"] == "tin")]["source"]
    )


def test_claims_hold_for_networks_that_behave_as_the_paper_says(verdicts):
    plain = verdicts[(verdicts["dataset"] == "c10") & (verdicts["arch"] == "resnet56")]
    plain = plain[(plain["train_attack"] == "pgd") & plain["spectral_norm"].isna()].set_index("id")["verdict"]
    made = {"ge-gap-falls", "train-loss-rises", "adv-acc-rises", "margin-std-falls", "margin-mode-to-zero"}
    made |= {"margin-std-train-falls", "margin-skewed-c10", "margin-skewed-train", "margin-skewed-less-c100"}
    made |= {"prob-middle-rises", "svstd-falls-in-most-layers", "svstd-falls-overall", "svstd-decrease-exceeds"}
    made |= {"svstd-decrease-tenfold", "svstd-around-1", "svstd-less-on-c100", "loss-variation-mean-falls"}
    made |= {"test-loss-falls", "prob-large-losses-fewer", "margin-indecisive-errors-more", "prob-mostly-at-ends"}
    made |= {"loss-variation-std-falls", "loss-variation-std-like-mean", "margin-less-on-c100", "test-acc-falls"}
    made |= {entry.id for entry in CLAIMS if not entry.places}
    assert {key: plain[key] for key in made if plain[key] not in ("holds", "seen")} == {}


def test_swapping_the_strengths_turns_each_verdict_around(paper):
    key = ("dataset", "arch", "train_attack", "space", "spectral_norm")
    other = {4: 16, 16: 4}
    ends = [run for run in paper if run["ar"] in other]
    folders = {(*(run[name] for name in key), run["ar"], run["seed"]): run["folder"] for run in ends}
    swapped = [
        {**run, "folder": folders[(*(run[name] for name in key), other[run["ar"]], run["seed"])]} for run in ends
    ]
    both = judged(ends).merge(judged(swapped), on=["id", *key], suffixes=("", "_back"))
    changes = both[
        both["statistic"].str.contains("from AR|median over layers: AR 4 to") & (both["id"] != "error-gap-turns")
    ]
    turned = {"holds": "fails", "fails": "holds", "undecided": "undecided"}
    turned |= {"seen": "not seen", "not seen": "seen", "not clear": "not clear"}
    assert (changes["verdict"].isin(["holds", "seen"])).sum() > 100
    assert changes["verdict"].map(turned).tolist() == changes["verdict_back"].tolist()
    np.testing.assert_allclose(changes["effect"], -changes["effect_back"])


@pytest.mark.parametrize(
    ("compared", "of", "against"),
    [
        ("svstd-less-on-c100", ("svstd-falls-overall", "c10", None), ("svstd-falls-overall", "c100", None)),
        ("margin-less-on-c100", ("margin-std-falls", "c10", None), ("margin-std-falls", "c100", None)),
    ],
)
def test_a_claim_about_two_settings_is_the_difference_of_their_effects(verdicts, compared, of, against):
    rows = verdicts[(verdicts["arch"] == "resnet56") & (verdicts["train_attack"] == "pgd")]
    effects = rows.set_index(["id", "dataset", rows["spectral_norm"].fillna(0)])["effect"]
    first, second = (effects[name, dataset, bound or 0] for name, dataset, bound in (of, against))
    assert rows.set_index("id").loc[compared, "effect"] == pytest.approx(first - second)


def test_the_error_gap_turns_only_if_it_rises_without_a_bound_and_falls_with_the_smallest(paper):
    verdicts = judged([run for run in paper if run["seed"] == 0])
    rows = verdicts[(verdicts["arch"] == "resnet56") & (verdicts["train_attack"] == "pgd")]
    rows = rows[rows["dataset"] == "c10"].set_index("id")
    free, bound, turns = (rows.loc[name] for name in ("error-gap-rises", "error-gap-falls-bound-1", "error-gap-turns"))
    parts = [(free["ci_low"], free["ci_high"]), (-bound["ci_high"], -bound["ci_low"])]
    assert (turns["ci_low"], turns["ci_high"]) in parts
    both = {free["verdict"], bound["verdict"]}
    expected = "not seen" if "not seen" in both else "not clear" if "not clear" in both else "seen"
    assert turns["verdict"] == expected


@pytest.mark.parametrize(
    ("rising", "falling", "expected", "effect"),
    [
        ((1, 2), (3, 9), "holds", 1.5),
        ((3, 9), (1, 2), "holds", 1.5),
        ((-2, -1), (3, 9), "fails", -1.5),  # falling with the bound alone is not enough
        ((-5, 1), (-2, -1), "fails", -1.5),  # a reversed effect takes precedence over an undecided one
        ((-5, 1), (1, 2), "undecided", -2),
        ((np.nan, np.nan), (1, 2), "undecided", np.nan),
        ((1, 2), (np.nan, np.nan), "undecided", np.nan),
    ],
)
def test_a_claim_of_two_effects_is_decided_by_the_weaker_one(rising, falling, expected, effect):
    first, second = (outcome(ends, n_seeds) for ends, n_seeds in ((rising, 3), (falling, 2)))
    found = weaker_outcome(first, second).effect
    assert verdict(found, RISES) == expected
    assert found.value == pytest.approx(effect, nan_ok=True)
    assert found.n_seeds == 2


def outcome(ends: tuple[float, float], n_seeds: int) -> Outcome:
    """Return an outcome with this interval, which is due to its images alone."""
    variance = ((ends[1] - ends[0]) / 2 / scipy.stats.norm.ppf(0.975)) ** 2
    images = (Part(variance, np.inf, "test examples", variance),)
    return Outcome(Effect(float(np.mean(ends)), (Part(0.0, 1.0, "seeds"),), images, n_seeds), (4, 16))


def test_seeds_that_do_not_vary_leave_the_interval_over_images(paper):
    networks = {ar: dict.fromkeys((0, 1), quantities.Network("c10", Path(folder(paper, ar)))) for ar in (4, 16)}
    contrast = Change("loss gap", quantities.loss_gap)
    found = contrast(networks, 4, 16)
    alone = contrast({ar: {0: of[0]} for ar, of in networks.items()}, 4, 16)
    assert (found.effect.n_seeds, alone.effect.n_seeds) == (2, 1)
    np.testing.assert_allclose(found.effect.interval(), alone.effect.interval())
    assert alone.effect.over == "training examples, test examples"
    assert found.effect.se_seeds == 0


def folder(paper: list[dict[str, Any]], ar: int) -> str:
    """Return the folder of the main network of CIFAR-10 with this strength and seed 0."""
    return next(
        run["folder"]
        for run in paper
        if (run["dataset"], run["arch"], run["train_attack"], run["spectral_norm"], run["ar"], run["seed"])
        == ("c10", "resnet56", "pgd", None, ar, 0)
    )


def test_standard_networks_are_judged_once_even_if_several_attacks_are_compared_with_them(tmp_path):
    runs = make(tmp_path, [run("digits", 0), run("digits", 16), run("digits", 16, train_attack="fgsm")])
    low = {entry.id for entry in CLAIMS if isinstance(entry.contrast, AtStrength) and entry.contrast.end == "low"}
    assert low == {"svstd-around-1"}
    frame = judged(runs, 0, 16).query("id == 'svstd-around-1' and verdict != 'not run'")
    assert frame["train_attack"].tolist() == ["pgd"]
    alone = judged([run for run in runs if run["train_attack"] == "fgsm" or not run["ar"]], 0, 16)
    alone = alone.query("id == 'svstd-around-1' and verdict != 'not run'")
    assert alone["train_attack"].tolist() == ["fgsm"]
    both = judged(make(tmp_path, [run("digits", 4), run("digits", 4, train_attack="fgsm")]), 4, 16)
    assert both.query("id == 'svstd-around-1' and verdict != 'not run'")["train_attack"].tolist() == ["pgd", "fgsm"]


def test_the_claims_about_the_loss_variation_state_the_eps_at_which_they_are_judged(verdicts):
    rows = verdicts[verdicts["id"].str.startswith("loss-variation")]
    for words in (rows["claim"], rows["statistic"]):
        assert words.str.contains("largest eps|smallest eps").all()


def test_a_claim_about_two_settings_is_not_run_if_one_is_missing(paper):
    frame = judged([run for run in paper if run["dataset"] == "c10" and run["spectral_norm"] != 1])
    rows = frame.set_index("id")
    for name in ("svstd-less-on-c100", "margin-skewed-less-c100", "error-gap-turns"):
        assert rows.loc[name, "verdict"] == "not run"


def test_a_study_of_other_data_judges_the_general_claims_and_lists_the_others_as_not_run(tmp_path):
    runs = [run("digits", ar, seed) for ar in (0, 8, 32) for seed in (0, 1, 2)]
    runs += [run("digits", 16, train_attack="fgsm"), run("digits", 32, space="normalised")]
    frame = judged(make(tmp_path, runs), 8, 32)
    assert set(frame["id"]) == {entry.id for entry in CLAIMS}
    ran = frame[frame["verdict"] != "not run"]
    assert set(ran["dataset"]) == {"digits"}
    assert set(ran["id"]) == {entry.id for entry in CLAIMS if entry.general}
    seeds = ran[ran["space"] == "pixel"]
    over = dict(zip(seeds["id"], seeds["ci_over"], strict=True))
    assert over.keys() == {entry.id for entry in CLAIMS if entry.general}
    assert {key for key, value in over.items() if value == "seeds"} == {key for key in over if key.startswith("svstd")}
    assert (over["ge-gap-falls"], over["margin-std-falls"]) == (
        "seeds, training examples, test examples",
        "seeds, test examples",
    )
    assert set(seeds["n_seeds"]) == {3}
    assert (seeds["ci_low"] < seeds["ci_high"]).all()
    rest = frame[frame["verdict"] == "not run"]
    assert rest[rest["id"] == "error-gap-rises"][["dataset", "arch"]].to_numpy().tolist() == [
        ["c10", "resnet56"],
        ["c10", "resnet110"],
    ]
    assert rest.query("id == 'ge-gap-falls' and train_attack == 'fgsm'")["dataset"].tolist() == ["digits"]
    assert rest[["effect", "ci_low", "ci_over", "n_seeds"]].isna().all(axis=None)


def test_standard_training_can_be_the_lower_strength_of_every_attack(tmp_path):
    runs = [run("digits", 0), run("digits", 16), run("digits", 16, train_attack="fgsm")]
    frame = judged(make(tmp_path, runs), 0, 16)
    gap = frame[(frame["id"] == "ge-gap-falls") & (frame["dataset"] == "digits")]
    assert dict(zip(gap["train_attack"], gap["verdict"], strict=True)) == {"pgd": "seen", "fgsm": "seen"}


def test_examples_in_another_order_are_still_compared_one_by_one(tmp_path):
    runs = make(tmp_path, [run("digits", 4), run("digits", 16)])
    before = judged(runs)
    losses = [parquet.read(Path(run["folder"]) / "margins.parquet").to_pandas() for run in runs]
    first, second = (part.query("split == 'train'").astype({"loss": "float64"})["loss"] for part in losses)
    row = before[before["id"] == "train-loss-rises"].iloc[0]
    expected = scipy.stats.ttest_rel(second, first).confidence_interval()
    np.testing.assert_allclose(row[["ci_low", "ci_high"]].astype(float), expected)
    for kind in ("margins", "lossvar"):
        path = Path(runs[1]["folder"]) / f"{kind}.parquet"
        content = parquet.read(path)
        shuffled = content.take(np.random.default_rng(0).permutation(len(content)))
        parquet.write_frame(path, shuffled, {})
    pd.testing.assert_frame_equal(before, judged(runs), rtol=1e-9)


def test_networks_measured_on_other_examples_are_refused(tmp_path):
    runs = make(tmp_path, [run("digits", 4), run("digits", 16)])
    path = Path(runs[1]["folder"]) / "margins.parquet"
    parquet.write_frame(path, parquet.read(path).slice(10), {})
    with pytest.raises(ValueError, match=r"digits training examples: one network has 390 of them and the other 400"):
        judged(runs)


def test_a_layer_that_no_perturbation_reaches_is_left_out(tmp_path):
    runs = make(tmp_path, [run("digits", 4), run("digits", 16)])
    path = Path(runs[1]["folder"]) / "spread.parquet"
    frame = parquet.read(path).to_pandas()
    parquet.write(path, "spread", frame[frame["layer"] != 3].to_dict("list"), {})
    found = judged(runs).set_index("id").loc["layers-even-out-pgd"]
    assert (found["verdict"], found["ci_over"]) == ("seen", "test examples")


def test_a_network_that_gets_nothing_right_leaves_its_adversarial_accuracy_undecided(tmp_path):
    runs = make(tmp_path, [run("digits", 4), run("digits", 16)])
    path = Path(runs[0]["folder"]) / "metrics.parquet"
    columns = {**parquet.read(path).to_pydict(), "pgd_acc": [None]}
    parquet.write(path, "metrics", columns, {})
    rows = judge_all(claim_settings(runs), 4, 16)
    row = next(row for row in rows if (row["id"], row["dataset"]) == ("adv-acc-rises", "digits"))
    assert (row["verdict"], row["effect"], row["ci_low"]) == ("not clear", None, None)


def test_the_record_has_the_columns_of_the_contract_and_is_reproducible(paper, tmp_path):
    for name in ("one", "two"):
        record(
            paper, compare=[4, 16], study="paper", parquet=tmp_path / f"{name}.parquet", csv=tmp_path / f"{name}.csv"
        )
    columns = parquet.read(tmp_path / "one.parquet").column_names
    assert [name for name in columns if name in CONTRACT] == CONTRACT
    assert columns[:4] == CONTRACT[:4]
    assert columns[-1] == "verdict"
    assert parquet.read_metadata(tmp_path / "one.parquet") == {"study": "paper"}
    for kind in ("parquet", "csv"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
    frame = pd.read_csv(tmp_path / "one.csv")
    assert frame["n_seeds"].dtype.kind == "i"


# Verdicts and quantities.


@pytest.mark.parametrize(
    ("ends", "sign", "expected"),
    [
        ((0.1, 0.3), RISES, "holds"),
        ((0.1, 0.3), FALLS, "fails"),
        ((-0.3, -0.1), FALLS, "holds"),
        ((-0.3, -0.1), RISES, "fails"),
        ((-0.1, 0.3), RISES, "undecided"),
        ((0.0, 0.0), RISES, "undecided"),
        ((np.nan, np.nan), RISES, "undecided"),
    ],
)
def test_a_verdict_depends_on_where_the_interval_lies(ends, sign, expected):
    assert verdict(outcome(ends, 3).effect, sign) == expected
    of_one_seed = {"holds": "seen", "fails": "not seen", "undecided": "not clear"}
    assert verdict(outcome(ends, 3).effect.limited_to(1), sign) == of_one_seed[expected]


def test_quantities_agree_with_the_tables(paper):
    network = quantities.Network("c10", Path(folder(paper, 4)))
    frame = parquet.read(network.folder / "margins.parquet").to_pandas()
    test, train = (frame[frame["split"] == split] for split in ("test", "train"))
    loss = {name: part["loss"].astype("float64").mean() for name, part in (("test", test), ("train", train))}
    error = {n: 100 * (p["label"] != p["prediction"]).mean() for n, p in (("test", test), ("train", train))}
    assert quantities.loss_gap(network).value == pytest.approx(loss["test"] - loss["train"])
    assert quantities.error_gap(network).value == pytest.approx(error["test"] - error["train"])
    assert quantities.middle_probabilities(network).value == pytest.approx(test["prob"].between(0.1, 0.9).mean())
    assert quantities.large_losses(network).value == pytest.approx((test["prob"] < 0.01).mean())
    wrong = quantities.confident_errors(network).value + quantities.indecisive_errors(network).value
    assert 100 * wrong == pytest.approx(error["test"])
    variation = parquet.read(network.folder / "lossvar.parquet").to_pandas().query("eps == 2.0")["prob_variation"]
    assert quantities.variation_mean(network).value == pytest.approx(variation.astype("float64").mean())
    small = parquet.read(network.folder / "lossvar.parquet").to_pandas().query("eps == 1.0")["prob_variation"]
    ratio = abs(np.log10(small.std(ddof=0) / small.mean()))
    assert quantities.variation_std_like_mean(network, "smallest").value == pytest.approx(0.5 - ratio, rel=1e-6)
    assert quantities.adversarial_accuracy(network).value == pytest.approx(48.0)


def test_the_balance_of_section_b2_is_over_convolutions(paper):
    low, high = (quantities.Network("c10", Path(folder(paper, ar))) for ar in (4, 16))
    change = np.array(high.svstd["std"] - low.svstd["std"])[:-1]  # the last layer is linear
    decrease, increase = -change[change < 0].sum(), change[change > 0].sum()
    assert increase > 0
    (balance,) = (entry for entry in CLAIMS if entry.id == "svstd-decrease-tenfold")
    networks = {4: {0: low}, 16: {0: high}}
    assert balance.contrast(networks, 4, 16).effect.value == pytest.approx(decrease - np.sqrt(10) * increase)
    (most,) = (entry for entry in CLAIMS if entry.id == "svstd-falls-in-most-layers")
    assert most.contrast(networks, 4, 16).effect.value < 0
    fallen = quantities.median_change(np.array([-1.0, -1.0, -1.0, 5.0, 5.0]))
    assert fallen.value < 0 < quantities.median_change(np.array([-9.0, -9.0, 1.0, 1.0, 1.0])).value
