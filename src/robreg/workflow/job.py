"""What every script of the workflow needs: a log file for its job, and the arguments that its rule gives it."""

import logging
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robreg.data.errors import printable

_STATUS = Path("/proc/self/status")  # of this process, on Linux


@contextmanager
def logged(path: str, *, shown: bool = False) -> Iterator[None]:
    """Log the block to a new file. On an error, log the traceback, print one sentence to stderr and exit with status 1.

    shown: whether what this package logs is printed to stderr too, for a job whose user should read it.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).unlink(missing_ok=True)
    handler = logging.FileHandler(path, mode="x")  # x: fails if anything stands there, even a link
    handler.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler, _terminal()] if shown else [handler], force=True)
    logging.captureWarnings(capture=True)
    try:
        yield
    except Exception as error:
        logging.exception("%s", error)
        print(printable(" ".join(f"Error: {error} (log: {path})".splitlines())), file=sys.stderr)
        sys.exit(1)
    finally:
        handler.flush()


class _Printable(logging.Formatter):
    """Formats what is logged so that no text from a file can command a terminal or pretend to be another entry.

    Control characters are escaped, and all lines of an entry but its first are indented.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Format an entry, with the traceback of its error if it has one."""
        return "\n    ".join(printable(line) for line in super().format(record).splitlines())


def _terminal() -> logging.Handler:
    """Make a handler that prints to stderr what this package logs, but not the error that `logged` itself prints."""
    terminal = logging.StreamHandler()
    terminal.setFormatter(_Printable("%(levelname)s: %(message)s"))
    terminal.addFilter(logging.Filter("robreg"))
    return terminal


@contextmanager
def limited_memory(megabytes: int, rule: str) -> Iterator[None]:
    """Let the block use only so much more memory than the process has, and end with one sentence if it needs more.

    It is for code that reads files of others, which may demand any amount, before the machine itself runs out. The
    limit is for allocated memory, not for files that are mapped, such as libraries. Only Linux keeps it.
    Raises MemoryError.
    """
    status = _STATUS.read_text() if _STATUS.exists() else ""
    used = sum(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:"))
    before, limit = resource.getrlimit(resource.RLIMIT_DATA), used + megabytes * 2**20
    if before[0] == resource.RLIM_INFINITY or limit < before[0]:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    except MemoryError as error:
        raise MemoryError(
            f"the data need more than {megabytes} MB of memory while they are read, which no data set of this workflow "
            f"does; if they are as they should be, allow more: --set-resources {rule}:mem_mb={2 * megabytes}"
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


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
