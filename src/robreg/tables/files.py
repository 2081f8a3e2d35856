"""Write files atomically: either the whole file appears, or nothing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cannot_write(path: Path, error: OSError) -> OSError:
    """Return an OSError that names the file that could not be written, the reason from error, and the fix."""
    why = os.strerror(error.errno) if error.errno else error
    fix = "free up disk space or make the path writable, then start again: finished files are kept"
    return OSError(error.errno, f"{path} cannot be written ({why}); {fix}")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to path if the block succeeds, and remove it otherwise.

    Raises an OSError that names path if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # what a killed process left may be a link to another file
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary.exists():
            temporary.unlink()
