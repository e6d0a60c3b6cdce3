"""Sphinx's settings for the site of the course, `python tutorials/build.py site`: which pages, in which order."""

project = "alignpro_mini"
html_title = "alignpro_mini"
root_doc = "README"
include_patterns = ["README.md", "tutorials/**.md", "tutorials/**.ipynb"]
exclude_patterns = [".*", "alignpro_mini", "build", "runs", "tests"]
extensions = ["myst_nb"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4  # a link to a heading, as on GitHub
nb_execution_mode = "off"  # the notebooks hold their outputs
nb_merge_streams = True
highlight_language = "none"  # of a block that names no language
html_theme = "pydata_sphinx_theme"
html_theme_options = {
    "logo": {"text": html_title},
    "header_links_before_dropdown": 4,
    "secondary_sidebar_items": {"README": ["page-toc"], "**/[!0-9]*": ["page-toc"]},  # a notebook needs the width
}
html_copy_source = False
html_use_index = False

# Page: the pages below it. A student copy (grade.py --strip) has STUDENT in the place of TEACHING.
PAGES = ["README", "[ST]*", "results/README", "options", "your-model", "library"]
HANDOUTS = ["assignments/a?_*/README", "assignments/a??_*/README"]
NAVIGATION = {
    "README": [f"tutorials/{page}" for page in PAGES],
    "tutorials/README": ["[0-9]*"],
    "tutorials/TEACHING": HANDOUTS,
    "tutorials/STUDENT": HANDOUTS,
    "tutorials/results/README": ["*"],
}


def add_navigation(app, page, source):
    if page in NAVIGATION:
        source[0] += "\n".join(["\n\n```{toctree}", ":hidden:", ":glob:", "", *NAVIGATION[page], "```\n"])


def setup(app):
    app.connect("source-read", add_navigation)
