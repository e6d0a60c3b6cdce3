"""Sphinx's settings for the site of the course, `python tutorials/build.py site`: which pages, in which order."""

# Page: the pages below it. A student copy (grade.py --strip) has STUDENT in the place of TEACHING.
ALONE = ["options", "your-model", "library"]
HANDOUTS = ["assignments/a?_*/README", "assignments/a??_*/README"]
NAVIGATION = {
    "README": [f"tutorials/{page}" for page in ["README", "[ST]*", "results/README", *ALONE]],
    "tutorials/README": ["[0-9]*"],
    "tutorials/TEACHING": HANDOUTS,
    "tutorials/STUDENT": HANDOUTS,
    "tutorials/results/README": ["*"],
}

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
html_sidebars = {f"tutorials/{page}": [] for page in ALONE}  # left: the pages of the section
html_theme_options = {
    "logo": {"text": html_title},
    "header_links_before_dropdown": 4,
    "secondary_sidebar_items": {  # right: the page's headings; elsewhere code and tables need the width
        page: ["page-toc"] for page in ["README", "tutorials/TEACHING", *html_sidebars]
    },
}
html_copy_source = False
html_use_index = False


def add_navigation(app, page, source):
    if page in NAVIGATION:
        source[0] += "\n".join(["\n\n```{toctree}", ":hidden:", ":glob:", "", *NAVIGATION[page], "```\n"])


def open_pages(app, page, template, context, doctree):
    """A link to a file, such as a page that moves, opens it. Sphinx would save it."""
    context["body"] = context.get("body", "").replace(' download="" href="', ' href="')


def setup(app):
    app.connect("source-read", add_navigation)
    app.connect("html-page-context", open_pages)
