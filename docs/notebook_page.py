"""Run a notebook, and write it as a page of the documentation."""

import ast
import contextlib
import functools
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure


@functools.cache
def run_notebook(path: Path, content: str) -> tuple[str, dict[str, bytes]]:
    """Run a notebook; return it as a page with the output of its cells, and the figures that they draw, by file name.

    path: of the notebook, which runs in its folder, as in Jupyter; content: of its file.
    """
    mpl.use("agg")
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads(content)["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] != "code":
            parts.append(text)
            continue
        with contextlib.chdir(path.parent):
            parts += [f"```python\n{text}\n```", *run_cell(text, names)]
        for number in plt.get_fignums():
            picture = f"{path.stem}-{len(pictures) + 1}.png"
            pictures[picture] = _picture(plt.figure(number))
            parts.append(f"![What the cell above draws]({picture})")
        plt.close("all")
    return "\n\n".join(parts), pictures


def run_cell(text: str, names: dict[str, Any]) -> Iterator[str]:
    """Run a cell as Jupyter does. Yields, as Markdown, what it prints, and the value of its last line."""
    body = ast.parse(text).body
    last = body[-1] if not text.rstrip().endswith(";") else None
    shown = ast.Expression(last.value) if isinstance(last, ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(body[:-1] if shown else body, []), "cell", "exec"), names)
        value = eval(compile(shown, "cell", "eval"), names) if shown else None
    if printed.getvalue():
        yield f"```text\n{printed.getvalue().rstrip()}\n```"
    if isinstance(value, pd.DataFrame):
        yield value.to_html(border=0, index=False).replace(' class="dataframe"', "")  # for the style of other tables
    elif value is not None:
        yield f"```text\n{value!r}\n```"


def _picture(figure: Figure) -> bytes:
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=120)
        return file.getvalue()
