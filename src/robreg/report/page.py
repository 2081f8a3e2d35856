"""Write the report of a study: one HTML file that opens offline.

The claims come first, then the figures and tables in the order of the paper.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from robreg.checks.study_audit import refuse_changed_study
from robreg.paper.agreement import describe_closer_space
from robreg.paper.deviations import deviations
from robreg.report import claims_section, comparison_section
from robreg.report.comparison_section import judge_conventions
from robreg.report.costs import RunAccount, rule_costs, run_accounts, shared_settings, versions
from robreg.report.pictures import embed_figures
from robreg.report.rule_graph import RULE_INPUTS, rule_graph
from robreg.report.tables_section import split_constants, table_blocks
from robreg.report.units import format_duration, format_memory
from robreg.report.wording import (
    cautions,
    describe_attack,
    describe_conventions,
    describe_data,
    describe_radii,
    describe_unmeasured,
    describe_weak_attacks,
    format_range,
    join_distinct,
    limits,
)
from robreg.runs.catalogue import Run, select_runs
from robreg.tables import parquet, provenance
from robreg.tables.files import atomic_write
from robreg.tables.study_tables import SETTING, failed_masking_checks

SECTIONS = (  # title, figures, tables; first in the order of the paper, then the extensions
    ("Layers, margins and accuracy (paper, Figure 1)", ("fig1",), ()),
    ("Margins in instance space and linear regions (paper, section 3)", ("fig2",), ()),
    ("Gaps, losses and errors (paper, section 4.1)", ("fig3",), ("table3", "table4", "table5")),
    ("Margins (paper, section 4.2.1)", ("fig4",), ()),
    ("Confidence and singular values (paper, section 4.2 and appendix B.2)", ("fig5",), ("b2",)),
    ("A bound on every layer's largest singular value (paper, appendix B.4.2)", ("fig6",), ("table6",)),
    ("Architectures compared (paper, appendix B.4.1)", ("fig7",), ()),
    ("Loss variation (paper, appendix B.5)", ("fig8",), ("table1",)),
    ("Training with FGSM (paper, appendix B.6)", ("fig9", "fig10", "fig11"), ("table2",)),
    ("Adversarial accuracy (paper, appendix D.2)", ("fig12",), ()),
    ("How evenly layers pass perturbations on (extension)", ("spread",), ()),
    ("Which conventions give the paper's numbers (extension)", ("conventions",), ()),
    ("A stronger attack (extension)", (), ("attacks",)),
    ("Zero padding (extension)", (), ("padding",)),
    ("Theorem 3.1 and Lemma 3.1, measured (paper, section 3; extension)", (), ("theory",)),
)
_EXTENSION_TABLES = ("attacks", "padding", "theory")  # not in the paper
_MAX_SHOWN = 4  # blocks of a table; if there are more, only half as many are shown without a click
LIMIT = 15_000_000  # bytes; the largest size of the page


@dataclass(frozen=True)
class Files:
    """The files of a study that its report shows.

    figures: SVG files, each with its PNG in the same folder; tables: the Parquet files of the rule `table`, both those
    with one row per run and the summaries; data: meta.json of every prepared data set; audit, claims, comparison: their
    Parquet files; plot: the SVG of the comparison. A study that judges no claims has none of the last three.
    """

    figures: Sequence[Path]
    tables: Sequence[Path]
    data: Sequence[Path]
    audit: Path
    claims: Path | None = None
    comparison: Path | None = None
    plot: Path | None = None


def record(out: Path, study: Mapping[str, Any], files: Files, *, template: Path) -> None:
    """Write the report of a study as write does, if none of its files changed after they were checked.

    Raises ValueError, naming the files, if one did.
    """
    refuse_changed_study(study["runs"], study["shown"], files.audit, judged=files.claims is not None)
    write(out, study, files, template=template)


def write(out: Path, study: Mapping[str, Any], files: Files, template: Path) -> None:
    """Write the report of a study.

    study: name, title, runs (from config.chosen_runs), not_run (its other runs, with their epochs), not_made (the
    figures and tables that this prevents), compare, titles (of data sets, by name), settings (resolved, by
    "dataset/variant") and shown (its figures and tables, each with what it is restricted to, or None for all);
    template: the Jinja2 template of the page. The captions, {figure, table or comparison}.rst, must be in the same
    folder. Raises ValueError if the page is larger than LIMIT.
    """
    context = _study_context(study, files)
    context |= _claims_context(files.claims) | _results_context(study, files, template.parent)
    context |= _comparison_context(study, files, template.parent) | _provenance_context(study)
    audit = parquet.read(files.audit, ["place", "found", "passed"]).to_pylist()
    weak = [row for row in audit if not row["passed"]]  # the audit raises for every other check that fails
    context |= {"checks": len(audit), "weak_attacks": describe_weak_attacks(weak)}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": format_duration,
        "memory": format_memory,
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
    }
    page = environment.get_template(template.name).render(context).encode()
    if len(page) > LIMIT:
        raise ValueError(
            f"{out} would have {len(page):,} bytes, but the limit is {LIMIT:,}; list fewer figures in the study"
        )
    with atomic_write(out) as file:
        file.write(page)


def caption(path: Path, variables: Mapping[str, Any]) -> list[str]:
    """Render a caption, a Jinja2 template of reStructuredText, and return its paragraphs, one per line of the file.

    Raises ValueError if the caption is empty.
    """
    text = jinja2.Template(path.read_text(encoding="utf-8")).render(variables)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path}: the caption is empty; write at least one sentence")
    return lines


def _caption_variables(study: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the variables that the caption of a figure or table may use; n_seeds: of the settings that it shows."""
    attacks = dict.fromkeys(describe_attack(one["evaluation"]) for one in study["settings"].values())
    n_seeds = format_range(_count_seeds(_shown_runs(study, name) or study["runs"]))
    return {"n_seeds": n_seeds, "compare": study["compare"], "attack": "; ".join(attacks)}


def _shown_runs(study: Mapping[str, Any], name: str) -> list[Run]:
    """Return the runs that a figure or table shows; for one that the study does not list, all runs."""
    runs = study["runs"]
    return select_runs(name, runs, study["shown"][name]) if name in study["shown"] else list(runs)


def _count_seeds(runs: Sequence[Run]) -> list[int]:
    """Count the seeds of every setting and strength."""
    return pd.DataFrame(runs).groupby(SETTING, dropna=False).size().tolist()


def _study_context(study: Mapping[str, Any], files: Files) -> dict[str, Any]:
    """Describe what was run, and the cautions, limits and deviations that follow from it."""
    metas = {path.parent.name: _read_meta(path) for path in files.data}
    counts = _count_seeds(study["runs"])
    settings = [study["settings"][_run_name(run)] | {"paper": run["paper"]} for run in study["runs"]]
    tables = _summaries(files)
    return {
        "study": study,
        "datasets": [_dataset(study, name, meta) for name, meta in metas.items()],
        "assumed": describe_conventions(settings),
        "cautions": cautions([_outcome(run) for run in study["runs"]], _classes(metas)),
        "limits": [
            *limits(settings, study["titles"], counts=counts, tables=tables),
            *describe_unmeasured(_unmeasured(study["runs"])),
        ],
        "deviations": deviations(settings, tables),
    }


def _read_meta(path: Path) -> dict[str, Any]:
    """Read the description of prepared data. Raises ValueError, which names it, if it cannot be read."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}); make it again: snakemake -c1 --force {path}") from error
    if not isinstance(meta, dict):
        raise ValueError(f"{path} does not describe data; make it again: snakemake -c1 --force {path}")
    return meta


def _classes(metas: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of classes of each data set."""
    return {name: meta["classes"] for name, meta in metas.items()}


def _unmeasured(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """Return the parts of networks that have no singular values, by architecture, each with the reason."""
    found: dict[str, dict[str, str]] = {}
    for run in runs:
        own = parquet.read_metadata(Path(run["folder"]) / "svstd.parquet").get("unmeasured", {})
        found.setdefault(run["arch"], {}).update(own)
    return found


def _run_name(run: Mapping[str, Any]) -> str:
    return f"{run['dataset']}/{run['variant']}"


def _outcome(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run with its accuracies and the checks for hidden gradients that it failed, as `cautions` needs them."""
    (row,) = parquet.read(Path(run["folder"]) / "metrics.parquet", ["train_acc", "pgd_acc"]).to_pylist()
    return {**run, **row, "masked": failed_masking_checks(run)}


def _dataset(study: Mapping[str, Any], name: str, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Describe one data set: what was run on it, and the settings of its runs."""
    own = {key: settings for key, settings in study["settings"].items() if settings["dataset"] == name}
    terms = describe_data(meta, list(own.values()))
    return {
        "name": name,
        "title": study["titles"][name],
        "terms": terms,
        "n_runs": len(own),
        "shared": shared_settings(own),
    }


def _claims_context(claims: Path | None) -> dict[str, Any]:
    """Return the claims in groups, and the sentences that summarise them; nothing for a study that judges none."""
    if claims is None:
        return {"groups": [], "headline": [], "verdicts": {}}
    frame = parquet.read(claims).to_pandas()
    occurring = set(frame["verdict"])
    return {
        "groups": claims_section.group_claims(frame),
        "headline": claims_section.summary_sentences(frame),
        "verdicts": {key: words for key, words in claims_section.VERDICTS.items() if key in occurring},
    }


def _results_context(study: Mapping[str, Any], files: Files, captions: Path) -> dict[str, Any]:
    """Arrange figures and tables, with their captions, in sections."""
    stds = {path.parent.name: _read_meta(path)["std"] for path in files.data}

    def explain(name: str) -> list[str]:
        lines = caption(captions / f"{name}.rst", _caption_variables(study, name))
        return lines + describe_radii(_shown_runs(study, name), stds)

    drawn = {name: {"file": figure, "caption": explain(name)} for name, figure in embed_figures(files.figures).items()}
    made = {name: _table(name, path) | {"caption": explain(name)} for name, path in _summaries(files).items()}
    return {"sections": list(sections(drawn, made))}


def _summaries(files: Files) -> dict[str, Path]:
    """Return the files of the summaries over seeds, by table."""
    return {path.stem.removesuffix("_summary"): path for path in files.tables if path.stem.endswith("_summary")}


def _table(name: str, path: Path) -> dict[str, Any]:
    """Split a table into blocks; for tables that are not in the paper, constants are listed separately."""
    summary, same = parquet.read(path).to_pandas(), list[str]()
    if name in _EXTENSION_TABLES:
        summary, same = split_constants(summary)
    settings = table_blocks(summary)
    shown = len(settings) if len(settings) <= _MAX_SHOWN else _MAX_SHOWN // 2
    return {"name": name, "blocks": settings[:shown], "more": settings[shown:], "same": same}


def sections(drawn: Mapping[str, Any], made: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Arrange figures and tables in the sections of SECTIONS; those that no section names come last."""
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


def _comparison_context(study: Mapping[str, Any], files: Files, captions: Path) -> dict[str, Any]:
    """Prepare the comparison with the paper: the plot, blocks with and without our numbers, and a summary.

    A study that judges no claims has none.
    """
    if files.comparison is None or files.plot is None:
        return {"plot": None, "counted": "", "nearer": "", "conventions": None, "compared": [], "uncompared": []}
    frame = parquet.read(files.comparison).to_pandas()
    all_blocks = comparison_section.comparison_blocks(frame)
    compared = [block for block in all_blocks if block.run]
    return {
        "plot": {
            "file": embed_figures([files.plot])[files.plot.stem],
            "caption": caption(captions / "comparison.rst", _caption_variables(study, "comparison")),
        },
        "counted": comparison_section.count_sentence(frame),
        "nearer": describe_closer_space(frame) if compared else "",
        "conventions": judge_conventions(frame, study),
        "compared": compared,
        "uncompared": [block for block in all_blocks if not block.run],
    }


def _provenance_context(study: Mapping[str, Any]) -> dict[str, Any]:
    """Return times, memory, versions and hashes: what the study cost and how it was made."""
    accounts = run_accounts(study["runs"], study["settings"])
    costs = rule_costs(study["name"], study["runs"], list(RULE_INPUTS))
    epochs = format_duration(sum(one.epochs_s for one in accounts))
    total = f"The training epochs of the {len(accounts)} networks took {epochs}"
    wall, cpu = (format_duration(sum(getattr(one, key) for one in costs)) for key in ("wall_s", "cpu_s"))
    measured = f"; all {sum(one.jobs for one in costs)} jobs together took {wall} ({cpu} of CPU time)."
    used = {key: join_distinct(getattr(one, key) for one in accounts) for key in ("version", "torch", "device")}
    return {
        "flow": rule_graph(),
        "accounts": accounts,
        "costs": costs,
        "times": total + (measured if costs else "."),
        "used": used,
        "code": _code_sentences(accounts),
        "hashes": {
            "the package": provenance.package_hash(),
            "the code that decides the weights": provenance.code_hash(),
        },
        "versions": versions(),
    }


def _code_sentences(accounts: Sequence[RunAccount]) -> str:
    """State which runs were trained with older or unrecorded code or with other settings, or cannot be verified."""
    names = {code: [one.name for one in accounts if one.code == code] for code in ("older code", "not recorded")}
    sentences = []
    if names["older code"]:
        sentences.append(
            "These networks were trained with older code, so training them again may give different results: "
            f"{', '.join(names['older code'])}."
        )
    if names["not recorded"]:
        sentences.append(
            f"For {len(names['not recorded'])} of {len(accounts)} runs, the code that trained them is not recorded."
        )
    if not sentences:
        sentences.append("The code that decides the weights has not changed since training.")
    if changed := [f"{one.name} ({one.differences})" for one in accounts if one.differences]:
        sentences.append(f"These networks were trained with other settings than those below: {', '.join(changed)}.")
    if unverified := [one.name for one in accounts if not one.verified]:
        sentences.append(
            f"For {len(unverified)} of {len(accounts)} runs, the checkpoint holds no logits to compare with, so it was "
            "not verified that the measured network is the one that was trained."
        )
    return " ".join(sentences)
