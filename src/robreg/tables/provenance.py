"""Where a table comes from: the metadata of its run, and the code that decides its numbers."""

import ast
import hashlib
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
COMPUTING = ("data", "networks", "attacks", "spectra", "training", "measures")  # folders that decide a run's numbers
TRAINING = "training.loop"  # the module that everything which decides the weights is imported from
_METADATA = ("dataset", "variant", "seed", "version", "settings_hash")


def run_metadata(meta: Mapping[str, Any], **measure: object) -> dict[str, Any]:
    """Say what every table of a run carries: whose it is, from its checkpoint's meta data, and how it was measured."""
    return {**{key: meta[key] for key in _METADATA}, **measure}


def code_files(*modules: str, folders: Collection[str] | None) -> list[str]:
    """List the files of modules and of all that they import from this package, directly or not, sorted.

    modules: without the package's name, as in "measures.margins". folders: only what lies in these counts; None counts
    all of the package. Returns paths relative to the package's folder, as in "measures/margins.py".
    """
    found, left = set[str](), list(modules)
    while left:
        module = left.pop()
        if module not in found and (folders is None or module.partition(".")[0] in folders):
            found.add(module)
            left += _imports(module)
    return sorted(_file(module).relative_to(PACKAGE).as_posix() for module in found)


def code_hash() -> str:
    """Hash the modules that decide a network's weights, so that a report can say whether they changed since."""
    return _hash(code_files(TRAINING, folders=COMPUTING))


def package_hash() -> str:
    """Hash all of this package's modules, by name and content."""
    return _hash(sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")))


def _hash(files: Collection[str]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.encode() + b"\0" + (PACKAGE / file).read_bytes() + b"\0")
    return digest.hexdigest()


def _file(module: str) -> Path:
    return PACKAGE / f"{module.replace('.', '/')}.py"


@cache
def _imports(module: str) -> tuple[str, ...]:
    """List the package's modules that a module imports, wherever in it; the package itself has only its version."""
    found = []
    for node in ast.walk(ast.parse(_file(module).read_bytes())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE.name}."):
            source = str(node.module).removeprefix(f"{PACKAGE.name}.")
            found += [source] if _file(source).exists() else [f"{source}.{alias.name}" for alias in node.names]
    return tuple(found)
