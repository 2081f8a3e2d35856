"""Describe the keys of config.yaml from its JSON schema."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from page_text import row, sentence

ROOT = Path(__file__).parents[1]
_TYPES: dict[str, str] = {"integer": "whole number", "string": "text", "boolean": "true or false", "object": "block"}
Node = Mapping[str, Any]  # of a JSON schema


def configuration() -> str:
    """Describe every key of config.yaml, as its JSON schema does, one table for each block."""
    schema = yaml.safe_load((ROOT / "workflow/schemas/config.schema.yaml").read_text())
    shipped = yaml.safe_load((ROOT / "config.yaml").read_text())
    return "\n".join(_block("", schema, schema, shipped, {}))


def _block(path: str, node: Node, schema: Node, shipped: Node, sections: dict[str, str]) -> Iterator[str]:
    """Describe the keys of a block, and then the blocks in it.

    sections: the path of the section in which each block of the schema is described; it grows.
    """
    inner = []
    if path:
        yield f"\n## `{path}`\n\n{sentence(node.get('description', ''))}\n"
    examples = [name for name in ("c10", "digits") if path.startswith("datasets.")]
    yield row("key", "value", "meaning", *(f"in `{name}`" for name in examples))
    yield row(*["---"] * (3 + len(examples)))
    for key, found in node["properties"].items():
        value = _resolve(found, schema)
        child, block = _child(f"{path}.{key}" if path else key, value, schema)
        words = _values(value, schema)
        if block is not None:
            identity = found.get("$ref", child)
            inner += [] if identity in sections else [(child, block)]
            words = f"[{words}](#{_anchor(sections.setdefault(identity, child))})"
        name = f"`{key}`" if key in node.get("required", ()) else f"`{key}` (optional)"
        given = [_shown(shipped["datasets"][one], path.split(".")[2:], key) for one in examples]
        yield row(name, words, value.get("description", ""), *given)
    for child, block in inner:
        yield from _block(child, block, schema, shipped, sections)


def _anchor(path: str) -> str:
    """Return the anchor that MkDocs gives to the heading of a section."""
    return re.sub(r"[^\w-]", "", path)


def _resolve(node: Node, schema: Node) -> dict[str, Any]:
    """Return a node with what it refers to, of which its own keys replace those of the same name."""
    own = dict(node)
    while reference := own.pop("$ref", None):
        target: Any = schema
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
        own = {**target, **own}
    return own


def _child(path: str, node: Node, schema: Node) -> tuple[str, Node | None]:
    """Return the path and the schema of the block that a key holds; None for a key with plain values."""
    if "properties" in node:
        return path, node
    for part, name in (("items", f"{path}[]"), ("additionalProperties", f"{path}.{{name}}")):
        if isinstance(node.get(part), dict):
            inner = _resolve(node[part], schema)
            return name, inner if "properties" in inner else None
    return path, None


def _values(node: Node, schema: Node) -> str:
    """Say in words which values a key takes."""
    node = _resolve(node, schema)
    if "const" in node:
        return f"`{node['const']}`"
    if choices := node.get("enum"):
        return ", ".join(f"`{choice}`" for choice in choices)
    if "anyOf" in node:
        return " or ".join(_values(each, schema) for each in node["anyOf"])
    kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
    if kinds == ["array"]:
        return f"list of: {_values(node['items'], schema)}"
    return " or ".join(_TYPES.get(str(kind), str(kind)) for kind in kinds) + _range(node)


def _range(node: Node) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return "".join(f", {word} {node[key]:g}" for key, word in words.items() if key in node)


def _shown(block: Node, path: list[str], key: str) -> str:
    """Show the value of a key in a block that config.yaml ships; nothing where it has none."""
    for part in path:
        block = block.get(part, {})
    value = block.get(key, "")
    return "" if isinstance(value, dict) or value == "" else f"`{json.dumps(value, ensure_ascii=False)}`"
