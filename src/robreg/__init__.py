"""Experiments on how adversarial robustness regularises neural networks (an ICML 2020 paper), and extensions of them.

This module offers what a notebook needs: load a trained network, attack it, measure its margins and singular values,
and read the results. Each subpackage covers one topic, which its docstring describes.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robreg.attacks.apgd import apgd
    from robreg.attacks.pgd import pgd
    from robreg.measures.margins import margins
    from robreg.networks.checkpoint import load_network as load
    from robreg.spectra.singular_values import singular_values
    from robreg.tables.results import read_results as read

__version__ = "0.1.0"
__all__ = ["apgd", "load", "margins", "pgd", "read", "singular_values"]

_LOCATIONS = {  # public name: (module, function)
    "apgd": ("robreg.attacks.apgd", "apgd"),
    "load": ("robreg.networks.checkpoint", "load_network"),
    "margins": ("robreg.measures.margins", "margins"),
    "pgd": ("robreg.attacks.pgd", "pgd"),
    "read": ("robreg.tables.results", "read_results"),
    "singular_values": ("robreg.spectra.singular_values", "singular_values"),
}


def __getattr__(name: str) -> object:
    """Import a public function on first use, because importing torch takes seconds that not every caller needs."""
    if name not in _LOCATIONS:
        raise AttributeError(f"module 'robreg' has no attribute {name!r}; its functions are {', '.join(__all__)}")
    module, function = _LOCATIONS[name]
    globals()[name] = attribute = getattr(import_module(module), function)
    return attribute


def __dir__() -> list[str]:
    """List the public functions, including those that are not imported yet."""
    return sorted([*__all__, "__version__"])
