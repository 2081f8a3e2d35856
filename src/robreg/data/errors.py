"""The error for data that cannot be used, and text from files that is safe to print."""

from collections.abc import Iterable

MAX_NAME = 100  # letters of the name of a class


def printable(text: str) -> str:
    """Escape what a terminal may obey or cannot show: control and bidirectional characters, halves of surrogate pairs.

    Names in archives and texts of errors come from files, which others may have written. Other text stays as it is.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def safe_names(names: Iterable[str]) -> list[str]:
    """Return names of classes from a file, printable and with at most MAX_NAME letters each."""
    return [printable(name)[:MAX_NAME] for name in names]


def describe_error(error: Exception) -> str:
    """Describe an error that other code raised, with its kind, in one printable line of a message."""
    text = " ".join(str(error).split())
    return printable((f"{type(error).__name__}: {text}" if text else type(error).__name__)[:200])


class DataError(ValueError):
    """Raised for data that cannot be used, with one sentence that names the file or key and how to fix it."""

    def __init__(self, said: str) -> None:
        """Join the lines of the message into one, because errors that it quotes may have several, and make it safe."""
        super().__init__(printable(" ".join(line.strip() for line in said.splitlines())))
