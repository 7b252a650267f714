"""A Chromium, driven by playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.debian import install

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


def chromium() -> str:
    """Find a Chromium, or install one."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "google-chrome", "chromium-headless-shell")
    if (found := next(filter(None, map(shutil.which, names)), None)) is None:
        install({"chromium-headless-shell": "chromium-headless-shell"})
    return found or "/usr/bin/chromium-headless-shell"


@contextmanager
def opened() -> Iterator[Any]:
    """Open a browser; without playwright the test is skipped."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=chromium(), args=FLAGS.split())
        yield browser
        browser.close()
