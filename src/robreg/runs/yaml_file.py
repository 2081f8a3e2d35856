"""Check that a configuration file is YAML, before Snakemake reads it."""

from pathlib import Path
from typing import Any

import yaml

from robreg.runs.settings import ConfigError

RECURSIVE_OR_DEEP = "a value contains itself or is nested too deeply; write it without aliases and with less nesting"
_CONTEXTS = {  # what PyYAML was reading, in other words
    "while parsing a flow sequence": "list [...]",
    "while parsing a flow mapping": "block {...}",
    "while parsing a block mapping": "block",
    "while parsing a block collection": "list",
    "while scanning a quoted scalar": "text in quotes",
}
MAX_VALUES = 100_000  # in a file, counting what aliases repeat: a few lines can stand for any number of values


def check_yaml_file(file: Path) -> None:
    """Check that a file is YAML and gives no key twice in one mapping: YAML would silently drop the first value.

    This runs before Snakemake reads config.yaml, because Snakemake's errors name neither the file nor the place. A file
    given with --configfile has already been read by then. Raises ConfigError if the file fails a check, stands for more
    than MAX_VALUES values, or asks Snakemake to run the expressions in it.
    """
    try:
        loader = yaml.SafeLoader(file.read_text(encoding="utf-8"))
        loader.name = file.name  # PyYAML's messages say where an error is
        root = loader.get_single_node()
        if root is not None:
            _refuse_duplicate_keys(root, file.name)
            if _count_values(root) > MAX_VALUES:
                raise ConfigError(
                    f"{file.name}: its aliases stand for more than {MAX_VALUES} values; use fewer of them"
                )
            _refuse_expressions(loader.construct_document(root), file.name)
    except ConfigError:
        raise
    except (yaml.scanner.ScannerError, yaml.parser.ParserError) as error:
        raise ConfigError(f"{file.name} cannot be read as YAML: {_describe_place(error)}; correct it") from error
    except Exception as error:  # an impossible date or number, bytes that are not UTF-8: PyYAML raises many types
        reason = (
            RECURSIVE_OR_DEEP if isinstance(error, RecursionError) else f"{' '.join(str(error).split())}; correct it"
        )
        raise ConfigError(f"{file.name} cannot be read as YAML: {reason}") from error


def _describe_place(error: yaml.MarkedYAMLError) -> str:
    """Say in which line the mistake was noticed, and where that begins which it is in."""
    place, begin = (_describe_mark(mark) for mark in (error.problem_mark, error.context_mark))
    context = _CONTEXTS.get(error.context or "")
    return f"{place}: {error.problem}{f' in the {context}, which begins in {begin}' if context else ''}"


def _describe_mark(mark: yaml.Mark | None) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}" if mark else "the file"


def _refuse_duplicate_keys(root: yaml.Node, name: str) -> None:
    """Raise ConfigError for the first mapping that gives a key twice; name: of the file."""
    remaining: list[tuple[str, Any]] = [("", root)]
    visited = set[int]()  # an alias refers to a node that was already visited, or to one that contains it
    while remaining:
        path, node = remaining.pop()
        if id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            seen: dict[str, int] = {}  # the line of each key
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    continue  # cannot be a key; construct_document reports it
                line = key.start_mark.line + 1
                if key.value in seen:
                    raise ConfigError(
                        f"{name}: {path}{key.value} is given twice, in line {seen[key.value]} and in line {line}; "
                        "remove one, or move what stands below the second into the first"
                    )
                seen[key.value] = line
                remaining.append((f"{path}{key.value}.", value))
        elif isinstance(node, yaml.SequenceNode):
            remaining += [(f"{path}{index}.", value) for index, value in enumerate(node.value)]


def _count_values(root: yaml.Node) -> int:
    """Count the values of a document, each as often as aliases repeat it; one that contains itself counts once."""
    counts: dict[int, int] = {}

    def count(node: yaml.Node) -> int:
        if id(node) not in counts:
            counts[id(node)] = 0  # for a node that contains itself
            parts: list[Any] = list(node.value) if isinstance(node, yaml.CollectionNode) else []
            values = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
            counts[id(node)] = 1 + sum(count(value) for value in values)
        return counts[id(node)]

    return count(root)


def _refuse_expressions(document: object, name: str) -> None:
    """Raise ConfigError for the key that makes Snakemake run the expressions of a file as Python code."""
    if isinstance(document, dict) and "__use_yte__" in document:
        raise ConfigError(
            f"{name}: __use_yte__ would run the expressions in this file; remove it, and write plain values"
        )
