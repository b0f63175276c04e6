"""Every page: self-contained, inert, made from one base template (``base.html.j2``) with one set of macros and filters.

All text from data is escaped, characters that a reader cannot see are spelled out, and the base's own policy forbids a page
to load anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from mor.text import visible, words
from tasks.reports.images import data_uri
from tasks.reports.units import in_bytes, in_points, in_time

TEMPLATES = Path(__file__).parent


def render_page(template: Path, **context: Any) -> str:
    """The page of ``template``, which extends ``base.html.j2`` wherever it lies itself."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inline": data_uri, "markdown": markdown_to_html, "words": words}
    environment.filters |= {"bytes": in_bytes, "time": in_time, "points": in_points}
    return environment.get_template(template.name).render(context)


def markdown_to_html(text: str) -> Markup:
    """HTML from Markdown that may hold anything: raw HTML is escaped, no image is loaded, headings move down."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in {"heading_open", "heading_close"}:
            token.tag = f"h{min(6, int(token.tag[1]) + 1)}"
    return Markup(parser.renderer.render(tokens, parser.options, {}))  # markdown-it escapes what is not markup
