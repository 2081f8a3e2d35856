"""The columns of every table of a run, and their types.

Singular values are those of circular convolutions (as published) in sv, svstd, live and metrics (spectral_complexity),
and in padding's columns with "circular"; its columns with "zero" are of the layers as the network applies them, with
zero padding. Convolutions that are not circular (column operator of svstd, robreg.spectra.layers.Layer.operator) have
their applied operator's values in sv, svstd, live and metrics too, and nulls in padding's columns with "circular".

svstd: c_in, c_out are channels; kernel and stride are along the height, kernel_width and stride_width along the width;
height, width are of the input, where a linear layer has height = the vectors (tokens) of one image; calls: how often an
image passes through the layer; rows, columns: of its operator; n: of singular values, min(rows, columns); method: "fft"
or "dense" (exact, so error_mean and error_std are null, and sv has all values), or "lanczos" (estimates, see
robreg.spectra.lanczos.estimate_spectrum; sv has no rows). The metadata's "unmeasured" has what svstd leaves out, by
name, and why. sigma_max of history, in runs with a bound: see robreg.spectra.projection.project.
"""

import pyarrow as pa

NULLABLE = (  # columns that may have nulls
    "sigma_max",
    "acc_conditional",
    "pgd_acc",
    "spectral_complexity",
    "log10_spectral_complexity",
    "error_mean",
    "error_std",
    "std_circular",
    "max_circular",
    "std_zero",
    "std_live",
    "max_live",
    "log10_u_min_upper",
    "log10_sigma_min_product",
    "w_min",
    "v_min_upper",
    "first_term_lower",
    "lemma_share",
    "lemma_residual",
    "lemma_slack",
    "before",
    "after",
)

_ATTACKS = pa.schema(
    [(key, pa.string()) for key in ("attack", "space", "start", "loss")]
    + [("eps", pa.float64()), ("step", pa.float64())]
    + [(key, pa.int64()) for key in ("steps", "restarts", "seed")]
    + [("split", pa.string()), ("n", pa.int64()), ("n_correct", pa.int64()), ("n_robust", pa.int64())]
    + [("acc_conditional", pa.float64()), ("acc_robust", pa.float64())]
)

SCHEMAS = {
    "history": pa.schema(
        [
            ("epoch", pa.int64()),
            ("lr", pa.float64()),
            ("loss", pa.float64()),
            ("acc", pa.float64()),
            ("sigma_max", pa.list_(pa.float64())),
            ("seconds", pa.float64()),
            ("examples_per_s", pa.float64()),
        ]
    ),
    "margins": pa.schema(
        [
            ("split", pa.string()),
            ("index", pa.int64()),
            ("label", pa.int64()),
            ("prediction", pa.int64()),
            ("margin", pa.float32()),
            ("prob", pa.float32()),
            ("loss", pa.float32()),
        ]
    ),
    "attacks": _ATTACKS,
    "apgd": _ATTACKS,  # these rows are also part of attacks
    "lossvar": pa.schema(
        [
            ("eps", pa.float64()),
            ("index", pa.int64()),
            ("loss_clean", pa.float32()),
            ("loss_adv", pa.float32()),
            ("variation", pa.float32()),
            ("prob_clean", pa.float32()),
            ("prob_adv", pa.float32()),
            ("prob_variation", pa.float32()),
        ]
    ),
    "sv": pa.schema(
        [("layer", pa.int64()), ("name", pa.string()), ("sigma", pa.float64()), ("multiplicity", pa.int64())]
    ),
    "svstd": pa.schema(
        [("layer", pa.int64()), ("name", pa.string()), ("kind", pa.string())]
        + [(key, pa.int64()) for key in ("c_in", "c_out", "kernel", "stride", "height", "width", "n")]
        + [(key, pa.float64()) for key in ("mean", "std", "min", "max")]
        + [(key, pa.int64()) for key in ("kernel_width", "stride_width", "groups", "calls", "rows", "columns")]
        + [("operator", pa.string()), ("method", pa.string())]
        + [(key, pa.float64()) for key in ("error_mean", "error_std")]
    ),
    "live": pa.schema(
        [("layer", pa.int64()), ("name", pa.string())]
        + [(key, pa.int64()) for key in ("rows", "columns", "dead_rows", "frozen_columns")]
        + [(key, pa.float64()) for key in ("frozen_share", "std", "max", "std_live", "max_live")]
    ),
    "padding": pa.schema(
        [("layer", pa.int64()), ("name", pa.string()), ("method", pa.string())]
        + [(key, pa.float64()) for key in ("std_circular", "std_zero", "max_circular", "max_zero")]
    ),
    "spread": pa.schema(
        [
            ("layer", pa.int64()),
            ("name", pa.string()),
            ("perturbation", pa.string()),
            ("eps", pa.float64()),
            ("n", pa.int64()),
            ("mean", pa.float64()),
            ("std", pa.float64()),
        ]
    ),
    "examples": pa.schema(
        [("radius", pa.string()), ("space", pa.string()), ("eps", pa.float64()), ("step", pa.float64())]
        + [(key, pa.int64()) for key in ("steps", "restarts", "index", "label", "prediction")]
        + [("margin", pa.float32()), ("adversarial_prediction", pa.int64()), ("adversarial_margin", pa.float32())]
        + [(key, pa.int64()) for key in ("channels", "height", "width")]
        + [("image", pa.list_(pa.uint8())), ("adversarial", pa.list_(pa.float32()))]
    ),
    "theory": pa.schema(
        [("n", pa.int64()), ("m", pa.int64())]
        + [(key, pa.float64()) for key in ("gamma", "eta", "c_x", "k", "eps")]
        + [("sigma_min_zero_layers", pa.int64())]
        + [
            (key, pa.float64())
            for key in (
                "log10_sigma_min_product",
                "w_min",
                "v_min_upper",
                "log10_u_min_upper",
                "first_term_lower",
                "log10_second_term",
                "ramp_risk_train",
                "ramp_risk_test",
                "ramp_gap",
            )
        ]
        + [("lemma_pairs", pa.int64()), ("lemma_pieces", pa.int64())]
        + [("lemma_share", pa.float64()), ("lemma_residual", pa.float64()), ("lemma_slack", pa.float64())]
    ),
    "masking": pa.schema(
        [("check", pa.string()), ("eps", pa.float64()), ("n", pa.int64())]
        + [(key, pa.float64()) for key in ("before", "after", "value", "limit")]
        + [("passed", pa.bool_())]
    ),
    "checks": pa.schema(
        [
            ("check", pa.string()),
            ("what", pa.string()),
            ("found", pa.float64()),
            ("relation", pa.string()),
            ("expected", pa.float64()),
            ("tolerance", pa.float64()),
            ("passed", pa.bool_()),
        ]
    ),
    "metrics": pa.schema(
        [
            (key, pa.float64())
            for key in (
                "train_acc",
                "test_acc",
                "acc_gap",
                "train_loss",
                "test_loss",
                "loss_gap",
                "pgd_acc",
                "robust_acc",
                "spectral_complexity",
                "log10_spectral_complexity",
            )
        ]
    ),
}
