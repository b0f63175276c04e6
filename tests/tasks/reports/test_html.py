from __future__ import annotations

from pathlib import Path

import pytest
from jinja2 import UndefinedError

from tasks.reports.html import markdown_to_html, render_page

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A page that lies outside the folder of the base and the macros."""
    file = tmp_path / "own.html.j2"
    file.write_text(
        '{% extends "base.html.j2" %}{% import "macros.html.j2" as ui with context %}'
        "{% block title %}{{ text }}{% endblock %}"
        "{% block content %}{{ ui.figure(png, text, text) }}{{ missing if ask else text }}{% endblock %}"
    )
    return file


def test_a_page_of_another_folder_has_the_base_the_macros_and_its_pictures_inside(template: Path) -> None:
    page = render_page(template, text="own", png=b"png", ask=False)
    assert page.lstrip().startswith("<!doctype html>")
    assert "default-src 'none'" in page
    assert '<img src="data:image/png;base64,cG5n" alt="own">' in page
    assert "<title>own</title>" in page


def test_markup_in_data_is_text_through_every_macro_and_what_hides_is_spelled_out(template: Path) -> None:
    page = render_page(template, text=HOSTILE + "\u202e", png=b"png", ask=False)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 5  # the title, the picture's description, title and caption, the text
    assert "\\u202e" in page


def test_a_name_that_the_page_was_not_given_is_an_error(template: Path) -> None:
    with pytest.raises(UndefinedError):
        render_page(template, text="", png=b"", ask=True)


def test_markdown_keeps_tables_and_escapes_html() -> None:
    html = markdown_to_html("# A\n\n| b |\n| --- |\n| <b>c</b> |\n")
    assert "<h2>A</h2>" in html
    assert "<td>&lt;b&gt;c&lt;/b&gt;</td>" in html
