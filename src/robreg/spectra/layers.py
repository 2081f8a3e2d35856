"""The layers of a network that are linear maps, with the size of their inputs."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robreg.networks.frozen import frozen


@dataclass(frozen=True)
class Layer:
    """A linear map inside a network, with its input size: height = width = 1 for a linear layer."""

    name: str
    module: nn.Conv2d | nn.Linear
    height: int
    width: int

    @property
    def kind(self) -> str:
        """conv or linear."""
        return "conv" if isinstance(self.module, nn.Conv2d) else "linear"

    @property
    def kernel(self) -> Tensor:
        """The weight as (c_out, c_in, k, k)."""
        weight = self.module.weight.detach()
        return weight if weight.ndim == 4 else weight[:, :, None, None]

    @property
    def stride(self) -> int:
        """The stride, 1 for a linear layer."""
        return self.module.stride[0] if isinstance(self.module, nn.Conv2d) else 1

    def facts(self) -> dict[str, str | int]:
        """Return the columns that say which operator this is."""
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
    """List the convolutions and linear layers in the order in which one image of shape (C, H, W) passes them.

    Raises ValueError that names every layer whose operator this module does not treat, with the reason, and where the
    network cannot take such an image.
    """
    found: list[Layer] = []
    reasons = [
        f"layer {name}: {reason}" for name, module in model.named_modules() if (reason := _unsupported_module(module))
    ]

    def note(name: str, module: nn.Conv2d | nn.Linear, x: Tensor) -> None:
        height, width = (x.shape[2], x.shape[3]) if isinstance(module, nn.Conv2d) else (1, 1)
        if name in (layer.name for layer in found):
            reasons.append(f"layer {name}: the network calls it more than once; give every call a layer of its own")
        elif isinstance(module, nn.Linear) and x.ndim != 2:
            reasons.append(f"layer {name}: a linear layer needs one vector per image, not {tuple(x.shape[1:])}")
        found.append(Layer(name, module, height, width))

    hooks = [
        module.register_forward_pre_hook(lambda module, args, name=name: note(name, module, args[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    parameter = next(model.parameters())
    try:
        with torch.no_grad(), frozen(model):
            model(torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype))
    except RuntimeError as error:  # of torch: shapes that do not fit
        raise ValueError(
            f"the network cannot take an image of shape {shape} ({error}); use another, or a crop"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    reasons += [f"layer {layer.name}: {reason}" for layer in found if (reason := unsupported_layer(layer))]
    if reasons:
        raise ValueError("; ".join(dict.fromkeys(reasons)))
    return found


def _unsupported_module(module: nn.Module) -> str | None:
    """Say why a module that is neither convolution nor linear layer cannot be treated: it has a matrix of its own."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return None
    sizes = [parameter.shape for parameter in module.parameters(recurse=False)]
    for size in sizes:
        if sum(length > 1 for length in size) > 1:  # otherwise they are factors or offsets
            return f"{type(module).__name__} has weights {tuple(size)}, and only Conv2d and Linear are treated"
    return None


def unsupported_layer(layer: Layer) -> str | None:
    """Say why a layer's operator is not treated; None if it is."""
    module = layer.module
    if isinstance(module, nn.Linear):
        return None
    kernel, stride = module.kernel_size, module.stride
    if kernel[0] != kernel[1] or stride[0] != stride[1] or module.groups != 1 or module.dilation != (1, 1):
        return f"spectra need groups 1, dilation 1, a square kernel and stride, not {module}"
    named = {"valid": (0, 0), "same": (kernel[0] - 1, kernel[1] - 1)}  # before and behind together
    around = named[module.padding] if isinstance(module.padding, str) else [2 * pad for pad in module.padding]
    for size, pad in zip((layer.height, layer.width), around, strict=True):
        if size % layer.stride:
            return f"stride {layer.stride} does not divide its input size {size}"
        if (size + pad - kernel[0]) // layer.stride + 1 != size // layer.stride:
            return f"a circular operator needs padding that keeps the size, not {module}"
    return None
