"""The quantities that claims are about: functions that compute an estimate from the tables of one network."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from robreg.claims import estimates
from robreg.claims.estimates import Array, Estimate
from robreg.tables import parquet

Extreme = Literal["smallest", "largest"]
MIDDLE = (0.1, 0.9)  # probabilities in this range are in the middle, others are at the ends
LARGE_LOSS = -math.log(0.01)  # losses above this, in nats, are large: the label has a probability below 0.01
_SMALLEST = 1e-300  # stands for a standard deviation of 0 in logarithms
CONFIDENT_MARGIN = math.log(9)  # a confident margin, in logits: 0.9 to 0.1 between the prediction and its best rival


@dataclass(frozen=True)
class Network:
    """The tables of one run. dataset: its data set; folder: where the tables are."""

    dataset: str
    folder: Path

    @cached_property
    def margins(self) -> Mapping[str, pd.DataFrame]:
        """Read margins.parquet by split, in the order of the examples, in float64."""
        frame = parquet.read(self.folder / "margins.parquet").to_pandas()
        frame = frame.astype({"margin": "float64", "prob": "float64", "loss": "float64"})
        return {str(split): part.sort_values("index") for split, part in frame.groupby("split")}

    @cached_property
    def variation(self) -> Mapping[Extreme, Array]:
        """Read the loss variation of every test example at the smallest and the largest eps of lossvar.parquet.

        It is the label's probability that an attack can take, as in the paper's Table 1 (see measures.loss_variation).
        """
        frame = parquet.read(self.folder / "lossvar.parquet", ["eps", "index", "prob_variation"]).to_pandas()
        frame = frame.sort_values("index")
        ends: dict[Extreme, float] = {"smallest": frame["eps"].min(), "largest": frame["eps"].max()}
        return {
            name: frame.loc[frame["eps"] == eps, "prob_variation"].to_numpy("float64") for name, eps in ends.items()
        }

    @cached_property
    def svstd(self) -> pd.DataFrame:
        """Read svstd.parquet, with the layers in order."""
        return parquet.read(self.folder / "svstd.parquet").to_pandas().sort_values("layer")

    @cached_property
    def spread(self) -> pd.DataFrame:
        """Read spread.parquet, with the layers in order."""
        return parquet.read(self.folder / "spread.parquet").to_pandas().sort_values("layer")

    def values(self, column: str, split: str = "test") -> Array:
        """Return a column of margins.parquet for one split, (n,)."""
        return self.margins[split][column].to_numpy("float64")

    def called(self, split: str = "test") -> str:
        """Return the name of a split's examples; networks are compared example by example if their names are equal."""
        return f"{self.dataset} {estimates.TEST if split == 'test' else estimates.TRAINING}"


def loss(network: Network, split: str) -> Estimate:
    """Return the mean cross entropy (nats)."""
    return estimates.mean(network.values("loss", split), network.called(split))


def accuracy(network: Network, split: str) -> Estimate:
    """Return the clean accuracy (percent)."""
    return estimates.mean(100.0 * (_is_correct(network, split)), network.called(split))


def loss_gap(network: Network) -> Estimate:
    """Return the test loss minus the training loss (nats)."""
    return loss(network, "test") - loss(network, "train")


def error_gap(network: Network) -> Estimate:
    """Return test minus training error, which equals training minus test accuracy (percentage points)."""
    return accuracy(network, "train") - accuracy(network, "test")


def adversarial_accuracy(network: Network) -> Estimate:
    """Return the percentage of correct test examples that survive the evaluation attack; NaN if none is correct."""
    value = parquet.read(network.folder / "metrics.parquet", ["pgd_acc"])["pgd_acc"][0].as_py()
    n = int(_is_correct(network, "test").sum())
    if value is None or not n:
        return Estimate(math.nan)
    return estimates.proportion(value * n / 100, n)


def margin_std(network: Network, split: str) -> Estimate:
    """Return the standard deviation of the margins (logits)."""
    return estimates.std(network.values("margin", split), network.called(split))


def margin_mode(network: Network) -> Estimate:
    """Return the distance of the mode of the test margins from 0 (logits)."""
    estimate = estimates.mode(network.values("margin"), network.called())
    return estimate.scaled(-1 if estimate.value < 0 else 1)


def margin_skewness(network: Network, split: str) -> Estimate:
    """Return the skewness of the margins."""
    return estimates.skewness(network.values("margin", split), network.called(split))


def skewness_excess(network: Network) -> Estimate:
    """Return the skewness of the training margins minus that of the test margins."""
    return margin_skewness(network, "train") - margin_skewness(network, "test")


def middle_probabilities(network: Network) -> Estimate:
    """Return the share of test examples whose label has a probability in MIDDLE."""
    prob = network.values("prob")
    return estimates.mean((prob >= MIDDLE[0]) & (prob <= MIDDLE[1]), network.called())


def extreme_probabilities(network: Network) -> Estimate:
    """Return the share of test examples whose label has a probability outside MIDDLE, minus 1/2."""
    return middle_probabilities(network).scaled(-1, 0.5)


def large_losses(network: Network) -> Estimate:
    """Return the share of test examples with a loss above LARGE_LOSS."""
    return estimates.mean(network.values("loss") > LARGE_LOSS, network.called())


def confident_errors(network: Network) -> Estimate:
    """Return the share of all test examples that are misclassified with a margin below -CONFIDENT_MARGIN."""
    return estimates.mean(network.values("margin") < -CONFIDENT_MARGIN, network.called())


def indecisive_errors(network: Network) -> Estimate:
    """Return the share of all test examples that are misclassified with a margin of at least -CONFIDENT_MARGIN."""
    wrong = ~_is_correct(network, "test")
    return estimates.mean(wrong & (network.values("margin") >= -CONFIDENT_MARGIN), network.called())


def variation_mean(network: Network, eps: Extreme = "largest") -> Estimate:
    """Return the mean loss variation (probability) over test examples at the smallest or largest eps."""
    return estimates.mean(network.variation[eps], network.called())


def variation_std(network: Network, eps: Extreme = "largest") -> Estimate:
    """Return the std of the loss variation (probability) over test examples at the smallest or largest eps."""
    return estimates.std(network.variation[eps], network.called())


def variation_std_like_mean(network: Network, eps: Extreme = "largest") -> Estimate:
    """Return 1/2 minus |log10(std / mean)| of the loss variation.

    It is positive if the standard deviation and the mean are of the same order of magnitude.
    """
    ratio = estimates.log10_ratio(variation_std(network, eps), variation_mean(network, eps))
    return ratio.scaled(1 if ratio.value < 0 else -1, 0.5)


def svstd(network: Network) -> Estimate:
    """Return the mean over layers of the standard deviation of the singular values."""
    return Estimate(float(network.svstd["std"].mean()))


def svstd_near_one(network: Network) -> Estimate:
    """Return log10(2) - |log10(std of singular values)|, median over layers: positive if most are from 1/2 to 2."""
    std = network.svstd["std"].to_numpy("float64")
    return Estimate(float(np.median(math.log10(2) - np.abs(np.log10(np.maximum(std, _SMALLEST))))))


def svstd_of_layers(network: Network, kind: str | None = None) -> pd.Series:
    """Return the standard deviation of the singular values of every layer of a kind, or of any, by the layer's name."""
    frame = network.svstd
    chosen = frame if kind is None else frame[frame["kind"] == kind]
    return chosen.set_index("name")["std"].astype("float64")


def median_change(change: Array) -> Estimate:
    """Return the median of the changes of all layers, which is negative if most of them fall.

    The share of the layers that fall would say the same, but three seeds agree on it by chance if the layers of a
    network rise and fall together.
    """
    return Estimate(float(np.median(change)))


def decrease_over_increase(change: Array, ratio: float) -> Estimate:
    """Return the decrease minus ratio times the increase, each accumulated over layers (B.2); NaN without layers."""
    if not change.size:
        return Estimate(math.nan)
    return Estimate(float(-change[change < 0].sum() - ratio * change[change > 0].sum()))


def spread_of_layers(network: Network, perturbation: str, column: Literal["mean", "std"]) -> Estimate:
    """Return the mean over layers of how much a layer stretches a perturbation.

    column: the statistic over images. The images' part of the variance is an upper bound, because the layers are
    measured on the same images: it takes their errors as equal. The error of a std is that of a normal distribution.
    """
    frame = network.spread
    chosen = frame[(frame["perturbation"] == perturbation) & (frame["layer"] >= 1)]
    errors = chosen["std"] / np.sqrt(chosen["n"] * (1 if column == "mean" else 2))
    return Estimate(float(chosen[column].mean()), unpaired=float(errors.mean()) ** 2)


def margin_change(network: Network, perturbation: str) -> Estimate:
    """Return the mean change of the margin (logits) under a perturbation, which is layer 0 of spread.parquet."""
    frame = network.spread
    (row,) = frame[(frame["perturbation"] == perturbation) & (frame["layer"] == 0)].to_dict("records")
    return Estimate(row["mean"], unpaired=row["std"] ** 2 / row["n"])


def _is_correct(network: Network, split: str) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    frame = network.margins[split]
    return (frame["prediction"] == frame["label"]).to_numpy()
