"""What every job does first: log to its file, choose the device, fix the number of threads."""

import hashlib
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from robreg.data import Dataset
    from robreg.network import Classifier

_METADATA = ("dataset", "variant", "seed", "version", "settings_hash")
TRAINING_CODE = (  # decide the weights
    "archive",
    "attack",
    "augment",
    "clip",
    "data",
    "download",
    "network",
    "parquet",
    "raw",
    "resume",
    "saved",
    "source",
    "spectrum",
    "step",
    "tiny",
    "train",
)


@contextmanager
def logged(path: str) -> Iterator[None]:
    """Log the block to a file. An error ends the job with its traceback in the file and one sentence on stderr."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, mode="w")
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", handlers=[handler], force=True
    )
    logging.captureWarnings(capture=True)
    try:
        yield
    except Exception as error:
        logging.exception("%s", error)
        print(f"Error: {error} (log: {path})", file=sys.stderr)
        sys.exit(1)
    finally:
        handler.flush()


def unwritten(path: Path, error: OSError) -> OSError:
    """Say of a file that it could not be written, why, and the mend: an error like the one that was met."""
    why = os.strerror(error.errno) if error.errno else error
    mend = "make room there, or make it writable, and start again: what was finished stays"
    return OSError(error.errno, f"{path} cannot be written ({why}); {mend}")


def device(wish: str, threads: int) -> "torch.device":
    """Return the torch device for "auto" (a GPU if there is one), "cpu" or "cuda", and fix the CPU threads.

    Results on a CPU depend on the number of threads in their last bits, so it is a setting, not the scheduler's.
    Raises ValueError where "cuda" is asked for and absent, and in a SLURM job that does not see exactly its one GPU.
    """
    import torch  # noqa: PLC0415 - two seconds that jobs without a network should not pay

    torch.set_num_threads(threads)
    available = torch.cuda.is_available()
    if wish != "cpu":
        _refuse_gpus(torch.cuda.device_count() if available else 0, wish)
    chosen = torch.device("cuda" if available and wish != "cpu" else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # convolutions in fp32 are fp32
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "CPU"
    job, visible = os.environ.get("SLURM_JOB_ID"), os.environ.get("CUDA_VISIBLE_DEVICES")
    place = "no SLURM job" if job is None else f"SLURM job {job}"
    logging.info("device %s (%s), %d threads, torch %s", chosen, name, threads, torch.__version__)
    logging.info("%s on %s, CUDA_VISIBLE_DEVICES %s", place, socket.gethostname(), visible or "not set")
    return chosen


def _refuse_gpus(count: int, wish: str) -> None:
    """Refuse the CPU where a GPU was promised, and one of several GPUs that other jobs may have too."""
    in_slurm, visible = "SLURM_JOB_ID" in os.environ, os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if in_slurm and visible not in ("", "-1", "NoDevFiles") and not count:
        raise ValueError(
            f"SLURM gave this job GPU {visible}, but torch sees none: install a torch for the node's driver, or set "
            "device: cpu in config.yaml and take the GPU out of slurm/profile.yaml"
        )
    if wish == "cuda" and not count:
        raise ValueError("config.yaml: device: cuda was asked for, but torch sees no GPU here; use auto or cpu")
    if in_slurm and count > 1:
        raise ValueError(
            f"this SLURM job sees {count} GPUs and uses one, which other jobs may use too: ask for one GPU a job in "
            "slurm/profile.yaml, or have the cluster confine jobs to theirs"
        )


def opened(checkpoint: Path, data: Path, wish: str) -> "tuple[Classifier, dict[str, Any], Dataset]":
    """Open a trained network on its device, its meta data, and the data set that it was trained on.

    Raises ValueError if the prepared data are not those that the checkpoint was trained on.
    """
    from robreg.data import load as load_data  # noqa: PLC0415
    from robreg.network import load as load_network  # noqa: PLC0415

    model, meta = load_network(checkpoint)
    prepared = load_data(data)
    if prepared.sha256 != meta["data_sha256"]:
        raise ValueError(f"{checkpoint} was trained on other data than {data} now holds: delete it to train again")
    return model.to(device(wish, meta["threads"])), meta, prepared


def provenance(meta: Mapping[str, Any], **measure: object) -> dict[str, Any]:
    """Say what every table of a run carries: whose it is, from its checkpoint's meta data, and how it was measured."""
    return {**{key: meta[key] for key in _METADATA}, **measure}


def code_hash() -> str:
    """Hash the modules that decide a network's weights, so that a report can say whether they changed since."""
    folder = Path(__file__).parent
    return hashlib.sha256(b"".join((folder / f"{name}.py").read_bytes() for name in TRAINING_CODE)).hexdigest()
