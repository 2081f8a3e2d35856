"""User-defined architectures, which config.yaml names as importable callables."""

import importlib
from collections.abc import Mapping
from typing import Any, get_type_hints

from torch import nn


class ArchitectureError(ValueError):
    """A user-defined architecture cannot be imported, cannot be called, or does not return a network."""


def build_user_network(factory: Mapping[str, Any], classes: int) -> nn.Module:
    """Build a user-defined network by calling factory["callable"], "module:name".

    It is called with num_classes and the keyword arguments factory["arguments"]. Only a subclass of nn.Module, or a
    function annotated as returning one, is called: checkpoints name a callable too, and a checkpoint that could name
    any other importable callable could run commands. Raises ArchitectureError, naming the callable and the fix, if it
    cannot be imported or called, or is neither of the two.
    """
    path = factory["callable"]
    module, _, name = path.partition(":")
    where = f"config.yaml: architectures: callable {path!r}"
    try:
        target: Any = importlib.import_module(module)
        for part in name.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError) as error:
        raise ArchitectureError(f"{where} cannot be imported ({error}); install it, or correct the path") from error
    if not _makes_networks(target):
        fix = "name a subclass of nn.Module, or annotate the function with -> nn.Module"
        raise ArchitectureError(f"{where} is not declared to return an nn.Module; {fix}")
    try:
        network = target(num_classes=classes, **factory["arguments"])
    except TypeError as error:
        raise ArchitectureError(
            f"{where} cannot be called ({error}); it must take num_classes and the configured arguments"
        ) from error
    if not isinstance(network, nn.Module):
        raise ArchitectureError(
            f"{where} returned a {type(network).__name__}, not an nn.Module; use a callable that does"
        )
    return network


def _makes_networks(target: object) -> bool:
    """Return whether target is a subclass of nn.Module, or a function annotated as returning one."""
    try:
        returned = target if isinstance(target, type) else get_type_hints(target)["return"]
    except (AttributeError, KeyError, NameError, TypeError):
        return False
    return isinstance(returned, type) and issubclass(returned, nn.Module)
