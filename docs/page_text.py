"""Write rows of tables and sentences in Markdown."""


def row(*cells: str) -> str:
    """Write a row of a table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def sentence(text: str) -> str:
    """Begin a text with a capital letter, and end it with a full stop."""
    return text and f"{text[0].upper()}{text[1:].rstrip('.')}."
