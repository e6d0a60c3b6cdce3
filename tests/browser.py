"""Pages in a headless Chromium: the system's, or the one that `playwright install chromium` fetched."""

import shutil

import pytest


@pytest.fixture(scope="module")
def browser():
    """A Chromium without a window; the test is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api")
    system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with api.sync_playwright() as playwright:
        try:
            made = playwright.chromium.launch(executable_path=system, timeout=120_000)
        except api.Error as error:
            pytest.skip(f"no Chromium to look at pages with: {str(error).splitlines()[0]}")
        yield made
        made.close()


def opened(browser, path, width=1280):
    """The page of a file. What its console says of errors, and of what its policy forbids, stands in `page.errors`."""
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.set_default_timeout(120_000)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.goto(path.as_uri())
    return page


def slide(page, selector, value):
    """Move a slider, as a user does."""
    page.locator(selector).evaluate("(s, v) => { s.value = v; s.dispatchEvent(new Event('input')) }", value)
