"""What every script of the workflow needs: a log file for its job, and the arguments that its rule gives it."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def logged(path: str, *, shown: bool = False) -> Iterator[None]:
    """Log the block to a file. On an error, log the traceback, print one sentence to stderr and exit with status 1.

    shown: whether what this package logs is printed to stderr too, for a job whose user should read it.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, mode="w")
    handlers = [handler, _terminal()] if shown else [handler]
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", handlers=handlers, force=True
    )
    logging.captureWarnings(capture=True)
    try:
        yield
    except Exception as error:
        logging.exception("%s", error)
        print(f"Error: {error} (log: {path})", file=sys.stderr)
        sys.exit(1)
    finally:
        handler.flush()


def _terminal() -> logging.Handler:
    """Make a handler that prints to stderr what this package logs, but not the error that `logged` itself prints."""
    terminal = logging.StreamHandler()
    terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    terminal.addFilter(logging.Filter("robreg"))
    return terminal


def arguments(job: Any, *config: str) -> dict[str, Any]:  # noqa: ANN401 - Snakemake's object has no types
    """Return the keyword arguments of the function that a rule's script calls.

    job: the object `snakemake` of the script. Its named inputs (except "code") and outputs become Paths or lists of
    Paths; its params are passed on unchanged. config: keys of the configuration to pass on too, such as "device".
    """
    files = {**dict(job.input.items()), **dict(job.output.items())}
    paths = {name: _paths(value) for name, value in files.items() if name != "code"}
    return {**paths, **dict(job.params.items()), **{key: job.config[key] for key in config}}


def _paths(value: str | list[str]) -> Path | list[Path]:
    return Path(value) if isinstance(value, str) else [Path(path) for path in value]
