"""Random errors in config.yaml, generated from its schema, are refused in one sentence that names the key."""

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
CASES = int(os.environ.get("ROBREG_CASES", "150"))  # random cases of each kind
SETTINGS = settings(max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
refusals = Counter()  # how many cases of each kind were refused


def resolve(schema):
    """Follow a reference in a schema; keys next to the reference are added to its target."""
    if "$ref" in schema:
        target = SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")]
        return resolve({**target, **{key: value for key, value in schema.items() if key != "$ref"}})
    return schema


def places(schema, tree, path=()):
    """List the paths of all values in a configuration, each with the part of the schema that describes the value."""
    schema = resolve(schema)
    result = [(path, schema)] if path else []
    if isinstance(tree, dict):
        for key, value in tree.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if isinstance(inner, dict):
                result += places(inner, value, (*path, key))
    elif isinstance(tree, list) and "items" in schema:
        for index, value in enumerate(tree):
            result += places(schema["items"], value, (*path, index))
    return result


PLACES = places(SCHEMA, CONFIG)
# The path of a mapping and one of its required keys.
REQUIRED = [(path, key) for path, schema in [((), SCHEMA), *PLACES] for key in schema.get("required", ())]
# The path of a mapping that allows no other keys, and one of its keys.
CLOSED = [
    (path, key)
    for path, schema in [((), SCHEMA), *PLACES]
    if schema.get("additionalProperties") is False
    for key in schema["properties"]
]
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
ANY = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(max_size=5), PLAIN, max_size=2)


def at(tree, path):
    """Return the value at a path."""
    for key in path:
        tree = tree[key]
    return tree


def is_allowed(value, schema):
    """Return whether a value is allowed at a place with this schema."""
    finite = not isinstance(value, float) or math.isfinite(value)
    return finite and _Validator({**schema, "$defs": SCHEMA["$defs"]}).is_valid(value)


def values_out_of_range(schema):
    """List values just outside the bounds that a schema sets."""
    values = []
    if "minimum" in schema:
        values.append(schema["minimum"] - 1)
    if "maximum" in schema:
        values.append(schema["maximum"] + 1)
    if "exclusiveMinimum" in schema:
        values += [schema["exclusiveMinimum"], -1]
    if "exclusiveMaximum" in schema:
        values.append(schema["exclusiveMaximum"])
    if "enum" in schema:
        values += [f"{choice}x" for choice in schema["enum"]]
    if schema.get("minItems"):
        values.append([])
    if schema.get("minLength"):
        values.append("")
    return values


BOUNDED = [(path, value) for path, schema in PLACES for value in values_out_of_range(schema)]


def assert_refused(config, kind, *names):
    """Check that a configuration is refused in one sentence that contains one of the names; kind: for the count."""
    with pytest.raises(ConfigError) as error:
        validate(config, SCHEMA_FILE)
    message = str(error.value)
    assert message.startswith("config.yaml: ")
    assert "\n" not in message
    assert any(str(name) in message for name in names), message
    refusals[kind] += 1


def put(path, value):
    """Copy the configuration with another value at a path."""
    config = copy.deepcopy(CONFIG)
    at(config, path[:-1])[path[-1]] = value
    return config


def last_key(path):
    """Return the last key of a path; an element of a list has the key of its list."""
    return next(key for key in reversed(path) if isinstance(key, str))


@SETTINGS
@given(st.sampled_from(PLACES), ANY)
def test_a_wrong_value_is_refused_with_its_key(place, value):
    path, schema = place
    assume(not is_allowed(value, schema))
    assert_refused(put(path, value), "wrong value", last_key(path))


@SETTINGS
@given(st.sampled_from(BOUNDED))
def test_a_value_out_of_range_is_refused_with_its_key(place):
    path, value = place
    assert_refused(put(path, value), "out of range", last_key(path))


@SETTINGS
@given(st.sampled_from(REQUIRED))
def test_a_missing_key_is_refused_with_its_name(place):
    path, key = place
    config = copy.deepcopy(CONFIG)
    at(config, path).pop(key, None)
    assert_refused(config, "missing", key)


@SETTINGS
@given(st.sampled_from(CLOSED), st.data())
def test_a_misspelled_key_is_refused_with_its_name(place, data):
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
    assert_refused(config, "misspelled", repr(wrong), f"{wrong}:", f".{wrong}", key)


def test_five_hundred_cases_were_tried():
    if len(refusals) < 4:
        pytest.skip("only a part of this file was run")
    assert sum(refusals.values()) >= 500
    assert min(refusals.values()) >= 100
