"""Write the report of a study: one HTML file that opens offline.

The answer and the main figure come first, then the other figures and tables in the order of the paper, then the claims.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from robreg.checks.study_audit import refuse_changed_study
from robreg.paper.agreement import describe_closer_space
from robreg.report import claims_count, claims_section, comparison_section, finding, index
from robreg.report.cautions import describe_weak_attacks
from robreg.report.claims_section import REASONS
from robreg.report.comparison_section import judge_conventions
from robreg.report.glossary import Glossary
from robreg.report.pictures import embed_figures
from robreg.report.provenance_section import provenance_context
from robreg.report.results_section import caption, caption_variables, results_context, split_caption
from robreg.report.run_section import study_context
from robreg.report.templates import template_environment
from robreg.report.units import format_duration, format_memory
from robreg.tables import parquet
from robreg.tables.files import atomic_write

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

    @property
    def summaries(self) -> dict[str, Path]:
        """The files of the summaries over seeds, by table."""
        return {path.stem.removesuffix("_summary"): path for path in self.tables if path.stem.endswith("_summary")}


def record(out: Path, study: Mapping[str, Any], files: Files, *, template: Path) -> None:
    """Write the report of a study as write does, if none of its files changed after they were checked.

    Then list all studies that are beside it in index.html, two folders above its own. Raises ValueError, naming the
    files, if one changed.
    """
    refuse_changed_study(study["runs"], study["shown"], files.audit, judged=files.claims is not None)
    write(out, study, files, template=template)
    index.write(out.parents[2], template.with_name("index.html.j2"))


def write(out: Path, study: Mapping[str, Any], files: Files, template: Path) -> None:
    """Write the report of a study.

    study: name, title, runs (from config.chosen_runs), not_run (its other runs, with their epochs), not_made (the
    figures and tables that this prevents), compare, titles (of data sets, by name), settings (resolved, by
    "dataset/variant") and shown (its figures and tables, each with what it is restricted to, or None for all);
    template: the Jinja2 template of the page. The captions, {figure, table or comparison}.rst, and the page's style and
    script, report.css and report.js, must be in the same folder. Raises ValueError if the page is larger than LIMIT.
    """
    context = _study_context(study, files, template)
    context |= _claims_context(files.claims, study) | _comparison_context(study, files, template.parent)
    context |= provenance_context(study) | _audit_context(files.audit)
    page = _environment(template.parent).get_template(template.name).render(context).encode()
    if len(page) > LIMIT:
        raise ValueError(
            f"{out} would have {len(page):,} bytes, but the limit is {LIMIT:,}; list fewer figures in the study"
        )
    with atomic_write(out) as file:
        file.write(page)


def script(path: Path) -> tuple[Markup, str]:
    """Return the page's own script, and the source that allows it, and no other, in the content security policy."""
    text = path.read_text(encoding="utf-8")
    return Markup(text), f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _environment(folder: Path) -> jinja2.Environment:
    """Return what renders the page. Its filter `explained` links special words to their explanations at the end."""
    environment = template_environment(folder)
    glossary = Glossary()
    environment.filters |= {
        "duration": format_duration,
        "memory": format_memory,
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
        "explained": glossary.link,
    }
    environment.globals["words"] = glossary.entries
    return environment


def _study_context(study: Mapping[str, Any], files: Files, template: Path) -> dict[str, Any]:
    """Return what was found, the figures and tables that show it, what was run, and the page's script."""
    settings = finding.main_settings(study["runs"])
    study = {**study, "judged": files.claims is not None}
    own, allowed = script(template.with_name("report.js"))
    context = {"answer": finding.answer(settings), "glance": finding.glance(settings)}
    context |= {"script": own, "script_source": allowed} | study_context(study, files.data, files.summaries)
    return context | results_context(study, files.figures, files.summaries, data=files.data, captions=template.parent)


def _claims_context(claims: Path | None, study: Mapping[str, Any]) -> dict[str, Any]:
    """Return the claims in groups, and the sentences that summarise them; nothing for a study that judges none."""
    if claims is None:
        return {"groups": [], "untested": {}, "counted_claims": [], "remarks": [], "verdicts": {}, "reasons": {}}
    frame = parquet.read(claims).to_pandas()
    occurring = set(frame["verdict"])
    return {
        "groups": claims_section.group_claims(frame, study["runs"]),
        "untested": claims_section.untested_claims(frame, study["runs"]),
        "counted_claims": claims_count.summary_sentences(frame, study["runs"]),
        "remarks": claims_count.remarks(frame),
        "verdicts": {key: words for key, words in claims_section.VERDICTS.items() if key in occurring},
        "reasons": REASONS,
    }


def _comparison_context(study: Mapping[str, Any], files: Files, captions: Path) -> dict[str, Any]:
    """Prepare the comparison with the paper: the plot, blocks with and without our numbers, and a summary.

    A study that judges no claims has none.
    """
    if files.comparison is None or files.plot is None:
        return {"plot": None, "counted": "", "nearer": "", "conventions": None, "compared": [], "uncompared": []}
    frame = parquet.read(files.comparison).to_pandas()
    all_blocks = comparison_section.comparison_blocks(frame)
    compared = [block for block in all_blocks if block.run]
    lines = caption(captions / "comparison.rst", caption_variables(study, "comparison"))
    return {
        "plot": {"file": embed_figures([files.plot])[files.plot.stem], "caption": split_caption(lines)},
        "counted": comparison_section.count_sentence(frame),
        "nearer": describe_closer_space(frame) if compared else "",
        "conventions": judge_conventions(frame, study),
        "compared": compared,
        "uncompared": [block for block in all_blocks if not block.run],
    }


def _audit_context(path: Path) -> dict[str, Any]:
    """Return the number of checks, and what must be said of those that failed."""
    audit = parquet.read(path, ["place", "found", "passed"]).to_pylist()
    weak = [row for row in audit if not row["passed"]]  # the audit raises for every other check that fails
    return {"checks": len(audit), "weak_attacks": describe_weak_attacks(weak)}
