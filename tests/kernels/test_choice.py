"""The attack's kernels are used where they fit and are right, and are left out with a warning where they fail."""

import copy
import logging
import shutil
import sys
import time

import pytest
import torch
from test_residual_attack import BALL, DEVICE, GPU, batch, exact, network, of_torchvision, same_attack
from torch import nn

from robreg.attacks.pgd import input_gradient, pgd
from robreg.kernels import choice
from robreg.training.step import StepAttack, TrainingStep

pytest.importorskip("triton", reason="Triton comes with torch for Linux")
from robreg.kernels import operators, residual_attack

assert exact  # a fixture of both files


def fused(model, x, y):
    return choice.fused_attack(model, x, y, **BALL, dtype=torch.float32)


def warnings(caplog):
    ours = (record for record in caplog.records if record.name.startswith("robreg"))
    return [record.getMessage() for record in ours if record.levelno >= logging.WARNING]


def test_kernels_that_fit_are_used_also_for_a_network_whose_gradient_is_0():
    model, (x, y, noise) = network(), batch()
    attack = fused(model, x, y)
    same_attack(attack(x, y, noise), pgd(model, x, y, **BALL, noise=noise))
    model.network.linear.weight.zero_()  # as it is before the first step
    assert fused(model, x, y) is not None


def test_without_triton_there_are_none_and_no_warning(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "robreg.kernels.residual_attack")
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

    monkeypatch.setattr(residual_attack.ResidualAttack, method, fail)
    assert fused(network(), *batch()[:2]) is None
    assert warnings(caplog) == [
        "the attack's kernels are not possible here (RuntimeError: no such instruction more); training continues "
        "without them"
    ]


def test_kernels_that_give_other_gradients_are_left_out_with_one_warning(monkeypatch, caplog):
    right = residual_attack.ResidualAttack.gradient
    monkeypatch.setattr(residual_attack.ResidualAttack, "gradient", lambda *given: 1.01 * right(*given))
    assert fused(network(), *batch()[:2]) is None
    (message,) = warnings(caplog)
    assert message.startswith("the attack's kernels give other gradients here (they differ by 0.01, ")


def errors_in_bf16(model, found, x, y):
    return choice._errors(found, lambda: input_gradient(model, x, y), x.device, torch.bfloat16)


@pytest.mark.parametrize("arch", ["resnet8", "fixup8", "resnet56"])
def test_in_bf16_too_rounding_is_small_beside_a_fault(arch):
    """A part of the network that is left out changes the gradient by more than rounding may."""
    model, (x, y, _) = choice._with_random_weights(network(arch)), batch(8)
    expected = input_gradient(model, x, y)
    _, limit = errors_in_bf16(model, expected, x, y)
    assert 0.01 < limit < 0.2
    for fault in ("bias1a", "bias2a"):
        faulty = copy.deepcopy(model)
        getattr(faulty.network.stages[0][0], fault).add_(1)
        assert errors_in_bf16(model, input_gradient(faulty, x, y), x, y)[0] > limit
    assert 0.2 < float(model(x).std()) < 20  # so that the cross entropy has a gradient


def test_kernels_that_leave_the_ball_are_left_out(monkeypatch, caplog):
    right = residual_attack.ResidualAttack.__call__
    monkeypatch.setattr(
        residual_attack.ResidualAttack, "__call__", lambda self, x, y, noise: right(self, x, y, noise) + 0.01
    )
    assert fused(network(), *batch()[:2]) is None
    assert "are not possible here (RuntimeError: an adversarial example is outside the ball)" in caplog.text


def test_the_kernels_of_the_training_pass_are_used_where_their_gradients_are_right(monkeypatch, caplog):
    model, (x, y, _) = network().requires_grad_(), batch()
    for parameter in model.parameters():
        parameter.data.zero_()  # as some are before the first step
    assert choice.fused_network(model, x, y, dtype=torch.float32) is not None
    assert not warnings(caplog)
    right = operators.FusedNetwork.forward
    monkeypatch.setattr(operators.FusedNetwork, "forward", lambda *given: 1.01 * right(*given))
    assert choice.fused_network(model, x, y, dtype=torch.float32) is None
    (message,) = warnings(caplog)
    assert message.startswith("the kernels of the training pass give other gradients here (they differ by ")


@pytest.mark.parametrize("arch", ["resnet8", "resnet8nobias", "resnet56"])
def test_in_bf16_too_a_fault_of_the_training_pass_is_larger_than_rounding(arch):
    model, (x, y, _) = choice._with_random_weights(network(arch)).requires_grad_(), batch(8)
    expected = choice._weight_gradients(model, x, y)
    with torch.autocast(DEVICE, torch.bfloat16):
        rounded = choice._weight_gradients(model, x, y)
    error, limit = choice._worst(expected, expected, rounded)
    assert error == 0 < limit < 0.8
    for number in range(len(expected)):
        faulty = [*expected]
        faulty[number] = torch.zeros_like(expected[number])
        error, limit = choice._worst(faulty, expected, rounded)
        assert error == pytest.approx(1)
        assert limit < 0.8


@pytest.mark.parametrize("wide", [False, True])
def test_a_fault_of_a_single_convolution_is_found(wide, monkeypatch, caplog):
    """Even if it changes the gradient of the whole network by less than rounding does."""
    model, (x, y, _) = of_torchvision()[0] if wide else network(), batch()
    right, calls = residual_attack.convolve, []

    def faulty(x, w, out, **options):
        right(x, w, out, **options)
        calls.append(options)
        if len(calls) == 3:
            out[:, -1] = 0

    monkeypatch.setattr(residual_attack, "convolve", faulty)
    monkeypatch.setattr(choice, "_errors", lambda *_: (0.0, 1.0))  # as if rounding hid it in the whole gradient
    assert fused(model, x, y) is None
    (message,) = warnings(caplog)
    assert message.startswith("the attack's kernels give other gradients here (they differ by 0.")


def test_the_fastest_run_is_chosen():
    def wait():
        time.sleep(0.005)

    assert choice.fastest({"slow": wait, "fast": lambda: None}, torch.device("cpu")) == "fast"
    assert choice.fastest({"fast": lambda: None, "slow": wait}, torch.device("cpu")) == "fast"


def test_only_networks_of_few_channels_are_narrow():
    assert choice.is_narrow(network())
    assert not choice.is_narrow(network(width=32))
    assert not choice.is_narrow(of_torchvision()[0])
    assert not choice.is_narrow(nn.Linear(1, 1))


def make_step(device=DEVICE, model=None, steps=3, **options):
    model = (network() if model is None else model).train().requires_grad_().to(device)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=device == "cuda" or None)
    return TrainingStep(model, sgd, attack=StepAttack(**{**BALL, "steps": steps}), **options)


def always(monkeypatch, name):
    """Let a measurement find that runs with or without kernels are the fastest; return the runs that were measured."""
    measured = []

    def fastest(runs, device):
        measured.append([run() for run in runs.values()])
        first, second = runs
        assert (first.split()[0], second) == ("with", "without them")
        return first if name == "with" else second

    monkeypatch.setattr("robreg.training.step.fastest", fastest)
    return measured


@pytest.mark.parametrize("choose", ["with", "without"])
def test_a_step_with_kernels_trains_as_the_plain_step_does(choose, monkeypatch):
    measured = always(monkeypatch, choose)
    plain, with_kernels = make_step(), make_step()
    assert not plain.fuses  # only bf16 on a GPU, compiled, has them
    with_kernels.fuses = True
    for seed in range(3):
        x, y, noise = batch(seed=seed)
        losses = [step(x, y, noise)[0] for step in (plain, with_kernels)]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    small = [part[:2] for part in batch(seed=9)]  # the last batch of an epoch is smaller
    torch.testing.assert_close(with_kernels(*small)[0], plain(*small)[0], rtol=1e-3, atol=1e-4)
    assert [len(runs) for runs in measured] == [2, 2]  # of the attack and of the training pass
    assert plain.how == "eager"
    assert with_kernels.how == "eager" + (", attack kernels, training kernels" if choose == "with" else "")
    for one, other in zip(plain.model.parameters(), with_kernels.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_deterministic_step_depends_on_no_measurement(monkeypatch):
    monkeypatch.setattr("robreg.training.step.fastest", lambda *_: pytest.fail("measured"))
    for model, how in ((network(), "eager, attack kernels"), (network(width=32), "eager")):
        step = make_step(model=model, deterministic=True)
        step.fuses = True
        step(*batch())
        assert step.how == how


@pytest.mark.parametrize("choose", ["with", "without"])
def test_the_attack_on_a_wide_network_has_kernels_if_they_are_faster(choose, monkeypatch, caplog):
    measured = always(monkeypatch, choose)
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    wide = of_torchvision()[1]
    plain, step = (make_step(model=copy.deepcopy(wide), steps=1, compile=True) for _ in range(2))
    step.fuses = True
    x, y, noise = batch()
    losses = [one(x, y, noise)[0] for one in (plain, step)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    found, expected = (one.adversarial(x, y, noise) for one in (step, plain))  # with weights that have changed
    assert int(((found - expected).abs() > 1e-6).sum()) <= found.numel() // 100
    assert len(measured) == 1  # its training pass has no kernels
    assert step.how.removesuffix(", CUDA graph") == "compiled" + (", attack kernels" if choose == "with" else "")
    assert not warnings(caplog)
    for one, other in zip(step.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_measurement_that_fails_leaves_the_kernels_out_with_one_warning(monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no graph")

    monkeypatch.setattr("robreg.training.step.fastest", fail)
    step = make_step()
    step.fuses = True
    step(*batch())
    assert step.how == "eager"
    assert warnings(caplog) == [
        f"{what} could not be timed here (RuntimeError: no graph); training continues without them"
        for what in ("the attack's kernels", "the kernels of the training pass")
    ]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_training_pass_of_kernels_can_be_compiled(monkeypatch, caplog):
    always(monkeypatch, "with")
    torch._dynamo.reset()
    plain, step = (make_step(model=network(shape=(3, 4, 4)), steps=1, **one) for one in ({}, {"compile": True}))
    step.fuses = True
    for seed in range(2):
        x, y, noise = batch(2, (3, 4, 4), seed=seed)
        losses = [one(x, y, noise)[0] for one in (plain, step)]
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    assert step.how.startswith("compiled, attack kernels, training kernels")
    assert not warnings(caplog)


def test_a_step_of_a_network_that_the_kernels_do_not_fit_is_the_plain_step(caplog):
    model = of_torchvision("BasicBlock")[1]
    model.network.layer4 = nn.Identity()
    plain, step = (make_step(model=copy.deepcopy(model), steps=1) for _ in range(2))
    step.fuses = True
    losses = [float(one(*batch())[0]) for one in (plain, step)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert not warnings(caplog)


@GPU
def test_on_a_gpu_a_compiled_step_in_bf16_has_kernels_and_a_graph(caplog):
    step = make_step("cuda", precision="bf16", compile=True)
    losses = [float(step(*batch(64, seed=seed))[0]) for seed in range(4)]
    assert step.how.replace(", training kernels", "") == "compiled, attack kernels, CUDA graph"  # if they are faster
    assert not warnings(caplog)
    for group in step.optimizer.param_groups:
        group["lr"] = 0.01  # the graph is captured again
    losses.append(float(step(*batch(64, seed=5))[0]))
    losses.append(float(step(*batch(7, seed=6))[0]))  # the last batch of an epoch is smaller
    plain = make_step("cuda", precision="bf16")
    expected = [float(plain(*batch(64, seed=seed))[0]) for seed in range(4)]
    assert losses[:4] == pytest.approx(expected, rel=3e-2)
    assert all(torch.isfinite(torch.tensor(losses)))
