"""What every script of the workflow does first: log to the job's file, and turn the rule into arguments."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def logged(path: str) -> Iterator[None]:
    """Log the block to a file. An error ends the job with its traceback in the file and one sentence on stderr."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, mode="w")
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", handlers=[handler], force=True
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


def arguments(job: Any, *config: str) -> dict[str, Any]:  # noqa: ANN401 - Snakemake's own object, which has no types
    """Turn a rule's job into the keyword arguments of the function that its script calls.

    job: the object `snakemake` of a script. Named inputs (but "code") and outputs become Paths, or lists of Paths,
    under their names; params stay as they are. config: keys of the configuration that are arguments too, "device".
    """
    files = {**dict(job.input.items()), **dict(job.output.items())}
    paths = {name: _paths(value) for name, value in files.items() if name != "code"}
    return {**paths, **dict(job.params.items()), **{key: job.config[key] for key in config}}


def _paths(value: str | list[str]) -> Path | list[Path]:
    return Path(value) if isinstance(value, str) else [Path(one) for one in value]
