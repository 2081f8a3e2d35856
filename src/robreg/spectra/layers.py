"""The layers of a network that apply a matrix or a convolution, with the sizes of their inputs, and its other parts."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robreg.networks.frozen import frozen

TransposedConvolution = nn.ConvTranspose1d | nn.ConvTranspose2d
Convolution = nn.Conv1d | nn.Conv2d | TransposedConvolution
LinearMap = Convolution | nn.Linear
_FORWARDS = {kind.forward for kind in (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)}
Size = tuple[int, int]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a network, with the size of its input.

    name: in the network, where a matrix of nn.MultiheadAttention has the name of its part (query, key, value,
    out_proj); height, width: of the images that a convolution gets, height = 1 for a Conv1d; a linear layer has height
    = the vectors (tokens) of one image and width = 1; output: of what a transposed convolution returned, None for the
    size that follows from its settings; calls: how often one image passes through the layer; other_sizes: sizes of the
    inputs that differ from the first one's.
    """

    name: str
    module: LinearMap
    height: int
    width: int
    output: Size | None = None
    calls: int = 1
    other_sizes: tuple[Size, ...] = ()

    @property
    def kind(self) -> str:
        """The kind of layer: "conv", "transposed" (convolution) or "linear"."""
        if isinstance(self.module, nn.Linear):
            return "linear"
        return "transposed" if isinstance(self.module, TransposedConvolution) else "conv"

    @property
    def kernels(self) -> Tensor:
        """The weights of every group, (g, c_out / g, c_in / g, kh, kw), with kh = kw = 1 for a linear layer."""
        weight = self.module.weight.detach()
        weight = weight.view(*weight.shape[:2], *[1] * (4 - weight.ndim), *weight.shape[2:])
        grouped = weight.unflatten(0, (self.groups, -1))
        return grouped.transpose(1, 2) if self.kind == "transposed" else grouped

    @property
    def kernel(self) -> Tensor:
        """The weights as (c_out, c_in / g, kh, kw)."""
        return self.kernels.flatten(0, 1)

    @property
    def groups(self) -> int:
        """The number of groups of channels that do not mix, which is 1 for a linear layer."""
        return 1 if isinstance(self.module, nn.Linear) else self.module.groups

    @property
    def input_channels(self) -> int:
        """The number of input channels, c_in."""
        return self.groups * self.kernels.shape[2]

    @property
    def strides(self) -> Size:
        """The strides along height and width, which are 1 for a linear layer."""
        return (1, 1) if isinstance(self.module, nn.Linear) else _pair(self.module.stride, 1)

    @property
    def stride(self) -> int:
        """The stride along the height."""
        return self.strides[0]

    @property
    def dilation(self) -> Size:
        """The distances between the taps of a kernel along height and width."""
        return (1, 1) if isinstance(self.module, nn.Linear) else _pair(self.module.dilation, 1)

    @property
    def operator(self) -> str:
        """The linear map whose singular values are measured.

        "matrix": of a linear layer; "circular": of a convolution whose padding keeps the size of the image, but for a
        stride that divides it, as in the paper; otherwise what the network applies: "zero-padded", or "reflect-padded",
        "replicate-padded" or "circular-padded" if a convolution pads so.
        """
        if isinstance(self.module, nn.Linear):
            return "matrix"
        axes = list(zip((self.height, self.width), self.output_size, self.strides, strict=True))
        if self.kind == "conv" and all(size % stride == 0 and out == size // stride for size, out, stride in axes):
            return "circular"
        mode = "zero" if self.module.padding_mode == "zeros" or not any(self._padding()) else self.module.padding_mode
        return f"{mode}-padded"

    @property
    def output_size(self) -> Size:
        """The height and width of the output, (0, 0) or less if the input is too small."""
        if isinstance(self.module, nn.Linear):
            return self.height, self.width
        axes = list(zip((self.height, self.width), self._reach(), self._padding(), self.strides, strict=True))
        if not isinstance(self.module, TransposedConvolution):
            height, width = ((size + pad - reach - 1) // stride + 1 for size, reach, pad, stride in axes)
            return height, width
        if self.output is not None:
            return self.output
        more = _pair(self.module.output_padding, 0)
        height, width = (one + add for one, add in zip(self._transposed_size(), more, strict=True))
        return height, width

    def _transposed_size(self) -> Size:
        """Return the size of a transposed convolution's output without output padding."""
        axes = zip((self.height, self.width), self._reach(), self._padding(), self.strides, strict=True)
        height, width = ((size - 1) * stride + reach + 1 - pad for size, reach, pad, stride in axes)
        return height, width

    def _reach(self) -> Size:
        """Return the distances between the first and the last tap of a convolution's kernel."""
        height, width = (step * (taps - 1) for step, taps in zip(self.dilation, self.kernels.shape[3:], strict=True))
        return height, width

    def _padding(self) -> Size:
        """Return the padding of a convolution, both sides together."""
        assert not isinstance(self.module, nn.Linear)
        if isinstance(self.module.padding, str):
            return self._reach() if self.module.padding == "same" else (0, 0)
        height, width = _pair(self.module.padding, 0)
        return 2 * height, 2 * width

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input of a convolution, (c_in, H, W), or (c_in, W) for a convolution of sequences."""
        sizes = (self.width,) if isinstance(self.module, nn.Conv1d | nn.ConvTranspose1d) else (self.height, self.width)
        return (self.input_channels, *sizes)

    def with_kernels(self, kernels: Tensor) -> "Layer":
        """Return this layer with other weights (g, c_out / g, c_in / g, kh, kw) of its kernel size, without a bias."""
        groups, c_out, c_in = kernels.shape[:3]
        old, new = self.module, dict[str, Any](bias=False, device="meta")  # "meta": no random weights are drawn
        if isinstance(old, nn.Linear):
            module: LinearMap = nn.Linear(c_in, c_out, **new)
            weight = kernels[0, :, :, 0, 0]
        else:
            new |= {key: getattr(old, key) for key in ("kernel_size", "stride", "dilation", "padding", "padding_mode")}
            if isinstance(old, TransposedConvolution):
                more = zip(self.output_size, self._transposed_size(), strict=True)
                new["output_padding"] = tuple(out - least for out, least in more)[-len(old.kernel_size) :]
            kind = next(kind for kind in Convolution.__args__ if isinstance(old, kind))
            module = kind(groups * c_in, groups * c_out, groups=groups, **new)
            weight = (kernels.transpose(1, 2) if self.kind == "transposed" else kernels).flatten(0, 1)
            weight = weight if len(old.kernel_size) == 2 else weight[:, :, 0]
        module.weight = nn.Parameter(weight, requires_grad=False)
        return replace(self, module=module)

    def facts(self) -> dict[str, str | int]:
        """Return the table columns that describe the layer's operator."""
        groups, c_out, c_in, height, width = self.kernels.shape
        return {
            "name": self.name,
            "kind": self.kind,
            "c_in": groups * c_in,
            "c_out": groups * c_out,
            "kernel": height,
            "stride": self.strides[0],
            "height": self.height,
            "width": self.width,
            "kernel_width": width,
            "stride_width": self.strides[1],
            "groups": groups,
            "calls": self.calls,
            "rows": groups * c_out * math.prod(self.output_size),
            "columns": groups * c_in * self.height * self.width,
            "operator": self.operator,
        }


def _pair(values: tuple[int, ...], first: int) -> Size:
    """Return a setting of a convolution along height and width; first: what a convolution of sequences lacks."""
    return (first, values[0]) if len(values) == 1 else (values[0], values[1])


def list_layers(model: nn.Module, shape: tuple[int, ...]) -> list[Layer]:
    """List the convolutions and linear layers in the order in which an image of shape (C, H, W) passes through them.

    A layer that the network calls several times is listed once; the matrices of nn.MultiheadAttention are listed as
    linear layers. Layers through which no image passes in evaluation are left out, and so is what unmeasured names.
    Raises ValueError if the network cannot take such an image.
    """
    found: dict[str, Layer] = {}

    def note(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:  # noqa: ANN401
        for layer in _called(name, module, args, kwargs, output):
            if (known := found.get(layer.name)) is None:
                found[layer.name] = layer
                continue
            sizes = dict.fromkeys((*known.other_sizes, (layer.height, layer.width)))
            others = tuple(size for size in sizes if size != (known.height, known.width))
            found[layer.name] = replace(known, calls=known.calls + layer.calls, other_sizes=others)

    hooks = [
        module.register_forward_hook(
            lambda module, args, kwargs, output, name=name: note(name, module, args, kwargs, output), with_kwargs=True
        )
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention) or is_linear_map(module)
    ]
    parameter = next(model.parameters())
    try:
        with torch.no_grad(), frozen(model):
            model(torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype))
    except Exception as error:  # torch raises RuntimeError if shapes do not fit; a user's network may raise anything
        raise ValueError(
            f"the network cannot take an image of shape {shape} ({error}); "
            "use another architecture, give it the number of channels, or set crop"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.values())


def is_linear_map(module: nn.Module) -> bool:
    """Return whether a module is a convolution or a linear layer that applies its weights as torch's own do."""
    return isinstance(module, LinearMap) and type(module).forward in _FORWARDS


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the input of a convolution or linear layer from the arguments that it was called with."""
    return args[0] if args else kwargs["input"]


def _called(
    name: str,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    output: Any,  # noqa: ANN401
) -> Iterator[Layer]:
    """Yield the layers that a call of a module on one image applies."""
    if isinstance(module, nn.MultiheadAttention):
        names = ("query", "key", "value")
        inputs = {**dict(zip(names, args, strict=False)), **kwargs}
        own = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        weights = module.in_proj_weight.chunk(3) if module.in_proj_weight is not None else own
        for part, weight in zip(names, weights, strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
            yield Layer(f"{name}.{part}", linear, _vectors(inputs[part]), 1)
        yield Layer(f"{name}.out_proj", module.out_proj, _vectors(inputs["query"]), 1)
        return
    x = first_input(args, kwargs)
    if isinstance(module, nn.Linear):
        yield Layer(name, module, _vectors(x), 1)
    elif isinstance(module, Convolution):
        spatial = len(module.kernel_size)
        images = len(x) if x.ndim == spatial + 2 else 1  # of one image, if a network cuts it into pieces
        height, width = _pair(tuple(x.shape[-spatial:]), 1)
        size = _pair(tuple(output.shape[-spatial:]), 1) if isinstance(module, TransposedConvolution) else None
        yield Layer(name, module, height, width, size, images)


def _vectors(x: Tensor) -> int:
    return x.numel() // x.shape[-1]


def unmeasured(model: nn.Module) -> dict[str, str]:
    """Return, by name, why modules of a network have no singular values of their own, or parameters that have none."""
    reasons: dict[str, str] = {}
    computed: set[nn.Module] = set()  # parametrisations, from which the weights of measured layers are computed
    for name, module in model.named_modules():
        if is_linear_map(module):
            if parametrize.is_parametrized(module):
                computed |= set(module.parametrizations.children())
        elif module not in computed and (reason := _unmeasured_module(module)):
            reasons[name] = reason
    return reasons


def _unmeasured_module(module: nn.Module) -> str | None:
    kind = type(module).__name__
    if isinstance(module, nn.MultiheadAttention):
        return f"{kind} weights its tokens by what the image shows, so only its four matrices are measured"
    if isinstance(module, nn.GLU):
        return f"{kind} multiplies features of the image with each other, so it is not linear"
    if isinstance(module, LinearMap):
        return f"{kind} has a forward of its own, so it is not known how it applies its weights"
    for name, parameter in module.named_parameters(recurse=False):
        if sum(length > 1 for length in parameter.shape) > 1:  # otherwise the parameter only scales or shifts
            return f"{kind} has {name} {tuple(parameter.shape)}, and it is not known how it is applied"
    return None
