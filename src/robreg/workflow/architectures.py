"""Look at user-defined architectures when the workflow is planned, before anything is trained."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robreg.runs.settings import ConfigError

if TYPE_CHECKING:
    from snakemake.workflow import Workflow

# The process finds modules where the scripts of rules find them. It prints the sentence of an ArchitectureError after a
# mark, because the module that it imports may print, too.
_MARK = "ArchitectureError: "
_LOOK = f"""
import json, sys
factory, paths = json.loads(sys.argv[1])
sys.path.extend(paths)
from robreg.networks.user_defined import ArchitectureError, find_callable
try:
    find_callable(factory)
except ArchitectureError as error:
    sys.exit("{_MARK}" + " ".join(str(error).split()))
"""


def refuse_missing(workflow: "Workflow") -> None:
    """Raise ConfigError for the first callable of a planned training that cannot be imported or called.

    Only another process imports it, and with it torch, so that other plans take no longer.
    """
    planned = [job.params.settings["factory"] for job in workflow.dag.needrun_jobs() if job.rule.name == "train"]
    for factory in {json.dumps(each): each for each in planned if each is not None}.values():
        if mistake := describe_mistake(factory):
            raise ConfigError(mistake)


def describe_mistake(factory: Mapping[str, Any]) -> str | None:
    """Return why an architecture cannot be built, in one sentence; None if its callable exists and takes its arguments.

    factory: callable, "module:name", and arguments, by name.
    """
    command = [sys.executable, "-B", "-P", "-c", _LOOK, json.dumps([factory, sys.path])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    last = done.stderr.strip().rpartition("\n")[2]
    if last.startswith(_MARK):
        return last.removeprefix(_MARK)
    return (
        f"config.yaml: architectures: callable {factory['callable']!r} ended Python while it was imported "
        f"({last or 'no message'}, exit status {done.returncode}); correct its module"
    )
