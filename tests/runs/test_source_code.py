"""Code is identified by what it does, and that of a user's architecture by all modules it is made of."""

import sys
from importlib import metadata

import pytest
import yaml
from helpers.snakemake_copy import ROOT

from robreg.runs.settings import ConfigError, run_settings
from robreg.runs.source_code import callable_code, describe_changes, hash_code

CODE = '''"""A module."""
from torch import nn  # the library


class Net(nn.Module):
    """A network."""

    def forward(self, x):
        """Compute."""
        return x.mean((2, 3)) * 2
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder that modules are imported from; what was found in it before does not count."""
    monkeypatch.syspath_prepend(tmp_path)
    callable_code.cache_clear()
    yield tmp_path
    callable_code.cache_clear()


def write(place, **modules):
    for name, text in modules.items():
        path = place / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    callable_code.cache_clear()
    sys.path_importer_cache.clear()


@pytest.mark.parametrize(
    "edited",
    [
        CODE.replace("A network.", "Another docstring."),
        CODE.replace('    """A network."""\n\n', ""),
        CODE.replace('        """Compute."""\n', "        # no docstring\n"),
        CODE.replace("(2, 3)", "(\n            2,\n            3,\n        )"),
        CODE.replace("  # the library", ""),
        CODE.replace('"""', "'''").replace("    ", "  "),
        CODE + "\n\n# the end\n",
    ],
)
def test_comments_docstrings_and_formatting_do_not_count(edited):
    assert edited != CODE
    assert hash_code(edited.encode()) == hash_code(CODE.encode())


@pytest.mark.parametrize(
    "edited",
    [
        CODE.replace("mean", "amax"),
        CODE.replace("* 2", "* 2.0"),
        CODE.replace("* 2", "* True"),
        CODE.replace("(2, 3)", "[2, 3]"),
        CODE.replace("* 2", "* 2 + x.sum()"),
        CODE.replace("        return", "        if x is None:\n            return 0\n        return"),
        CODE.replace("    def", "    x = None\n\n    def"),
    ],
)
def test_everything_else_counts(edited):
    assert edited != CODE
    assert hash_code(edited.encode()) != hash_code(CODE.encode())


def test_the_hash_is_the_same_in_every_version_of_python():
    # Computed with Python 3.11. A version whose syntax trees differ would have all networks trained again.
    assert hash_code(CODE.encode()) == "33da9d979fec2c43"


def test_the_code_of_a_callable_is_that_of_all_modules_of_the_user(place):
    write(
        place,
        mynet="import os\nimport numpy as np\nfrom parts import layers\nfrom parts.heads import Head\n",
        parts__layers="from . import tools\n",
        parts__heads="def make():\n    import lazy_part\n",
        parts__tools="",
        parts__version="NAME = 1\n",
        parts__unused="1 / 0",
        lazy_part="import robreg.attacks.pgd\nimport torch\n",
    )
    (place / "parts/__init__.py").write_text("from .version import NAME\n")
    callable_code.cache_clear()
    code = callable_code("mynet:Net")
    names = {"mynet", "parts", "parts.layers", "parts.heads", "parts.tools", "parts.version", "lazy_part", "numpy"}
    assert set(code) == names
    assert code["numpy"] == sys.modules["numpy"].__version__
    assert "mynet" not in sys.modules


def test_a_package_without_init_is_found(place):
    write(
        place,
        nets__deep__mynet="from . import parts\nfrom nets.other import thing\n",
        nets__deep__parts="",
        nets__other="",
    )
    assert set(callable_code("nets.deep.mynet:Net")) == {"nets.deep.mynet", "nets.deep.parts", "nets.other"}
    assert "nets" not in sys.modules


def test_an_installed_package_counts_by_its_version_and_is_not_imported(monkeypatch):
    callable_code.cache_clear()
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    assert list(callable_code("torchvision.models:vgg11")) == ["torchvision"]
    assert "torchvision" not in sys.modules
    said = describe_changes("torchvision.models:vgg11", {"torchvision": "0.1"})
    assert said == f"torchvision was 0.1, is {metadata.version('torchvision')}"


def test_changes_are_named(place):
    write(place, mynet="from helper import one\nclass Net: pass\n", helper="one = 1\n")
    before = callable_code("mynet:Net")
    assert describe_changes("mynet:Net", before) == ""
    write(place, helper="one = 2\n")
    assert describe_changes("mynet:Net", before) == "helper was edited"
    write(place, mynet="class Net: pass\n")
    assert describe_changes("mynet:Net", before) == "helper was removed from what it imports, mynet was edited"
    (place / "mynet.py").unlink()
    callable_code.cache_clear()
    assert describe_changes("mynet:Net", before) == "mynet:Net cannot be read (No module named 'mynet')"


def test_an_architecture_whose_module_does_not_exist_or_is_not_python_is_refused(place):
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    config["architectures"] |= {"mynet": {"callable": "mynet:Net"}}
    with pytest.raises(ConfigError, match=r"architectures: callable 'mynet:Net' cannot be imported \(No module named"):
        run_settings(config, "digits", "ar8-mynet")
    write(place, mynet="class Net(:\n")
    with pytest.raises(ConfigError, match=r"architectures: callable 'mynet:Net' cannot be imported \(invalid syntax"):
        run_settings(config, "digits", "ar8-mynet")
    write(place, mynet="class Net: pass\n")
    assert set(run_settings(config, "digits", "ar8-mynet")["factory"]["code"]) == {"mynet"}
