"""The time of a training is estimated from its first steps, without what is done once."""

import logging

import pytest
import torch
from helpers.trainings import make_settings, run

from robreg.training import estimate


class Clock:
    """A clock that tests set, and a step that takes `seconds`, and `once` more when it is called first."""

    def __init__(self, monkeypatch, seconds, once=0.0):
        self.now, self.seconds, self.once, self.calls = 0.0, seconds, once, 0
        monkeypatch.setattr(estimate.time, "perf_counter", lambda: self.now)

    def __call__(self, x, y, noise=None):
        self.calls += 1
        self.now += self.seconds + self.once * (self.calls == 1)
        return x.sum(), x


def messages(caplog):
    return [(record.levelno, record.getMessage()) for record in caplog.records]


def call(timed, size=50):
    return timed(torch.zeros(size, 1, 2, 2), torch.zeros(size, dtype=torch.int64))


@pytest.mark.parametrize(
    ("seconds", "batches", "calls"),
    [(0.1, 100, 1 + estimate.STEPS), (0.1, 4, 4), (0.1, 1, 2), (60, 100, 2), (2, 100, 4)],
)
def test_the_estimate_is_that_of_the_first_steps_without_the_first_of_all(seconds, batches, calls, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    clock = Clock(monkeypatch, seconds, once=1000)
    timed = estimate.TimedSteps(clock, images=50 * batches, batches=batches, epochs=10)
    for _ in range(calls - 1):
        call(timed)
    assert messages(caplog) == []
    for _ in range(5):
        call(timed)
    expected = estimate.describe_duration(10 * batches * seconds)
    assert messages(caplog) == [
        (logging.INFO, f"training takes about {expected} on the CPU, by its first steps (epochs left: 10)")
    ]
    assert clock.calls == calls + 4


@pytest.mark.parametrize(("epochs", "warned"), [(23, False), (25, True)])
def test_a_training_of_more_than_a_day_is_warned_of(epochs, warned, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    timed = estimate.TimedSteps(Clock(monkeypatch, 36), images=5000, batches=100, epochs=epochs)  # an hour per epoch
    for _ in range(3):
        call(timed)
    assert [level for level, _ in messages(caplog)] == [logging.WARNING] * warned
    assert not warned or caplog.messages == [
        "this training takes about 1.0 days, more than a day: it may be stopped, and resumes after its last epoch; "
        "another device, training.compile or fewer training.epochs make it shorter"
    ]


def test_batches_of_different_sizes_count_by_their_images(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    timed = estimate.TimedSteps(Clock(monkeypatch, 6), images=100, batches=3, epochs=1)
    call(timed)
    call(timed, 25)
    assert messages(caplog) == [
        (logging.INFO, "training takes about 24 s on the CPU, by its first steps (epochs left: 1)")
    ]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (90, "1.5 min"), (9000, "2.5 h"), (200000, "2.3 days")]
)
def test_durations_are_written_in_a_suitable_unit(seconds, text):
    assert estimate.describe_duration(seconds) == text


def test_the_estimate_is_logged_in_the_first_epoch_of_a_training(prepared, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run(make_settings(), prepared, tmp_path)
    first, second = [record.getMessage() for record in caplog.records if record.name.startswith("robreg.training")][:2]
    assert first.startswith("training takes about ")
    assert second.startswith("epoch 1/3 ")
