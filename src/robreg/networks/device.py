"""The device that a job computes on, and its number of CPU threads."""

import logging
import os
import socket

import torch


def choose_device(wish: str, threads: int) -> torch.device:
    """Return the torch device for "auto" (a GPU if there is one), "cpu" or "cuda", and set the number of CPU threads.

    The last bits of CPU results depend on the number of threads, so it is a setting and not left to the scheduler.
    Raises ValueError if "cuda" is requested but not available, or, unless the device is "cpu", if a SLURM job does not
    see the GPU that SLURM gave it or sees several GPUs.
    """
    torch.set_num_threads(threads)
    available = torch.cuda.is_available()
    if wish != "cpu":
        _check_gpus(torch.cuda.device_count() if available else 0, wish)
    chosen = torch.device("cuda" if available and wish != "cpu" else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # do not round fp32 convolutions to TF32
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "CPU"
    job, visible = os.environ.get("SLURM_JOB_ID"), os.environ.get("CUDA_VISIBLE_DEVICES")
    place = "no SLURM job" if job is None else f"SLURM job {job}"
    logging.info("device %s (%s), %d threads, torch %s", chosen, name, threads, torch.__version__)
    logging.info("%s on %s, CUDA_VISIBLE_DEVICES %s", place, socket.gethostname(), visible or "not set")
    return chosen


def _check_gpus(count: int, wish: str) -> None:
    """Raise ValueError if a GPU that was requested is missing, or if a SLURM job sees GPUs that other jobs may use."""
    in_slurm, visible = "SLURM_JOB_ID" in os.environ, os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if in_slurm and visible not in ("", "-1", "NoDevFiles") and not count:
        raise ValueError(
            f"SLURM gave this job GPU {visible}, but torch sees none: install a torch build for the node's driver, or "
            "set device: cpu in config.yaml and remove the GPU from slurm/profile.yaml"
        )
    if wish == "cuda" and not count:
        raise ValueError("config.yaml: device: cuda was requested, but torch sees no GPU here; use auto or cpu")
    if in_slurm and count > 1:
        raise ValueError(
            f"this SLURM job sees {count} GPUs and uses one, which other jobs may use too: request one GPU per job in "
            "slurm/profile.yaml, or have the cluster confine each job to its own GPUs"
        )
