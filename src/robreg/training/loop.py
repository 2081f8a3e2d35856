"""Adversarial training (Madry et al. 2018; paper, appendices B.1 and D): epochs, schedule and exact resumption."""

import hashlib
import json
import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import robreg
from robreg.attacks.pgd import draw_noise, pixel_radius
from robreg.data.augmentation import random_crop_flip, random_resized_crop_flip
from robreg.data.dataset import Dataset, to_float
from robreg.networks.build import build_initial_network
from robreg.networks.checkpoint import save_file
from robreg.runs.settings import DEFAULTS, hash_settings
from robreg.spectra.layers import list_layers
from robreg.spectra.projection import enclosing_grid, project
from robreg.tables.parquet import write
from robreg.tables.provenance import code_hash
from robreg.training.lease import Lease
from robreg.training.resume import ResumeFile, TrainingState, resume_identity
from robreg.training.step import StepAttack, TrainingStep, deterministic_algorithms

log = logging.getLogger(__name__)


class StoppedError(Exception):
    """SIGTERM asked training to stop; resume.pt holds the state after the last finished epoch."""


class DivergedError(ArithmeticError):
    """The loss or a weight is no longer finite."""


def train(settings: Mapping[str, Any], data: Dataset, *, checkpoint: Path, history: Path, device: torch.device) -> None:
    """Train one network, or resume from resume.pt next to the checkpoint, and write the checkpoint and the history.

    settings: the run's training settings (runs.settings.training_settings). resume.pt is written atomically before the
    first and after every epoch, and removed at the end. On a CPU, a run that is killed at any moment and started again
    produces bit-identical results.
    Raises ValueError if resume.pt is damaged or belongs to other settings, DivergedError if the loss or a weight is no
    longer finite, StoppedError on SIGTERM, and the errors of Lease.
    """
    with deterministic_algorithms(device, wanted=settings["training"].get("deterministic", DEFAULTS["deterministic"])):
        _train(settings, data, checkpoint=checkpoint, history=history, device=device)


def _train(
    settings: Mapping[str, Any], data: Dataset, *, checkpoint: Path, history: Path, device: torch.device
) -> None:
    state = _initial_state(settings, data, device)
    with Lease(checkpoint.with_name("lease.json")) as lease:
        resume = ResumeFile(checkpoint.with_name("resume.pt"), resume_identity(settings, data.sha256), lease)
        if resume.path.exists():
            resume.restore(state, device)
        else:
            resume.save(state)
        with _catch_sigterm() as stop, torch.random.fork_rng([] if device.type == "cpu" else [device]):
            _train_epochs(state, settings, data, resume=resume, stop=stop)
        lease.check()
        meta = {**_metadata(settings, data, device), "code_hash": state.code, "step": "; ".join(state.how)}
        save_file(checkpoint, {"model": state.model.state_dict(), "meta": meta})
        columns = {key: [row[key] for row in state.history] for key in state.history[0]}
        write(history, "history", columns, meta)
        resume.path.unlink()


def _train_epochs(
    state: TrainingState, settings: Mapping[str, Any], data: Dataset, *, resume: ResumeFile, stop: threading.Event
) -> None:
    """Train the remaining epochs, and save the state after each."""
    epochs = settings["training"]["epochs"]
    device = state.model.normalise.mean.device
    images, labels = data.train_images, data.train_labels
    if device.type != "cpu":  # on a CPU they stay memory-mapped
        images, labels = images.to(device), labels.to(device)
    first = len(state.history) + 1
    step = _make_step(state, settings)
    for epoch in range(first, epochs + 1):
        begin = time.perf_counter()
        row = _train_epoch(state, step, settings, images, labels, stop=stop)
        row["seconds"] = time.perf_counter() - begin
        row["examples_per_s"] = len(images) / row["seconds"]
        state.history.append(row)
        state.how = list(dict.fromkeys([*state.how, step.how]))
        resume.save(state)
        mean = sum(past["seconds"] for past in state.history[first - 1 :]) / (epoch - first + 1)
        log.info(
            "epoch %d/%d lr %g loss %.4f acc %.2f %% %.0f examples/s, %.0f s left",
            *(epoch, epochs, row["lr"], row["loss"], row["acc"], row["examples_per_s"], mean * (epochs - epoch)),
        )


def _make_step(state: TrainingState, settings: Mapping[str, Any]) -> TrainingStep:
    spec, attack = settings["training"], settings["train_attack"]
    if attack is not None:
        std = state.model.normalise.std
        eps, step = (pixel_radius(attack[key], settings["space"], std) for key in ("eps", "step"))
        attack = StepAttack(eps, step, attack["steps"])
    options = {key: spec.get(key, default) for key, default in DEFAULTS.items()}
    return TrainingStep(state.model, state.optimizer, attack=attack, **options)


def _train_epoch(
    state: TrainingState,
    step: TrainingStep,
    settings: Mapping[str, Any],
    images: Tensor,
    labels: Tensor,
    *,
    stop: threading.Event,
) -> dict[str, Any]:
    """Train one epoch and return its history row; to avoid synchronisation, losses stay on the device until the end."""
    spec = settings["training"]
    epoch = len(state.history) + 1
    lr = learning_rate(spec, epoch)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    order, generator = _epoch_randomness(settings["seed"], epoch, len(images), images.device)
    losses: list[Tensor] = []
    correct = torch.zeros((), dtype=torch.int64, device=images.device)
    batches = order.split(spec["batch_size"])
    for index in batches:
        if stop.is_set():
            raise StoppedError(
                f"SIGTERM in epoch {epoch}: resume.pt holds the state after epoch {epoch - 1}; "
                "start again to resume from there"
            )
        x, noise = _prepare_batch(images[index], settings, generator)
        loss, logits = step(x, labels[index], noise)
        losses.append(loss)
        correct += (logits.argmax(1) == labels[index]).sum()
    means = torch.stack(losses).cpu()  # (batches,)
    _raise_if_diverged(state.model, means, epoch, lr)
    sizes = torch.tensor([len(index) for index in batches], dtype=torch.float64)
    mean = float((means.double() * sizes).sum() / len(images))
    bound = settings["spectral_norm"]
    norms = None if bound is None else project(state.layers, bound, settings["clip_rounds"])
    return {"epoch": epoch, "lr": lr, "loss": mean, "acc": 100 * int(correct) / len(images), "sigma_max": norms}


def _prepare_batch(
    images: Tensor, settings: Mapping[str, Any], generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Augment a batch of uint8 images, and draw the noise that its attack starts with.

    Returns floats in [0, 1], (B, C, H, W), and noise of that shape in [-1, 1], or None without a random start.
    The pixels are not checked here, because the data were checked when they were prepared.
    """
    spec, attack = settings["training"], settings["train_attack"]
    if spec["augmentation"] == "crop-flip":
        images = random_crop_flip(images, pad=spec["pad"], generator=generator)
    elif spec["augmentation"] == "resized-crop-flip":
        images = random_resized_crop_flip(images, size=settings["data"]["crop"], generator=generator)
    x = to_float(images)  # (B, C, H, W)
    random = attack is not None and attack["start"] == "random"
    return x, draw_noise(x, generator) if random else None


def learning_rate(spec: Mapping[str, Any], epoch: int) -> float:
    """Return the learning rate of an epoch (counted from 1): divided by lr_factor after each epoch in lr_drops."""
    return float(spec["lr"] / spec["lr_factor"] ** sum(epoch > drop for drop in spec["lr_drops"]))


def _epoch_randomness(seed: int, epoch: int, n: int, device: torch.device) -> tuple[Tensor, torch.Generator]:
    """Return an epoch's order of examples and its generator; both follow from seed and epoch, so neither is saved."""
    state = int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:7])
    torch.manual_seed(state + 2)  # for user-defined networks with dropout or other random layers
    order = torch.randperm(n, generator=torch.Generator().manual_seed(state))
    return order.to(device), torch.Generator(device).manual_seed(state + 1)


def _raise_if_diverged(model: nn.Module, losses: Tensor, epoch: int, lr: float) -> None:
    """Raise DivergedError for the first batch with a bad loss, or for bad weights, before the epoch is saved."""
    bad = (~losses.isfinite()).nonzero()
    hint = "lower training.lr, or the strength of the attack"
    if len(bad):
        batch = int(bad[0])
        raise DivergedError(f"epoch {epoch}, batch {batch + 1}: loss {float(losses[batch])} at lr {lr:g}; {hint}")
    if not bool(torch.stack([parameter.isfinite().all() for parameter in model.parameters()]).all()):
        raise DivergedError(
            f"epoch {epoch}, batch {len(losses)}: weights not finite at lr {lr:g}, loss {losses[-1]}; {hint}"
        )


def _initial_state(settings: Mapping[str, Any], data: Dataset, device: torch.device) -> TrainingState:
    """Build the network and its optimiser, before the first epoch."""
    chosen = {key: settings[key] for key in ("arch", "seed", "width", "factory")}
    model = build_initial_network(**chosen, **_data_metadata(data)).to(device)
    layers = list_layers(model, data.shape)  # raises for a network that cannot be measured, before hours of training
    if settings["clip_rounds"] == "exact":
        for layer in layers:
            enclosing_grid(layer)  # raises for a layer that cannot be bounded
    spec = settings["training"]
    options = {key: spec[key] for key in ("lr", "momentum", "weight_decay")}
    sgd = torch.optim.SGD(model.parameters(), **options, fused=device.type == "cuda" or None)
    return TrainingState(model, sgd, layers, [], code_hash())


def _data_metadata(data: Dataset) -> dict[str, Any]:
    return {
        "shape": list(data.shape),
        "classes": data.classes,
        "mean": list(data.mean),
        "std": list(data.std),
    }


def _metadata(settings: Mapping[str, Any], data: Dataset, device: torch.device) -> dict[str, Any]:
    """Return the checkpoint's metadata: plain values without dates, so that equal runs produce equal files."""
    return {
        **{key: settings[key] for key in ("dataset", "variant", "seed", "arch", "factory", "width", "threads")},
        **_data_metadata(data),
        "data_sha256": data.sha256,
        **{key: settings["training"].get(key, default) for key, default in DEFAULTS.items()},
        "settings": json.dumps(settings, sort_keys=True),
        "settings_hash": hash_settings(settings),
        "version": robreg.__version__,
        "torch": str(torch.__version__),
        "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
    }


@contextmanager
def _catch_sigterm() -> Iterator[threading.Event]:
    """Let SIGTERM set an event during the block, if this is the main thread."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
