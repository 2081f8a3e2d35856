"""A study's report: one HTML file that opens offline, in the paper's order, with every number computed from tables."""

import base64
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from robreg import provenance, table
from robreg.finding import VERDICTS, Finding, findings
from robreg.quantity import Cell, cell, describe, duration, memory
from robreg.setting import group
from robreg.study import SETTING
from robreg.words import attack_words, data_words, limits, span

SECTIONS = (  # the paper's order: title, figures, tables
    ("Layers, margins and accuracy (paper, Figure 1)", ("fig1",), ()),
    ("Gaps, losses and errors (paper, section 4.1)", ("fig3",), ("table3",)),
    ("Margins (paper, section 4.2.1)", ("fig4",), ()),
    ("Confidence and singular values (paper, section 4.2)", ("fig5",), ()),
    ("Loss variation (paper, appendix B.5)", ("fig8",), ("table1",)),
    ("Adversarial accuracy (paper, appendix D.2)", ("fig12",), ()),
)
_NAMED = ("dataset", "variant")  # what a run's name says
_NARROW = 380  # CSS pixels: a figure that a phone shows unscaled
_PX_PER_PT = 96 / 72


def write(
    out: Path,
    study: Mapping[str, Any],
    *,
    template: Path,
    figures: Sequence[Path],
    tables: Sequence[Path],
    data: Sequence[Path],
) -> None:
    """Write a study's report.

    study: name, title, runs (config.study_runs), compare, titles (of data sets, by name) and settings (resolved, by
    "dataset/variant"). template stands beside the captions, {figure or table}.rst. figures: SVG files; tables: the
    Parquet files of rule table, per run and summary; data: meta.json of every prepared data set.
    """
    context = _study(study, data)
    context |= _results(study, template.parent, figures, tables, context["n_seeds"]) | _making(study)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": duration,
        "memory": memory,
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
    }
    page = environment.get_template(template.name).render(context, cell=cell, verdicts=VERDICTS)
    with table.atomic(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def caption(path: Path, variables: Mapping[str, Any]) -> list[str]:
    """Render a caption, prose in reStructuredText and Jinja2, and return its lines, one paragraph each."""
    text = jinja2.Template(path.read_text(encoding="utf-8")).render(variables)
    return [line.strip() for line in text.splitlines() if line.strip()]


def blocks(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """Turn a study's summary into blocks, one per setting: its strengths, and a row of cells for every metric."""
    metrics = [name.removesuffix("_mean") for name in summary.columns if name.endswith("_mean")]
    found = []
    records: list[Any] = summary.astype(object).where(summary.notna(), None).to_dict("records")
    for name, rows in group(records).items():
        lines = [{"quantity": describe(key), "cells": [_cell(key, row) for row in rows]} for key in metrics]
        found.append({"name": name, "strengths": [row["ar"] for row in rows], "rows": lines})
    return found


def headline(found: Mapping[str, Sequence[Finding]]) -> str:
    """Sum up all findings in words, and give the numbers of the first two that the paper has a direction for."""
    verdicts = [finding.verdict for listed in found.values() for finding in listed if finding.paper_direction]
    told = {"agrees": "found at every step", "partly": "found from end to end only", "differs": "reversed"}
    told |= {"unclear": "lost in the spread over seeds", "single": "not to be seen with one strength"}
    told |= {"one seed": "not to be judged by one seed"}
    counts = [f"{verdicts.count(key)} {words}" for key, words in told.items() if key in verdicts]
    return f"Of {len(verdicts)} trends that the paper reports: {', '.join(counts)}. {_example(found)}".strip()


def _example(found: Mapping[str, Sequence[Finding]]) -> str:
    name, listed = next(iter(found.items()))
    said = []
    for finding in listed:
        if finding.quantity in (describe("loss_gap"), describe("pgd_acc")) and len(finding.points) > 1:
            first, last = finding.points[0], finding.points[-1]
            ends = f"{finding.quantity.text(first.mean)} to {finding.quantity.text(last.mean)} {finding.quantity.unit}"
            said.append(f"the {finding.quantity.label} goes from {ends}")
    return f"From AR {first.ar} to {last.ar} ({name}), {' and '.join(said)}." if said else ""


def _study(study: Mapping[str, Any], data: Sequence[Path]) -> dict[str, Any]:
    """What was run."""
    metas = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in data}
    counts = pd.DataFrame(study["runs"]).drop(columns=["folder", "variant"]).groupby(SETTING, dropna=False).size()
    return {
        "study": study,
        "datasets": [_dataset(study, name, meta) for name, meta in metas.items()],
        "limits": limits(list(study["settings"].values()), study["titles"], counts.tolist()),
        "n_seeds": span(counts.tolist()),
    }


def _dataset(study: Mapping[str, Any], name: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """One data set's part: what was run on it, the settings that its runs share, and those by which they differ."""
    own = {key: settings for key, settings in study["settings"].items() if settings["dataset"] == name}
    flat = {
        key: _flat({part: settings[part] for part in settings if part not in _NAMED}) for key, settings in own.items()
    }
    keys = list(dict.fromkeys(key for settings in flat.values() for key in settings))
    keys = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]  # none beside its parts
    texts = {key: [_setting(settings.get(key)) for settings in flat.values()] for key in keys}
    differing = [key for key in keys if len(set(texts[key])) > 1]
    return {
        "name": name,
        "title": study["titles"][name],
        "terms": data_words(meta, list(own.values())),
        "n_runs": len(own),
        "common": {key: texts[key][0] for key in keys if key not in differing},
        "differing": differing,
        "by_run": {run: [texts[key][index] for key in differing] for index, run in enumerate(flat)},
    }


def _results(
    study: Mapping[str, Any], captions: Path, figures: Sequence[Path], tables: Sequence[Path], n_seeds: str
) -> dict[str, Any]:
    """What came out: findings, and the figures and tables with their captions, in sections."""
    by_name = {path.stem: path for path in tables}
    variables = {
        "n_seeds": n_seeds,
        "compare": study["compare"],
        "attack": "; ".join(dict.fromkeys(attack_words(one["evaluation"]) for one in study["settings"].values())),
    }
    found = findings(study["runs"], table.read(by_name["table1"]).to_pandas() if "table1" in by_name else None)
    drawn = {
        path.stem: _figure(path) | {"caption": caption(captions / f"{path.stem}.rst", variables)} for path in figures
    }
    made = {
        name: {"name": name, "blocks": blocks(table.read(path).to_pandas())}
        | {"caption": caption(captions / f"{name}.rst", variables)}
        for name, path in (
            (stem.removesuffix("_summary"), path) for stem, path in by_name.items() if stem.endswith("_summary")
        )
    }
    return {"findings": found, "headline": headline(found), "sections": list(_sections(drawn, made))}


def _sections(drawn: Mapping[str, Any], made: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Put figures and tables into the paper's order; what no section names comes last, and nothing is left out."""
    named = {name for _, figures, tables in SECTIONS for name in (*figures, *tables)}
    rest = ("Further results", tuple(drawn.keys() - named), tuple(made.keys() - named))
    for title, figures, tables in (*SECTIONS, rest):
        section = {
            "title": title,
            "figures": [drawn[name] for name in sorted(figures) if name in drawn],
            "tables": [made[name] for name in sorted(tables) if name in made],
        }
        if section["figures"] or section["tables"]:
            yield section


def _figure(path: Path) -> dict[str, Any]:
    """A figure as a data URI, and whether it is narrow enough for a phone as it is."""
    content = path.read_bytes()
    width = re.search(rb'<svg[^>]*? width="([\d.]+)pt"', content)
    uri = f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
    return {"name": path.stem, "uri": uri, "narrow": width is not None and float(width[1]) * _PX_PER_PT < _NARROW}


def _making(study: Mapping[str, Any]) -> dict[str, Any]:
    """Times and provenance."""
    accounts = provenance.account(study["runs"])
    jobs = [seconds for one in accounts for seconds in (one.train_s, one.measures_s) if seconds is not None]
    total = f"The {len(accounts)} networks were trained in {duration(sum(one.epochs_s for one in accounts))} of epochs"
    measured = f"; with start-up and all measures their jobs took {duration(sum(jobs))}." if jobs else "."
    used = {
        key: ", ".join(dict.fromkeys(getattr(one, key) for one in accounts)) for key in ("version", "torch", "device")
    }
    return {
        "accounts": accounts,
        "times": total + measured,
        "used": used,
        "code": _code(accounts),
        "versions": provenance.versions(),
    }


def _code(accounts: Sequence[provenance.Account]) -> str:
    names = {code: [one.name for one in accounts if one.code == code] for code in ("older code", "not recorded")}
    said = []
    if names["older code"]:
        said.append(
            f"Trained with older code than today's, so a new training may differ: {', '.join(names['older code'])}."
        )
    if names["not recorded"]:
        said.append(
            f"For {len(names['not recorded'])} of {len(accounts)} runs the code that trained them is not recorded."
        )
    return " ".join(said) or "The code that decides the weights has not changed since."


def _cell(key: str, row: Mapping[str, Any]) -> Cell:
    mean, std = (
        math.nan if row[f"{key}_{statistic}"] is None else row[f"{key}_{statistic}"] for statistic in ("mean", "std")
    )
    return cell(describe(key), mean, std)


def _setting(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(_setting, value))
    return "none" if value is None else str(value)


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Turn nested settings into one level with dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return leaves
