"""The training step: its arithmetic, and that precision, compilation and graphs only change the last digits."""

import copy
import logging
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers.no_waiting import NoWaiting
from torch import nn
from torch.nn import functional

from robreg.attacks.pgd import pgd
from robreg.networks.classifier import Classifier, Normalise
from robreg.training.step import StepAttack, TrainingStep, deterministic_algorithms

BALL = StepAttack(eps=0.1, step=0.03, steps=3)
COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Small(nn.Module):
    """A network with everything that a step must update or keep: a kernel, a matrix, biases, running statistics."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.linear = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x):
        return self.linear(self.norm(self.conv(x)).relu().mean((2, 3)))


def make(device="cpu", **options):
    """Return a step with its own network; all these networks have equal weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Classifier(Normalise([0.5], [0.25]), Small()).to(device)
    sgd = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, fused=device == "cuda" or None)
    return TrainingStep(model, sgd, **{"attack": BALL, **options})


def batches(count, n=16, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x, noise = (torch.rand(n, 1, 8, 8, generator=generator).to(device) for _ in range(2))
        yield x, torch.randint(10, (n,), generator=generator).to(device), noise * 2 - 1


def weights(step):
    return {key: value.detach().cpu().clone() for key, value in step.model.state_dict().items()}


def run(step, count=4, **options):
    """Take some steps; return their losses and the weights after them."""
    return [float(step(*batch)[0]) for batch in batches(count, **options)], weights(step)


def assert_close(one, other, tolerance):
    assert one[0] == pytest.approx(other[0], abs=tolerance)
    for key, value in one[1].items():
        assert (value - other[1][key]).abs().max() <= tolerance, key


def test_a_step_is_the_public_pgd_and_one_update():
    step = make()
    model = copy.deepcopy(step.model)
    sgd = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for x, y, noise in batches(4):
        found = pgd(model.eval(), x, y, eps=0.1, step=0.03, steps=3, noise=noise)
        logits = model.train()(found)
        loss = functional.cross_entropy(logits, y)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        ours = step(x, y, noise)
        assert torch.equal(ours[0], loss.detach())
        assert torch.equal(ours[1], logits.detach())
        assert not any(part.requires_grad for part in ours)
    assert all(torch.equal(value, step.model.state_dict()[key]) for key, value in model.state_dict().items())
    assert step.how == "eager"


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_a_step_on_clean_and_adversarial_examples_is_one_update_of_their_weighted_loss(share):
    step = make(attack=StepAttack(eps=0.1, step=0.03, steps=3, clean_share=share))
    model = copy.deepcopy(step.model)
    sgd = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for x, y, noise in batches(4):
        found = pgd(model.eval(), x, y, eps=0.1, step=0.03, steps=3, noise=noise)
        both = model.train()(torch.cat([x, found]))
        terms = functional.cross_entropy(both, y.repeat(2), reduction="none")
        loss = share * terms[: len(x)].mean() + (1 - share) * terms[len(x) :].mean()
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        ours = step(x, y, noise)
        torch.testing.assert_close(ours[0], loss.detach())
        torch.testing.assert_close(ours[1], both[len(x) :].detach())
    for name, value in step.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name])


def test_half_precision_is_mixed_and_close_to_full_precision():
    step, reference = make(precision="bf16"), make()
    found, wanted = run(step), run(reference)
    assert_close(found, wanted, 0.03)
    assert found[0] != wanted[0]
    assert all(value.dtype in (torch.float32, torch.int64) for value in found[1].values())
    momenta = [state["momentum_buffer"].dtype for state in step.optimizer.state.values()]
    assert momenta == [torch.float32] * 6


def test_half_precision_attacks_the_current_weights():
    step = make(precision="bf16")
    (x, y, noise), *_ = batches(1)
    run(step)
    found = step.adversarial(x, y, noise)
    fresh = TrainingStep(step.model, step.optimizer, attack=BALL, precision="bf16")
    assert torch.equal(found, fresh.adversarial(x, y, noise))
    assert found.dtype == torch.float32
    assert (found - x).abs().max() <= 0.1 + 1e-6
    assert step.twin.network.conv.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_never_waits_for_the_device(precision):
    step = make(precision=precision)
    for batch in batches(2):
        with NoWaiting():
            step(*batch)
    with NoWaiting(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        bool(batch[0].sum() > 0)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match=r"training\.precision must be one of fp32, bf16, not 'fp16'"):
        make(precision="fp16")


@COMPILER
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_step_agrees_with_an_eager_one(precision, caplog):
    step = make(precision=precision, compile=True)
    found = run(step)
    assert step.how == "compiled"
    assert not [record for record in caplog.records if record.name == "robreg.training.step"]
    assert_close(found, run(make(precision=precision)), 1e-5 if precision == "fp32" else 0.03)
    assert int(found[1]["network.norm.num_batches_tracked"]) == 4  # steps taken while compiling do not count


@COMPILER
def test_a_step_that_cannot_be_compiled_completely_is_eager_after_a_warning(caplog):
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=1):  # the model and its twin share their code, and thus this limit
        step = make(compile=True)
        found = run(step, 1)
    torch._dynamo.reset()
    assert step.how == "eager"
    assert "training continues eagerly" in caplog.text
    assert_close(found, run(make(), 1), 0)


@COMPILER
def test_nothing_is_compiled_for_a_batch_of_another_size():
    step = make(compile=True)
    run(step, 1)
    modules = step.compiled
    step.compiled = tuple(lambda _: pytest.fail("compiled") for _ in range(2))
    run(step, 1, n=5)
    step.compiled = modules
    assert_close(run(step, 1), run_after(1, 5), 1e-5)


def run_after(*sizes):
    reference = make()
    for n in (16, *sizes[1:]):
        run(reference, 1, n=n)
    return run(reference, 1)


def test_without_a_compiler_the_step_is_eager_after_one_warning(monkeypatch, caplog):
    def broken(module, **_):
        def call(x):
            if module.training:
                raise RuntimeError("no compiler\nand more")
            return module(x)

        return call

    monkeypatch.setattr(torch, "compile", broken)
    step = make(compile=True)
    found = run(step)
    assert step.how == "eager"
    assert [
        (record.levelno, record.getMessage()) for record in caplog.records if record.name == "robreg.training.step"
    ] == [
        (
            logging.WARNING,
            "torch.compile is not possible here (RuntimeError: no compiler and more); training continues eagerly",
        )
    ]
    wanted = run(make())
    assert found[0] == wanted[0]
    assert all(torch.equal(value, wanted[1][key]) for key, value in found[1].items())


class Recorded:
    """A fake graph, which runs the step that it should have captured."""

    made = 0

    def __init__(self, run, *batch):
        type(self).made += 1
        self.run, self.size = run, len(batch[0])

    def __call__(self, x, y, noise):
        assert len(x) == self.size
        return self.run(x, y, noise)


def test_a_graph_is_captured_for_full_batches_and_again_for_every_learning_rate(monkeypatch):
    class Graph(Recorded):
        pass

    monkeypatch.setattr("robreg.training.step._Graph", Graph)
    step, reference = make(), make()
    step.captures = True
    made = []
    for lr in (0.5, 0.1):
        for one in (step, reference):
            one.optimizer.param_groups[0]["lr"] = lr
        for n in (16, 5, 16):
            found, wanted = run(step, n=n), run(reference, n=n)
            assert found[0] == wanted[0]
            assert all(torch.equal(value, wanted[1][key]) for key, value in found[1].items())
            made.append(Graph.made)
    assert made == [1, 1, 1, 2, 2, 2]
    assert step.how == "eager, CUDA graph"


def test_a_step_that_cannot_be_captured_runs_without_a_graph_after_one_warning(monkeypatch, caplog):
    def refuse(*_):
        raise KeyError("no graph")

    monkeypatch.setattr("robreg.training.step._Graph", refuse)
    step = make()
    step.captures = True
    found, wanted = run(step), run(make())
    assert found[0] == wanted[0]
    assert all(torch.equal(value, wanted[1][key]) for key, value in found[1].items())
    assert step.how == "eager"
    messages = [record.getMessage() for record in caplog.records if record.name == "robreg.training.step"]
    assert messages == ["a CUDA graph is not possible here (KeyError: 'no graph'); training continues without it"]


@GPU
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compile", [False, True])
def test_a_captured_step_agrees_with_an_eager_one(precision, compile):
    torch.backends.cudnn.allow_tf32 = False  # as in every job
    step, reference = make("cuda", precision=precision, compile=compile), make("cuda", precision=precision)
    for lr in (0.5, 0.1):
        for one in (step, reference):
            one.optimizer.param_groups[0]["lr"] = lr
        for n in (16, 5, 16):  # an epoch's last batch is smaller
            found, wanted = (run(one, 3, n=n, device="cuda") for one in (step, reference))
            assert_close(found, wanted, 1e-4 if precision == "fp32" else 0.05)
    assert step.how == ("compiled, CUDA graph" if compile else "eager")


@pytest.fixture
def on_gpu(monkeypatch):
    """Return a function that makes a step on a GPU, even if there is none; the step cannot be taken."""
    monkeypatch.setattr("robreg.training.step._make_twin", lambda *_, **__: (None, []))
    weight = SimpleNamespace(device=torch.device("cuda"))
    model = SimpleNamespace(parameters=lambda: iter([weight]), to=lambda **_: None)
    return lambda **options: TrainingStep(model, None, **options)


def switches():
    """Return the global settings that decide whether a GPU's results are bit-identical."""
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    return torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark, workspace


@pytest.mark.parametrize("given", [None, ":16:8"])
def test_a_gpu_is_made_deterministic_and_all_settings_are_restored(given, on_gpu, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if given:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
    before = switches()
    seen = []

    def fail():
        with deterministic_algorithms(torch.device("cuda"), wanted=True):
            seen.append(switches())
            on_gpu(deterministic=True)
            seen.append(switches())
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail()
    assert seen == [(2, False, given or ":4096:8")] * 2  # 2: operations that are not deterministic raise errors
    assert switches() == before == (0, True, given)


@pytest.mark.parametrize(("device", "wanted"), [("cuda", False), ("cpu", True)])
def test_settings_stay_unchanged_if_determinism_is_not_wanted_or_on_a_cpu(device, wanted):
    before = switches()
    with deterministic_algorithms(torch.device(device), wanted=wanted):
        assert switches() == before


def test_a_gpu_uses_the_fastest_algorithms_unless_it_must_be_deterministic(on_gpu, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    on_gpu()
    assert torch.backends.cudnn.benchmark


@GPU
@pytest.mark.parametrize("compile", [False, True])
def test_deterministic_steps_on_a_gpu_are_bit_identical(compile):
    with deterministic_algorithms(torch.device("cuda"), wanted=True):
        one, other = (run(make("cuda", compile=compile, deterministic=True), device="cuda") for _ in range(2))
    assert one[0] == other[0]
    assert all(torch.equal(value, other[1][key]) for key, value in one[1].items())


def test_only_a_compiled_step_folds_batch_normalisation_and_only_in_its_attack():
    def norms(network):
        return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]

    plain, compiled = make(), make(compile=True)
    assert (len(norms(plain.twin)), len(norms(compiled.twin)), len(norms(compiled.model))) == (1, 0, 1)


def test_a_folded_attack_follows_the_statistics_of_the_last_step():
    plain, folding = make(), make(compile=True)
    folding.compile = False  # without a compiler, to compare the attack alone
    for x, y, noise in batches(3):
        torch.testing.assert_close(folding.adversarial(x, y, noise), plain.adversarial(x, y, noise), rtol=0, atol=1e-6)
        plain(x, y, noise)
        folding(x, y, noise)


def test_in_fp32_the_attack_has_the_weights_of_the_model_whatever_their_type():
    model = Classifier(Normalise([0.5], [0.25]), Small().double())
    step = TrainingStep(model, torch.optim.SGD(model.parameters(), lr=0.5), attack=BALL)
    assert step.updates == []
    for mine, given in zip(step.twin.parameters(), model.parameters(), strict=True):
        assert mine.data_ptr() == given.data_ptr()
