"""Compute the quantities of Theorem 3.1 for a trained network and check Lemma 3.1 (paper, section 3, appendix C).

Which side the estimates are on. v_min_upper is an upper estimate: an attack finds some point behind the boundary,
rarely the nearest one, and it starts only at training examples, not everywhere in the balls that contain them.
Therefore u_min is an upper estimate, and the first term of the bound, max{0, 1 - u_min/gamma}, is a lower one. The
second term is exact, given constants that nobody can measure. The bound is used as printed; the proof itself ends with
max{0, 2 (1 - u_min/gamma)} and, in the second term, with 2^(k+1) / gamma^k instead of 2 / eps^k. The singular values of
a convolution are those of the circular operator, whereas the networks pad with zeros: the smallest one of what a
network applies may be smaller or larger, so the sides above hold only for circular convolutions.

What never takes part is left out of the singular values: output channels whose weights are all 0, and input channels
that no image can make other than 0 (see spectra.live). A network without them computes the same, whereas with them a
singular value of 0 in the layers that end a stage's first block would make u_min 0 for every network. In evaluation,
batch normalisation multiplies every channel by a number: it is one more linear layer, whose smallest singular value is
the smallest of these. With a normalisation that depends on the image, u_min is not defined, and null.

None of this is a guarantee: eq. (5) is for plain ReLU nets without biases (eq. 2; residual nets have another form), and
even for these nets its step (14) requires that the units that matter are on. This counterexample meets all its
assumptions: for W_1 = diag(1, 1, -1) and w_y - w_yhat = (1, -1, 1), the input x = (0.9, 0.4, 1) has the margin 0.5 and
the distance 0.35 from the boundary, x_1 = x_2, so that "u_min" is 0.61.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robreg.data.dataset import Dataset, to_float
from robreg.measures import lemma
from robreg.measures.open_run import open_run
from robreg.networks.classifier import Classifier
from robreg.networks.frozen import frozen
from robreg.spectra.layers import list_layers, unmeasured
from robreg.spectra.live import live_part, reachable_inputs
from robreg.spectra.singular_values import exact_singular_values
from robreg.tables import parquet, provenance, schemas

_BATCH = 50  # images per batch of the attacks
_DEEPFOOL_STEPS = 10  # largest number of DeepFool steps
_BISECTIONS = 24  # times that the line from an image to its adversarial example is halved
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_OTHER_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)

log = logging.getLogger(__name__)


def record(  # noqa: PLR0913 - one argument per file and setting
    *,
    checkpoint: Path,
    data: Path,
    svstd: Path,
    margins: Path,
    theory: Path,
    spec: Mapping[str, Any],
    device: str,
    network: Mapping[str, Any] | None = None,
) -> None:
    """Write theory.parquet of one network, with one row.

    svstd, margins: the run's tables of the same names; spec: n, steps, gamma, eta, c_x, k, eps (1/255), pairs, pieces,
    seed. A quantity that cannot be computed is null, and the log says why.
    """
    model, meta, prepared = open_run(checkpoint, data, device, network)
    # Random examples, because the data may be sorted by class.
    chosen = _draw_indices(len(prepared.train_labels), spec["n"], spec["seed"])
    images, labels = (part[chosen] for part in prepared.split("train"))
    v_min, n = smallest_distance(model, images, labels, steps=spec["steps"])
    layers = restrict_to_live_part(model, parquet.read(svstd).to_pylist(), prepared.shape)
    constants = {key: float(spec[key]) for key in ("gamma", "eta", "c_x", "k", "eps")}
    m = len(prepared.train_labels)
    row = {
        "n": n,
        "m": m,
        **constants,
        **first_term(model, layers, v_min, gamma=spec["gamma"]),
        "log10_second_term": log10_second_term({**constants, "eps": spec["eps"] / 255}, m),
        **_ramp_risks(margins, spec["gamma"]),
        **_check_lemma(model, prepared, spec),
    }
    columns = {name: [row[name]] for name in schemas.SCHEMAS["theory"].names}
    parquet.write(theory, "theory", columns, provenance.run_metadata(meta, theory=dict(spec)))


def ramp(r: Tensor, gamma: float) -> Tensor:
    """Return the ramp loss (Definition 4): 0 below -gamma, 1 above 0, linear in between. It is applied to -margin."""
    return (1 + r / gamma).clamp(0, 1)


def ramp_risk(margins: Tensor, gamma: float) -> float:
    """Return the mean ramp loss of examples with these margins (Definition 5)."""
    return float(ramp(-margins.double(), gamma).mean())


def log10_second_term(constants: Mapping[str, float], m: int) -> float:
    """Return log10 of sqrt(2 log(2) C_X^k / (eps^k m) + 2 log(1/eta) / m), eq. (4).

    constants: c_x, k, eta, and eps in the units of c_x; m: the size of the training set.
    """
    covering = math.log10(2 * math.log(2)) + constants["k"] * math.log10(constants["c_x"] / constants["eps"])
    confidence = math.log10(2 * math.log(1 / constants["eta"]))
    high, low = max(covering, confidence), min(covering, confidence)
    return (high + math.log10(1 + 10 ** (low - high)) - math.log10(m)) / 2


def restrict_to_live_part(
    model: Classifier, rows: Sequence[Mapping[str, Any]], shape: tuple[int, int, int]
) -> list[dict[str, Any]]:
    """Replace the smallest and largest singular values of layers of which a part never takes part by the rest's.

    rows: of svstd.parquet; shape: of an image. Of every layer, output channels with weights of 0 and input channels
    that are 0 for every image are left out of min, max, c_in and c_out; live_columns says which input channels are
    left, (c_in,) bool. A layer of which nothing is left has a smallest singular value of 0. Layers with groups, and
    those that are not circular, are taken whole.
    """
    layers = list_layers(model, shape)
    reachable = reachable_inputs(model.network, layers, shape)
    found = []
    for row, layer in zip(rows, layers, strict=True):
        if layer.groups > 1 or layer.operator not in ("circular", "matrix"):
            found.append(dict(row))
            continue
        columns = reachable[layer.name].to(layer.kernel.device)
        rest = live_part(layer.kernel, ~columns)
        own = {**row, "live_columns": columns}
        if rest.shape != layer.kernel.shape:
            exact = exact_singular_values(layer.with_kernels(rest[None]), dense=0) if rest.numel() else None
            sigma = [0.0] if exact is None else exact[0].tolist()
            own |= {"c_out": rest.shape[0], "c_in": rest.shape[1], "min": min(sigma), "max": max(sigma)}
        found.append(own)
    return found


def first_term(
    model: Classifier, layers: Sequence[Mapping[str, Any]], v_min: float | None, *, gamma: float
) -> dict[str, Any]:
    """Compute the first term of the bound, max{0, 1 - u_min/gamma}, and what it is made of, eq. (4) and (5).

    layers: the rows of svstd.parquet, perhaps from restrict_to_live_part; v_min: the smallest distance to the boundary
    for pixels in [0, 1], None if unknown. The product of sigma_min runs over all layers before the last one, which is
    linear, over batch normalisation, and over the normalisation of the input, because distances are between pixels; its
    smallest singular value is 1 / max std. A layer is a factor as often as it is called. The product's log10 is None if
    a factor is 0 or unknown, as it is of a network that normalises its input itself.
    """
    scales, first = _smallest_scales(model), model.normalise.smallest_scale
    smallest = [
        0.0 if layer["min"] <= _zero_threshold(layer) else layer["min"]
        for layer in layers[:-1]
        for _ in range(layer["calls"])
    ]
    factors = [first or 1.0, *smallest, *(scales or [])]
    zero = factors.count(0.0)
    product = None if zero or scales is None or first is None else math.fsum(map(math.log10, factors))
    w_min = _smallest_row_distance(model, layers)
    u_min = _log10_product(product, w_min, v_min)
    return {
        "sigma_min_zero_layers": zero,
        "log10_sigma_min_product": product,
        "w_min": w_min,
        "v_min_upper": v_min,
        "log10_u_min_upper": u_min,
        "first_term_lower": _evaluate_first_term(
            u_min, gamma, is_zero=scales is not None and (zero > 0 or 0 in (w_min, v_min))
        ),
    }


def smallest_distance(model: nn.Module, images: Tensor, labels: Tensor, *, steps: int) -> tuple[float | None, int]:
    """Estimate, from above, the smallest L2 distance from an image to the decision boundary (Definition 6).

    images: (N, C, H, W) uint8; labels: (N,). Images that are classified correctly are attacked with DDN and DeepFool of
    foolbox (its FMN, in version 3.3.4, never projects). The boundary is then located by bisection between each image
    and its adversarial example. Returns the smallest distance for pixels in [0, 1], or None if no adversarial example
    is found, and the number of images with an adversarial example.
    Raises ImportError if foolbox is not installed.
    """
    parameter = next(model.parameters())
    parts = [torch.zeros(0)]
    with frozen(model):
        for begin in range(0, len(images), _BATCH):
            x = to_float(images[begin : begin + _BATCH].to(parameter.device))
            y = labels[begin : begin + _BATCH].to(parameter.device)
            correct = _predict(model, x) == y
            if correct.any():
                parts.append(_boundary_distances(model, x[correct], y[correct], steps=steps))
    distances = torch.cat(parts)
    if not len(distances):
        log.warning("v_min is null: none of %d training images is correct and has an adversarial example", len(images))
        return None, 0
    return float(distances.min()), len(distances)


def _boundary_distances(model: nn.Module, x: Tensor, y: Tensor, *, steps: int) -> Tensor:
    """Return the distances to the nearest adversarial examples that were found, (n,) with n <= B, on the CPU.

    DDN is the better attack far from the boundary; DeepFool, which reaches it in a few steps, is better close to it.
    """
    try:  # an optional dependency that only this function needs
        from foolbox.attacks.ddn import DDNAttack  # noqa: PLC0415
        from foolbox.attacks.deepfool import L2DeepFoolAttack  # noqa: PLC0415
        from foolbox.criteria import Misclassification  # noqa: PLC0415
        from foolbox.models.pytorch import PyTorchModel  # noqa: PLC0415
    except ImportError as error:
        raise ImportError("v_min needs foolbox; install it with pip install robreg[theory]") from error
    wrapped = PyTorchModel(model, bounds=(0, 1), device=x.device)
    shortest = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    for attack in (DDNAttack(steps=steps), L2DeepFoolAttack(steps=min(steps, _DEEPFOOL_STEPS))):
        change = attack.run(wrapped, x, Misclassification(y)).detach() - x
        share = _bisect(model, x, y, change)
        succeeded = _predict(model, x + change) != y
        shortest = torch.where(succeeded, shortest.fmin(change.double().flatten(1).norm(dim=1) * share), shortest)
    return shortest[shortest.isfinite()].cpu()


def _bisect(model: nn.Module, x: Tensor, y: Tensor, change: Tensor) -> Tensor:
    """Bisect the line from x to x + change; return the share of change just behind the boundary, (B,) float64.

    x + change must be misclassified; where it is not, the share has no meaning.
    """
    near, far = x.new_zeros(len(x), dtype=torch.float64), x.new_ones(len(x), dtype=torch.float64)
    for _ in range(_BISECTIONS):
        middle = (near + far) / 2
        wrong = _predict(model, x + middle.view(-1, *[1] * (x.ndim - 1)).to(x.dtype) * change) != y
        near, far = torch.where(wrong, near, middle), torch.where(wrong, middle, far)
    return far


@torch.no_grad()
def _predict(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).argmax(1)


def _zero_threshold(layer: Mapping[str, Any]) -> float:
    """Return the value up to which a singular value counts as 0, given rounding errors, as for a matrix's rank."""
    size = max(layer["c_out"], layer["c_in"] * layer["kernel"] * layer["kernel_width"])
    return float(layer["max"] * size * torch.finfo(torch.float64).eps)


def _smallest_scales(model: nn.Module) -> list[float] | None:
    """Return the smallest number by which each batch normalisation multiplies a channel in evaluation.

    Warns and returns None if the network has a normalisation that depends on the image, which is not a linear map, or
    another part without singular values.
    """
    for name, reason in unmeasured(model).items():
        log.warning("u_min is null: %s has no singular values (%s)", name, reason)
        return None
    scales = []
    for name, module in model.named_modules():
        running = getattr(module, "running_var", None)
        if isinstance(module, _BATCH_NORMS) and running is not None:
            scale = (running.double() + module.eps).rsqrt()
            scale = scale if module.weight is None else scale * module.weight.detach().double().abs()
            scales.append(float(scale.min()))
        elif isinstance(module, (*_BATCH_NORMS, *_OTHER_NORMS)):
            log.warning("u_min is null: %s (%s) depends on the image and is not linear", name, type(module).__name__)
            return None
    return scales


def _smallest_row_distance(model: nn.Module, layers: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the smallest ||w_y - w_yhat||_2 between rows of the last layer; warn and return None if there is none."""
    last: Mapping[str, Any] = layers[-1] if layers else {"name": "none", "kind": "missing", "c_out": 0, "rows": 0}
    if last["kind"] != "linear" or last["c_out"] < 2 or last["rows"] != last["c_out"]:
        log.warning(
            "w_min is null: the last layer, %s, must be linear with at least 2 outputs for one vector per image, but "
            "it is a %s layer with %d channels and %d outputs",
            *(last[key] for key in ("name", "kind", "c_out", "rows")),
        )
        return None
    module = model.get_submodule(last["name"])
    assert isinstance(module, nn.Linear)
    weight = module.weight.detach().double()[:, last.get("live_columns", slice(None))].cpu()
    return float(torch.pdist(weight).min())  # pdist subtracts before squaring, so nothing cancels


def _log10_product(log10_product: float | None, *factors: float | None) -> float | None:
    """Return log10 of a product, or None if a factor is unknown or 0."""
    if log10_product is None or not all(factors):
        return None
    return log10_product + sum(math.log10(factor) for factor in factors if factor)


def _evaluate_first_term(log10_u_min: float | None, gamma: float, *, is_zero: bool) -> float | None:
    """Return max{0, 1 - u_min/gamma}; if log10_u_min is None, return 1 if u_min is known to be 0, else None."""
    if log10_u_min is None:
        return 1.0 if is_zero else None
    return 1 - 10 ** min(0.0, log10_u_min - math.log10(gamma))


def _draw_indices(n: int, count: int, seed: int) -> Tensor:
    """Draw count of n indices (all if there are fewer) without replacement, in random order."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]


def _ramp_risks(margins: Path, gamma: float) -> dict[str, float]:
    columns = parquet.read(margins, ["split", "margin"]).to_pydict()
    split, margin = columns["split"], torch.tensor(columns["margin"])
    train, test = (
        ramp_risk(margin[torch.tensor([each == name for each in split])], gamma) for name in ("train", "test")
    )
    return {"ramp_risk_train": train, "ramp_risk_test": test, "ramp_gap": test - train}


def _check_lemma(model: Classifier, prepared: Dataset, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Check Lemma 3.1 between random pairs of test images; return the worst values over the pairs that were checked."""
    images = prepared.split("test")[0]
    pairs = _draw_indices(len(images), 2 * min(spec["pairs"], len(images) // 2), spec["seed"]).view(-1, 2)
    x = to_float(images[pairs.flatten()].to(model.normalise.mean.device)).unflatten(0, (-1, 2))
    try:
        checked = [lemma.check_lemma(model, *pair, pieces=spec["pieces"]) for pair in x]
    except lemma.NotPiecewiseLinear as error:
        log.warning("Lemma 3.1 was not checked: %s", error)
        checked = []
    results = [each for each in checked if each is not None]
    log.info(
        "Lemma 3.1 was checked on %d of %d pairs, with up to %d pieces each", len(results), len(pairs), spec["pieces"]
    )
    return {
        "lemma_pairs": len(results),
        "lemma_pieces": max((int(each["count"]) for each in results), default=0),
        "lemma_share": min((each["share"] for each in results), default=None),
        "lemma_residual": max((each["residual"] for each in results), default=None),
        "lemma_slack": max((each["slack"] for each in results), default=None),
    }
