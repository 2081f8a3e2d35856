"""Why jobs failed: the last lines that the driver prints, made from the records that Snakemake logs."""

import atexit
import logging
import os
from functools import partial
from types import SimpleNamespace

import pytest
from helpers.leases import lease_text
from snakemake.jobs import GroupJob, Job
from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent

from robreg.workflow.failures import Failures

STATUS = "SLURM-job '7' failed, SLURM status is: '{}'. Detailed reason unavailable.For further error details see"
SLURM_LOG = "logs/slurm/7.log"
MEMORY = "the job needed more memory than it requested; raise mem_mb in slurm/profile.yaml"
TIMEOUT = "the time limit was reached; raise runtime in slurm/profile.yaml"


@pytest.fixture
def printed(tmp_path, monkeypatch, caplog, capsys):
    """Listen to Snakemake's log in a folder of its own; return a function for the lines that are printed at the end."""
    monkeypatch.chdir(tmp_path)
    handler = Failures()
    atexit.unregister(handler.print)
    monkeypatch.setattr(logger, "handlers", [handler])
    caplog.set_level(logging.INFO, logger.name)

    def lines():
        handler.print()
        return capsys.readouterr().err.splitlines()

    return lines


def make_job(rule, number, run="c10/ar8"):
    """Make a job with what Snakemake's code needs to log its failure."""
    job = SimpleNamespace(
        rule=SimpleNamespace(name=rule),
        dag=SimpleNamespace(
            jobid=lambda _: number,
            workflow=SimpleNamespace(deployment_settings=SimpleNamespace(deployment_method=frozenset())),
        ),
        **{"conda_env": None, "container_img": None, "shellcmd": None, "input": []},
        output=[f"results/{run}/{'checkpoint.pt' if rule == 'train' else f'{rule}.parquet'}"],
        log=[f"logs/{rule}/{run}.log"],
    )
    job.get_log_error_info = partial(Job.get_log_error_info, job)
    job.log_error = partial(Job.log_error, job)
    return job


def group_fails(*jobs, **extra):
    GroupJob.log_error(SimpleNamespace(jobs=jobs, groupid="measures"), **extra)


def finish(number):
    logger.info(f"Finished jobid: {number}", extra={"event": LogEvent.JOB_FINISHED, "job_id": number})


def write(path, text, folder, age=0.0):
    path = folder / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (path.stat().st_mtime - age,) * 2)


def test_nothing_is_printed_if_nothing_failed(printed):
    logger.info("Building DAG of jobs...")
    finish(3)
    assert printed() == []


def test_the_last_error_in_the_log_is_the_reason(printed, tmp_path):
    write(
        "logs/train/c10/ar8.log",
        "2026-01-02 03:04:05,678 INFO epoch 1/3\n2026-01-02 03:04:06,678 ERROR an earlier one\n"
        "2026-01-02 03:04:07,678 ERROR epoch 2, batch 3: loss nan at lr 0.1; lower training.lr.\n"
        "Traceback (most recent call last):\nValueError: 2026-01-02 03:04:05,678 ERROR quoted\n",
        tmp_path,
    )
    make_job("train", 3).log_error()
    assert printed() == [
        "",
        "1 job(s) failed:",
        "train c10/ar8: epoch 2, batch 3: loss nan at lr 0.1; lower training.lr",
        "  log: logs/train/c10/ar8.log",
    ]


def test_a_job_that_ended_without_an_error_message_is_reported_as_such(printed, tmp_path):
    make_job("sv", 3).log_error()
    write("logs/sv/c10/ar16.log", "2026-01-02 03:04:05,678 INFO layer 1\n", tmp_path)
    make_job("sv", 4, "c10/ar16").log_error()
    assert printed()[1:] == [
        "2 job(s) failed:",
        "sv c10/ar8: it ended without an error message",
        "  log: logs/sv/c10/ar8.log",
        "sv c10/ar16: it ended without an error message",
        "  log: logs/sv/c10/ar16.log",
    ]


@pytest.mark.parametrize(
    ("state", "log", "reason"),
    [
        (
            "TIMEOUT",
            "slurmstepd: error: *** JOB 7 DUE TO TIME LIMIT ***",
            f"{TIMEOUT}; *** JOB 7 DUE TO TIME LIMIT ***",
        ),
        ("TIMEOUT", "", TIMEOUT),
        ("OUT_OF_MEMORY", "", MEMORY),
        ("FAILED", "error: Detected 1 oom-kill event(s) in StepId=7.0.", f"{MEMORY}"),
        ("FAILED", "", "it ended without an error message (SLURM: FAILED)"),
        ("FAILED", "Error: no space left (log: a.log)", "no space left (log: a.log)"),
        ("NODE_FAIL", "no reason", "the node failed"),
    ],
)
def test_slurm_s_state_comes_first(state, log, reason, printed, tmp_path):
    write(SLURM_LOG, f"host: node1\n{log}\n", tmp_path)
    make_job("apgd", 3).log_error(STATUS.format(state), aux_logs=[SLURM_LOG], external_jobid="7")
    assert printed()[2:] == [f"apgd c10/ar8: {reason}", "  log: logs/apgd/c10/ar8.log", f"  log: {SLURM_LOG}"]


def test_a_group_fails_in_the_job_that_wrote_last(printed, tmp_path):
    jobs = [make_job(rule, number) for number, rule in enumerate(("apgd", "margins", "sv", "theory"), start=3)]
    error = "2026-01-02 03:04:05,678 ERROR {} failed\n"
    write("logs/margins/c10/ar8.log", error.format("margins"), tmp_path)
    write("logs/apgd/c10/ar8.log", error.format("an earlier attempt of apgd"), tmp_path, age=100)
    write("logs/sv/c10/ar8.log", "done", tmp_path, age=50)
    write(SLURM_LOG, "Error: margins failed", tmp_path, age=-50)
    group_fails(*jobs, aux_logs=[SLURM_LOG], group_msg=STATUS.format("TIMEOUT"))
    assert printed()[1:] == [
        "1 job(s) failed:",
        f"margins c10/ar8: {TIMEOUT}; margins failed",
        "  log: logs/margins/c10/ar8.log",
        f"  log: {SLURM_LOG}",
    ]


def test_a_group_that_continued_fails_in_the_job_with_the_error(printed, tmp_path):
    jobs = [make_job(rule, number) for number, rule in enumerate(("margins", "sv"), start=3)]
    write("logs/sv/c10/ar8.log", "2026-01-02 03:04:05,678 ERROR no spectrum\n", tmp_path, age=-20)
    write("logs/margins/c10/ar8.log", "done", tmp_path, age=-50)
    group_fails(*jobs, aux_logs=[SLURM_LOG], group_msg=STATUS.format("FAILED"))
    assert printed()[2] == "sv c10/ar8: no spectrum"


@pytest.mark.parametrize(
    "words",
    [
        "sbatch: error: Batch job submission failed:\nInvalid partition name specified",
        "sbatch: unrecognized option '--gpu'\nTry \"sbatch --help\" for more information",
    ],
)
def test_a_refusal_by_sbatch_is_the_reason(words, printed):
    call = "    sbatch call:\n        sbatch --parsable --wrap='snakemake'\nFor further error details see the log."
    make_job("train", 3).log_error(f"SLURM sbatch failed. The error message was '{words}'.\n{call}")
    reason = " ".join(words.removeprefix("sbatch: error: ").split())
    assert printed()[2] == f"train c10/ar8: sbatch refused it: {reason}"


@pytest.mark.parametrize("number", [3, 4])
def test_a_failure_is_not_printed_after_a_later_success(number, printed):
    group_fails(make_job("margins", 3), make_job("sv", 4))
    make_job("margins", 5, "c10/ar16").log_error()
    make_job("margins", 5, "c10/ar16").log_error()
    finish(number)
    assert [line.split(":")[0] for line in printed()[1:3]] == ["1 job(s) failed", "margins c10/ar16"]
    finish(5)
    assert printed() == []


@pytest.mark.parametrize("stalls", [1, 2])
def test_a_training_without_progress_in_two_attempts_is_reported_as_not_tried_again(stalls, printed, tmp_path):
    write("results/c10/ar8/lease.json", lease_text(stalls=stalls), tmp_path)
    make_job("train", 3).log_error(STATUS.format("TIMEOUT"))
    make_job("sv", 4).log_error()
    train, sv = (line for line in printed() if line.startswith(("train", "sv")))
    assert train.startswith(f"train c10/ar8: {TIMEOUT}")
    assert train.endswith("; no epoch was finished in two attempts, so it is not tried again") == (stalls == 2)
    assert sv == "sv c10/ar8: it ended without an error message"


@pytest.mark.parametrize("content", ["", lease_text(stalls="x"), "[" * 4000])
def test_a_damaged_lease_does_not_stop_the_driver(content, printed, tmp_path):
    write("results/c10/ar8/lease.json", content, tmp_path)
    make_job("train", 3).log_error()
    assert any(line.startswith("train c10/ar8: it ended without an error message") for line in printed())


def test_data_sets_and_studies_are_named_without_their_folders(printed):
    for rule, output in {"prepare": "data/prepared/c10/images.npy", "claims": "results/studies/paper/a.json"}.items():
        job = make_job(rule, len(rule))
        job.output = [output]
        job.log_error()
    assert [line.split(":")[0] for line in printed()[2::2]] == ["prepare c10", "claims studies/paper"]


def test_an_error_of_an_earlier_attempt_is_not_the_reason(printed, tmp_path):
    write("logs/sv/c10/ar8.log", "2026-01-02 03:04:05,678 ERROR of last week\n", tmp_path, age=100)
    logger.info("rule sv:", extra={"event": LogEvent.JOB_INFO, "jobid": 3})
    make_job("sv", 3).log_error(STATUS.format("CANCELLED"))
    assert printed()[2] == "sv c10/ar8: the job was cancelled"


def test_a_group_that_never_started_is_named_by_its_kind(printed):
    group_fails(make_job("margins", 3), make_job("sv", 4), group_msg="Job submission failed with exception: no squeue")
    assert printed()[2] == "measures c10/ar8: Job submission failed with exception: no squeue"


def test_an_unexpected_record_does_not_stop_the_driver(printed, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.error("Error in rule sv", extra={"event": LogEvent.JOB_ERROR, "indent": False})
    assert printed() == []
