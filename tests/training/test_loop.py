"""Training: it learns, it resumes bit-identically wherever it was killed, and it refuses states that do not fit."""

import copy
import re
import signal
import threading
from contextlib import contextmanager

import pytest
import torch
from helpers.no_waiting import NoWaiting
from helpers.trainings import CPU, SERVER, assert_same, kill_at, make_settings, run
from torch import nn

from robreg.attacks.pgd import draw_noise, pgd
from robreg.data import dataset, preparation
from robreg.networks import checkpoint
from robreg.networks.user_defined import ArchitectureError
from robreg.runs.settings import hash_settings
from robreg.runs.source_code import callable_code
from robreg.spectra import layers, singular_values, zero_padding
from robreg.tables import parquet, provenance
from robreg.training import epoch, loop
from robreg.training.resume import combine_codes
from robreg.training.step import TrainingStep


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory):
    return run(make_settings(), prepared, tmp_path_factory.mktemp("undisturbed"))


def test_training_reduces_the_adversarial_loss(prepared, tmp_path):
    _, history = run(make_settings(epochs=8, lr_drops=[6], batch_size=16), prepared, tmp_path)
    assert [row["epoch"] for row in history] == list(range(1, 9))
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    assert history[-1]["acc"] > 60
    assert [row["lr"] for row in history] == [0.1] * 6 + [0.01] * 2


class Waiting(NoWaiting):
    """Count the operations that wait for the device instead of raising."""

    count = 0

    def waits(self, name):
        self.count += 1


@pytest.mark.parametrize("augmentation", ["none", "crop-flip"])
def test_waits_for_the_device_do_not_grow_with_the_number_of_batches(augmentation, prepared):
    counts = []
    for size in (200, 10):
        settings = make_settings(batch_size=size, augmentation=augmentation, pad=int(augmentation != "none"))
        state = loop._initial_state(settings, prepared, CPU)
        with Waiting() as waiting:
            epoch.train_epoch(
                state,
                epoch.make_step(state, settings),
                settings,
                prepared.train_images,
                prepared.train_labels,
                stop=threading.Event(),
            )
        counts.append(waiting.count)
    assert counts[0] == counts[1] > 0


def test_a_second_run_is_bit_identical(prepared, undisturbed, tmp_path):
    assert_same(run(make_settings(), prepared, tmp_path), undisturbed)
    assert not (tmp_path / "resume.pt").exists()


def test_a_deterministic_run_is_deterministic_from_the_start_and_bit_identical_on_a_cpu(
    prepared, undisturbed, tmp_path, monkeypatch
):
    events = []

    @contextmanager
    def recorded(device, *, wanted):
        events.append((device, wanted))
        yield
        events.append("end")

    start = loop._initial_state
    monkeypatch.setattr(loop, "deterministic_algorithms", recorded)
    monkeypatch.setattr(loop, "_initial_state", lambda *given: events.append("start") or start(*given))
    assert_same(run(make_settings(deterministic=True), prepared, tmp_path), undisturbed)
    assert events == [(CPU, True), "start", "end"]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["meta"]["deterministic"] is True


@pytest.mark.parametrize(
    ("variant", "rates"), [("ar8", [0.1, 0.01]), ("ar8-fixup8", [0.1, 0.01]), ("ar8-resnet8nobias", [0.1])]
)
def test_fixup_s_scalars_and_the_last_bias_are_trained_at_a_tenth_of_the_rate(variant, rates, prepared, tmp_path):
    settings = make_settings(variant, epochs=2, lr_drops=[1])
    state = loop._initial_state(settings, prepared, CPU)
    for epoch_rates in (rates, [rate / 10 for rate in rates]):
        step = epoch.make_step(state, settings)
        before = {name: value.clone() for name, value in state.model.named_parameters()}
        state.history.append(
            epoch.train_epoch(
                state, step, settings, prepared.train_images, prepared.train_labels, stop=threading.Event()
            )
        )
        assert [group["lr"] for group in state.optimizer.param_groups] == pytest.approx(epoch_rates)
        assert state.history[-1]["lr"] == pytest.approx(epoch_rates[0])
    groups = [{weight.ndim for weight in group["params"]} for group in state.optimizer.param_groups]
    assert groups == ([{2, 4}, {0, 1}] if len(rates) > 1 else [{1, 2, 4}])
    assert sum(len(group["params"]) for group in state.optimizer.param_groups) == len(before)


def test_another_seed_gives_other_weights(prepared, undisturbed, tmp_path):
    weights, _ = run(make_settings("ar8-s1"), prepared, tmp_path)
    assert not torch.equal(weights["network.stem.weight"], undisturbed[0]["network.stem.weight"])


def test_training_does_not_change_the_global_random_state(prepared, tmp_path):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    run(make_settings(epochs=1), prepared, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


SERVER.set_forkserver_preload(["robreg.training.loop"])


# An epoch has 4 batches. torch.save is called at the start, after each of 3 epochs and for the checkpoint; fsync
# is also called for the history, and rename also for the lease, after each epoch.
@pytest.mark.parametrize(
    ("event", "count"),
    [
        *[("batch", count) for count in (1, 3, 5, 8, 12)],
        *[("before write", count) for count in (1, 2, 4, 5)],
        *[("inside write", count) for count in (1, 2, 3, 5, 6)],
        *[("after write", count) for count in (1, 2, 4, 5, 6, 7, 8, 9)],
    ],
)
def test_a_killed_run_resumes_bit_identically(event, count, source, prepared, undisturbed, tmp_path):
    assert kill_at(event, count, make_settings(), source, tmp_path) == -signal.SIGKILL
    assert_same(run(make_settings(), prepared, tmp_path), undisturbed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "history.parquet", "kept"]


def test_a_run_that_is_killed_several_times_resumes_bit_identically(source, prepared, undisturbed, tmp_path):
    for count in (2, 6, 5, 3):
        assert kill_at("batch", count, make_settings(), source, tmp_path) == -signal.SIGKILL
    assert_same(run(make_settings(), prepared, tmp_path), undisturbed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_deterministic_run_that_is_killed_resumes_bit_identically(source, prepared, tmp_path):
    gpu = torch.device("cuda")
    settings = make_settings(precision="bf16", compile=True, deterministic=True)
    undisturbed = run(settings, prepared, tmp_path / "undisturbed", gpu)
    _, meta = checkpoint.load_network(tmp_path / "undisturbed/checkpoint.pt")
    assert meta["step"] == "compiled, attack kernels, CUDA graph"
    assert_same(run(settings, prepared, tmp_path / "again", gpu), undisturbed)
    for count in (5, 6):  # in the second and third epoch; each has 4 batches
        assert kill_at("batch", count, settings, source, tmp_path / "killed", device=gpu) == -signal.SIGKILL
    assert_same(run(settings, prepared, tmp_path / "killed", gpu), undisturbed)


def test_finished_epochs_are_not_trained_again(source, prepared, tmp_path, monkeypatch):
    kill_at("batch", 10, make_settings(), source, tmp_path)  # in the third epoch of 4 batches each
    batches = []
    call = TrainingStep.__call__
    monkeypatch.setattr(TrainingStep, "__call__", lambda *args: (batches.append(1), call(*args))[1])
    run(make_settings(), prepared, tmp_path)
    assert len(batches) == 4


def test_sigterm_saves_and_stops(source, prepared, undisturbed, tmp_path):
    assert kill_at("batch", 6, make_settings(), source, tmp_path, signal.SIGTERM) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lease.json", "resume.pt"]
    assert len(torch.load(tmp_path / "resume.pt", weights_only=True)["history"]) == 1
    assert_same(run(make_settings(), prepared, tmp_path), undisturbed)


def test_sigterm_in_the_first_epoch_leaves_a_state_too(source, prepared, undisturbed, tmp_path):
    assert kill_at("batch", 1, make_settings(), source, tmp_path, signal.SIGTERM) == 7
    assert (tmp_path / "resume.pt").exists()
    assert_same(run(make_settings(), prepared, tmp_path), undisturbed)


def test_the_sigterm_handler_is_restored(prepared, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    run(make_settings(epochs=1), prepared, tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.05}, r"training\.lr was 0\.1, is 0\.05"),
        ({"epochs": 4}, r"training\.epochs was 3, is 4"),
        ({"weight_decay": 1e-4}, r"training\.weight_decay was 0\.0, is 0\.0001"),
    ],
)
def test_a_changed_setting_is_refused_by_name(change, message, source, prepared, tmp_path):
    kill_at("batch", 6, make_settings(), source, tmp_path)
    before = (tmp_path / "resume.pt").read_bytes()
    with pytest.raises(ValueError, match=message):
        run(make_settings(**change), prepared, tmp_path)
    assert (tmp_path / "resume.pt").read_bytes() == before


def test_changed_threads_and_changed_data_are_refused(source, prepared, tmp_path):
    kill_at("batch", 6, make_settings(), source, tmp_path)
    with pytest.raises(ValueError, match="threads was 1, is 2"):
        run({**make_settings(), "threads": 2}, prepared, tmp_path)
    other = copy.copy(prepared)
    object.__setattr__(other, "sha256", "0" * 64)
    with pytest.raises(ValueError, match="data_sha256 was"):
        run(make_settings(), other, tmp_path)


def test_another_version_of_torch_is_refused_by_name(source, prepared, tmp_path, monkeypatch):
    kill_at("batch", 6, make_settings(), source, tmp_path)
    monkeypatch.setattr(torch, "__version__", "2.99")
    with pytest.raises(ValueError, match=r"torch was \S+, is 2\.99"):
        run(make_settings(), prepared, tmp_path)


def test_a_checkpoint_records_neither_code_if_its_training_was_continued_with_another(
    source, prepared, tmp_path, monkeypatch
):
    kill_at("batch", 6, make_settings(), source, tmp_path)
    at_start = provenance.code_hash()
    monkeypatch.setattr(loop, "code_hash", lambda *_: "edited since")
    run(make_settings(), prepared, tmp_path)
    recorded = checkpoint.load_network(tmp_path / "checkpoint.pt")[1]["code_hash"]
    assert recorded == combine_codes(at_start, "edited since")
    assert recorded not in (at_start, "edited since")


def test_a_stride_that_does_not_divide_the_images_is_refused_only_with_a_bound(prepared, tmp_path):
    odd = copy.copy(prepared)
    for split in ("train_images", "test_images"):
        object.__setattr__(odd, split, getattr(prepared, split)[:, :, :7, :7])
    with pytest.raises(ValueError, match=r"layer \S+conv1: stride 2 does not divide its input size 7"):
        run(make_settings("ar8-sn1"), odd, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert loop._initial_state(make_settings(), odd, CPU).layers[3].operator == "zero-padded"


@pytest.mark.parametrize("keep", [0, 10, *(step / 20 for step in range(1, 20)), 0.99])
def test_a_damaged_state_is_refused_by_name(keep, source, prepared, tmp_path):
    kill_at("batch", 6, make_settings(), source, tmp_path)
    resume = tmp_path / "resume.pt"
    content = resume.read_bytes()
    resume.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"resume\.pt is damaged: delete it"):
        run(make_settings(), prepared, tmp_path)


@pytest.mark.parametrize("lost", ["model", "optimizer", "history", "code_hash", "weight", "bits", "momentum"])
def test_a_state_that_does_not_fit_is_refused_by_name(lost, source, prepared, tmp_path):
    kill_at("batch", 6, make_settings(), source, tmp_path)
    content = torch.load(tmp_path / "resume.pt", weights_only=True)
    if lost in content:
        del content[lost]
    elif lost == "weight":
        del content["model"]["network.stem.weight"]
    elif lost == "bits":
        content["model"]["network.stem.weight"] = content["model"]["network.stem.weight"].double()
    else:
        content["optimizer"]["param_groups"][0]["params"].pop()
    torch.save(content, tmp_path / "resume.pt")
    with pytest.raises(ValueError, match=r"resume\.pt is damaged: delete it"):
        run(make_settings(), prepared, tmp_path)


def half(saved):
    return saved["optimizer"]["state"][0]["momentum_buffer"].half()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda saved: saved["optimizer"]["param_groups"][0].update(maximize=True), "optimiser has other settings"),
        (lambda saved: saved["optimizer"]["param_groups"][0].update(weight_decay=0.1), "optimiser has other settings"),
        (lambda saved: saved["optimizer"]["param_groups"][0].update(lr=0.5), "optimiser has other settings"),
        (lambda saved: saved["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(3)), "momenta of other"),
        (lambda saved: saved["optimizer"]["state"][0]["momentum_buffer"].fill_(torch.inf), "optimiser holds values"),
        (lambda saved: saved["optimizer"]["state"][0].update(momentum_buffer=half(saved)), "momenta of other"),
        (lambda saved: saved["model"]["network.stem.weight"].fill_(torch.nan), "network.stem.weight holds values"),
        (lambda saved: saved["model"].update({"more": torch.zeros(3)}), "its weights have other names"),
        (lambda saved: saved["model"].update({"network.linear.bias": torch.zeros(3)}), "bias has another shape"),
        (lambda saved: saved.update(more=torch.zeros(1).expand(10**5, 10**5)), "repeats its values"),
        (lambda saved: saved.update(history=saved["history"] * 9), "not that of at most 3 epochs"),
        (lambda saved: saved.update(history=saved["history"] * 2), "row 2 of its history is not that of epoch 2"),
        (lambda saved: saved["history"][0].update(lr=0.5), "row 1 of its history"),
        (lambda saved: saved["history"][0].update(loss=torch.inf), "row 1 of its history"),
        (lambda saved: saved["history"][0].update(sigma_max=[1.0]), "row 1 of its history"),
        (lambda saved: saved["history"][0].update(more=1), "row 1 of its history"),
        (lambda saved: saved.update(code_hash=3), "is not text"),
    ],
)
def test_a_state_that_no_training_with_these_settings_left_is_refused(change, reason, source, prepared, tmp_path):
    kill_at("batch", 6, make_settings(), source, tmp_path)
    content = torch.load(tmp_path / "resume.pt", weights_only=True)
    assert len(content["history"]) == 1
    change(content)
    torch.save(content, tmp_path / "resume.pt")
    before = (tmp_path / "resume.pt").read_bytes()
    with pytest.raises(ValueError, match=rf"resume\.pt is damaged: delete it .*{reason}"):
        run(make_settings(), prepared, tmp_path)
    assert (tmp_path / "resume.pt").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_before_anything_is_saved(prepared, tmp_path):
    with pytest.raises(epoch.DivergedError, match=r"epoch 1, batch \d+: .* at lr 1e\+30"):
        run(make_settings(lr=1e30), prepared, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lease.json", "resume.pt"]
    assert torch.load(tmp_path / "resume.pt", weights_only=True)["history"] == []


def test_the_first_bad_batch_is_named(prepared, tmp_path, monkeypatch):
    call, calls = TrainingStep.__call__, []

    def broken(*args):
        loss, logits = call(*args)
        calls.append(1)
        return loss * float("nan") if len(calls) == 7 else loss, logits  # the third batch of the second epoch

    monkeypatch.setattr(TrainingStep, "__call__", broken)
    with pytest.raises(epoch.DivergedError, match=r"epoch 2, batch 3: loss nan at lr 0\.1"):
        run(make_settings(), prepared, tmp_path)
    assert len(torch.load(tmp_path / "resume.pt", weights_only=True)["history"]) == 1


def batch(variant, prepared, n, generator):
    """Return a batch of n training images, its adversarial examples, and a network with a random last layer."""
    settings = make_settings(variant)
    state = loop._initial_state(settings, prepared, CPU)
    torch.nn.init.normal_(state.model.network.linear.weight, generator=torch.Generator().manual_seed(0))
    x, noise = epoch.prepare_batch(prepared.train_images[:n], settings, generator)
    return x, epoch.make_step(state, settings).adversarial(x, prepared.train_labels[:n], noise), state.model


def test_training_attacks_with_the_public_pgd(prepared):
    x, found, model = batch("ar16", prepared, 32, torch.Generator().manual_seed(5))
    noise = draw_noise(x, torch.Generator().manual_seed(5))
    wanted = pgd(model, x, prepared.train_labels[:32], eps=16 / 255, step=4 / 255, steps=10, noise=noise)
    assert torch.equal(found, wanted)
    assert (found - x).abs().max() > 0.9 * 16 / 255


def test_standard_training_sees_clean_images(prepared):
    _, found, _ = batch("ar0", prepared, 8, torch.Generator())
    assert torch.equal(found, dataset.to_float(prepared.train_images[:8]))


def test_training_in_symmetric_space_is_that_in_pixels_at_half_the_radius(prepared, tmp_path):
    symmetric = run(make_settings("ar16-symmetric", epochs=1), prepared, tmp_path / "symmetric")
    assert_same(symmetric, run(make_settings("ar8", epochs=1), prepared, tmp_path / "pixel"))
    other, _ = run(make_settings("ar16", epochs=1), prepared, tmp_path / "other")
    assert not torch.equal(other["network.stem.weight"], symmetric[0]["network.stem.weight"])


@pytest.mark.parametrize(
    ("variant", "equal"),
    [("ar8-evalnormspace", True), ("ar8-clean0.5", False), ("ar8-resnet8nobias", False)],
)
def test_only_what_changes_the_training_changes_the_network(variant, equal, prepared, undisturbed, tmp_path):
    weights, _ = run(make_settings(variant), prepared, tmp_path)
    assert torch.equal(weights["network.stem.weight"], undisturbed[0]["network.stem.weight"]) == equal


def test_a_network_with_biases_has_no_dead_channel_after_an_epoch_on_the_digits(tmp_path):
    spec = {"kind": "digits", "source": None, "max_train": None, "max_test": None, "subset_seed": 0}
    preparation.prepare(spec, data_root=tmp_path, out=tmp_path / "digits")
    digits = dataset.load_dataset(tmp_path / "digits")
    for variant, dead in (("ar8", [0, 0, 0]), ("ar8-fixup8", [0, 0, 0]), ("ar8-resnet8nobias", [0, 16, 48])):
        weights, _ = run(make_settings(variant, epochs=1, lr_drops=[]), digits, tmp_path / variant)
        found = [weights[f"network.stages.{stage}.0.conv2.weight"].flatten(1) for stage in range(3)]
        assert [int((rows == 0).all(1).sum()) for rows in found] == dead
        scalars = [float(value) for name, value in weights.items() if value.ndim == 0]
        assert len(scalars) == {"ar8": 14, "ar8-fixup8": 17, "ar8-resnet8nobias": 0}[variant]
        assert all(value not in (0, 1) for value in scalars)


@pytest.mark.parametrize("variant", ["ar16-fgsm", "ar16-normspace"])
def test_other_training_attacks_reach_and_respect_their_radius(variant, prepared):
    x, found, model = batch(variant, prepared, 32, torch.Generator().manual_seed(0))
    radius = 16 / 255 * (model.normalise.std if "normspace" in variant else 1)
    distance = (found - x).abs().max()
    assert 0.9 * radius < distance <= radius + 1e-6


def test_every_epoch_and_seed_has_its_own_permutation():
    orders = [epoch.epoch_randomness(0, number, 100, CPU)[0].tolist() for number in (1, 2)] + [
        epoch.epoch_randomness(1, 1, 100, CPU)[0].tolist()
    ]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize(("number", "lr"), [(1, 0.05), (100, 0.05), (101, 0.005), (150, 0.005), (151, 0.0005)])
def test_the_paper_s_learning_rate(number, lr):
    assert epoch.learning_rate({"lr": 0.05, "lr_factor": 10.0, "lr_drops": [100, 150]}, number) == pytest.approx(lr)


def test_a_checkpoint_and_its_history_identify_their_run(prepared, tmp_path):
    run(make_settings("ar8-s1", epochs=1), prepared, tmp_path)
    model, meta = checkpoint.load_network(tmp_path / "checkpoint.pt")
    assert (meta["dataset"], meta["variant"], meta["seed"], meta["arch"]) == ("digits", "ar8-s1", 1, "resnet8")
    assert meta["settings_hash"] == hash_settings(make_settings("ar8-s1", epochs=1))
    assert not model.training
    history = parquet.read_metadata(tmp_path / "history.parquet")
    assert {key: history[key] for key in ("dataset", "variant", "seed", "version", "settings_hash")} == {
        key: meta[key] for key in ("dataset", "variant", "seed", "version", "settings_hash")
    }


def test_a_bound_holds_after_every_epoch_and_in_the_checkpoint(prepared, tmp_path):
    settings = make_settings("ar8-sn0.5")
    _, history = run(settings, prepared, tmp_path)
    model, meta = checkpoint.load_network(tmp_path / "checkpoint.pt")
    found = layers.list_layers(model, tuple(meta["shape"]))
    norms = []  # as the network applies the layers
    for one in found:
        sigma, count = singular_values.circular_singular_values(one.kernel, one.height, one.width, one.stride)
        circular = singular_values.summarise_spectrum(sigma, count)
        norms.append(zero_padding.compare_with_circular(one, circular, dense=10**6)["max_zero"])
    assert [len(row["sigma_max"]) for row in history] == [len(found)] * 3
    assert max(max(row["sigma_max"]) for row in history) <= 0.5
    assert max(norms) <= 0.5 * (1 + 1e-6)
    assert all(norm <= above * (1 + 1e-6) for norm, above in zip(norms, history[-1]["sigma_max"], strict=True))
    assert max(history[-1]["sigma_max"]) > 0.499  # the bound is reached
    assert max(norms) > 0.45


def test_without_a_bound_no_norm_is_recorded(undisturbed):
    assert [row["sigma_max"] for row in undisturbed[1]] == [None] * 3


def test_one_clipping_round_records_the_norms_that_it_leaves_above_the_bound(prepared, tmp_path):
    _, history = run(make_settings("ar8-sn0.5", clip_rounds=1), prepared, tmp_path)
    assert 0.5 < max(history[-1]["sigma_max"]) < 0.8


def test_a_killed_run_with_a_bound_resumes_bit_identically(source, prepared, tmp_path):
    whole = run(make_settings("ar8-sn1"), prepared, tmp_path / "whole")
    assert kill_at("batch", 6, make_settings("ar8-sn1"), source, tmp_path) == -signal.SIGKILL
    assert_same(run(make_settings("ar8-sn1"), prepared, tmp_path), whole)


class Normed(nn.Module):
    """A small user-defined network with batch normalisation and dropout."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(8, num_classes)

    def forward(self, x):
        return self.linear(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


def normed(variant="ar8"):
    return make_settings(variant) | {"arch": "normed", "factory": factory("Normed")}


def factory(name):
    target = f"{__name__}:{name}"
    return {"callable": target, "arguments": {}, "code": callable_code(target)}


class Masked(Normed):
    """A network with a buffer that a checkpoint could not hold."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.register_buffer("mask", self.make())

    @staticmethod
    def make():
        return torch.full((3,), -torch.inf)


class Expanded(Masked):
    @staticmethod
    def make():
        return torch.zeros(1).expand(10)


class Counting(Normed):
    """A network with more in its state than tensors."""

    def get_extra_state(self):
        return {"count": 1}

    def set_extra_state(self, state):
        pass


class Growing(Normed):
    """A network whose additional state is a tensor that grows with every step."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.seen = []

    def forward(self, x):
        self.seen += [1.0] * self.training
        return super().forward(x)

    def get_extra_state(self):
        return torch.tensor(self.seen)

    def set_extra_state(self, state):
        self.seen = state.tolist()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Masked", "network.mask in state_dict() holds values that are not finite"),
        ("Expanded", "network.mask in state_dict() repeats the values of a smaller tensor"),
        ("Counting", "network._extra_state in state_dict() is a dict, and only tensors are saved"),
    ],
)
def test_a_network_that_no_checkpoint_can_hold_is_refused_before_training(name, reason, prepared, tmp_path):
    settings = make_settings() | {"arch": name.lower(), "factory": factory(name)}
    with pytest.raises(ArchitectureError, match=re.escape(f"{name.lower()}: {reason}")):
        run(settings, prepared, tmp_path)
    assert not (tmp_path / "resume.pt").exists()


def test_a_network_whose_additional_state_grows_can_be_resumed(source, prepared, tmp_path):
    settings = make_settings() | {"arch": "growing", "factory": factory("Growing")}
    kill_at("batch", 6, settings, source, tmp_path)
    run(settings, prepared, tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]["network._extra_state"]
    assert len(state) == 12  # three epochs of four batches


class Reflecting(Normed):
    """A network whose convolution pads with a reflection of its input."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.conv.padding_mode = "reflect"


@pytest.mark.parametrize(("rounds", "refused"), [("exact", True), (1, False)])
def test_a_layer_that_no_bound_is_known_for_is_refused_before_training(rounds, refused, prepared):
    settings = make_settings("ar8-sn1", clip_rounds=rounds) | {"arch": "reflecting", "factory": factory("Reflecting")}
    if refused:
        with pytest.raises(ValueError, match=r"layer network\.conv: with padding_mode 'reflect' no bound is known"):
            loop._initial_state(settings, prepared, CPU)
    else:
        loop._initial_state(settings, prepared, CPU)


def test_attacks_do_not_change_running_statistics_but_training_does(prepared):
    state = loop._initial_state(normed(), prepared, CPU)
    before = copy.deepcopy(state.model.state_dict())
    generator = torch.Generator().manual_seed(0)
    state.model.train()
    x, noise = epoch.prepare_batch(prepared.train_images[:16], normed(), generator)
    y, step = prepared.train_labels[:16], epoch.make_step(state, normed())
    step.adversarial(x, y, noise)
    assert all(torch.equal(value, before[key]) for key, value in state.model.state_dict().items())
    assert state.model.network.norm.training
    step(x, y, noise)
    assert int(state.model.network.norm.num_batches_tracked) == 1
    assert not torch.equal(state.model.network.norm.running_mean, before["network.norm.running_mean"])


def test_a_network_with_dropout_resumes_bit_identically(prepared, tmp_path):
    whole = run(normed(), prepared, tmp_path / "whole")
    broken = tmp_path / "broken"
    broken.mkdir()
    train_epoch = epoch.train_epoch

    def stopping(state, *arguments, **keywords):
        if len(state.history) == 2:
            raise KeyboardInterrupt
        return train_epoch(state, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_epoch", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(normed(), prepared, broken)
    torch.rand(3)  # change the state of the global generator
    assert_same(run(normed(), prepared, broken), whole)


def test_images_are_cropped_to_the_crop_size_in_training(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 12, 12), dtype=torch.uint8, generator=generator)
    settings = make_settings("ar0")
    settings["training"] |= {"augmentation": "resized-crop-flip"}
    settings["data"] |= {"crop": 8}
    x, noise = epoch.prepare_batch(images, settings, generator)
    assert x.shape == (6, 3, 8, 8)
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
    assert noise is None
