"""The attack's kernels are used where they fit and are right, and are left out with a warning where they fail."""

import logging
import sys

import pytest
import torch
from test_fixup_attack import BALL, batch, network
from torch import nn

from robreg.attacks.pgd import pgd
from robreg.kernels import choice
from robreg.training.step import StepAttack, TrainingStep

pytest.importorskip("triton", reason="Triton comes with torch for Linux")
from robreg.kernels import fixup_attack


def fused(model, x, y):
    return choice.fused_attack(model, x, y, **BALL, dtype=torch.float32)


def test_kernels_that_fit_are_used_also_for_a_network_whose_gradient_is_0():
    model, (x, y, noise) = network(), batch()
    attack = fused(model, x, y)
    torch.testing.assert_close(attack(x, y, noise), pgd(model, x, y, **BALL, noise=noise), rtol=0, atol=1e-6)
    model.network.linear.weight.zero_()  # as it is before the first step
    assert fused(model, x, y) is not None


def test_without_triton_there_are_none_and_no_warning(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "robreg.kernels.fixup_attack", None)
    caplog.set_level(logging.INFO)
    assert fused(network(), *batch()[:2]) is None
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "Triton is not installed" in caplog.text


def test_a_network_that_they_do_not_fit_gets_none_and_no_warning(caplog):
    caplog.set_level(logging.INFO)
    assert fused(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), *batch()[:2]) is None
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "does not begin with the normalising layer" in caplog.text


@pytest.mark.parametrize("method", ["__init__", "gradient", "__call__"])
def test_kernels_that_fail_are_left_out_with_one_warning(method, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no such instruction\nmore")

    monkeypatch.setattr(fixup_attack.FixupAttack, method, fail)
    assert fused(network(), *batch()[:2]) is None
    assert [record.getMessage() for record in caplog.records] == [
        "the attack's kernels are not possible here (RuntimeError: no such instruction); training continues without "
        "them"
    ]


def test_kernels_that_give_other_gradients_are_left_out_with_one_warning(monkeypatch, caplog):
    right = fixup_attack.FixupAttack.gradient
    monkeypatch.setattr(fixup_attack.FixupAttack, "gradient", lambda *given: 1.01 * right(*given))
    assert fused(network(), *batch()[:2]) is None
    (record,) = caplog.records
    assert record.getMessage().startswith("the attack's kernels give other gradients here (they differ by 0.01, ")


def make_step(**options):
    model = network().train().requires_grad_()
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return TrainingStep(model, sgd, attack=StepAttack(**BALL), **options)


def test_a_step_with_kernels_trains_as_the_plain_step_does():
    plain, with_kernels = make_step(), make_step()
    assert not plain.fuses  # only bf16 on a GPU, compiled, has them
    with_kernels.fuses = True
    for seed in range(3):
        x, y, noise = batch(seed=seed)
        losses = [step(x, y, noise)[0] for step in (plain, with_kernels)]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    small = [part[:2] for part in batch(seed=9)]  # the last batch of an epoch is smaller
    torch.testing.assert_close(with_kernels(*small)[0], plain(*small)[0], rtol=1e-3, atol=1e-4)
    assert (plain.how, with_kernels.how) == ("eager", "eager, attack kernels")
    for one, other in zip(plain.model.parameters(), with_kernels.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
