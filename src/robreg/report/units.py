"""Format the numbers of a report: labels, units and decimals of the columns of tables, durations and memory sizes."""

import math
import re
from dataclasses import dataclass

_VARIATION = re.compile(r"(loss|probability)_variation_(mean|std)_eps(.+)")
_IN_PIXELS = re.compile(r"pixel_acc_eps(.+)")
_VARIATIONS = {"loss": ("cross entropy", "nats"), "probability": ("label's probability", "")}


@dataclass(frozen=True)
class Quantity:
    """How a column of a study's tables is labelled and formatted.

    unit: "" for a pure number; scientific: whether values are written with a power of ten.
    """

    label: str
    unit: str
    decimals: int
    scientific: bool = False

    def text(self, value: float | None) -> str:
        """Format a value with this quantity's decimals; a null value becomes a dash."""
        if value is None or math.isnan(value):
            return "\N{EN DASH}"
        form = "e" if self.scientific else "f"
        return f"{value:.{self.decimals}{form}}".replace("-", "\N{MINUS SIGN}")


_KNOWN = {
    "masking_failed": Quantity("failed checks for hidden gradients", "", 0),
    "train_acc": Quantity("training accuracy", "%", 2),
    "test_acc": Quantity("test accuracy", "%", 2),
    "acc_gap": Quantity("error gap", "% points", 2),
    "train_loss": Quantity("training loss", "nats", 4),
    "test_loss": Quantity("test loss", "nats", 4),
    "loss_gap": Quantity("loss gap", "nats", 4),
    "pgd_acc": Quantity("adversarial accuracy", "%", 2),
    "robust_acc": Quantity("robust accuracy (all examples)", "%", 2),
    "sv_spread": Quantity("spread of singular values: standard deviation in a layer, mean over layers", "", 4),
    "margin_spread": Quantity("spread of margins: standard deviation over test examples", "logits", 2),
    "spectral_complexity": Quantity("spectral complexity, circular convolutions", "", 2, scientific=True),
    "log10_spectral_complexity": Quantity("spectral complexity, circular convolutions", "log10", 2),
    "svstd_decrease_sum": Quantity("decrease of the standard deviation, sum", "", 4),
    "svstd_decrease_mean": Quantity("decrease of the standard deviation, mean over the layers that decrease", "", 4),
    "svstd_increase_sum": Quantity("increase of the standard deviation, sum", "", 4),
    "svstd_increase_mean": Quantity("increase of the standard deviation, mean over the layers that increase", "", 4),
    "n_decreased": Quantity("number of layers that decrease", "", 0),
    "n_increased": Quantity("number of layers that increase", "", 0),
    "svstd_live_decrease_sum": Quantity("live part: decrease of the standard deviation, sum", "", 4),
    "svstd_live_decrease_mean": Quantity("live part: decrease, mean over the layers that decrease", "", 4),
    "svstd_live_increase_sum": Quantity("live part: increase of the standard deviation, sum", "", 4),
    "svstd_live_increase_mean": Quantity("live part: increase, mean over the layers that increase", "", 4),
    "n_live_decreased": Quantity("live part: number of layers that decrease", "", 0),
    "n_live_increased": Quantity("live part: number of layers that increase", "", 0),
    "apgd_n": Quantity("number of test examples attacked with APGD", "", 0),
    "apgd_ce_robust": Quantity("robust accuracy, APGD with cross entropy", "%", 2),
    "apgd_dlr_robust": Quantity("robust accuracy, APGD with DLR", "%", 2),
    "apgd_robust": Quantity("robust accuracy, worst case of both losses", "%", 2),
    "n_dense": Quantity("number of convolutions with an exact zero-padded spectrum", "", 0),
    "std_circular": Quantity("standard deviation of singular values, circular, mean over these", "", 4),
    "std_zero": Quantity("standard deviation of singular values, zero-padded, mean over these", "", 4),
    "std_relative_difference": Quantity("relative difference of the two, mean over these", "", 4),
    "max_ratio_median": Quantity("largest singular value, zero-padded / circular, median over layers", "", 4),
    "max_ratio_max": Quantity("largest singular value, zero-padded / circular, maximum over layers", "", 4),
    "max_zero": Quantity("largest singular value of all layers, zero-padded", "", 4),
    "log10_complexity_circular": Quantity("product of the largest singular values, circular", "log10", 2),
    "log10_complexity_zero": Quantity("product of the largest singular values, zero-padded", "log10", 2),
    "n": Quantity("n, number of training images attacked for v_min", "", 0),
    "m": Quantity("m, number of training images", "", 0),
    "gamma": Quantity("gamma, width of the ramp loss", "logits", 2),
    "eta": Quantity("eta, probability that the bound fails", "", 2),
    "c_x": Quantity("C_X, constant of the covering number", "", 2),
    "k": Quantity("k, exponent of the covering number", "", 2),
    "eps": Quantity("eps, radius of the covering balls", "1/255, in pixels", 2),
    "sigma_min_zero_layers": Quantity(
        "number of layers that have a singular value of 0, without channels that are always 0", "", 0
    ),
    "log10_sigma_min_product": Quantity(
        "product of the smallest singular values, with those of batch normalisation", "log10", 2
    ),
    "w_min": Quantity("w_min, smallest distance between the weights of two classes", "", 4),
    "v_min_upper": Quantity("v_min, smallest distance to the boundary (upper estimate)", "L2, pixels in [0, 1]", 4),
    "log10_u_min_upper": Quantity("u_min, product with w_min and v_min (upper estimate)", "log10", 2),
    "first_term_lower": Quantity("first term of the bound (lower estimate)", "", 4),
    "log10_second_term": Quantity("second term of the bound", "log10", 2),
    "ramp_risk_train": Quantity("ramp risk, training set", "", 4),
    "ramp_risk_test": Quantity("ramp risk, test set", "", 4),
    "ramp_gap": Quantity("ramp gap, measured (test minus training)", "", 4),
    "lemma_pairs": Quantity("Lemma 3.1: number of segments", "", 0),
    "lemma_pieces": Quantity("Lemma 3.1: largest number of linear pieces", "", 0),
    "lemma_share": Quantity("Lemma 3.1: smallest share of a segment that was traced", "", 3),
    "lemma_residual": Quantity("Lemma 3.1: largest relative error of the identity", "", 1, scientific=True),
    "lemma_slack": Quantity("Lemma 3.1: largest relative excess of the printed sum", "", 3),
}


def describe(column: str) -> Quantity:
    """Return label, unit and decimals of a column; an unknown column keeps its name and gets four decimals."""
    variation = _VARIATION.fullmatch(column)
    if variation:
        kind, unit = _VARIATIONS[variation[1]]
        where = f"at eps {variation[3]}/255 in the network's space"
        return Quantity(f"loss variation, {kind}, {where}, {variation[2]}", unit, 4)
    if radius := _IN_PIXELS.fullmatch(column):
        return Quantity(f"accuracy under PGD at {radius[1]}/255 in pixels, of those correct when clean", "%", 2)
    return _KNOWN.get(column, Quantity(column.replace("_", " "), "", 4))


@dataclass(frozen=True)
class Cell:
    """A number as text: its mean, and its std over seeds ("" if there is none)."""

    mean: str
    std: str


def format_cell(quantity: Quantity, mean: float, std: float) -> Cell:
    """Format mean and std with the quantity's decimals; a mean of NaN becomes a dash, a std of NaN is left out."""
    return Cell(quantity.text(mean), "" if math.isnan(std) or math.isnan(mean) else quantity.text(std))


def format_duration(seconds: float | None) -> str:
    """Format a duration in seconds as "41 s", "3 min 05 s" or "2 h 10 min"; None and NaN become a dash."""
    if seconds is None or math.isnan(seconds):
        return "\N{EN DASH}"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_memory(megabytes: float | None) -> str:
    """Format a size in MB; None and NaN become a dash."""
    return "\N{EN DASH}" if megabytes is None or math.isnan(megabytes) else f"{megabytes:.0f} MB"
