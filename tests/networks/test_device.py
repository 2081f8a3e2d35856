"""The device of a job: the one that config.yaml names; in a SLURM job, the one GPU that SLURM gave it, or none."""

import logging
import socket

import pytest
import torch

from robreg.networks.device import choose_device


@pytest.fixture
def machine(monkeypatch):
    """Return a function that simulates a machine with some GPUs, within a SLURM job or outside."""

    def make(gpus, *, slurm=None, visible=None):
        for name, value in {"SLURM_JOB_ID": slurm, "CUDA_VISIBLE_DEVICES": visible}.items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU called {device}")

    return make


@pytest.mark.parametrize("wish", ["auto", "cuda"])
def test_a_slurm_job_takes_its_one_gpu(wish, machine):
    machine(1, slurm="7", visible="3")
    assert choose_device(wish, 1) == torch.device("cuda")


@pytest.mark.parametrize("wish", ["auto", "cuda"])
@pytest.mark.parametrize("visible", [None, "0,1"])
def test_a_slurm_job_that_sees_two_gpus_is_refused(wish, visible, machine):
    machine(2, slurm="7", visible=visible)
    with pytest.raises(ValueError, match="sees 2 GPUs and uses one, which other jobs may use too"):
        choose_device(wish, 1)


@pytest.mark.parametrize("wish", ["auto", "cuda"])
def test_a_slurm_job_that_cannot_use_its_gpu_is_refused(wish, machine):
    machine(0, slurm="7", visible="3")
    with pytest.raises(ValueError, match=r"SLURM gave this job GPU 3, but torch sees none: .* or set device: cpu"):
        choose_device(wish, 1)


@pytest.mark.parametrize("visible", [None, "", "-1", "NoDevFiles"])
def test_a_slurm_job_without_a_gpu_takes_the_cpu(visible, machine):
    machine(0, slurm="7", visible=visible)
    assert choose_device("auto", 1) == torch.device("cpu")


@pytest.mark.parametrize("gpus", [0, 1, 2])
@pytest.mark.parametrize("slurm", [None, "7"])
def test_the_cpu_is_never_refused(gpus, slurm, machine):
    machine(gpus, slurm=slurm, visible="0,1")
    assert choose_device("cpu", 1) == torch.device("cpu")


@pytest.mark.parametrize("slurm", [None, "7"])
def test_a_requested_gpu_that_does_not_exist_is_refused(slurm, machine):
    machine(0, slurm=slurm)
    with pytest.raises(ValueError, match="device: cuda was requested, but torch sees no GPU here; use auto or cpu"):
        choose_device("cuda", 1)


@pytest.mark.parametrize(("gpus", "found"), [(0, "cpu"), (1, "cuda"), (2, "cuda")])
def test_outside_slurm_all_gpus_may_be_seen(gpus, found, machine):
    machine(gpus, visible="0,1")  # set by the user; no scheduler has promised one GPU
    assert choose_device("auto", 1) == torch.device(found)


def test_the_log_records_where_a_job_ran(machine, caplog):
    caplog.set_level(logging.INFO)
    machine(1, slurm="7", visible="3")
    choose_device("auto", 1)
    machine(0)
    choose_device("auto", 2)
    host = socket.gethostname()
    assert [record.getMessage() for record in caplog.records] == [
        f"device cuda (a GPU called cuda), 1 threads, torch {torch.__version__}",
        f"SLURM job 7 on {host}, CUDA_VISIBLE_DEVICES 3",
        f"device cpu (CPU), 2 threads, torch {torch.__version__}",
        f"no SLURM job on {host}, CUDA_VISIBLE_DEVICES not set",
    ]
    assert torch.get_num_threads() == 2
