"""Show what the runs of a study are doing while they are trained and measured, here or on a cluster.

On a terminal the view is drawn again every two seconds, until Ctrl-C or until the study is finished; otherwise it is
printed once. It reads logs and leases and changes nothing. For example, in the folder of the Snakefile:

    python -m robreg.workflow.watch demo
"""

import argparse
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robreg.data.errors import printable
from robreg.report.units import format_duration
from robreg.runs import config as study_config
from robreg.runs.needs import has_all_checked, judges_claims, measures_of
from robreg.runs.settings import ConfigError, parse_run
from robreg.workflow.progress import STATES, Progress, look

SCHEMA = Path("workflow/schemas/config.schema.yaml")
_SECONDS = 2.0  # between two views
_TOP = "\x1b[H\x1b[J"  # moves the cursor of a terminal to the top, and clears what is below it


def view(config: Mapping[str, Any], study: str | None, height: int | None = None) -> list[str]:
    """Return the lines of the view: a summary, one line per run, and the report of the study.

    study: None for the runs of all studies that have begun; height: the most lines there may be, None for any number.
    Raises ConfigError if there is no such study.
    """
    runs = _look_at_runs(config, study)
    last = [f"report: {_describe_report(one)}" for one in ([] if study is None else [study])]
    lines = [_line(run, max((len(one.name) for one in runs), default=0)) for run in runs]
    if height is not None and len(lines) > (room := max(1, height - 3 - len(last))):
        lines = [*lines[:room], f"... and {len(lines) - room} more"]
    return [_summary(config, study, runs), *lines, *last]


def is_finished(config: Mapping[str, Any], study: str | None) -> bool:
    """Return whether a study has its report, and nothing is left to do for it."""
    if study is None or not _report(study).exists():
        return False
    return all(run.state == "measured" for run in _look_at_runs(config, study))


def _look_at_runs(config: Mapping[str, Any], study: str | None) -> list[Progress]:
    """Look at each run of a study, and sort them by state.

    Without a study, and with only_finished, runs that have not begun are left out.
    """
    wanted: dict[str, dict[str, None]] = {}  # the measures of each run, in order
    for one in config["studies"] if study is None else [study]:
        listed = study_config.study_runs(config, one)  # raises ConfigError if there is no such study
        block, shown = config["studies"][one], study_config.listed_items(config, one)
        last = ["checks"] if has_all_checked(block, shown) else []
        for run in listed:
            rules = [*measures_of(run, listed, shown, judged=judges_claims(block)), *last]
            wanted.setdefault(f"{run['dataset']}/{run['variant']}", {}).update(dict.fromkeys(rules))
    runs = [look(name, list(rules)) for name, rules in wanted.items()]
    if study is None or config.get("only_finished"):
        runs = [run for run in runs if run.state != "waiting"]
    return sorted(runs, key=lambda one: STATES.index(one.state))


def _summary(config: Mapping[str, Any], study: str | None, runs: Sequence[Progress]) -> str:
    """Count the runs by state, and say how long their trainings still take."""
    counts = [f"{count} {state}" for state in STATES if (count := sum(run.state == state for run in runs))]
    if not counts:
        return "No run has begun."
    return f"{study or 'begun'}, {len(runs)} in all: {', '.join(counts)}{_describe_left(config, runs)}"


def _describe_left(config: Mapping[str, Any], runs: Sequence[Progress]) -> str:
    """Say how long the trainings still take if as many run at a time as now, by what an epoch of like runs takes."""
    each = {_kind(config, run.name): run.each for run in runs if run.each is not None}
    left, unknown, at_once = 0.0, 0, sum(run.state == "training" for run in runs)
    for run in (run for run in runs if run.state in ("training", "starting", "waiting")):
        epoch = each.get(_kind(config, run.name))
        expected = run.left if run.left is not None or epoch is None else epoch * _epochs(config, run.name)
        left, unknown = left + (expected or 0.0), unknown + (expected is None)
    if not left:
        return ""
    pace = max(1, at_once)
    more = f", not counting {unknown} of a kind of which no epoch is finished yet" if unknown else ""
    return f"; about {format_duration(left / pace)} of training left with {pace} at a time{more}"


def _kind(config: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """Return what runs have in common whose epochs take about the same time."""
    dataset, _, variant = name.partition("/")
    run = parse_run(config, dataset, variant)
    return dataset, run.arch, run.train_attack if run.ar else "standard training", run.bound


def _epochs(config: Mapping[str, Any], name: str) -> int:
    own = config.get("runs", {}).get(name, {}).get("training", {})
    return int({**config["datasets"][name.partition("/")[0]]["training"], **own}["epochs"])


def _line(run: Progress, width: int) -> str:
    return f"{run.name:{width}}  {run.state:9}  {run.text}".rstrip()


def _report(study: str) -> Path:
    return Path("results/studies", study, "report.html")


def _describe_report(study: str) -> str:
    path = _report(study)
    return str(path) if path.exists() else f"{path} (not made yet)"


def _draw(lines: Sequence[str], width: int) -> None:
    print(_TOP + "\n".join(line[:width] for line in lines), flush=True)


def _watch(config: Mapping[str, Any], study: str | None) -> None:
    """Draw the view again and again on a terminal, or print it once."""
    while sys.stdout.isatty():
        size = shutil.get_terminal_size()
        _draw(view(config, study, size.lines), size.columns)
        if is_finished(config, study):
            return
        time.sleep(_SECONDS)
    print("\n".join(view(config, study)))


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", help="a study of config.yaml (default: the runs of all that have begun)")
    given = parser.parse_args()
    try:
        _watch(study_config.load(Path("config.yaml"), SCHEMA), given.study)
    except KeyboardInterrupt:
        print()
    except (ConfigError, OSError, ValueError) as error:
        print(printable(f"Error: {error}"), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
