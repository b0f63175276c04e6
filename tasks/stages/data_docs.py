"""Great Expectations' pages made inert: they run nothing, load nothing, and read well without a network.

As they come, the pages load Bootstrap, jQuery and Vega from other hosts, and the index is drawn by a script. Here every page
gets a policy that forbids all but its own styles, loses its scripts and what it loads, and gets the few rules of layout that it
needs; the index is written anew.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from mor.text import printable

TITLE = "Data validation"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'"
STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #26292e; --quiet: #646a73; --line: #e1e4e8; --panel: #f6f7f9; --good: #1a7f4b; --bad: #b3372f; --link: #1f5fa8; }
@media (prefers-color-scheme: dark) { :root { --page: #16181c; --ink: #e4e6ea; --quiet: #9aa1ab; --line: #31353c; --panel: #1e2126; --good: #5fc791; --bad: #ef8a80; --link: #8ab8ec; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
a { color: var(--link); } main { max-width: 940px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 27px; margin: 0 0 4px; } h4 { font-size: 19px; margin: 0 0 4px; } h5 { font-size: 16px; margin: 0; } h6 { margin: 8px 0; font-size: 14px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; margin: 8px 0; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
th { color: var(--quiet); font-size: 12.5px; } .number { text-align: right; } .sub { color: var(--quiet); }
.navbar { display: block; padding: 12px 24px; border-bottom: 1px solid var(--line); height: auto !important; } nav nav { border: 0; padding: 0; }
ol.breadcrumb { list-style: none; display: flex; gap: 8px; margin: 0; padding: 0; color: var(--quiet); font-size: 13px; } .breadcrumb-item + li::before { content: "/ "; }
.container-fluid { padding: 0; } body > .container-fluid { padding: 24px; } .row { display: flex; flex-wrap: wrap; gap: 0 24px; }
.col-12 { width: 100%; } .col-6 { flex: 1 1 320px; } .col-lg-2 { width: 210px; } .col-lg-10, .col-md-10, .col-md-9 { flex: 1; min-width: 0; }
.col-lg-2 .card { font-size: 13px; } ul.nav { list-style: none; margin: 0; padding: 0 8px; } .nav-link { text-decoration: none; }
.card { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; margin-bottom: 16px; } .card-header { background: var(--panel); padding: 6px 12px; } .card-body { padding: 8px 4px; }
.alert { background: var(--panel); border-radius: 8px; padding: 8px 14px; margin-top: 18px; } .lead { color: var(--quiet); margin: 4px 0 12px; }
.badge { background: var(--panel); border-radius: 4px; padding: 0 5px; font-weight: 600; } pre, code { white-space: pre-wrap; }
.good, .text-success { color: var(--good); } .bad, .text-danger { color: var(--bad); } .fa-check-circle::before { content: "✓"; } .fa-times::before { content: "✗"; } i { font-style: normal; }
.collapse:not(:target) { display: none; } [data-toggle=collapse] { font-size: 13px; }
"""  # noqa: E501
HEAD = f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
DROPPED = re.compile(
    r"<(script|style|iframe|object|svg)\b.*?</\1\s*>|<(?:link|img|base|meta|script)\b[^>]*>|</?title>|<!--.*?-->", re.S | re.I
)
HANDLER = re.compile(r"""\son[a-z]+\s*=\s*("[^"]*"|'[^']*'|[^\s>]+)""", re.I)
CHROME = re.compile(r"<footer.*?</footer\s*>|<a[^>]*>\s*</a>", re.S | re.I)

ACTIONS = re.compile(
    r'<div class="card mb-3">\s*<div class="card-header p-2">\s*<strong>Actions.*?(?=<div class="card d-md)', re.S
)
LEAD = """Every data set against its expectations: lines, counts and reasons. What a line holds is not shown here; bad rows that
were set aside lie in data/quarantine."""


def make_inert(site: Path, checked: Sequence[tuple[str, int, int, int, int]]) -> None:
    """Rewrite every page of ``site``, and the index: name, rows, bad rows, expectations, and those not met, of each set."""
    shutil.rmtree(site / "static", ignore_errors=True)
    for page in site.rglob("*.html"):
        page.write_text(inert(page.read_text(encoding="utf-8")), encoding="utf-8")
    (site / "index.html").write_text(_index(site, checked), encoding="utf-8")


def inert(page: str) -> str:
    """A page of Great Expectations without what runs or loads, under a policy that would forbid it."""
    body = page[found.end() :] if (found := re.search(r"<body[^>]*>", page, re.I)) else page
    for what in (DROPPED, CHROME, ACTIONS, HANDLER):
        body = what.sub("", body)
    return _page(body.partition("</body>")[0])


def _index(site: Path, checked: Sequence[tuple[str, int, int, int, int]]) -> str:
    rows = Markup().join(_row(site, *data) for data in checked)
    counts = "".join(f"<th class='number'>{title}</th>" for title in ("rows", "bad rows", "expectations", "not met"))
    table = f"<table><tr><th></th><th>data set</th>{counts}<th></th></tr>{rows}</table>"
    return _page(f"<main><h1>{TITLE}</h1><p class='sub'>{LEAD}</p>{table}</main>")


def _row(site: Path, name: str, rows: int, bad: int, expectations: int, unmet: int) -> Markup:
    pages = sorted((site / "validations" / Path(*name.split("."))).rglob("*.html"))
    place = quote(pages[-1].relative_to(site).as_posix()) if pages else ""
    mark, tone = ("✗", "bad") if unmet else ("✓", "good")
    numbers = Markup().join(Markup("<td class='number'>{}</td>").format(number) for number in (rows, bad, expectations, unmet))
    link = Markup("<a href='{}'>lines and reasons</a>").format(place) if place else ""
    return Markup("<tr><td class='{}'>{}</td><td>{}</td>{}<td>{}</td></tr>\n").format(
        tone, mark, printable(name), numbers, link
    )


def _page(body: str) -> str:
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"<head>\n{HEAD}{view}\n<title>{TITLE}</title>\n<style>{STYLE}</style>\n</head>"
    return f'<!doctype html>\n<html lang="en">\n{head}\n<body>\n{body}\n</body>\n</html>\n'
