"""Build the notebooks: every `NN_slug.py` beside this file becomes `NN_slug.ipynb`, executed, with its figures.

    pip install -e '.[notebooks]'
    python tutorials/build.py              # all; the first one that needs it trains the shared run (minutes)
    python tutorials/build.py 07a 08       # some

The `.py` (jupytext's percent format) is the only source: edit it, never the notebook. What differs from machine to
machine is left out of the notebook: execution times, the kernel's name, standard error.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
URL = "https://github.com/alignpro-mini/alignpro_mini"  # the one place of the repository's address
COLAB = f"""\
# %% tags=["skip-execution"]
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


def main(numbers: list[str]) -> None:
    sources = sorted(HERE.glob("[0-9][0-9]*_*.py"))
    for source in sources:
        if not numbers or source.name.partition("_")[0] in numbers:
            path = build(source)
            print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
