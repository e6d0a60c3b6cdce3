"""The site of the course: every page has its place, every link leads somewhere, and the build gives no warning."""

import fnmatch
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "tutorials" / "build.py"
PAGES = sorted(
    path
    for path in [ROOT / "README.md", *(ROOT / "tutorials").rglob("*.md"), *(ROOT / "tutorials").rglob("*.ipynb")]
    if ".ipynb_checkpoints" not in path.parts
)


def markdown(page: Path) -> str:
    """The text of a page without its code; of a notebook, that of its Markdown cells."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


def test_every_page_is_in_the_navigation():
    names = {page.relative_to(ROOT).with_suffix("").as_posix() for page in PAGES}
    navigation = runpy.run_path(str(ROOT / "tutorials" / "conf.py"))["NAVIGATION"]
    shown = {"README"}
    for above, patterns in navigation.items():
        for pattern in patterns if above in names else ():
            full = os.path.normpath(os.path.join(os.path.dirname(above), pattern))
            found = {name for name in fnmatch.filter(names, full) if name.count("/") == full.count("/")}
            assert found, f"{above}: no page for {pattern}"
            shown |= found
    assert names == shown, "tutorials/conf.py says where a page stands"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_link_leads_to_something(page):
    for link in re.findall(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)", markdown(page)):
        assert (page.parent / unquote(link)).exists(), link


def test_the_workflow_publishes_what_is_built():
    workflow = (ROOT / ".github" / "workflows" / "site.yml").read_text(encoding="utf-8")
    assert "python tutorials/build.py site\n" in workflow and "python tutorials/build.py slides\n" in workflow
    assert f"path: {runpy.run_path(str(BUILD))['SITE'].relative_to(ROOT)}\n" in workflow
    assert "/build/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines(), "what is built is not committed"


@pytest.mark.parametrize("words", [["sites"], ["slides", "7b"], ["01", "sites"]])
def test_a_wrong_word_gets_one_line(words):
    with pytest.raises(SystemExit, match=rf"^build.py: error: no tutorial {words[-1]}; say [^\n]+$"):
        runpy.run_path(str(BUILD))["main"](words)


@pytest.mark.slow
def test_the_site_builds_without_a_warning():
    for package in ("sphinx", "myst_nb", "pydata_sphinx_theme", "nbconvert"):
        pytest.importorskip(package)
    for words in ("site", "slides 01"):
        done = subprocess.run([sys.executable, str(BUILD), *words.split()], capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
    site = ROOT / "build" / "site"
    for page in PAGES:
        html = (site / page.relative_to(ROOT).with_suffix(".html")).read_text(encoding="utf-8")
        assert ("$" in markdown(page)) == ('class="math' in html), f"{page}: formulas"
        assert "test -d /content" not in html, "a cell for Colab only"
        assert 'download=""' not in html, "a linked file opens in the browser"
        for link in re.findall(r'(?:href|src)="([^"#:?]+)[#?"]', html):
            assert (site / page.relative_to(ROOT)).parent.joinpath(unquote(link)).exists(), f"{page}: {link}"
    assert (site / "index.html").read_text(encoding="utf-8") == (site / "README.html").read_text(encoding="utf-8")
    slides = (site / "slides" / "01_reward_without_touching_the_lm.html").read_text(encoding="utf-8")
    assert slides.count("<section") > 20 and "test -d /content" not in slides
    assert slides.count('src="data:image/png') == 1 and ">figure<" not in slides, "the figure, without its code"
