"""User-defined architectures, which config.yaml names as importable callables."""

import importlib
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, get_type_hints

from torch import nn


class ArchitectureError(ValueError):
    """A user-defined architecture cannot be imported, cannot be called, or does not return a network."""


def build_user_network(factory: Mapping[str, Any], classes: int) -> nn.Module:
    """Build a user-defined network by calling factory["callable"], "module:name".

    It is called with the keyword arguments factory["arguments"], and with num_classes unless they contain it. Raises
    ArchitectureError, naming the callable and the fix, if find_callable does, or if it cannot be called or returns no
    network.
    """
    where = _where(factory)
    try:
        network = find_callable(factory)(**{"num_classes": classes, **factory["arguments"]})
    except TypeError as error:
        raise ArchitectureError(_describe_bad_call(where, error)) from error
    if not isinstance(network, nn.Module):
        raise ArchitectureError(
            f"{where} returned a {type(network).__name__}, not an nn.Module; use a callable that does"
        )
    return network


def find_callable(factory: Mapping[str, Any]) -> Callable[..., Any]:
    """Import factory["callable"], without calling it.

    Only a subclass of nn.Module, or a function annotated as returning one, is accepted: checkpoints name a callable
    too, and a checkpoint that could name any other importable callable could run commands. Raises ArchitectureError,
    naming the callable and the fix, if it cannot be imported, is neither of the two, or does not take its arguments.
    """
    module, _, name = factory["callable"].partition(":")
    where = _where(factory)
    try:
        target: Any = importlib.import_module(module)
        for part in name.split("."):
            target = getattr(target, part)
    except Exception as error:  # a user's module may raise anything when it is imported
        raise ArchitectureError(
            f"{where} cannot be imported ({error}); install it, put its file beside the Snakefile, or correct the path"
        ) from error
    if not _makes_networks(target):
        fix = "name a subclass of nn.Module, or annotate the function with -> nn.Module"
        raise ArchitectureError(f"{where} is not declared to return an nn.Module; {fix}")
    try:
        signature(target).bind(**{"num_classes": 2, **factory["arguments"]})
    except TypeError as error:
        raise ArchitectureError(_describe_bad_call(where, error)) from error
    except ValueError:
        return target  # without a signature, only a call can tell
    return target


def _where(factory: Mapping[str, Any]) -> str:
    block = "pretrained" if "normalises" in factory else "architectures"
    return f"config.yaml: {block}: callable {factory['callable']!r}"


def _describe_bad_call(where: str, error: TypeError) -> str:
    return f"{where} cannot be called ({error}); it must take num_classes and the configured arguments"


def _makes_networks(target: object) -> bool:
    """Return whether target is a subclass of nn.Module, or a function annotated as returning one."""
    try:
        returned = target if isinstance(target, type) else get_type_hints(target)["return"]
    except (AttributeError, KeyError, NameError, TypeError):
        return False
    return isinstance(returned, type) and issubclass(returned, nn.Module)
