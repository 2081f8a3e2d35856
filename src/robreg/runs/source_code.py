"""Identify code by what it does: comments, docstrings and formatting do not count."""

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

OWN_PACKAGE = __name__.partition(".")[0]
_COVERED = {OWN_PACKAGE, "torch"}  # by the checkpoint's code_hash and by its version of torch
_DIGITS = 16  # of a hash, in hexadecimal
_SKIPPED_FIELDS = ("type_comment", "kind")


@cache
def hash_code(source: bytes) -> str:
    """Hash Python source code without its comments, docstrings and formatting; equal in every version of Python.

    Raises SyntaxError, or ValueError for null bytes, if it is not Python.
    """
    return hashlib.sha256(repr(_essence(ast.parse(source))).encode()).hexdigest()[:_DIGITS]


def _essence(value: Any) -> Any:  # noqa: ANN401 - of a node of a syntax tree
    """Turn a syntax tree into nested tuples, without docstrings and what only some versions of Python record."""
    if isinstance(value, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
        value, clean=False
    ):
        value.body = value.body[1:]
    if isinstance(value, ast.AST):
        fields = ((name, field) for name, field in ast.iter_fields(value) if name not in _SKIPPED_FIELDS)
        used = tuple((name, _essence(field)) for name, field in fields if field is not None and field != [])
        return type(value).__name__, used
    return [_essence(one) for one in value] if isinstance(value, list) else value


@cache
def callable_code(target: str) -> dict[str, str]:
    """Identify the code behind a callable "module:name": its module, and what that imports, directly or not.

    Returns the hash of every module of the user, and the version of every installed package, by name. Modules are found
    without being run, so imports that a module computes are not seen. Raises ModuleNotFoundError if the module does not
    exist, and SyntaxError or ValueError if a module is not Python.
    """
    start = target.partition(":")[0]
    if _find(start) is None:
        raise ModuleNotFoundError(f"No module named {start!r}", name=start)
    code, to_visit, visited = dict[str, str](), [*_with_parents(start)], set[str]()
    while to_visit:
        name = to_visit.pop()
        top = name.partition(".")[0]
        if name in visited or top in _COVERED:
            continue
        visited.add(name)
        spec = _find(name)
        if spec is None or spec.origin is None or _is_standard(spec.origin):
            continue  # an attribute that is imported from a module, an optional module, or a package without __init__
        file = Path(spec.origin)
        if version := _installed_version(top, file):
            code[top] = version
        elif file.suffix != ".py":
            code[name] = hashlib.sha256(file.read_bytes()).hexdigest()[:_DIGITS]
        else:
            source = file.read_bytes()
            code[name] = hash_code(source)
            to_visit += _imported(ast.parse(source), name if spec.submodule_search_locations else _parent(name))
    return dict(sorted(code.items()))


def describe_changes(target: str, recorded: Mapping[str, str]) -> str:
    """Describe how the code behind a callable differs from what callable_code recorded; "" if it does not."""
    try:
        code = callable_code(target)
    except (ModuleNotFoundError, SyntaxError, ValueError, RecursionError, MemoryError) as error:  # deeply nested code
        return f"{target} cannot be read ({error})"
    changed = [name for name in sorted({*recorded, *code}) if recorded.get(name) != code.get(name)]
    return ", ".join(_describe_change(name, recorded.get(name), code.get(name)) for name in changed)


def _describe_change(name: str, old: str | None, new: str | None) -> str:
    if old is None or new is None:
        return f"{name} was {'removed from' if new is None else 'added to'} what it imports"
    is_version = "." in old or "." in new
    return f"{name} was {old}, is {new}" if is_version else f"{name} was edited"


def _parent(module: str) -> str:
    return module.rpartition(".")[0]


def _with_parents(module: str) -> Iterator[str]:
    """Yield "a", "a.b" and "a.b.c" for "a.b.c": importing the last runs all of them."""
    parts = module.split(".")
    yield from (".".join(parts[: depth + 1]) for depth in range(len(parts)))


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield the names that may be modules in the import statements of a module of `package`, at any level."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from _with_parents(source)
            yield from (f"{source}.{alias.name}" for alias in node.names)


def _find(module: str) -> ModuleSpec | None:
    """Find a module without importing it or its parents, which importlib.util.find_spec would do."""
    *parents, last = module.split(".")
    places: list[str] | None = None
    for parent in parents:
        spec = _find_in(parent, places)
        if spec is None or spec.submodule_search_locations is None:
            return None
        places = list(spec.submodule_search_locations)
    return _find_in(last, places)


def _find_in(name: str, places: list[str] | None) -> ModuleSpec | None:
    """Find a module by the last part of its name; places: the folders of its package, or None for a top-level module.

    With its full name, a package without __init__.py would be looked up among the modules that are imported already.
    """
    finders: Iterable[Any] = sys.meta_path if places is None else (PathFinder,)
    specs = (finder.find_spec(name, places) for finder in finders if hasattr(finder, "find_spec"))
    return next((spec for spec in specs if spec is not None), None)


def _is_standard(origin: str) -> bool:
    """Return whether a module is part of Python; a user's module may have the name of one."""
    file = Path(origin).resolve()
    return origin in ("built-in", "frozen") or (
        _is_in(file, "stdlib", "platstdlib") and not _is_installed(file) and "dist-packages" not in file.parts
    )


def _is_installed(file: Path) -> bool:
    return _is_in(file, "purelib", "platlib")


def _is_in(file: Path, *kinds: str) -> bool:
    """Return whether a file is in one of this Python's folders, which sysconfig names."""
    paths = sysconfig.get_paths()
    return any(file.resolve().is_relative_to(Path(paths[kind]).resolve()) for kind in kinds)


def _installed_version(top: str, file: Path) -> str | None:
    """Return the version of the installed package that a file belongs to; None if the file is the user's own."""
    if not _is_installed(file):
        return None
    try:
        return metadata.version(top)
    except metadata.PackageNotFoundError:
        names = metadata.packages_distributions().get(top)
        return metadata.version(names[0]) if names else None
