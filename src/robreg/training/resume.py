"""The state of a training between two epochs, and the file that it is kept in: resume.pt."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from robreg.networks.checkpoint import load_file, load_weights, save_file
from robreg.networks.classifier import Classifier
from robreg.runs.settings import flatten
from robreg.spectra.layers import Layer
from robreg.training.lease import Lease

FORMAT = 2  # of resume.pt

log = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """A training run between two epochs.

    layers: those that a spectral norm bound holds for; history: one row of the contract's table per finished epoch;
    code: the hash of the code that it was begun with; how: the ways in which its steps were computed (Step.how).
    """

    model: Classifier
    optimizer: torch.optim.SGD
    layers: list[Layer]
    history: list[dict[str, Any]]
    code: str
    how: list[str] = field(default_factory=list)


def resume_identity(settings: Mapping[str, Any], data_sha256: str) -> dict[str, Any]:
    """Say whose a state is: it is of no use to other settings, data or versions of PyTorch."""
    return {
        "format": FORMAT,
        "torch": str(torch.__version__),
        "data_sha256": data_sha256,
        "settings": json.dumps(settings, sort_keys=True),
    }


@dataclass
class ResumeFile:
    """The file that a training goes on from: whose it is, and the lease that allows to write it."""

    path: Path
    identity: dict[str, Any]
    lease: Lease

    def save(self, state: TrainingState) -> None:
        """Write the state after its last finished epoch, or before the first."""
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
        """Load everything, or refuse it; never a part of it."""
        with self._whole():
            content = load_file(self.path, device)
            found = content["identity"]
        if found != self.identity:
            raise ValueError(
                f"{self.path} belongs to other settings ({', '.join(_differences(found, self.identity))}): "
                "restore them to go on, or delete the file to train this run from the start"
            )
        with self._whole():
            load_weights(state.model, content["model"])
            fused = [group["fused"] for group in state.optimizer.param_groups]
            state.optimizer.load_state_dict(content["optimizer"])
            for group, here in zip(state.optimizer.param_groups, fused, strict=True):  # as this device wants it
                group["fused"] = here
            state.how = content.get("how", ["eager"])  # older states are of eager steps
            state.history, state.code = list(content["history"]), str(content["code_hash"])
        log.info("going on after epoch %d from %s", len(state.history), self.path)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Call whatever goes wrong in the block damage of the file: damaged bytes can raise anything."""
        try:
            yield
        except Exception as error:
            raise ValueError(
                f"{self.path} is damaged: delete it to train this run from the start ({type(error).__name__})"
            ) from error


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Name the keys that differ, as "training.epochs was 20, is 10"."""
    before, after = (flatten({**side, "settings": json.loads(side["settings"])}) for side in (old, new))
    keys = sorted(key for key in before | after if before.get(key) != after.get(key))
    return [f"{key.removeprefix('settings.')} was {before.get(key)}, is {after.get(key)}" for key in keys]
