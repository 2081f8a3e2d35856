"""Arrange the figures and tables of a study in sections, each with its caption."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from robreg.report.attack_words import describe_attack
from robreg.report.finding import lines_about
from robreg.report.phrases import format_range
from robreg.report.pictures import embed_figures
from robreg.report.run_section import count_seeds, read_meta
from robreg.report.space_words import describe_radii
from robreg.report.tables_section import split_constants, table_blocks
from robreg.runs.catalogue import Run, select_runs
from robreg.tables import parquet

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
    ("What attacks do to images (extension)", ("examples",), ()),
    ("How evenly layers pass perturbations on (extension)", ("spread",), ()),
    ("Which conventions give the paper's numbers (extension)", ("conventions",), ()),
    ("A stronger attack (extension)", (), ("attacks",)),
    ("Zero padding (extension)", (), ("padding",)),
    ("Theorem 3.1 and Lemma 3.1, measured (paper, section 3; extension)", (), ("theory",)),
)
MAIN = ("fig1", "fig3", "fig12", "fig4", "fig8", "fig9", "conventions")  # the first of these opens the page
SEE = "What to see: "
_EXTENSION_TABLES = ("attacks", "padding", "theory")  # not in the paper
_MAX_SHOWN = 4  # blocks of a table; if there are more, only half as many are shown without a click


@dataclass(frozen=True)
class Caption:
    """A caption in paragraphs. title: what is shown; see: what to see in it; more: how it was measured and drawn."""

    title: str
    see: tuple[str, ...]
    more: tuple[str, ...]


def split_caption(lines: Sequence[str]) -> Caption:
    """Split the paragraphs of a caption; those that begin with SEE say what to see."""
    title, *rest = lines
    see = tuple(line for line in rest if line.startswith(SEE))
    return Caption(title, see, tuple(line for line in rest if line not in see))


def caption(path: Path, variables: Mapping[str, Any]) -> list[str]:
    """Render a caption, a Jinja2 template of reStructuredText, and return its paragraphs, one per line of the file.

    Raises ValueError if the caption is empty.
    """
    text = jinja2.Template(path.read_text(encoding="utf-8")).render(variables)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path}: the caption is empty; write at least one sentence")
    return lines


def caption_variables(study: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the variables that the caption of a figure or table may use; n_seeds: of the settings that it shows."""
    attacks = dict.fromkeys(describe_attack(one["evaluation"]) for one in study["settings"].values())
    n_seeds = format_range(count_seeds(_shown_runs(study, name) or study["runs"]))
    return {"n_seeds": n_seeds, "compare": study["compare"], "attack": "; ".join(attacks)}


def _shown_runs(study: Mapping[str, Any], name: str) -> list[Run]:
    """Return the runs that a figure or table shows; for one that the study does not list, all runs."""
    runs = study["runs"]
    return select_runs(name, runs, study["shown"][name]) if name in study["shown"] else list(runs)


def results_context(
    study: Mapping[str, Any],
    figures: Sequence[Path],
    tables: Mapping[str, Path],
    *,
    data: Sequence[Path],
    captions: Path,
) -> dict[str, Any]:
    """Arrange figures and tables, with their captions, in sections; the main figure is separate.

    study: as in page.write; figures: SVG files; tables: the summaries, by name; data: meta.json of every prepared data
    set; captions: their folder.
    """
    stds = {path.parent.name: read_meta(path)["std"] for path in data}

    main = next((name for name in MAIN if name in [path.stem for path in figures]), "")

    def explain(name: str) -> Caption:
        shown = _shown_runs(study, name)
        own = split_caption(caption(captions / f"{name}.rst", caption_variables(study, name)))
        here = () if name == main else lines_about(name, shown)  # the page begins with the same numbers
        return replace(own, see=(*own.see, *here), more=(*own.more, *describe_radii(shown, stds)))

    drawn = {name: {"file": figure, "caption": explain(name)} for name, figure in embed_figures(figures).items()}
    made = {name: _table(name, path) | {"caption": explain(name)} for name, path in tables.items()}
    return {"main": drawn.pop(main, None), "sections": list(sections(drawn, made))}


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
