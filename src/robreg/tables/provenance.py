"""Where a table comes from: the metadata of its run, and the code that its numbers depend on."""

import ast
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from robreg.runs.source_code import hash_code

PACKAGE = Path(__file__).parents[1]
COMPUTING = ("data", "networks", "attacks", "spectra", "training", "measures")  # folders that affect a run's numbers
TRAINING = ("training.loop", "data.preparation")  # import, directly or not, all code that affects the weights
# These affect no number: they say who trains a run, keep what was trained, and estimate how long it takes.
_NO_EFFECT = ("training.lease", "training.kept", "training.estimate")
_RUN_KEYS = ("dataset", "variant", "seed", "version", "settings_hash")
_SETTINGS = ("arch", "ar", "spectral_norm", "space")  # which the name of the run states, or its data set's defaults


def run_metadata(meta: Mapping[str, Any], **measure: object) -> dict[str, Any]:
    """Return the metadata of a table of a run: what identifies the run, how it was trained, and what was measured how.

    meta: the metadata of the run's checkpoint; measure: the settings of the measure. Besides the run's name they are
    its architecture, strength (1/255), bound on the layers, and the space of its radii, as far as the checkpoint says.
    """
    settings = json.loads(meta.get("settings", "{}"))
    trained = {key: settings[key] for key in _SETTINGS if key in settings}
    return {**{key: meta[key] for key in _RUN_KEYS}, **trained, **measure}


def code_files(*modules: str, folders: Collection[str] | None) -> list[str]:
    """List the files of the given modules and of everything that they import from this package, directly or not.

    modules: without the package's name, such as "measures.margins"; folders: the folders of the package to follow
    imports into, without modules that affect no number, or None for everything. Returns sorted paths relative to the
    package, such as "measures/margins.py".
    """
    found, to_visit = set[str](), list(modules)
    while to_visit:
        module = to_visit.pop()
        if module not in found and (folders is None or _computes(module, folders)):
            found.add(module)
            to_visit += _imported_modules(module)
    return sorted(_module_path(module).relative_to(PACKAGE).as_posix() for module in found)


def _computes(module: str, folders: Collection[str]) -> bool:
    return module.partition(".")[0] in folders and module not in _NO_EFFECT


def code_hash(factory: Mapping[str, Any] | None = None) -> str:
    """Hash the code that affects a network's weights, so that it can be told later whether it has changed.

    Comments, docstrings and formatting do not count. factory: the settings of a user-defined architecture, whose "code"
    (see callable_code) counts too.
    """
    own = factory.get("code", {}) if factory else {}
    package = {file: hash_code((PACKAGE / file).read_bytes()) for file in code_files(*TRAINING, folders=COMPUTING)}
    return _hash_texts([f"{name} {code}" for name, code in [*package.items(), *own.items()]])


def history_hash(rows: Iterable[Mapping[str, Any]]) -> str:
    """Hash the rows of a training's history, without their times, which differ between two equal trainings."""
    kept = [{key: value for key, value in row.items() if key not in ("seconds", "examples_per_s")} for row in rows]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def package_hash() -> str:
    """Hash the names and the code of all modules of this package."""
    files = sorted(PACKAGE.rglob("*.py"))
    return _hash_texts([f"{file.relative_to(PACKAGE).as_posix()} {hash_code(file.read_bytes())}" for file in files])


def _hash_texts(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _module_path(module: str) -> Path:
    return PACKAGE / f"{module.replace('.', '/')}.py"


@cache
def _imported_modules(module: str) -> tuple[str, ...]:
    """List the modules of the package that a module imports at any level, also inside functions.

    Imports from the package itself are left out, because it defines only the version.
    """
    found = []
    for node in ast.walk(ast.parse(_module_path(module).read_bytes())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE.name}."):
            source = str(node.module).removeprefix(f"{PACKAGE.name}.")
            found += [source] if _module_path(source).exists() else [f"{source}.{alias.name}" for alias in node.names]
    return tuple(found)
