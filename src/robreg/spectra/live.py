"""The live part of a layer: without output channels of zeros, and without input channels that training never used.

A residual network without biases has channels that are 0 for every image. The weights that would fill them are zeros.
The weights that read them never get a gradient and keep their random initial values, which a spectrum counts as well.
"""

import copy
import logging

import torch
from torch import Tensor, nn

from robreg.spectra.layers import Layer, first_input

log = logging.getLogger(__name__)

_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d)
_CENTRING = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)  # they subtract means of their input


def dead_rows(kernel: Tensor) -> Tensor:
    """Return which output channels of a kernel (c_out, c_in, k, k) have only zeros: (c_out,) bool."""
    return (kernel == 0).flatten(1).all(1)


def frozen_columns(kernel: Tensor, initial: Tensor, reachable: Tensor) -> Tensor:
    """Return which input channels of a kernel (c_out, c_in, k, k) training never used: (c_in,) bool.

    These are the channels whose weights all equal the initial ones to the bit, and those that are not reachable (see
    reachable_inputs), whose weights may have changed without a gradient: by weight decay, or in a projection onto a
    bound. Not found is a channel that is reachable, was 0 for every training image, and whose weights changed so.
    """
    unchanged = (kernel == initial).transpose(0, 1).flatten(1).all(1)
    return unchanged | ~reachable.to(kernel.device)


def live_part(kernel: Tensor, frozen: Tensor) -> Tensor:
    """Return a kernel without dead rows and frozen columns: (live rows, live columns, k, k), perhaps with none."""
    return kernel[~dead_rows(kernel)][:, ~frozen]


def reachable_inputs(network: nn.Module, layers: list[Layer], shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Return, for each layer's name, which of its input channels an image can make other than 0: (c_in,) bool.

    network: what follows the normalisation; layers: its layers (see list_layers); shape: of an image, (C, H, W).
    A channel is reachable if a path of nonzero weights leads to it, from the image or from a bias. To find out, an
    image of ones passes through a copy of the network whose nonzero weights are replaced by positive ones, so that
    nothing cancels and no ReLU blocks. Networks with layers that subtract means of their input are not examined: all
    their channels count as reachable, and so do those of attention's matrices, and all channels of a network that
    cannot compute in float64, which the log says.
    """
    everything = {layer.name: torch.ones(layer.input_channels, dtype=torch.bool) for layer in layers}
    try:
        return everything | _reached(network, layers, shape)
    except RuntimeError as error:
        log.warning("all input channels count as live: a copy of the network in float64 fails (%s)", error)
        return everything


@torch.no_grad()
def _reached(network: nn.Module, layers: list[Layer], shape: tuple[int, ...]) -> dict[str, Tensor]:
    names = {layer.module: layer.name for layer in layers}
    copied = copy.deepcopy(network).cpu().double().eval()
    found: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, x: Tensor) -> None:
        channels = x.flatten(0, -2) if isinstance(module, nn.Linear) else x.transpose(0, 1).flatten(1).T
        found[name] = (channels != 0).any(0) | found.get(name, torch.tensor(data=False))

    for original, module in zip(network.modules(), copied.modules(), strict=True):
        if isinstance(module, _CENTRING) or (isinstance(module, _BATCH_NORM) and not module.track_running_stats):
            return {}
        if isinstance(module, _BATCH_NORM):
            module.reset_running_stats()
        for parameter in module.parameters(recurse=False):
            inputs = parameter[:1].numel() if parameter.ndim else 1
            parameter.copy_((parameter != 0) / max(1, inputs))  # the mean of the inputs, so no overflow
        if original in names:
            module.register_forward_pre_hook(
                lambda module, args, kwargs, name=names[original]: note(name, module, first_input(args, kwargs)),
                with_kwargs=True,
            )
    copied(torch.ones(1, *shape, dtype=torch.float64))
    return found
