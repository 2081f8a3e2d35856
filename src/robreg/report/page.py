"""A study's report: one HTML file that opens offline; claims first, then figures and tables in the paper's order."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from robreg.paper.agreement import nearer
from robreg.paper.deviations import deviations
from robreg.report import claims_section, comparison_section
from robreg.report.costs import RunAccount, rule_costs, run_accounts, shared_settings, versions
from robreg.report.pictures import embed
from robreg.report.rule_graph import RULE_INPUTS, rule_graph
from robreg.report.tables_section import apart, blocks
from robreg.report.units import duration, memory
from robreg.report.wording import attack_words, cautions, data_words, limits, listed, span
from robreg.tables import parquet, provenance
from robreg.tables.files import atomic_write
from robreg.tables.study_tables import SETTING, failed_masking_checks

SECTIONS = (  # the paper's order: title, figures, tables; then what goes beyond it
    ("Layers, margins and accuracy (paper, Figure 1)", ("fig1",), ()),
    ("Margins in instance space and linear regions (paper, section 3)", ("fig2",), ()),
    ("Gaps, losses and errors (paper, section 4.1)", ("fig3",), ("table3", "table4", "table5")),
    ("Margins (paper, section 4.2.1)", ("fig4",), ()),
    ("Confidence and singular values (paper, section 4.2 and appendix B.2)", ("fig5",), ("b2",)),
    ("A bound on the spectral norm (paper, appendix B.4.2)", ("fig6",), ("table6",)),
    ("A deeper network (paper, appendix B.4.1)", ("fig7",), ()),
    ("Loss variation (paper, appendix B.5)", ("fig8",), ("table1",)),
    ("Training with FGSM (paper, appendix B.6)", ("fig9", "fig10", "fig11"), ("table2",)),
    ("Adversarial accuracy (paper, appendix D.2)", ("fig12",), ()),
    ("How evenly layers pass perturbations on (extension)", ("spread",), ()),
    ("A stronger attack (extension)", (), ("attacks",)),
    ("Zero padding (extension)", (), ("padding",)),
    ("Theorem 3.1 and Lemma 3.1, measured (paper, section 3; extension)", (), ("theory",)),
)
_OWN = ("attacks", "padding", "theory")  # tables that the paper has not
_MANY = 4  # blocks of a table that are shown without a click
LIMIT = 15_000_000  # bytes of the page


@dataclass(frozen=True)
class Files:
    """What a study has made.

    figures: SVG files, each beside its PNG; tables: the Parquet files of rule table, per run and summary; data:
    meta.json of every prepared data set; claims, comparison, audit: their Parquet files; plot: the comparison's SVG.
    """

    figures: Sequence[Path]
    tables: Sequence[Path]
    data: Sequence[Path]
    claims: Path
    comparison: Path
    audit: Path
    plot: Path


def write(out: Path, study: Mapping[str, Any], files: Files, template: Path) -> None:
    """Write a study's report.

    study: name, title, runs (config.study_runs), compare, titles (of data sets, by name) and settings (resolved, by
    "dataset/variant"). template stands beside the captions, {figure, table or comparison}.rst.
    Raises ValueError if the page is larger than LIMIT.
    """
    context = _study(study, files)
    variables = _variables(study, context["n_seeds"])
    context |= _judged(files.claims) | _results(files, template.parent, variables)
    context |= _compared(files, template.parent, variables) | _making(study)
    context["checks"] = parquet.read(files.audit, ["check"]).num_rows
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
    page = environment.get_template(template.name).render(context).encode()
    if len(page) > LIMIT:
        raise ValueError(f"{out} would have {len(page):,} bytes, more than {LIMIT:,}; list fewer figures in the study")
    with atomic_write(out) as temporary:
        temporary.write_bytes(page)


def caption(path: Path, variables: Mapping[str, Any]) -> list[str]:
    """Render a caption, prose in reStructuredText and Jinja2, and return its lines, one paragraph each.

    Raises ValueError if there is none.
    """
    text = jinja2.Template(path.read_text(encoding="utf-8")).render(variables)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path}: the caption is empty; write at least one sentence")
    return lines


def _variables(study: Mapping[str, Any], n_seeds: str) -> dict[str, Any]:
    """What captions may speak of."""
    attacks = dict.fromkeys(attack_words(one["evaluation"]) for one in study["settings"].values())
    return {"n_seeds": n_seeds, "compare": study["compare"], "attack": "; ".join(attacks)}


def _study(study: Mapping[str, Any], files: Files) -> dict[str, Any]:
    """What was run."""
    metas = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in files.data}
    counts = pd.DataFrame(study["runs"]).groupby(SETTING, dropna=False).size().tolist()
    settings = [study["settings"][_name(run)] | {"paper": run["paper"]} for run in study["runs"]]
    tables = _summaries(files)
    return {
        "study": study,
        "datasets": [_dataset(study, name, meta) for name, meta in metas.items()],
        "cautions": cautions([_outcome(run) for run in study["runs"]], _classes(metas)),
        "limits": limits(settings, study["titles"], counts=counts, tables=tables),
        "deviations": deviations(settings, tables),
        "n_seeds": span(counts),
    }


def _classes(metas: Mapping[str, Any]) -> dict[str, int]:
    return {name: meta["classes"] for name, meta in metas.items()}


def _name(run: Mapping[str, Any]) -> str:
    return f"{run['dataset']}/{run['variant']}"


def _outcome(run: Mapping[str, Any]) -> dict[str, Any]:
    """How a run came out: its own columns, its accuracies, and the checks that it failed."""
    (row,) = parquet.read(Path(run["folder"]) / "metrics.parquet", ["train_acc", "pgd_acc"]).to_pylist()
    return {**run, **row, "masked": failed_masking_checks(run)}


def _dataset(study: Mapping[str, Any], name: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """One data set's part: what was run on it, and its runs' settings."""
    own = {key: settings for key, settings in study["settings"].items() if settings["dataset"] == name}
    terms = data_words(meta, list(own.values()))
    return {
        "name": name,
        "title": study["titles"][name],
        "terms": terms,
        "n_runs": len(own),
        "shared": shared_settings(own),
    }


def _judged(claims: Path) -> dict[str, Any]:
    """The claims, in groups, and in one sentence."""
    frame = parquet.read(claims).to_pandas()
    return {
        "groups": claims_section.grouped(frame),
        "headline": claims_section.headline(frame),
        "verdicts": claims_section.VERDICTS,
    }


def _results(files: Files, captions: Path, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Figures and tables with their captions, in sections."""
    drawn = {
        name: {"file": figure, "caption": caption(captions / f"{name}.rst", variables)}
        for name, figure in embed(files.figures).items()
    }
    made = {
        name: _table(name, path) | {"caption": caption(captions / f"{name}.rst", variables)}
        for name, path in _summaries(files).items()
    }
    return {"sections": list(sections(drawn, made))}


def _summaries(files: Files) -> dict[str, Path]:
    """The summaries over seeds, by table."""
    return {path.stem.removesuffix("_summary"): path for path in files.tables if path.stem.endswith("_summary")}


def _table(name: str, path: Path) -> dict[str, Any]:
    """A table as blocks; of our own tables, what is the same everywhere stands apart."""
    summary, same = parquet.read(path).to_pandas(), list[str]()
    if name in _OWN:
        summary, same = apart(summary)
    found = blocks(summary)
    shown = len(found) if len(found) <= _MANY else _MANY // 2
    return {"name": name, "blocks": found[:shown], "more": found[shown:], "same": same}


def sections(drawn: Mapping[str, Any], made: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Put figures and tables into the paper's order; what no section names comes last, and nothing is left out."""
    named = {name for _, figures, tables in SECTIONS for name in (*figures, *tables)}
    rest = ("Further results", sorted(drawn.keys() - named), sorted(made.keys() - named))
    for title, figures, tables in (*SECTIONS, rest):
        section = {
            "title": title,
            "figures": [drawn[name] for name in figures if name in drawn],
            "tables": [made[name] for name in tables if name in made],
        }
        if section["figures"] or section["tables"]:
            yield section


def _compared(files: Files, captions: Path, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The paper's numbers beside ours: the plot, blocks with and without ours, and what they amount to."""
    frame = parquet.read(files.comparison).to_pandas()
    found = comparison_section.blocks(frame)
    compared = [block for block in found if block.run]
    return {
        "plot": {
            "file": embed([files.plot])[files.plot.stem],
            "caption": caption(captions / "comparison.rst", variables),
        },
        "counted": comparison_section.counted(frame),
        "nearer": nearer(frame) if compared else "",
        "compared": compared,
        "uncompared": [block for block in found if not block.run],
    }


def _making(study: Mapping[str, Any]) -> dict[str, Any]:
    """Times and provenance."""
    accounts = run_accounts(study["runs"])
    costs = rule_costs(study["name"], study["runs"], list(RULE_INPUTS))
    total = f"The {len(accounts)} networks were trained in {duration(sum(one.epochs_s for one in accounts))} of epochs"
    wall, cpu = (duration(sum(getattr(one, key) for one in costs)) for key in ("wall_s", "cpu_s"))
    measured = f"; all {sum(one.jobs for one in costs)} jobs together took {wall} ({cpu} of CPU time)."
    used = {key: listed(getattr(one, key) for one in accounts) for key in ("version", "torch", "device")}
    return {
        "flow": rule_graph(),
        "accounts": accounts,
        "costs": costs,
        "times": total + (measured if costs else "."),
        "used": used,
        "code": _code(accounts),
        "hashes": {"the package": provenance.package_hash(), "what decides the weights": provenance.code_hash()},
        "versions": versions(),
    }


def _code(accounts: Sequence[RunAccount]) -> str:
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
