"""What every page must do in a browser."""

from pathlib import Path

import numpy as np
from playwright.sync_api import Page


def assert_works_offline(page: Page, path: Path, *, width: int, figures: int) -> None:
    """Open a report from disk: every figure shows, nothing is wider than the screen or loaded from outside."""
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) == figures
    assert np.all(np.array(widths) > 0)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert path.as_uri() in requests
    assert {url.partition(":")[0] for url in requests} <= {"file", "data"}
    assert complaints == []
