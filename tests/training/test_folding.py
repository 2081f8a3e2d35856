"""Batch normalisation that is folded into convolutions leaves the network's results as they were."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from robreg.networks.build import build_network
from robreg.training.folding import fold_batch_norms


def evaluated(network):
    """Return a network in eval mode with statistics, weights and biases that are not those of a new one."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    return network.eval().requires_grad_(requires_grad=False)


def count(network):
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def folded(network):
    twin = copy.deepcopy(network)
    updates = fold_batch_norms(twin, next(twin.parameters()).dtype)
    for update in updates:
        update()
    return twin, updates


def compare(network, x):
    twin, updates = folded(network)
    results = []
    for one in (network, twin):
        point = x.clone().requires_grad_()
        logits = one(point)
        results.append((logits.detach(), *torch.autograd.grad(logits.square().sum(), point)))
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    return twin, updates


def test_a_bottleneck_network_has_none_left_and_the_same_gradient():
    network = build_network("wrn50", width=2, shape=(3, 16, 16), classes=5, mean=[0.5] * 3, std=[0.25] * 3)
    twin, updates = compare(evaluated(network).double(), torch.rand(2, 3, 16, 16, dtype=torch.float64))
    assert (count(network), count(twin), len(updates)) == (53, 0, 53)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_biases_and_parameters_may_be_there_or_not(bias, affine):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4, affine=affine), nn.ReLU(), nn.Flatten())
    twin, _ = compare(evaluated(network), torch.rand(2, 3, 8, 8))
    assert count(twin) == 0


class Branches(nn.Module):
    """Convolutions that batch normalisation follows, but must not be folded into."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        first = self.conv(x)
        if self.kind == "also read elsewhere":
            return self.norm(first) + first
        if self.kind == "called twice":
            return self.norm(self.conv(self.norm(first)))
        if self.kind == "weight of the convolution read":
            return self.norm(first) * self.conv.weight.sum()
        if self.kind == "weight of the normalisation read":
            return self.norm(first) * self.norm.weight.sum()
        if self.kind == "not before it":
            return self.norm(functional.relu(first))
        return self.norm(first) if bool(x.sum() > -1) else first  # cannot be traced


KINDS = ("also read elsewhere", "called twice", "not before it", "depends on values")
KINDS += ("weight of the convolution read", "weight of the normalisation read")


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_folded_stays(kind):
    twin, updates = compare(evaluated(Branches(kind)), torch.rand(2, 3, 8, 8))
    assert (count(twin), updates) == (1, [])


def test_without_running_statistics_it_stays():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    twin, updates = folded(network)
    assert count(twin) == 1
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(twin(x), network(x))
    assert updates == []


class Twice(nn.Module):
    """A normalisation that is registered under two names."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.again = self.norm
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), self.norm)

    def forward(self, x):
        return self.layers(x)


def test_a_normalisation_with_several_names_is_removed_under_all():
    twin, updates = compare(evaluated(Twice()), torch.rand(2, 3, 8, 8))
    assert (count(twin), len(updates)) == (0, 1)


def with_hook(network):
    network[0].register_forward_hook(lambda module, given, found: 2 * found)
    return network


def with_parametrisation(network):
    nn.utils.parametrizations.weight_norm(network[0])
    return network


@pytest.mark.parametrize("change", [with_hook, with_parametrisation])
def test_layers_that_do_more_than_their_class_stay(change):
    network = evaluated(change(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())))
    twin, updates = compare(network, torch.rand(2, 3, 8, 8))
    assert (count(twin), updates) == (1, [])


class Keeping(nn.Module):
    """A network that keeps what it has seen."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.kept = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), None

    def forward(self, x):
        self.kept = self.norm(self.conv(x))
        return self.kept


def test_finding_the_layers_leaves_network_and_random_numbers_as_they_were():
    network, state = evaluated(Keeping()), torch.random.get_rng_state()
    fold_batch_norms(network, torch.float32)
    assert network.kept is None
    assert torch.equal(torch.random.get_rng_state(), state)


def test_updates_follow_the_weights_and_statistics():
    network = evaluated(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    twin = copy.deepcopy(network)
    for copied, original in zip(
        [*twin.parameters(), *twin.buffers()], [*network.parameters(), *network.buffers()], strict=True
    ):
        copied.data = original.data
    updates = fold_batch_norms(twin, torch.float32)
    x = torch.rand(2, 3, 8, 8)
    for _ in range(2):
        for tensor in (network[0].weight, network[0].bias, network[1].weight, network[1].bias, network[1].running_mean):
            tensor.add_(0.1)
        network[1].running_var.mul_(1.5)
        for update in updates:
            update()
        torch.testing.assert_close(twin(x), network(x), rtol=1e-5, atol=1e-5)


def test_the_weights_have_the_type_that_is_asked_for_and_are_computed_in_float32():
    network = evaluated(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    twin = copy.deepcopy(network)
    (update,) = fold_batch_norms(twin, torch.bfloat16)
    update()
    factor = (network[1].running_var + network[1].eps).rsqrt() * network[1].weight
    assert torch.equal(twin[0].weight, (network[0].weight * factor.view(-1, 1, 1, 1)).to(torch.bfloat16))
    assert (twin[0].weight.dtype, twin[0].bias.dtype) == (torch.bfloat16, torch.float32)
