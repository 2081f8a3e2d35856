"""The state of a training run between two epochs, and resume.pt, the file that it is saved in."""

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robreg.data.errors import describe_error, printable
from robreg.networks.checkpoint import load_weights
from robreg.networks.classifier import Classifier
from robreg.networks.tensor_file import load_file, save_file
from robreg.runs.settings import describe_differences
from robreg.spectra.layers import Layer
from robreg.tables.schemas import SCHEMAS
from robreg.training.lease import Lease

FORMAT = 2  # version of the layout of resume.pt

log = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """A training run between two epochs.

    layers: the layers that a bound applies to; history: one row of history.parquet per finished epoch;
    code: the hash of the code that the run was started with; how: the ways in which its steps were computed
    (TrainingStep.how); joins_last: whether the last image of an epoch joins the batch before it (try_batch).
    """

    model: Classifier
    optimizer: torch.optim.SGD
    layers: list[Layer]
    history: list[dict[str, Any]]
    code: str
    how: list[str] = field(default_factory=list)
    joins_last: bool = False


def resume_identity(settings: Mapping[str, Any], data_sha256: str) -> dict[str, Any]:
    """Identify the run that a state belongs to; it cannot be used with other settings, data or versions of PyTorch."""
    return {
        "format": FORMAT,
        "torch": str(torch.__version__),
        "data_sha256": data_sha256,
        "settings": json.dumps(settings, sort_keys=True),
    }


@dataclass
class ResumeFile:
    """The file that training resumes from, the identity of its run, and the lease that permits writing it."""

    path: Path
    identity: dict[str, Any]
    lease: Lease

    def save(self, state: TrainingState) -> None:
        """Write the state after the last finished epoch, or before the first one."""
        if state.history:
            self.lease.progress()
        else:
            self.lease.check()
        content = {
            "identity": self.identity,
            "model": state.model.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "history": state.history,
            "code_hash": state.code,
            "how": state.how,
        }
        save_file(self.path, content)

    def restore(self, state: TrainingState, device: torch.device) -> None:
        """Load the whole state. Raises ValueError if the file is damaged or belongs to other settings."""
        with self._report_damage():
            content = load_file(self.path, device)
            saved = content["identity"]
            differences = "" if saved == self.identity else _differences(saved, self.identity)
        if saved != self.identity:
            raise ValueError(
                f"{self.path} belongs to other settings ({differences}): "
                "restore them to resume it, or delete the file to train this run from the start"
            )
        with self._report_damage():
            _check_content(content, state, json.loads(self.identity["settings"])["training"])
            load_weights(state.model, content["model"])
            fused = [group["fused"] for group in state.optimizer.param_groups]
            state.optimizer.load_state_dict(content["optimizer"])
            for group, chosen in zip(state.optimizer.param_groups, fused, strict=True):
                group["fused"] = chosen  # it depends on this device, not on the one that the file was written on
            state.how = content.get("how", ["eager"])  # older files lack the key, and their steps were all eager
            state.history = list(content["history"])
            state.code = combine_codes(content["code_hash"], state.code)
        log.info("resuming after epoch %d from %s", len(state.history), self.path)

    def discard(self) -> None:
        """Delete the file if it belongs to this run; a state of other settings stays, because it is still of use."""
        if not self.path.exists():
            return
        try:
            with self._report_damage():
                saved = load_file(self.path, "cpu")["identity"]
        except ValueError as error:  # nothing needs it now
            log.warning("%s", error)
            return
        if saved == self.identity:
            self.path.unlink()

    @contextmanager
    def _report_damage(self) -> Iterator[None]:
        """Turn any error of the block into a ValueError that names the file: damaged bytes can raise anything."""
        try:
            yield
        except Exception as error:
            raise ValueError(
                f"{self.path} is damaged: delete it to train this run from the start ({describe_error(error)})"
            ) from error


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Describe how the identities of two runs differ."""
    before, after = ({**side, **json.loads(side["settings"]), "settings": ""} for side in (old, new))
    return printable(describe_differences(before, after)[:500])


def combine_codes(before: str, now: str) -> str:
    """Return the hash of the code of a training that was started with one code and is continued with another."""
    return now if before == now else hashlib.sha256(f"{before} {now}".encode()).hexdigest()


def learning_rate(spec: Mapping[str, Any], epoch: int) -> float:
    """Return the learning rate of an epoch (counted from 1): divided by lr_factor after each epoch in lr_drops."""
    return float(spec["lr"] / spec["lr_factor"] ** sum(epoch > drop for drop in spec["lr_drops"]))


def _check_content(content: Mapping[str, Any], state: TrainingState, spec: Mapping[str, Any]) -> None:
    """Raise ValueError for a state that no training with these settings can have left.

    state: of the same run before its first epoch; spec: its settings "training". Missing parts raise KeyError.
    """
    own = state.model.state_dict()
    if content["model"].keys() != own.keys():
        raise ValueError("its weights have other names than those of the network")
    for name, value in content["model"].items():
        if not isinstance(value, Tensor) or (value.shape != own[name].shape and not name.endswith("_extra_state")):
            raise ValueError(f"{name} has another shape than in the network")
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name} holds values that are not finite")
    _check_history(content["history"], len(state.layers), spec)
    _check_optimizer(content["optimizer"], state, learning_rate(spec, max(1, len(content["history"]))))
    if not all(isinstance(one, str) for one in [content["code_hash"], *content.get("how", [])]):
        raise ValueError("the description of its code is not text")


def _check_history(history: Any, layers: int, spec: Mapping[str, Any]) -> None:  # noqa: ANN401 - it comes from a file
    """Raise ValueError unless the rows are those of the first epochs, with the learning rates of the settings."""
    if type(history) is not list or len(history) > spec["epochs"]:
        raise ValueError(f"its history is not that of at most {spec['epochs']} epochs")
    for epoch, row in enumerate(history, 1):
        numbers = [row[key] for key in ("loss", "acc", "seconds", "examples_per_s")] + (row["sigma_max"] or [])
        right = (
            set(row) == set(SCHEMAS["history"].names)
            and (row["epoch"], row["lr"]) == (epoch, learning_rate(spec, epoch))
            and all(type(number) is float and math.isfinite(number) for number in numbers)
            and (row["sigma_max"] is None or len(row["sigma_max"]) == layers)
        )
        if not right:
            raise ValueError(f"row {epoch} of its history is not that of epoch {epoch}")


def _check_optimizer(saved: Mapping[str, Any], state: TrainingState, lr: float) -> None:
    """Raise ValueError unless the optimiser has the settings of the run, and momenta of its weights."""
    own = state.optimizer.state_dict()["param_groups"]
    for mine, theirs in zip(own, saved["param_groups"], strict=True):
        expected = {**mine, "lr": theirs["lr"], "fused": theirs["fused"]}
        if theirs != expected or theirs["lr"] not in (mine["lr"], lr * mine.get("lr_factor", 1.0)):
            raise ValueError("its optimiser has other settings")
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    for index, one in saved["state"].items():
        momentum = one.get("momentum_buffer")
        kind = None if momentum is None else (momentum.shape, momentum.dtype)
        if set(one) - {"momentum_buffer"} or kind not in (None, (parameters[index].shape, parameters[index].dtype)):
            raise ValueError("its optimiser has momenta of other weights")
        if momentum is not None and not bool(momentum.isfinite().all()):
            raise ValueError("its optimiser holds values that are not finite")
