"""Print a table of the licences of what envs/run.txt pins for this machine, as the installed packages state them."""

import csv
import re
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

LOCK = Path(__file__).with_name("run.txt")
NOT_STATED = "not stated"


def rows() -> list[tuple[str, str, str]]:
    """List name, installed version and licence, in the lock's order."""
    pinned = map(Requirement, re.findall(r"^[a-z0-9].*?(?= \\$)", LOCK.read_text(), re.MULTILINE))
    names = [one.name for one in pinned if one.marker is None or one.marker.evaluate()]
    return [(name, metadata.version(name), licence(name)) for name in names]


def licence(name: str) -> str:
    """Return a package's licence: its expression (PEP 639), or its own words if short, its classifiers, or its file."""
    found = metadata.metadata(name)
    kinds = (one.rpartition(" :: ")[2] for one in found.get_all("Classifier", []) if one.startswith("License ::"))
    words = (found["License"] or "").strip()
    files = (path for path in metadata.files(name) or () if re.match(r"LICEN[CS]E", path.name))
    first = next((path.read_text().strip().splitlines()[0].strip() for path in files), "")
    words = words if "\n" not in words else ""
    return found["License-Expression"] or words or "; ".join(kinds) or first or NOT_STATED


if __name__ == "__main__":
    csv.writer(sys.stdout, lineterminator="\n").writerows([("name", "version", "licence"), *rows()])
