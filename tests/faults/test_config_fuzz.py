"""Whatever is wrong in config.yaml is refused, in one sentence that names the key: drawn from the schema itself."""

import copy
import math
import os
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from robreg.runs.config import _Validator, validate
from robreg.runs.settings import ConfigError

ROOT = Path(__file__).parents[2]
SCHEMA_FILE = ROOT / "workflow/schemas/config.schema.yaml"
SCHEMA = yaml.safe_load(SCHEMA_FILE.read_text())
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())
CASES = int(os.environ.get("ROBREG_CASES", "150"))  # of each kind
SETTINGS = settings(max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
tried = Counter()


def resolve(schema):
    """Follow a reference; what stands beside it adds to it."""
    if "$ref" in schema:
        found = SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")]
        return resolve({**found, **{key: value for key, value in schema.items() if key != "$ref"}})
    return schema


def places(schema, tree, path=()):
    """List where a value stands in the configuration, with what the schema says of it."""
    schema = resolve(schema)
    found = [(path, schema)] if path else []
    if isinstance(tree, dict):
        for key, value in tree.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if isinstance(inner, dict):
                found += places(inner, value, (*path, key))
    elif isinstance(tree, list) and "items" in schema:
        for index, value in enumerate(tree):
            found += places(schema["items"], value, (*path, index))
    return found


PLACES = places(SCHEMA, CONFIG)
REQUIRED = [
    (path, key) for path, schema in [((), SCHEMA), *PLACES] for key in schema.get("required", ())
]  # of an object there, a key that must not be missing
CLOSED = [
    (path, key)
    for path, schema in [((), SCHEMA), *PLACES]
    if schema.get("additionalProperties") is False
    for key in schema["properties"]
]
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
ANY = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(max_size=5), PLAIN, max_size=2)


def at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def valid(value, schema):
    finite = not isinstance(value, float) or math.isfinite(value)
    return finite and _Validator({**schema, "$defs": SCHEMA["$defs"]}).is_valid(value)


def beyond(schema):
    """List values just outside the bounds that a schema sets."""
    found = []
    if "minimum" in schema:
        found.append(schema["minimum"] - 1)
    if "maximum" in schema:
        found.append(schema["maximum"] + 1)
    if "exclusiveMinimum" in schema:
        found += [schema["exclusiveMinimum"], -1]
    if "exclusiveMaximum" in schema:
        found.append(schema["exclusiveMaximum"])
    if "enum" in schema:
        found += [f"{one}x" for one in schema["enum"]]
    if schema.get("minItems"):
        found.append([])
    if schema.get("minLength"):
        found.append("")
    return found


BOUNDED = [(path, value) for path, schema in PLACES for value in beyond(schema)]


def refused(config, kind, *names):
    """The configuration is refused in one sentence that has one of the names."""
    with pytest.raises(ConfigError) as error:
        validate(config, SCHEMA_FILE)
    said = str(error.value)
    assert said.startswith("config.yaml: ")
    assert "\n" not in said
    assert any(str(name) in said for name in names), said
    tried[kind] += 1


def put(path, value):
    config = copy.deepcopy(CONFIG)
    at(config, path[:-1])[path[-1]] = value
    return config


def key_of(path):
    """The key that a path ends with; a place in a list is its list's."""
    return next(key for key in reversed(path) if isinstance(key, str))


@SETTINGS
@given(st.sampled_from(PLACES), ANY)
def test_a_wrong_value_is_refused_by_its_key(place, value):
    path, schema = place
    assume(not valid(value, schema))
    refused(put(path, value), "wrong value", key_of(path))


@SETTINGS
@given(st.sampled_from(BOUNDED))
def test_a_value_beyond_its_bounds_is_refused_by_its_key(place):
    path, value = place
    refused(put(path, value), "out of range", key_of(path))


@SETTINGS
@given(st.sampled_from(REQUIRED))
def test_a_missing_key_is_refused_by_its_name(place):
    path, key = place
    config = copy.deepcopy(CONFIG)
    at(config, path).pop(key, None)
    refused(config, "missing", key)


@SETTINGS
@given(st.sampled_from(CLOSED), st.data())
def test_a_misspelt_key_is_refused_by_its_name(place, data):
    path, key = place
    index = data.draw(st.integers(0, len(key) - 1))
    wrong = data.draw(
        st.sampled_from([key[:index] + key[index + 1 :], key[:index] + key[index] + key[index:], key.upper()])
    )
    config = copy.deepcopy(CONFIG)
    owner = at(config, path)
    known = {other for where, other in CLOSED if where == path}
    assume(wrong not in known)
    assume(isinstance(owner, dict))
    owner[wrong] = owner.pop(key, 1)
    refused(config, "misspelt", repr(wrong), f"{wrong}:", f".{wrong}", key)


def test_five_hundred_cases_were_tried():
    if len(tried) < 4:
        pytest.skip("only a part of this file was run")
    assert sum(tried.values()) >= 500
    assert min(tried.values()) >= 100
