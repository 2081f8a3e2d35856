"""The error for data that cannot be used."""


class DataError(ValueError):
    """Raised for data that cannot be used, with one sentence that names the file or key and how to fix it."""

    def __init__(self, said: str) -> None:
        """Join the lines of the message into one, because errors that it quotes may have several lines."""
        super().__init__(" ".join(line.strip() for line in said.splitlines()))
