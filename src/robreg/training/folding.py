"""Fold batch normalisation into the convolutions before it, for passes in which its statistics do not change."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import torch
from torch import Tensor, fx, nn

log = logging.getLogger(__name__)


def fold_batch_norms(network: nn.Module, dtype: torch.dtype) -> list[Callable[[], None]]:
    """Remove every batch normalisation that alone reads the result of a convolution; return functions that fold it.

    The network must be in eval mode and need no gradients of its weights. The convolutions get weights of their own, of
    this dtype, and biases. Each function that is returned computes those of one convolution from the tensors that it
    and the batch normalisation had; call them before the network is used, and again after these tensors have changed.
    A network that torch.fx cannot trace keeps its layers.
    """
    try:
        pairs = list(_find_pairs(network))
    except Exception as error:
        log.info("batch normalisation is not folded: the network cannot be traced (%s)", type(error).__name__)
        return []
    return [_fold(network, *pair, dtype) for pair in pairs]


def _find_pairs(network: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the names of every convolution and of the batch normalisation that alone reads its result."""
    graph = fx.Tracer().trace(network)
    calls = [node for node in graph.nodes if node.op == "call_module"]
    once = {node.target for node in calls if [other.target for other in calls].count(node.target) == 1}
    for node in calls:
        source = node.args[0] if node.args else None
        if not isinstance(network.get_submodule(node.target), nn.BatchNorm2d) or not isinstance(source, fx.Node):
            continue
        alone = source.op == "call_module" and len(source.users) == 1 and {node.target, source.target} <= once
        if alone and isinstance(network.get_submodule(str(source.target)), nn.Conv2d):
            yield str(source.target), str(node.target)


def _fold(network: nn.Module, conv_name: str, norm_name: str, dtype: torch.dtype) -> Callable[[], None]:
    conv, norm = (
        cast(nn.Conv2d, network.get_submodule(conv_name)),
        cast(nn.BatchNorm2d, network.get_submodule(norm_name)),
    )
    weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
    if norm.running_mean is None:
        return lambda: None  # it normalises by the batch, and stays
    conv.weight = nn.Parameter(torch.empty_like(weight, dtype=dtype), requires_grad=False)
    conv.bias = nn.Parameter(torch.empty_like(norm.running_mean), requires_grad=False)
    parent, _, name = norm_name.rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    return partial(_update, conv.weight, conv.bias, weight, bias, norm)


@torch.no_grad()
def _update(weight: Tensor, bias: Tensor, before: Tensor, bias_before: Tensor | None, norm: nn.BatchNorm2d) -> None:
    """Compute a convolution's weight and bias from those that it had, and from the batch normalisation after it."""
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    factor = (variance + norm.eps).rsqrt()
    factor = factor * norm.weight if norm.affine else factor
    shift = (-mean if bias_before is None else bias_before - mean) * factor
    weight.copy_(before * factor.view(-1, 1, 1, 1))
    bias.copy_(shift + norm.bias if norm.affine else shift)
