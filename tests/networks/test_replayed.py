"""Passes that are replayed from a graph: their results are those of the classifier, and what fails is left out."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from helpers.pixels import images
from helpers.static_graphs import StaticGraphs

from robreg.attacks.apgd import apgd
from robreg.attacks.pgd import input_gradient, pgd, uniform_noise
from robreg.data.dataset import to_float
from robreg.measures import (
    evaluation_attack,
    gradient_masking,
    loss_variation,
    margins,
    perturbation_spread,
    strong_attack,
)
from robreg.networks.classifier import Classifier, Normalise
from robreg.networks.frozen import frozen
from robreg.networks.replayed import Replayed, replayed
from robreg.tables import parquet

BATCH, EPS = 8, 16 / 255
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SIZES = pytest.mark.parametrize(("n", "graph"), [(8, True), (6, True), (5, True), (4, False), (3, False), (1, False)])
ATTACKS = pytest.mark.parametrize("attack", ["pgd", "apgd cross_entropy", "apgd dlr"])


@pytest.fixture
def graphs(monkeypatch):
    """Put the stand-in in the place of torch's function, and return it."""
    graphs = StaticGraphs()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", graphs)
    return graphs


@pytest.fixture
def pair(net):
    """Return a network in fp64, whose results hardly depend on the batch, and the same network with graphs."""
    model = net(dtype=torch.float64)
    return model, Replayed(model, BATCH).eval()


def examples(model, n, seed=0, device="cpu"):
    """Return images, of which one in ten is misclassified, and their labels."""
    x = images(n, seed=seed).to(device, next(model.parameters()).dtype)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[9::10] = (y[9::10] + 1) % 10
    return x, y


def attacked(model, x, y, attack, seed=0):
    kind, _, loss = attack.partition(" ")
    noise = uniform_noise(torch.arange(len(x)), tuple(x.shape[1:]), seed=seed)
    if kind == "pgd":
        return pgd(model, x, y, eps=EPS, step=EPS / 4, steps=6, noise=noise)
    return apgd(model, x, y, eps=EPS / 4, steps=30, loss=loss, noise=noise)


def passes(model, x, weight):
    """Return the logits, and the gradient of their weighted sum."""
    x = x.clone().requires_grad_()
    with frozen(model):
        logits = model(x)
        (gradient,) = torch.autograd.grad((logits * weight).sum(), x)
    return logits, gradient


def assert_same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)  # padding changes the last bits of fp64


# Results


@SIZES
def test_logits_and_gradients_are_those_of_the_model_and_stay_after_the_next_pass(pair, graphs, n, graph):
    model, other = pair
    weight = torch.linspace(-1, 2, 10, dtype=torch.float64)
    batches = [images(n, seed=seed) for seed in range(3)]
    wanted, found = ([passes(one, x, weight) for x in batches] for one in (model, other))
    assert graphs.replays == (3 if graph else 0)
    for theirs, ours in zip(wanted, found, strict=True):
        assert_same(ours[0], theirs[0])
        assert_same(ours[1], theirs[1])
        assert ours[0].shape == (n, 10)
        assert ours[1].shape == (n, 1, 8, 8)
        assert ours[1].abs().max() > 0


@ATTACKS
@SIZES
def test_attacks_find_the_same_images(pair, graphs, n, graph, attack):
    model, other = pair
    for seed in range(3):
        x, y = examples(model, n, seed)
        found = attacked(other, x, y, attack, seed)
        assert_same(found, attacked(model, x, y, attack, seed))
        assert not torch.equal(found, x)
    assert bool(graphs.replays) == graph
    assert len(graphs.captured) == graph


@pytest.mark.parametrize("n", [8, 21, 22, 23, 3])
def test_the_loss_variation_is_the_same(pair, graphs, monkeypatch, n):
    monkeypatch.setattr(loss_variation, "to_float", lambda x: to_float(x).double())
    model, other = pair
    x = torch.randint(256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    y = torch.arange(n) % 10
    spec = {"eps": 8.0, "step": 2.0, "steps": 5, "seed": 3, "space": "pixel"}
    wanted, found = (loss_variation.measure(one, x, y, spec, batch=BATCH) for one in (model, other))
    for key, values in wanted.items():
        assert_same(found[key], values)
    assert (found["variation"] > 0).any()
    assert graphs.replays == 5 * (n // 8 + (n % 8 > 4))


def test_the_weights_and_the_layers_are_shared_and_frozen_by_an_attack(pair, graphs):
    model, other = pair
    assert other.normalise is model.normalise
    assert other.network is model.network
    before = passes(other, images(8), 1.0)[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    assert_same(passes(other, images(8), 1.0)[0], model(images(8)))
    assert not torch.equal(before, model(images(8)))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


# When a graph is used


def test_a_graph_is_captured_once_for_every_shape_and_type(pair, graphs):
    model, other = pair
    for n in (8, 7, 3, 8):
        passes(other, images(n), 1.0)
    assert graphs.captured == [(8, 1, 8, 8)]
    passes(other, images(8, (1, 6, 6)), 1.0)
    passes(model.float() and other, images(8, dtype=torch.float32), 1.0)
    passes(other, images(7, dtype=torch.float32), 1.0)
    assert graphs.captured == [(8, 1, 8, 8), (8, 1, 6, 6), (8, 1, 8, 8)]
    assert graphs.replays == 3 + 1 + 2


def test_without_a_gradient_of_the_input_in_training_mode_and_for_more_images_the_model_runs(pair, graphs):
    model, other = pair
    x = images(8)
    assert passes(other, images(9), 1.0)[0].shape == (9, 10)
    with torch.no_grad():
        assert torch.equal(other(x.clone().requires_grad_()), model(x))
    assert torch.equal(other(x), model(x))
    other.train()
    other(x.clone().requires_grad_()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.network.linear.parameters())
    assert graphs.captured == []
    assert not Replayed(model.eval(), 8).training


def test_on_a_cpu_the_model_itself_is_attacked_and_on_a_gpu_one_with_graphs(net, monkeypatch):
    model = net()
    assert replayed(model, BATCH) is model
    on_gpu = SimpleNamespace(device=torch.device("cuda", 0))
    monkeypatch.setattr(Normalise, "std", property(lambda _: on_gpu), raising=False)
    other = replayed(model, BATCH)
    assert isinstance(other, Replayed)
    assert other.batch == BATCH
    assert other.network is model.network


# Captures that fail


def warnings(caplog):
    return [(one.levelno, one.getMessage()) for one in caplog.records if one.name == "robreg.networks.replayed"]


@ATTACKS
def test_a_capture_that_fails_ends_in_one_warning_and_the_results_of_the_model(pair, monkeypatch, caplog, attack):
    tried = []

    def refuse(*_):
        tried.append(1)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    model, other = pair
    for n in (8, 6):
        x, y = examples(model, n)
        assert_same(attacked(other, x, y, attack), attacked(model, x, y, attack))
    passes(other, images(8, (1, 6, 6)), 1.0)
    assert len(tried) == 1
    why = "RuntimeError: operation not permitted when stream is capturing and more"
    message = f"a CUDA graph is not possible here ({why}); this network is attacked without it, which is slower"
    assert warnings(caplog) == [(logging.WARNING, message)]


def test_an_error_without_a_message_is_named(pair, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda *_: (_ for _ in ()).throw(MemoryError()))
    passes(pair[1], images(8), 1.0)
    assert "(MemoryError)" in caplog.text


def test_after_a_failure_graphs_that_were_captured_before_are_not_used_either(pair, graphs, monkeypatch):
    other = pair[1]
    passes(other, images(8), 1.0)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda *_: (_ for _ in ()).throw(KeyError("no")))
    passes(other, images(8, (1, 6, 6)), 1.0)
    passes(other, images(8), 1.0)
    assert graphs.replays == 1


# The measures


ATTACK = {"eps": 16.0, "step": 4.0, "steps": 3, "seed": 0, "space": "pixel", "start": "random", "restarts": 2}
ATTACK |= {"attack": "pgd", "loss": "cross_entropy"}
APGD = {"eps": 8.0, "steps": 4, "restarts": 1, "n": 30, "seed": 0, "space": "pixel"}
MASKING = {"eps": [32.0, 64.0], "steps": 2, "more_steps": 4, "restarts": 2, "n": 30, "seed": 0}
MASKING |= {"attack_eps": 32.0, "strength": 8.0, "space": "pixel"}
VARIATION = {"eps": [8.0], "relative_step": 0.25, "steps": 3, "space": "pixel", "seed": 0, "n": 30}
SPREAD = {"eps": 8.0, "step": 2.0, "steps": 3, "n": 30, "seed": 0, "space": "pixel"}
RADII = {"eps": [4.0], "relative_step": 0.25, "steps": 3, "n": None, "seed": 0}
MEASURES = {
    "apgd": (strong_attack, {"attack": APGD}),
    "attacks": (evaluation_attack, {"attack": ATTACK, "radii": RADII}),
    "masking": (gradient_masking, {"spec": MASKING}),
    "lossvar": (loss_variation, {"attack": VARIATION}),
    "spread": (perturbation_spread, {"spec": SPREAD}),
}


def measure(name: str, run, folder: Path, *, batch: int = 16) -> pd.DataFrame:
    """Write a measure's table into a folder that holds the tables that it needs, and return it."""
    module, settings = MEASURES[name]
    needed = {"apgd": ["margins"], "attacks": ["margins", "apgd"], "masking": ["margins", "apgd"]}
    tables = [*needed.get(name, ["margins"] * (name != "spread")), name]
    files = {table: folder / f"{table}.parquet" for table in tables}
    module.record(checkpoint=run.checkpoint, data=run.prepared, **files, **settings, batch=batch, device="cpu")
    return parquet.read(files[name]).to_pandas()


@pytest.mark.parametrize("name", list(MEASURES))
def test_measures_replay_their_attacks_and_find_the_same(name, run, graphs, monkeypatch, tmp_path):
    with torch.no_grad():
        labels = run.model(to_float(run.data.test_images)).argmax(1)  # all are correct, so batches are full
    opened = run.model, run.meta, replace(run.data, test_labels=labels)
    for module in {margins, strong_attack, MEASURES[name][0]}:
        monkeypatch.setattr(module, "open_run", lambda *_: opened)
    files = {"checkpoint": run.checkpoint, "data": run.prepared, "margins": tmp_path / "margins.parquet"}
    margins.record(**files, batch=16, device="cpu")
    measure("apgd", run, tmp_path)
    wanted = measure(name, run, tmp_path)
    assert not graphs.captured
    made = []

    def with_graphs(model, batch):
        made.append(Replayed(model, batch))
        return made[-1]

    monkeypatch.setattr(MEASURES[name][0], "replayed", with_graphs)
    found = measure(name, run, tmp_path)
    pd.testing.assert_frame_equal(found, wanted, check_exact=False, rtol=1e-3, atol=1e-4)
    assert [one.batch for one in made] == [16]
    assert graphs.captured == [(16, 1, 8, 8)]
    if name in ("lossvar", "spread"):
        assert graphs.replays == 3 * 2  # steps and batches; the pass with hooks, without gradients, is none of them
    assert graphs.replays > 1
    measure(name, run, tmp_path, batch=500)  # more than there are images
    assert [one.batch for one in made] == [16, 40 if name == "attacks" else 30]


# A real GPU


@pytest.fixture
def on_gpu(net, monkeypatch):
    """Return a network on a GPU, and the same network with graphs."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # as in every job
    model = net().to("cuda")
    return model, replayed(model, BATCH)


@GPU
@SIZES
def test_on_a_gpu_logits_and_gradients_agree_with_the_model(on_gpu, caplog, n, graph):
    model, other = on_gpu
    weight = torch.linspace(-1, 2, 10, device="cuda")
    batches = [images(n, seed=seed, dtype=torch.float32).cuda() for seed in range(3)]
    wanted, found = ([passes(one, x, weight) for x in batches] for one in (model, other))
    for theirs, ours in zip(wanted, found, strict=True):
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours[1], theirs[1], rtol=1e-3, atol=1e-4)
    assert len(other.graphs) == graph
    assert warnings(caplog) == []


@GPU
@ATTACKS
@SIZES
def test_on_a_gpu_attacks_agree_with_those_on_the_model(on_gpu, caplog, n, graph, attack):
    model, other = on_gpu
    for seed in range(3):
        x, y = examples(model, n, seed, "cuda")
        found, wanted = (attacked(one, x, y, attack, seed) for one in (other, model))
        assert ((found - wanted).abs() > 1e-4).float().mean() < 0.05  # rounding turns the sign of a gradient near 0
        with frozen(model):
            assert torch.equal(input_gradient(other, found, y).isfinite(), torch.ones_like(found, dtype=torch.bool))
    assert len(other.graphs) == graph
    assert warnings(caplog) == []


class Waiting(torch.nn.Module):
    """A network that looks at its values, which no graph can."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x if bool(x.sum() > -1e9) else -x)


@GPU
@ATTACKS
def test_on_a_gpu_a_network_that_cannot_be_captured_is_attacked_without_a_graph(on_gpu, caplog, attack):
    model = Classifier(on_gpu[0].normalise, Waiting(on_gpu[0].network)).eval()
    other = replayed(model, BATCH)
    x, y = examples(model, 8, device="cuda")
    for _ in range(2):
        found, wanted = (attacked(one, x, y, attack) for one in (other, model))
        assert ((found - wanted).abs() > 1e-4).float().mean() < 0.05
    assert len(warnings(caplog)) == 1
    assert other.graphs == {}
