"""Fold batch normalisation into the convolutions before it, for passes in which its statistics do not change."""

import copy
import logging
from collections import Counter
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


def _find_pairs(network: nn.Module) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Yield every convolution with the batch normalisation that alone reads its result, each called once."""
    modules = dict(network.named_modules(remove_duplicate=False))
    with torch.random.fork_rng():
        graph = fx.Tracer().trace(copy.deepcopy(network))  # which runs the network's code
    calls = [node for node in graph.nodes if node.op == "call_module"]
    called = Counter(id(modules[str(node.target)]) for node in calls)
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for node in calls:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        conv, norm = modules[str(source.target)], modules[str(node.target)]
        names = {name for name, module in modules.items() if module is conv or module is norm}
        alone = called[id(conv)] == called[id(norm)] == 1 and not names & read
        if alone and type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and _is_plain(conv) and _is_plain(norm):
            yield conv, norm


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module does what its class does: it has no hooks, and its running statistics, if any."""
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return not hooked and (not isinstance(module, nn.BatchNorm2d) or module.running_mean is not None)


def _fold(network: nn.Module, conv: nn.Conv2d, norm: nn.BatchNorm2d, dtype: torch.dtype) -> Callable[[], None]:
    weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
    conv.weight = nn.Parameter(torch.empty_like(weight, dtype=dtype), requires_grad=False)
    conv.bias = nn.Parameter(torch.empty_like(cast(Tensor, norm.running_mean)), requires_grad=False)
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):  # named_children would give one of its names only
            if child is norm:
                parent._modules[name] = nn.Identity()
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
