"""How Sphinx builds the documentation: `make docs`."""

import meter_agent

project = "meter_agent"
author = copyright = "The meter_agent maintainers"
version = release = meter_agent.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
root_doc = "index"

html_theme = "furo"
html_title = f"meter_agent {release}"

# Links such as `guarantees.md#g3-no-double-count` work here as they do in the repository.
myst_heading_anchors = 3

# Single backticks in docstrings are code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False

# Every reference within the package has to resolve. Those to the standard library would need its
# inventory from the network.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!meter_agent).*")]

# A name is documented where users import it from, not in the private module that holds it.
for _name in meter_agent.__all__:
    _object = getattr(meter_agent, _name)
    if hasattr(_object, "__module__"):
        _object.__module__ = "meter_agent"


def _mark_plain_examples(_app, _what, _name, _object, _options, lines):  # type: ignore[no-untyped-def]
    """Show an `Examples:` section without prompts as the code that it is."""
    for place, line in enumerate(lines[:-1]):
        if line == "Examples:" and not lines[place + 1].lstrip().startswith(">>>"):
            lines[place : place + 1] = ["For example::", ""]
            return


def setup(app):  # type: ignore[no-untyped-def]
    """Called by Sphinx; before napoleon, which connects with the default priority."""
    app.connect("autodoc-process-docstring", _mark_plain_examples, priority=400)
