"""The changes that driver.py makes to Snakemake; the workflow itself and the tests on SLURM cover the others."""

import asyncio
import re
from types import SimpleNamespace

import pytest
from helpers.leases import lease_text
from snakemake.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from robreg.runs.settings import ConfigError
from robreg.workflow import architectures, driver


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


def test_only_the_sentence_of_an_own_error_is_printed_however_it_is_wrapped():
    def format_error(error, linemaps):
        return f"WRAPPED {error} {linemaps}"

    def wrap(error, by):
        try:
            try:
                raise error
            except ValueError as inner:
                if by == "cause":
                    raise WorkflowError("x") from inner
                raise WorkflowError("x")  # noqa: B904 - as Snakemake does for input functions
        except WorkflowError as outer:
            return outer

    shown = driver._only_own_sentence(format_error)
    assert shown(ConfigError("a sentence"), {}) == "a sentence"
    assert {shown(wrap(ConfigError("a sentence"), by), {}) for by in ("cause", "context")} == {"a sentence"}
    assert shown(wrap(ValueError("another"), "cause"), {}) == "WRAPPED x {}"
    assert shown(driver.LockedError("is locked"), None) == "is locked"


def planned(*factories):
    jobs = [SimpleNamespace(rule=SimpleNamespace(name="margins"), params=SimpleNamespace())]
    for factory in factories:
        params = SimpleNamespace(settings={"factory": factory})
        jobs.append(SimpleNamespace(rule=SimpleNamespace(name="train"), params=params))
    return SimpleNamespace(dag=SimpleNamespace(needrun_jobs=lambda: iter(jobs)))


def test_each_user_defined_network_is_looked_at_once_and_others_need_no_process(monkeypatch):
    seen = []
    monkeypatch.setattr(architectures, "describe_mistake", lambda factory: seen.append(factory["callable"]))
    architectures.refuse_missing(planned(None, None))
    assert seen == []
    mine, other = ({"callable": name, "arguments": {}} for name in ("a:B", "c:D"))
    architectures.refuse_missing(planned(mine, None, dict(mine), other))
    assert seen == ["a:B", "c:D"]


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("from torch import nn\nprint('loud')\nclass Net(nn.Identity): ...", None),
        ("Net = 1", "is not declared to return an nn.Module; name a subclass"),
        ("import nowhere", r"cannot be imported \(No module named 'nowhere'\); install it"),
        ("undefined", r"cannot be imported \(name 'undefined' is not defined\); install it"),
        ("import os\nos._exit(3)", r"ended Python while it was imported \(no message, exit status 3\); correct its"),
    ],
)
def test_the_module_of_a_network_is_imported_in_another_process(text, mistake, tmp_path, monkeypatch):
    (tmp_path / "userland.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    found = architectures.describe_mistake({"callable": "userland:Net", "arguments": {}})
    start = "^config.yaml: architectures: callable 'userland:Net' "
    assert found is None if mistake is None else re.search(start + mistake, found)
    assert [path.name for path in tmp_path.iterdir()] == ["userland.py"]


def attempts(path, *stalls, rule="train", allowed=20):
    """Let one attempt after another fail; return after which of them the job is restarted.

    stalls: the stalled attempts in the lease after each attempt, or None if it did not take the lease.
    """
    restarted = []
    for attempt, stalled in enumerate(stalls, start=1):
        if stalled is not None:
            path.write_text(lease_text(stalls=stalled, token=str(attempt)))
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


@pytest.mark.parametrize("content", ['{"stalls": "x"}', lease_text(stalls="x"), lease_text(token=[]), "[" * 4000, None])
def test_what_others_put_in_place_of_a_lease_does_not_stop_the_driver(content, tmp_path):
    path = tmp_path / "lease.json"
    path.mkdir() if content is None else path.write_text(content)
    assert attempts(path, None, None, None) == [True, False, False]  # as if the lease had not been taken
