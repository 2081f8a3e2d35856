"""How adversarial robustness regularises neural networks: the experiments of an ICML 2020 paper, and what extends them.

What a notebook needs is here: load a trained network, attack it, measure its margins and singular values, read the
results. Each folder of the package holds one idea, and its own docstring says which.
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

_HOMES = {
    "apgd": ("robreg.attacks.apgd", "apgd"),
    "load": ("robreg.networks.checkpoint", "load_network"),
    "margins": ("robreg.measures.margins", "margins"),
    "pgd": ("robreg.attacks.pgd", "pgd"),
    "read": ("robreg.tables.results", "read_results"),
    "singular_values": ("robreg.spectra.singular_values", "singular_values"),
}


def __getattr__(name: str) -> object:
    """Import a public function when it is first used: importing torch takes seconds that not everybody needs."""
    if name not in _HOMES:
        raise AttributeError(f"module 'robreg' has no attribute {name!r}; its functions are {', '.join(__all__)}")
    module, function = _HOMES[name]
    globals()[name] = found = getattr(import_module(module), function)
    return found


def __dir__() -> list[str]:
    """List the public functions, though they are not imported yet."""
    return sorted({*globals(), *__all__})
