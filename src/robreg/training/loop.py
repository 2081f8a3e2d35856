"""Adversarial training (Madry et al. 2018; paper, appendices B.1 and D): epochs, schedule and exact resumption."""

import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import robreg
from robreg.data.dataset import Dataset
from robreg.networks.build import build_initial_network
from robreg.networks.checkpoint import load_network, load_weights
from robreg.networks.classifier import Classifier
from robreg.networks.pretrained import load_pretrained
from robreg.networks.probe import TOLERANCE, evaluate, first_images, make_probe, probe_difference
from robreg.networks.tensor_file import repeats_values, save_file
from robreg.networks.user_defined import ArchitectureError
from robreg.runs.settings import DEFAULTS, hash_settings
from robreg.runs.source_code import describe_changes
from robreg.spectra.layers import list_layers
from robreg.spectra.projection import refuse_unbounded
from robreg.tables.parquet import read_history, read_metadata, write
from robreg.tables.provenance import code_hash, history_hash
from robreg.tables.schemas import SCHEMAS
from robreg.training.compile_cache import private_cache
from robreg.training.epoch import make_step, split_batches, train_epoch
from robreg.training.estimate import TimedSteps
from robreg.training.kept import keep, kept_folder, set_aside, take_up, wants_training
from robreg.training.lease import Lease
from robreg.training.resume import ResumeFile, TrainingState, resume_identity
from robreg.training.step import deterministic_algorithms
from robreg.training.trial_batch import try_batch, try_evaluation

SCALARS_LR = 0.1  # of the learning rate, for Fixup's scalars and the last bias, as in the code of its authors

log = logging.getLogger(__name__)


def train(
    settings: Mapping[str, Any],
    data: Dataset,
    *,
    checkpoint: Path,
    history: Path,
    device: torch.device,
    on_epoch: Callable[[Sequence[Mapping[str, Any]]], None] | None = None,
) -> None:
    """Train one network, or resume from resume.pt next to the checkpoint, and write the checkpoint and the history.

    settings: the run's training settings (runs.settings.training_settings); on_epoch: called after every epoch with the
    rows of the history so far. resume.pt is written atomically before the first and after every epoch, and removed at
    the end. On a CPU, a run that is killed at any moment and started again produces bit-identical results.
    Raises ValueError if resume.pt is damaged or belongs to other settings, DivergedError if the loss or a weight is no
    longer finite, StoppedError on SIGTERM, and the errors of Lease.
    """
    chosen = {**DEFAULTS, **settings["training"]}
    with deterministic_algorithms(device, wanted=chosen["deterministic"]), private_cache(wanted=chosen["compile"]):
        _train(settings, data, checkpoint=checkpoint, history=history, device=device, on_epoch=on_epoch)


def _train(
    settings: Mapping[str, Any],
    data: Dataset,
    *,
    checkpoint: Path,
    history: Path,
    device: torch.device,
    on_epoch: Callable[[Sequence[Mapping[str, Any]]], None] | None,
) -> None:
    _check_architecture_code(settings)
    state = _initial_state(settings, data, device)
    kept = kept_folder(checkpoint.parent, settings, data.sha256)
    with Lease(checkpoint.with_name("lease.json")) as lease:
        resume = ResumeFile(checkpoint.with_name("resume.pt"), resume_identity(settings, data.sha256), lease)
        if _take_up(kept, checkpoint.parent, settings, data.sha256):
            resume.discard()
            return
        if resume.path.exists():
            resume.restore(state, device)
        else:
            resume.save(state)
        with _catch_sigterm() as stop, torch.random.fork_rng([] if device.type == "cpu" else [device]):
            for _ in _train_epochs(state, settings, data, resume=resume, stop=stop):
                if on_epoch is not None:
                    on_epoch(state.history)
        lease.check()
        made = {"code_hash": state.code, "step": "; ".join(state.how)}
        meta = {**_metadata(settings, data, device), **made}
        probe = make_probe(_rebuild(state.model, settings, data), data.split("test")[0])
        _store(state.model, state.history, probe=probe, meta=meta, checkpoint=checkpoint, history=history)
        wants_training(kept).unlink(missing_ok=True)
        resume.path.unlink()


def _store(
    model: Classifier,
    rows: list[dict[str, Any]],
    *,
    probe: dict[str, Tensor],
    meta: dict[str, Any],
    checkpoint: Path,
    history: Path,
) -> None:
    """Write the checkpoint of a network and its history, which has a row for each epoch, and keep both."""
    meta = {**meta, "history_sha256": history_hash(rows), "probe_images": len(probe["images"])}
    save_file(checkpoint, {"model": model.state_dict(), "meta": meta, "probe": probe})
    write(history, "history", {name: [row[name] for row in rows] for name in SCHEMAS["history"].names}, meta)
    keep(checkpoint.parent)


def adopt(settings: Mapping[str, Any], data: Dataset, weights: Path, *, checkpoint: Path, history: Path) -> None:
    """Write the checkpoint of a network that is trained already, and a history without epochs.

    settings: the run's training settings; weights: the file of its weights. Raises ValueError if they are not those of
    the settings or do not fit the network, and as train for a network that cannot be measured.
    """
    _check_architecture_code(settings)
    model, arch = _build(settings, data), settings["arch"]
    load_pretrained(model.network, weights, settings["pretrained"]["sha256"])
    _check_state(model, arch)
    try_evaluation(model, arch, data)
    cpu = torch.device("cpu")
    meta = {key: value for key, value in _metadata(settings, data, cpu).items() if key not in DEFAULTS}
    made = {"code_hash": code_hash(settings["factory"]), "device": "not trained here"}
    probe = make_probe(_rebuild(model, settings, data), data.split("test")[0])
    _store(model, [], probe=probe, meta={**meta, **made}, checkpoint=checkpoint, history=history)
    wants_training(kept_folder(checkpoint.parent, settings, data.sha256)).unlink(missing_ok=True)
    log.info("nothing was trained: the weights are those of %s", weights)


def _check_architecture_code(settings: Mapping[str, Any]) -> None:
    """Raise ValueError if the code of a user-defined architecture has changed since the settings were resolved."""
    factory = settings["factory"]
    if factory and (changes := describe_changes(factory["callable"], factory["code"])):
        raise ValueError(
            f"the code of {factory['callable']} changed after this job was planned: {changes}; start Snakemake again"
        )


def _take_up(kept: Path, run: Path, settings: Mapping[str, Any], data_sha256: str) -> bool:
    """Use a network that was trained before with the same settings, data and code; return whether there is one.

    One that cannot be used, or that the user wants to be trained again, is set aside.
    """
    if not kept.exists():
        return False
    try:
        _check_kept(kept, settings, data_sha256)
    except (OSError, ValueError) as error:
        log.warning("%s cannot be used again (%s)", kept, error)
        set_aside(kept)
        return False
    if wants_training(kept).exists():
        set_aside(kept)
        return False
    take_up(kept, run)
    log.info("nothing to train: %s has a network with the same settings, data and code, which is used again", kept)
    return True


def _check_kept(kept: Path, settings: Mapping[str, Any], data_sha256: str) -> None:
    """Raise ValueError or OSError unless a kept checkpoint and history are whole, and of these settings and data."""
    _, meta = load_network(kept / "checkpoint.pt", architecture=settings)
    history = read_metadata(kept / "history.parquet")
    wanted = {"settings_hash": hash_settings(settings), "data_sha256": data_sha256}
    wanted["code_hash"] = code_hash(settings["factory"])
    wanted["history_sha256"] = history_hash(read_history(kept / "history.parquet"))
    for key, value in wanted.items():
        if meta.get(key) != value or history.get(key) != value:
            raise ValueError(f"its {key} is not the one that is wanted")


def _train_epochs(
    state: TrainingState, settings: Mapping[str, Any], data: Dataset, *, resume: ResumeFile, stop: threading.Event
) -> Iterator[None]:
    """Train the remaining epochs, and save the state after each; yield when it is saved."""
    epochs = settings["training"]["epochs"]
    device = state.model.normalise.mean.device
    images, labels = data.train_images, data.train_labels
    if device.type != "cpu":  # on a CPU they stay memory-mapped
        images, labels = images.to(device), labels.to(device)
    first = len(state.history) + 1
    step = make_step(state, settings)
    batches = len(split_batches(labels, settings["training"]["batch_size"], joins_last=state.joins_last))
    timed = TimedSteps(step, images=len(images), batches=batches, epochs=epochs - len(state.history))
    for epoch in range(first, epochs + 1):
        begin = time.perf_counter()
        row = train_epoch(state, timed, settings, images, labels, stop=stop)
        row["seconds"] = time.perf_counter() - begin
        row["examples_per_s"] = len(images) / row["seconds"]
        state.history.append(row)
        state.how = list(dict.fromkeys([*state.how, step.how]))
        resume.save(state)
        if epoch == first:
            _rebuild(state.model, settings, data)  # raises for a network that could not be saved, before hours more
        mean = sum(past["seconds"] for past in state.history[first - 1 :]) / (epoch - first + 1)
        log.info(
            "epoch %d/%d lr %g loss %.4f acc %.2f %% %.0f examples/s, %.0f s left",
            *(epoch, epochs, row["lr"], row["loss"], row["acc"], row["examples_per_s"], mean * (epochs - epoch)),
        )
        yield


def _initial_state(settings: Mapping[str, Any], data: Dataset, device: torch.device) -> TrainingState:
    """Build the network and its optimiser, before the first epoch."""
    model = _build(settings, data).to(device)
    layers = list_layers(model, data.shape)  # raises for a network that cannot take such images
    _check_state(model, settings["arch"])
    joins_last = try_batch(model, settings, data)  # raises for a network that cannot be trained
    _rebuild(model, settings, data)  # raises for a network that gives no logits on a CPU, or cannot be saved
    if settings["spectral_norm"] is not None:
        refuse_unbounded(model, layers, settings["clip_rounds"])
    spec = settings["training"]
    options = {key: spec[key] for key in ("lr", "momentum", "weight_decay")}
    sgd = torch.optim.SGD(_parameter_groups(model, settings), **options, fused=device.type == "cuda" or None)
    return TrainingState(model, sgd, layers, [], code_hash(settings["factory"]), joins_last=joins_last)


def _parameter_groups(model: Classifier, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the optimiser's groups of parameters: with Fixup's scalars, these and the last bias have another rate."""
    if not settings.get("scalars"):
        return [{"params": list(model.parameters())}]
    scalars, others = ([one for one in model.parameters() if (one.ndim < 2) is small] for small in (True, False))
    return [{"params": others, "lr_factor": 1.0}, {"params": scalars, "lr_factor": SCALARS_LR}]


def _check_state(model: Classifier, arch: str) -> None:
    """Raise ArchitectureError if a checkpoint could not hold what is in a network's state_dict()."""
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            problem, fix = f"is a {type(value).__name__}, and only tensors are saved", "make it a tensor"
        elif repeats_values(value):
            problem, fix = "repeats the values of a smaller tensor (expand)", "register a copy of it (clone)"
        elif not bool(value.isfinite().all()):
            problem, fix = (
                "holds values that are not finite",
                "register it with persistent=False",
            )
        else:
            continue
        raise ArchitectureError(f"{arch}: {name} in state_dict() {problem}; {fix}")


def _rebuild(model: Classifier, settings: Mapping[str, Any], data: Dataset) -> Classifier:
    """Build a second network on the CPU with the weights of one that is trained, as whoever opens its checkpoint will.

    Raises ArchitectureError if it is not the same network.
    """
    rebuilt = _build(settings, data)
    load_weights(rebuilt, {name: value.cpu() for name, value in model.state_dict().items()})
    images = first_images(data.split("test")[0])
    difference = probe_difference(rebuilt, {"images": images, "logits": evaluate(model, images)})
    if not difference <= TOLERANCE:
        raise ArchitectureError(
            f"{settings['arch']}: a second network with the same weights gives other logits (they differ by "
            f"{100 * difference:.3g} % of the largest one): training changes something that is not in state_dict(), or "
            "the network draws random numbers that are not torch's; make what training changes a parameter or a buffer"
        )
    return rebuilt


def _build(settings: Mapping[str, Any], data: Dataset) -> Classifier:
    chosen = {key: settings[key] for key in ("arch", "seed", "width", "factory")}
    return build_initial_network(**chosen, **_data_metadata(data))


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
