"""Architectures of the user's own, which config.yaml names as importable callables."""

import importlib
from collections.abc import Mapping
from typing import Any, get_type_hints

from torch import nn


class ArchitectureError(ValueError):
    """A user's architecture that cannot be imported, called or used."""


def build_user_network(factory: Mapping[str, Any], classes: int) -> nn.Module:
    """Build a user's network: factory["callable"], "module:name", called with num_classes and factory["arguments"].

    Nothing is called but a class of nn.Module or a function that says that it returns one: a checkpoint names its
    callable, too, and anything else that can be imported could be made to run a command. Raises FactoryError, naming
    the callable and the mend, where it cannot be imported or called, or is neither.
    """
    path = factory["callable"]
    module, _, name = path.partition(":")
    where = f"config.yaml: architectures: callable {path!r}"
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ArchitectureError(f"{where} cannot be imported ({error}); install it, or correct the path") from error
    if not _makes_networks(found):
        mend = "name a class of nn.Module, or annotate the function: -> nn.Module"
        raise ArchitectureError(f"{where} does not say that it makes an nn.Module; {mend}")
    try:
        network = found(num_classes=classes, **factory["arguments"])
    except TypeError as error:
        raise ArchitectureError(
            f"{where} cannot be called ({error}); it must take num_classes and the arguments"
        ) from error
    if not isinstance(network, nn.Module):
        raise ArchitectureError(f"{where} returned a {type(network).__name__}, not an nn.Module; name one that does")
    return network


def _makes_networks(found: object) -> bool:
    try:
        made = found if isinstance(found, type) else get_type_hints(found)["return"]
    except (AttributeError, KeyError, NameError, TypeError):
        return False
    return isinstance(made, type) and issubclass(made, nn.Module)
