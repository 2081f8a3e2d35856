"""A network that cannot be trained is refused before its first epoch, and trying it changes no result."""

import copy
import logging
import random

import numpy as np
import pytest
import torch
from helpers.trainings import CPU, assert_same, kill_at, make_settings, run
from torch import nn

from robreg.networks.user_defined import ArchitectureError
from robreg.runs.source_code import callable_code
from robreg.training import loop
from robreg.training.epoch import split_batches

EXPECTED = "it must return logits (batch, classes)"


class Plain(nn.Module):
    """A network with batch normalisation of the whole image's features, and dropout."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(8, num_classes)

    def forward(self, x):
        return self.linear(self.drop(self.norm(self.conv(x).relu().mean((2, 3)))))


class Pair(Plain):
    def forward(self, x):
        return super().forward(x), x


class PairInTraining(Plain):
    def forward(self, x):
        return (super().forward(x), x) if self.training else super().forward(x)


class Outputs(Plain):
    def __init__(self, num_classes):
        super().__init__(1000)


class Flat(Plain):
    def forward(self, x):
        return super().forward(x).flatten()


class Whole(Plain):
    def forward(self, x):
        return super().forward(x).long()


class Infinite(Plain):
    def forward(self, x):
        return super().forward(x) / 0


class Detached(Plain):
    def forward(self, x):
        return super().forward(x.detach())


class WithoutGradients(Plain):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class Constant(Plain):
    def forward(self, x):
        weights = [weight.detach() for weight in self.parameters()]
        return x.flatten(1)[:, :10] + sum(weight.sum() for weight in weights)


class Failing(Plain):
    def forward(self, x):
        return super().forward(x) if not self.training else self.linear(x.flatten(1))


class Squeezing(nn.Module):
    """A network without batch normalisation, which drops the dimension of a single image."""

    def __init__(self, num_classes):
        super().__init__()
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.linear(x.flatten(1)).squeeze()


class Convolutional(Plain):
    """A network whose batch normalisation can compute with the pixels of a single image."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return self.linear(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


def chosen(network, variant="ar8", **training):
    target = f"{__name__}:{network.__name__}"
    factory = {"callable": target, "arguments": {}, "code": callable_code(target)}
    return make_settings(variant, **training) | {"arch": network.__name__.lower(), "factory": factory}


def first(data, n):
    """Return the data set with its first n training images."""
    part = copy.copy(data)
    for name in ("train_images", "train_labels"):
        object.__setattr__(part, name, getattr(data, name)[:n])
    return part


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Pair, f"pair: in evaluation mode, the network returned a tuple; {EXPECTED}"),
        (PairInTraining, f"pairintraining: in training mode, the network returned a tuple; {EXPECTED}"),
        (
            Outputs,
            "outputs: in evaluation mode, the network returned 1000 outputs per image, but the data have 10 classes; "
            f"{EXPECTED}",
        ),
        (Flat, f"flat: in evaluation mode, the network returned a tensor (80,) for 8 images; {EXPECTED}"),
        (Whole, f"whole: in evaluation mode, the network returned torch.int64; {EXPECTED} as floats"),
        (
            Infinite,
            "infinite: in evaluation mode, the network returned logits that are not finite; look for a division by "
            "zero, a logarithm of zero, or initial weights that are too large",
        ),
        *(
            (
                network,
                f"{network.__name__.lower()}: in evaluation mode, no gradient of the logits reaches the images, so "
                "that no attack is possible; remove detach(), torch.no_grad() and conversions to other types from "
                "forward",
            )
            for network in (Detached, WithoutGradients)
        ),
        (
            Constant,
            "constant: in training mode, no gradient reaches a weight of the network; give it weights to train",
        ),
        (
            Failing,
            "failing: in training mode, the network cannot compute with images (8, 1, 8, 8) (RuntimeError: mat1 and "
            "mat2 shapes cannot be multiplied (8x64 and 8x10))",
        ),
    ],
)
@pytest.mark.parametrize("variant", ["ar0", "ar8"])
def test_a_network_that_cannot_be_trained_is_refused_before_its_training(network, message, variant, prepared, tmp_path):
    with pytest.raises(ArchitectureError) as caught:
        run(chosen(network, variant), prepared, tmp_path)
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


def random_states():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.mark.parametrize("n", [64, 65])
@pytest.mark.parametrize("network", [Plain, Convolutional])
def test_the_trial_changes_neither_the_network_nor_any_random_state(network, n, prepared):
    settings = chosen(network, batch_size=32)
    model = loop._build(settings, prepared)
    model.network.drop.eval()  # a mode that a user has chosen
    before = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()], random_states()
    loop.try_batch(model, settings, first(prepared, n))
    assert all(torch.equal(value, before[0][name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in model.parameters())
    assert [module.training for module in model.modules()] == before[1]
    assert random_states() == before[2]


@pytest.mark.parametrize("network", [Plain, Convolutional])
def test_a_training_has_the_same_bits_with_and_without_a_trial(network, prepared, tmp_path, monkeypatch):
    settings = chosen(network)
    tried = run(settings, prepared, tmp_path / "tried")
    monkeypatch.setattr(loop, "try_batch", lambda *_: False)
    assert_same(run(settings, prepared, tmp_path / "untried"), tried)


def test_a_single_last_image_joins_the_batch_before_it_if_batch_normalisation_needs_more(prepared, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    _, history = run(chosen(Plain, batch_size=32), first(prepared, 65), tmp_path)
    assert len(history) == 3
    assert "the last image of an epoch joins the batch before it" in caplog.text


@pytest.mark.parametrize(
    ("network", "variant", "n", "size", "joins"),
    [
        (Plain, "ar8", 65, 32, True),
        (Plain, "ar8", 64, 32, False),
        (Plain, "ar8", 66, 32, False),
        (Plain, "ar8-clean0.5", 65, 32, False),  # the image and its adversarial example are two
        (Plain, "ar8-clean0.5", 3, 1, False),
        (Convolutional, "ar8", 65, 32, False),  # has been trained so before
    ],
)
def test_an_image_joins_the_batch_before_it_only_where_no_training_was_possible(
    network, variant, n, size, joins, prepared
):
    settings = chosen(network, variant, batch_size=size)
    assert loop._initial_state(settings, first(prepared, n), CPU).joins_last == joins


def test_the_joined_batches_are_those_of_before_but_for_the_last():
    order = torch.randperm(65, generator=torch.Generator().manual_seed(0))
    batches = split_batches(order, 32, joins_last=True)
    assert [len(batch) for batch in batches] == [32, 33]
    assert torch.equal(torch.cat(batches), order)
    assert [len(batch) for batch in split_batches(order, 32, joins_last=False)] == [32, 32, 1]
    assert [len(batch) for batch in split_batches(order[:64], 32, joins_last=True)] == [32, 32]
    assert [len(batch) for batch in split_batches(order[:1], 32, joins_last=True)] == [1]


def test_a_training_whose_last_image_joins_a_batch_resumes_bit_identically(tmp_path, prepared, source):
    settings = chosen(Plain, batch_size=199)  # of 200 images
    whole = run(settings, prepared, tmp_path / "whole")
    assert kill_at("batch", 2, settings, source, tmp_path / "killed") != 0
    assert (tmp_path / "killed/resume.pt").exists()
    assert_same(run(settings, prepared, tmp_path / "killed"), whole)


@pytest.mark.parametrize(("n", "size"), [(65, 1), (1, 32)])
def test_batch_normalisation_with_batches_of_one_image_is_refused_before_training(n, size, prepared):
    with pytest.raises(ArchitectureError) as caught:
        loop._initial_state(chosen(Plain, batch_size=size), first(prepared, n), CPU)
    assert str(caught.value) == (
        "plain: in training mode, batch normalisation cannot be trained with a single image; give a larger "
        "training.batch_size, or more training images"
    )


def test_a_single_last_image_that_fails_for_another_reason_is_refused_before_training(prepared):
    with pytest.raises(ArchitectureError) as caught:
        loop._initial_state(chosen(Squeezing, batch_size=32), first(prepared, 65), CPU)
    assert str(caught.value) == (
        "squeezing: in the last batch of an epoch, of one image, the network returned a tensor (10,) for 1 images; "
        f"{EXPECTED}"
    )
