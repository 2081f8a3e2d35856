"""The convolutions and linear layers of a network, with the sizes of their inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robreg.networks.frozen import frozen


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a network, with its input size (height = width = 1 for a linear layer)."""

    name: str
    module: nn.Conv2d | nn.Linear
    height: int
    width: int

    @property
    def kind(self) -> str:
        """The kind of layer, "conv" or "linear"."""
        return "conv" if isinstance(self.module, nn.Conv2d) else "linear"

    @property
    def kernel(self) -> Tensor:
        """The weight as (c_out, c_in, k, k), with k = 1 for a linear layer."""
        weight = self.module.weight.detach()
        return weight if weight.ndim == 4 else weight[:, :, None, None]

    @property
    def stride(self) -> int:
        """The stride, which is 1 for a linear layer."""
        return self.module.stride[0] if isinstance(self.module, nn.Conv2d) else 1

    def facts(self) -> dict[str, str | int]:
        """Return the table columns that describe the layer's operator."""
        c_out, c_in, kernel, _ = self.kernel.shape
        return {
            "name": self.name,
            "kind": self.kind,
            "c_in": c_in,
            "c_out": c_out,
            "kernel": kernel,
            "stride": self.stride,
            "height": self.height,
            "width": self.width,
        }


def list_layers(model: nn.Module, shape: tuple[int, ...]) -> list[Layer]:
    """List the convolutions and linear layers in the order in which an image of shape (C, H, W) passes through them.

    Raises ValueError if the network cannot take such an image, or if it has layers whose operators are not supported;
    the message names every such layer and the reason.
    """
    layers: list[Layer] = []
    reasons = [
        f"layer {name}: {reason}" for name, module in model.named_modules() if (reason := _unsupported_module(module))
    ]

    def add_layer(name: str, module: nn.Conv2d | nn.Linear, x: Tensor) -> None:
        height, width = (x.shape[2], x.shape[3]) if isinstance(module, nn.Conv2d) else (1, 1)
        if name in (layer.name for layer in layers):
            reasons.append(f"layer {name}: the network calls it more than once; use a separate layer for each call")
        elif isinstance(module, nn.Linear) and x.ndim != 2:
            reasons.append(f"layer {name}: a linear layer needs one vector per image, not {tuple(x.shape[1:])}")
        layers.append(Layer(name, module, height, width))

    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: add_layer(name, module, args[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    parameter = next(model.parameters())
    try:
        with torch.no_grad(), frozen(model):
            model(torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype))
    except RuntimeError as error:  # torch raises this if the shapes do not fit
        raise ValueError(
            f"the network cannot take an image of shape {shape} ({error}); use another architecture or crop"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    reasons += [f"layer {layer.name}: {reason}" for layer in layers if (reason := unsupported_layer(layer))]
    if reasons:
        raise ValueError("; ".join(dict.fromkeys(reasons)))
    return layers


def _unsupported_module(module: nn.Module) -> str | None:
    """Return why a module that is not a Conv2d or Linear is unsupported (it has its own weight matrix), else None."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return None
    sizes = [parameter.shape for parameter in module.parameters(recurse=False)]
    for size in sizes:
        if sum(length > 1 for length in size) > 1:  # otherwise the parameter only scales or shifts
            return f"{type(module).__name__} has weights {tuple(size)}, but only Conv2d and Linear are supported"
    return None


def unsupported_layer(layer: Layer) -> str | None:
    """Return why a layer's operator is not supported, or None if it is supported."""
    module = layer.module
    if isinstance(module, nn.Linear):
        return None
    kernel, stride = module.kernel_size, module.stride
    if kernel[0] != kernel[1] or stride[0] != stride[1] or module.groups != 1 or module.dilation != (1, 1):
        return f"spectra need groups 1, dilation 1, a square kernel and equal strides, not {module}"
    named = {"valid": (0, 0), "same": (kernel[0] - 1, kernel[1] - 1)}  # padding of both sides together
    around = named[module.padding] if isinstance(module.padding, str) else [2 * pad for pad in module.padding]
    for size, pad in zip((layer.height, layer.width), around, strict=True):
        if size % layer.stride:
            return f"stride {layer.stride} does not divide its input size {size}"
        if (size + pad - kernel[0]) // layer.stride + 1 != size // layer.stride:
            return f"a circular operator needs padding that keeps the size, not {module}"
    return None
