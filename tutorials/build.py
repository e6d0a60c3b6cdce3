"""Build the notebooks: every `NN_slug.py` beside this file becomes `NN_slug.ipynb`, executed, with its figures.

    pip install -e '.[notebooks]'
    python tutorials/build.py              # all; the first one that needs it trains the shared run (minutes)
    python tutorials/build.py 07a 08       # some

The `.py` (jupytext's percent format) is the only source: edit it, never the notebook. What differs from machine to
machine is left out of the notebook: execution times, the kernel's name, standard error.

From the notebooks and the pages beside them, without executing anything:

    pip install -e '.[site]'
    python tutorials/build.py site         # build/site/index.html; conf.py has the settings. One warning: it fails
    python tutorials/build.py slides 07a   # build/site/slides/07a_slug.html, one slide a cell; without a number: all
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SITE = HERE.parent / "build" / "site"
URL = "https://github.com/alignpro-mini/alignpro_mini"  # the one place of the repository's address
BUTTON = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
NOTEBOOKS = URL.replace("github.com", "colab.research.google.com/github") + "/blob/main/tutorials"  # where it leads
COLAB = f"""\
# %% tags=["skip-execution", "remove-cell"]
# !test -d /content && git clone -q {URL} /content/alignpro_mini && pip install -q --no-deps /content/alignpro_mini
# %cd -q /content/alignpro_mini/tutorials
"""


def build(source: Path) -> Path:
    """Execute one tutorial and write its notebook. Raises CellExecutionError for a cell that fails."""
    import jupytext
    from nbclient import NotebookClient

    notebook = jupytext.read(source)
    client = NotebookClient(notebook, timeout=900, skip_cells_with_tag="skip-execution", record_timing=False)
    client.execute(cwd=str(HERE))
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    path = source.with_suffix(".ipynb")
    jupytext.write(notebook, path, fmt="ipynb")
    return path


def slides(source: Path) -> Path:
    """Write the slides of a tutorial's notebook: down through the cells, right to the next heading; a figure has no code."""
    import nbformat
    from nbconvert import SlidesExporter

    notebook = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    for cell in notebook.cells:
        kind = "slide" if cell.source.startswith("#") and cell.cell_type == "markdown" else "subslide"
        cell.metadata["slideshow"] = {"slide_type": "skip" if "remove-cell" in cell.metadata.get("tags", []) else kind}
        cell.metadata["transient"] = {"remove_source": "show(figure)" in cell.source}
    shape = {"reveal_width": "1400", "reveal_height": "800", "reveal_scroll": True}
    exporter = SlidesExporter(**shape, exclude_input_prompt=True, exclude_output_prompt=True)
    path = SITE / "slides" / f"{source.stem}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(exporter.from_notebook_node(notebook)[0], encoding="utf-8")
    return path


def site() -> int:
    """Write the site to build/site. Returns 0, or Sphinx's exit status after a warning."""
    from sphinx.cmd.build import main as sphinx

    strict = ["-E", "-W", "--keep-going", "-q", "-D", f"html_theme_options.github_url={URL}"]
    status = sphinx([*strict, "-c", str(HERE), "-d", str(SITE.parent / "doctrees"), str(HERE.parent), str(SITE)])
    if not status:
        shutil.copy(SITE / "README.html", SITE / "index.html")
        print(SITE / "index.html")
    return status


def main(words: list[str]) -> int:
    if words == ["site"]:
        return site()
    presented = words[:1] == ["slides"]
    make = slides if presented else build
    numbers = words[1:] if presented else words
    sources = sorted(HERE.glob("[0-9][0-9]*_*.py"))
    unknown = set(numbers) - {path.name.partition("_")[0] for path in sources}
    if unknown:
        sys.exit(f"build.py: error: no tutorial {', '.join(sorted(unknown))}; say site, slides 07a, or 07a 08")
    for source in sources:
        if not numbers or source.name.partition("_")[0] in numbers:
            path = make(source)
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
