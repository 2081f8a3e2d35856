"""Describe where config.yaml does not fit its schema, and how to mend it."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jsonschema import ValidationError
from jsonschema.exceptions import best_match

from robreg.runs.settings import describe_unknown_name

_NUMBER = re.compile(r"[+-]?\d{1,9}(?:\.\d{0,9})?(?:[eE][+-]?\d{1,2})?")  # YAML takes 1e-1 for text

_WORD = re.compile(r"[\w./+-]+")


def describe_first(config: Mapping[str, Any], errors: Sequence[ValidationError]) -> str:
    """Describe one of the errors that are nearest to the top of a configuration, in one sentence.

    An unknown key comes before a missing one, because it may be the same key misspelt. A block that copies another one
    (<<: *cifar) comes after it in the file and has the same errors, so the first is where the error stands.
    """

    def place(error: ValidationError) -> tuple[int, bool, list[int]]:
        position = list[int]()
        tree: Any = config
        for part in error.absolute_path:
            position.append(list(tree).index(part) if isinstance(tree, Mapping) else int(part))
            tree = tree[part]
        return len(position), error.validator != "additionalProperties", position

    first = min(errors, key=place)
    if first.validator == "required":
        return _describe_missing_keys(first)
    return _describe_error(best_match([first]))  # of the alternatives of anyOf, the nearest


def _describe_missing_keys(error: ValidationError) -> str:
    """Describe a block without some of its required keys, with the schema's description if only one is missing."""
    path = ".".join(map(str, error.absolute_path)) or "the file"
    block: Any = error.instance
    schema: Any = error.schema
    missing = [key for key in schema["required"] if key not in block]
    if len(missing) > 1:
        return f"{path}: the keys {', '.join(map(repr, missing))} are missing; add them, or copy another block's"
    description = schema.get("properties", {}).get(missing[0], {}).get("description", "")
    return f"{path}: the key {missing[0]!r} is missing; add it{f' ({description})' if description else ''}"


def _describe_error(error: ValidationError) -> str:
    """Describe an error: the key's path, what is wrong, what is allowed."""
    path = ".".join(map(str, error.absolute_path))
    schema: Mapping[str, Any] = error.schema if isinstance(error.schema, Mapping) else {}
    if error.validator == "additionalProperties":
        known: Mapping[str, Any] = schema.get("properties", {})
        given: Any = error.instance
        extra = next(key for key in given if key not in known)
        more = ""
        if re.fullmatch(r"studies\.[^.]+\.runs\.\d+", path):
            more = "; settings of a single run stand in the block runs, as digits/ar8: {training: {epochs: 40}}"
        return f"{f'{path}.' if path else ''}{extra}: {describe_unknown_name('key', extra, known)}{more}"
    description = schema.get("description", "")
    hint = f" ({description})" if description else ""
    if error.validator == "contains":  # of radii only
        least = schema["contains"]["minimum"]
        return f"{path}: give at least one radius of {least} or more, which {error.instance} has not{hint}"
    if error.validator == "pattern":
        return f"{path}: {error.instance!r} does not match what is allowed{f': {description}' if description else ''}"
    return f"{path or 'the file'}: {error.message}{_suggest_value(error)}{hint}"


def _suggest_value(error: ValidationError) -> str:
    """Say what to write for a value of the wrong type, or for a misspelt word; "" if that cannot be guessed."""
    given: Any = error.instance
    wanted: Any = error.validator_value
    if error.validator == "enum" and isinstance(given, str):
        close = difflib.get_close_matches(given, [str(word) for word in wanted], n=1, cutoff=0.8)
        return f": did you mean {close[0]!r}?" if close else ""
    if error.validator != "type":
        return ""
    if wanted == "array" and isinstance(given, (str, int, float)) and _WORD.fullmatch(str(given)):
        return f"; write [{given}]"
    if wanted == "object" and given is None:
        return "; nothing stands below it: add its keys, or remove it"
    number = wanted in ("number", "integer") and isinstance(given, str) and _NUMBER.fullmatch(given)
    if number or (wanted == "boolean" and given in ("True", "False")):
        value = f"{float(given):.15g}" if number else given.lower()
        return f"; write {value}, without quotes (inside --config all values are text: use a file and --configfile)"
    return ""
