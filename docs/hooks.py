"""Generate the parts of the documentation that the code states already. MkDocs calls the functions that begin with on_.

A line such as "<!-- make: configuration -->" in a page is replaced by what the function of this name returns.
"""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import yaml
from config_page import configuration
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from notebook_page import run_notebook
from page_text import row, sentence

import robreg
from robreg.claims import verdicts
from robreg.paper import comparison as paper_comparison
from robreg.paper.deviations import DEVIATIONS
from robreg.report import units
from robreg.runs.variant import GRAMMAR
from robreg.tables.schemas import NULLABLE, SCHEMAS

ROOT = Path(__file__).parents[1]
FIRST_LIGHT = ROOT / "reference/first-light"
NOTEBOOK = Path("notebooks/first-look")
_MARK = re.compile(r"^<!-- make: (\w+)(?: (.+?))? -->$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the figures of the study first-light, and the page of the notebook with its figures."""
    for path in sorted((FIRST_LIGHT / "figures").glob("*.png")):
        files.append(File.generated(config, f"assets/first-light/{path.name}", abs_src_path=str(path)))
    notebook = ROOT / f"docs/{NOTEBOOK}.ipynb"
    page, pictures = run_notebook(notebook, notebook.read_text())
    files.append(File.generated(config, f"{NOTEBOOK}.md", content=page))
    for name, picture in pictures.items():
        files.append(File.generated(config, f"{NOTEBOOK.parent}/{name}", content=picture))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace the lines that ask for generated text."""
    return _MARK.sub(lambda mark: MAKERS[mark[1]](*(mark[2].split(", ") if mark[2] else ())), markdown)


def section(file: str, heading: str = "") -> str:
    """Return the text under a heading of a file of the repository; without one, all that follows the title."""
    text = (ROOT / file).read_text()
    start = text.index(f"\n## {heading}\n" if heading else "\n") + 1
    body = text[text.index("\n", start) + 1 :] if heading else text[start:]
    return body.partition("\n## ")[0] if heading else body


def columns() -> str:
    """Describe every column of the tables of a run, in the order in which it has them."""
    about = yaml.safe_load((ROOT / "docs/columns.yaml").read_text())
    parts = []
    for table, schema in SCHEMAS.items():
        texts = about[table]
        parts += [f"\n### `{table}.parquet`\n", f"{sentence(texts['each row'])}\n", row("column", "type", "meaning")]
        parts.append(row("---", "---", "---"))
        for field in schema:
            kind = f"{field.type}, may be null" if field.name in NULLABLE else str(field.type)
            parts.append(row(f"`{field.name}`", kind, texts[field.name]))
    return "\n".join(parts)


def study_columns() -> str:
    """Describe the columns of a study's tables, with the labels and units that the report gives them."""
    names: dict[str, list[str]] = {}
    for path in sorted((FIRST_LIGHT / "tables").glob("*.csv")):
        if not path.stem.endswith("_summary"):
            for column in pd.read_csv(path, nrows=0):
                names.setdefault(str(column), []).append(path.stem)
    about = yaml.safe_load((ROOT / "docs/columns.yaml").read_text())["study"]
    rows = [row("column", "unit", "meaning", "tables"), row(*["---"] * 4)]
    for column, tables in names.items():
        quantity = units.describe(column)
        meaning, unit = about.get(column, quantity.label), "" if column in about else quantity.unit
        rows.append(row(f"`{column}`", unit, meaning, ", ".join(tables) if len(tables) < 6 else "all"))
    return "\n".join(rows)


def judged_columns(table: str) -> str:
    """Describe the columns of a study's claims or of its comparison with the paper."""
    texts = yaml.safe_load((ROOT / "docs/columns.yaml").read_text())[table]
    schema = {"claims": verdicts.SCHEMA, "comparison": paper_comparison.SCHEMA}[table]
    rows = [row(f"`{field.name}`", str(field.type), texts[field.name]) for field in schema]
    return "\n".join([row("column", "type", "meaning"), row("---", "---", "---"), *rows])


def functions() -> str:
    """Describe the public functions by their signatures and docstrings."""
    return "\n\n".join(_function(name) for name in robreg.__all__)


def _function(name: str) -> str:
    function = getattr(robreg, name)
    prose, prompt, example = (inspect.getdoc(function) or "").partition(">>> ")
    text = re.sub(r"\n(?=Raises |Returns |[a-z_, ]+: )", "\n\n", prose)
    head = f"{name}{inspect.signature(function)}"
    head = head if len(head) < 100 else _long(name, function)
    return f"## `robreg.{name}`\n\n```python\n{head}\n```\n\n{text}\n```pycon\n{prompt}{example}\n```"


def _long(name: str, function: Callable[..., object]) -> str:
    """Write a long signature with one parameter a line."""
    found = inspect.signature(function)
    lines, keyword = [], False
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword:
            lines.append("    *,")
            keyword = True
        lines.append(f"    {parameter},")
    return "\n".join([f"{name}(", *lines, f") -> {inspect.formatannotation(found.return_annotation)}"])


def deviations() -> str:
    """List the points on which the paper is silent or contradicts itself, as reports do."""
    parts = [f"### {one.point}\n\n{one.known}\n\n**Here:** {one.decision}{one.more}" for one in DEVIATIONS]
    return "\n\n".join(parts)


def grammar() -> str:
    """Return the grammar of a run's name."""
    return f"```text\n{GRAMMAR}\n```"


MAKERS: dict[str, Callable[..., str]] = {
    make.__name__: make
    for make in (columns, configuration, deviations, functions, grammar, judged_columns, section, study_columns)
}
