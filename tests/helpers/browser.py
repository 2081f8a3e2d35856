"""Check a page in a browser."""

from pathlib import Path

import numpy as np
from playwright.sync_api import Page


def assert_works_offline(page: Page, path: Path, *, width: int, figures: int) -> None:
    """Open a report from disk and check that it works offline.

    Every figure must be shown, nothing may be wider than the screen (width, in pixels) or loaded from outside, and the
    console must stay empty. figures: the number of figures in the page.
    """
    requests: list[str] = []
    messages: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert len(widths) == figures
    assert np.all(np.array(widths) > 0)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert path.as_uri() in requests
    assert {url.partition(":")[0] for url in requests} <= {"file", "data"}
    assert messages == []
