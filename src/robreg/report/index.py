"""List all studies of a results folder on one page, with the verdicts on their claims.

The page is written whenever a report is. It is no file of any study, so that no study is out of date when it changes.
"""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from robreg.report.templates import template_environment
from robreg.tables import parquet
from robreg.tables.files import atomic_write, open_regular

_LONGEST = 300  # letters of a title
_HEAD = 65_536  # bytes of a report in which its title is looked for
_TITLE = re.compile(r"<title>(.*?)</title>", re.DOTALL)
VERDICTS = ("holds", "fails", "undecided", "seen", "not seen", "not clear")


@dataclass(frozen=True)
class StudyEntry:
    """A study of the list: its folder's name, title, the address of its report and the number of each verdict.

    problem: why it has no verdicts, "" if it has.
    """

    name: str
    title: str
    address: str
    verdicts: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""


def write(results: Path, template: Path) -> None:
    """Write index.html in a folder of results. template: the Jinja2 template of the page."""
    environment = template_environment(template.parent)
    page = environment.get_template(template.name).render(studies=list_studies(results), verdicts=VERDICTS)
    with atomic_write(results / "index.html") as file:
        file.write(page.encode("utf-8", "replace"))


def list_studies(results: Path) -> list[StudyEntry]:
    """List the studies of a folder that have a report, by name. Any of them may come from somebody else."""
    return [_entry(path.parent) for path in sorted(results.glob("studies/*/report.html"))]


def _entry(folder: Path) -> StudyEntry:
    name = folder.name.encode("utf-8", "replace").decode()
    address = f"studies/{quote(folder.name.encode('utf-8', 'surrogateescape'))}/report.html"
    try:
        title = _read_title(folder / "report.html")[:_LONGEST] or name
        if not (folder / "claims.parquet").exists():
            return StudyEntry(name, title, address, problem="judges no claims")
        rows = parquet.read(folder / "claims.parquet", ["verdict"]).column("verdict").to_pylist()
    except (OSError, ValueError):
        return StudyEntry(name, name, address, problem="cannot be read")
    return StudyEntry(name, title, address, {key: rows.count(key) for key in VERDICTS})


def _read_title(report: Path) -> str:
    """Return the title of a report, "" if it has none."""
    with open_regular(report) as file:
        head = file.read(_HEAD).decode("utf-8", "replace")
    found = _TITLE.search(head)
    return html.unescape(found[1]).strip() if found else ""
