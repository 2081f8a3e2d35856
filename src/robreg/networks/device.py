"""The device that a job computes on, and its number of threads."""

import logging
import os
import socket

import torch


def choose_device(wish: str, threads: int) -> torch.device:
    """Return the torch device for "auto" (a GPU if there is one), "cpu" or "cuda", and fix the CPU threads.

    Results on a CPU depend on the number of threads in their last bits, so it is a setting, not the scheduler's.
    Raises ValueError where "cuda" is asked for and absent, and in a SLURM job that does not see exactly its one GPU.
    """
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
