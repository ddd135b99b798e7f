"""Take the picture of the endpoint's page, ``docs/gallery/endpoint.png``.

The times in it are of the machine and the moment. Needs playwright and chromium; half a minute.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).parents[1] / "gallery" / "endpoint.png"
OPTIONS = ("--port", "0", "--strategy", "classifier", "--decode", "lossless+suffix")
WIDTH = 1280


def main() -> None:
    """Serve the default model, run its first prompt, and take the picture."""
    server = subprocess.Popen(
        [sys.executable, "-m", "harness.cli", "serve", *OPTIONS], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        found = re.search(r"http://[\d.:]+\d", server.stderr.readline())
        assert found
        server.stderr.readline()  # it is ready
        take(found.group())
    finally:
        server.terminate()
        server.communicate()


def take(url: str) -> None:
    """Visit the page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.set_default_timeout(300_000)
        page.goto(url)
        page.click("#run")
        page.wait_for_selector("#stop[disabled]")
        page.mouse.move(0, 0)
        page.evaluate("document.activeElement.blur()")
        height = page.evaluate("document.querySelector('.editors').getBoundingClientRect().top + scrollY")
        shot = page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
        browser.close()
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(256).save(PICTURE, optimize=True)  # a third of the bytes


if __name__ == "__main__":
    main()
