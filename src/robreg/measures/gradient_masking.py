"""Check whether a network hides its gradients; if so, its adversarial accuracy says little (Athalye et al. 2018)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from robreg.attacks.evaluation import survivors
from robreg.attacks.pgd import Radius, input_gradient, pgd, pixel_radius, uniform_noise
from robreg.data.dataset import to_float
from robreg.measures.margins import read_clean
from robreg.measures.open_run import open_run
from robreg.networks.classifier import Classifier
from robreg.networks.frozen import frozen
from robreg.networks.replayed import replayed
from robreg.tables import parquet, provenance, schemas

# The largest value with which a check passes, in percentage points of accuracy unless stated otherwise. Hidden
# gradients exceed these limits by tens of points. The limits leave room for the differences between attacks on networks
# that hide nothing.
LIMITS = {
    "large_eps": 5.0,  # percent still correct at the largest radius, where every image can be made grey
    "larger_eps": 5.0,  # rise of the accuracy from one radius to the next larger one
    "more_steps": 5.0,  # fall of the accuracy with more steps
    "more_restarts": 10.0,  # fall of the accuracy with more restarts
    "one_step": 5.0,  # accuracy after many steps minus accuracy after one step
    "fgsm_collapse": 20.0,  # fall of the accuracy from one step to many, at the training radius (Wong et al. 2020)
    "zero_gradient": 1.0,  # percent of the correctly classified images whose gradient is exactly 0 in every pixel
    "other_loss": 10.0,  # fall of the accuracy from APGD with cross entropy to the worst case over both losses
}
TOTAL_STEP_LENGTH = 2.5  # total length of all steps, in radii (Madry et al. 2018)


def record(  # noqa: PLR0913 - one argument per file and setting
    *,
    checkpoint: Path,
    data: Path,
    margins: Path,
    apgd: Path,
    masking: Path,
    spec: Mapping[str, Any],
    batch: int,
    device: str,
    network: Mapping[str, Any] | None = None,
) -> None:
    """Write masking.parquet of one network, with one row per check.

    margins, apgd: the run's tables of the same names; spec: n (the first n test examples are used) and the settings
    of masking_checks.
    """
    model, meta, prepared = open_run(checkpoint, data, device, network)
    images, labels = (part[: spec["n"]] for part in prepared.split("test"))
    model = replayed(model, min(batch, len(labels)))
    correct, _ = read_clean(margins, labels)
    rows = masking_checks(AttackedNetwork(model, images, labels, correct, spec, batch=batch))
    rows += other_loss(parquet.read(apgd).to_pylist())
    columns = {name: [row[name] for row in rows] for name in schemas.SCHEMAS["masking"].names}
    # Some radii are in pixels and others in the run's space: the channels' stds say what one is in the other.
    how = {"masking": dict(spec), "std": list(meta["std"])}
    parquet.write(masking, "masking", columns, provenance.run_metadata(meta, **how))


@dataclass(frozen=True)
class AttackedNetwork:
    """A network and the images that it is attacked on.

    images: (n, C, H, W) uint8; labels: (n,); correct: (n,) bool, which images are classified correctly; spec: the
    settings of masking_checks; batch: images per forward pass.
    """

    model: Classifier
    images: Tensor
    labels: Tensor
    correct: Tensor
    spec: Mapping[str, Any]
    batch: int

    def accuracy(self, eps: float, *, steps: int, restarts: int = 1, space: str | None = None) -> float:
        """Return the percentage of all images that are classified correctly under PGD.

        eps: the radius in 1/255; space: see pixel_radius, by default that of spec. With steps=1 the attack is
        FGSM, which starts at the image itself.
        """
        size = pixel_radius(eps, space or self.spec["space"], self.model.normalise.std)
        attacks = [partial(self._pgd, eps=size, steps=steps, restart=restart) for restart in range(restarts)]
        robust = survivors(self.model, self.images, self.labels, attacks, correct=self.correct, batch=self.batch)
        return 100 * int(robust.sum()) / len(robust)

    def _pgd(self, index: Tensor, x: Tensor, y: Tensor, *, eps: Radius, steps: int, restart: int) -> Tensor:
        step, start = eps * min(1.0, TOTAL_STEP_LENGTH / steps), {"seed": self.spec["seed"], "restart": restart}
        noise = uniform_noise(index, tuple(x.shape[1:]), **start) if steps > 1 else None
        return pgd(self.model, x, y, eps=eps, step=step, steps=steps, noise=noise)

    def zero_gradients(self) -> float:
        """Return the percentage of correctly classified images whose cross-entropy gradient is 0 in every pixel.

        Returns 0 if no image is classified correctly.
        """
        device = self.model.normalise.std.device
        zero = 0
        with frozen(self.model):
            for index in self.correct.nonzero()[:, 0].split(self.batch):
                x, y = to_float(self.images[index].to(device)), self.labels[index].to(device)
                zero += int((input_gradient(self.model, x, y).flatten(1) == 0).all(1).sum())
        return 100 * zero / max(1, int(self.correct.sum()))


def masking_checks(attacked: AttackedNetwork) -> list[dict[str, Any]]:
    """Attack a network in several ways that agree if its gradients are useful; return one row per check.

    The settings in attacked.spec are: eps, increasing radii in pixel space; steps and more_steps; restarts; strength,
    the training radius (0 for training without an attack), and attack_eps, the evaluation radius, both in space; seed.
    All radii are in 1/255.
    """
    spec, accuracy = attacked.spec, attacked.accuracy
    few, many, eps = spec["steps"], spec["more_steps"], spec["attack_eps"]
    left = {size: accuracy(size, steps=few, space="pixel") for size in spec["eps"]}
    base, one = accuracy(eps, steps=few), accuracy(eps, steps=1)
    low, high = max(pairwise(left), key=lambda pair: left[pair[1]] - left[pair[0]])
    largest = max(left)
    rows = [
        _row("large_eps", largest, base, left[largest], left[largest]),
        _row("larger_eps", high, left[low], left[high], left[high] - left[low]),
        _fall("more_steps", eps, base, accuracy(eps, steps=many)),
        _fall("more_restarts", eps, base, accuracy(eps, steps=few, restarts=spec["restarts"])),
        _row("one_step", eps, one, base, base - one),
    ]
    if strength := spec["strength"]:
        space = spec.get("strength_space")  # None for that of spec
        one, more = (accuracy(strength, steps=steps, space=space) for steps in (1, many))
        rows.append(_fall("fgsm_collapse", strength, one, more))
    rows.append(_row("zero_gradient", 0.0, None, None, attacked.zero_gradients()))
    return [{**row, "n": len(attacked.labels)} for row in rows]


def other_loss(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compare APGD's losses, given the rows of apgd.parquet; return an empty list if there is only one loss."""
    by_loss = {row["loss"]: row for row in rows}
    if "dlr" not in by_loss:  # with two classes, APGD uses only the cross entropy
        return []
    first, worst = by_loss["cross_entropy"], by_loss["worst"]
    return [{**_fall("other_loss", first["eps"], first["acc_robust"], worst["acc_robust"]), "n": first["n"]}]


def _fall(check: str, eps: float, before: float, after: float) -> dict[str, Any]:
    return _row(check, eps, before, after, before - after)


def _row(check: str, eps: float, before: float | None, after: float | None, value: float) -> dict[str, Any]:
    limit = LIMITS[check]
    row = {"check": check, "eps": eps, "before": before, "after": after, "value": value, "limit": limit}
    return {**row, "passed": value <= limit}
