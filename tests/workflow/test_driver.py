"""The changes that driver.py makes to Snakemake; the workflow itself and the tests on SLURM cover the others."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from robreg.training.lease import KEYS
from robreg.workflow import driver


class Executor:
    """Act as the plugin: report ended jobs, yield running ones, and do neither if SLURM does not answer."""

    def __init__(self, answers):
        self.answers, self.reported = answers, []

    def report_job_success(self, job):
        self.reported.append((job.external_jobid, "success"))

    def report_job_error(self, job, msg):
        self.reported.append((job.external_jobid, msg))

    async def check_active_jobs(self, active_jobs):
        for job in active_jobs:
            match self.answers.get(job.external_jobid):
                case "COMPLETED":
                    self.report_job_success(job)
                case "FAILED":
                    self.report_job_error(job, msg="FAILED")
                case "RUNNING":
                    yield job


@pytest.mark.parametrize(
    ("answers", "kept"),
    [
        ({"1": "COMPLETED", "2": "FAILED", "3": "RUNNING"}, ["3"]),
        ({}, ["1", "2", "3"]),
        ({"2": "RUNNING"}, ["1", "2", "3"]),
    ],
)
def test_jobs_that_slurm_does_not_report_are_checked_again(answers, kept):
    executor = Executor(answers)
    jobs = [SubmittedJobInfo(job=None, external_jobid=number) for number in "123"]
    check = driver._keep_unreported_jobs(Executor.check_active_jobs)

    async def poll():
        return sorted([job.external_jobid async for job in check(executor, jobs)])

    for _ in range(2):
        assert asyncio.run(poll()) == kept
    assert [number for number, _ in executor.reported] == 2 * [number for number in "123" if number not in kept]


def attempts(path, *stalls, rule="train", allowed=20):
    """Let one attempt after another fail; return after which of them the job is restarted.

    stalls: the stalled attempts in the lease after each attempt, or None if it did not take the lease.
    """
    restarted = []
    for attempt, stalled in enumerate(stalls, start=1):
        if stalled is not None:
            path.write_text(json.dumps(dict.fromkeys(KEYS) | {"stalls": stalled, "token": str(attempt)}))
        job = SimpleNamespace(rule=SimpleNamespace(name=rule, restart_times=allowed), attempt=attempt)
        job.output = [str(path.with_name("checkpoint.pt"))]
        restarted.append(driver._restart_times(job) > attempt - 1)
    return restarted


@pytest.mark.parametrize(
    ("stalls", "again"),
    [
        ((0, 0, 0, 0), [True] * 4),  # each attempt finished an epoch
        ((1, 2), [True, False]),
        ((1, 0, 1, 2), [True, True, True, False]),
        ((None, None), [True, False]),  # ended before the lease was taken
        ((0, None, None), [True, True, False]),
        ((0, None, 1, 0), [True] * 4),
    ],
)
def test_a_training_is_tried_again_until_two_attempts_make_no_progress(tmp_path, stalls, again):
    assert attempts(tmp_path / "lease.json", *stalls) == again


def test_other_jobs_are_tried_twice_and_all_jobs_at_most_as_often_as_allowed(tmp_path):
    assert attempts(tmp_path / "lease.json", 0, 0, 0, rule="sv") == [True, False, False]
    assert attempts(tmp_path / "lease.json", 0, 0, 0, allowed=1) == [True, False, False]
    assert attempts(tmp_path / "lease.json", 0, rule="sv", allowed=0) == [False]
