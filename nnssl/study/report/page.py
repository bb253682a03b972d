"""The HTML page: one file that needs no network. Its tables sort by a click on a column's name."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from math import isnan

from nnssl.study.report.tables import Cell, Table, sort_value

FOLDED = 120  # rows above which a table is folded away

# The browser itself is told to load nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; margin: 0 auto; max-width: 1180px; padding: 0 24px 80px; }
h1 { margin: 32px 0 4px; } h2 { margin: 44px 0 8px; border-bottom: 1px solid #ccc; } h3 { margin: 24px 0 6px; }
p, li { max-width: 78ch; } p.note { color: #444; font-size: 14px; }
nav a { margin-right: 14px; white-space: nowrap; } a { color: #0b57a4; }
figure { margin: 12px 0; } figure img { max-width: 100%; height: auto; display: block; }
.scroll { overflow: auto; max-height: 70vh; border: 1px solid #ddd; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 10px; text-align: left; white-space: nowrap; } td.number { text-align: right; }
th { position: sticky; top: 0; background: #f2f2f2; padding: 0; }
th button { all: unset; cursor: pointer; padding: 5px 10px; display: block; font-weight: 600; }
th button:focus-visible { outline: 2px solid #0b57a4; outline-offset: -2px; }
th button::after { content: " \\2195"; color: #aaa; }
th[aria-sort=ascending] button::after { content: " \\2191"; color: #000; }
th[aria-sort=descending] button::after { content: " \\2193"; color: #000; }
tbody tr:nth-child(even) { background: #fafafa; } tr.yes td { font-weight: 600; }
summary { cursor: pointer; margin: 6px 0; } pre { background: #f6f6f6; padding: 10px; overflow: auto; font-size: 12px; }
.missing { background: #fff4e5; border-left: 4px solid #e69f00; padding: 6px 14px; }
@media print { .scroll { max-height: none; overflow: visible; } nav { display: none; } }
"""

SCRIPT = """
document.querySelectorAll("th button").forEach(function (button) {
  button.addEventListener("click", function () {
    var head = button.parentNode, body = head.closest("table").tBodies[0], column = head.cellIndex;
    var up = head.getAttribute("aria-sort") !== "ascending";
    head.parentNode.querySelectorAll("th").forEach(function (th) { th.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    var rows = Array.from(body.rows).map(function (row) {
      var cell = row.cells[column], given = cell.dataset.sort;
      var number = given === undefined ? null : Number(given);
      return { row: row, none: given === "", number: number, text: cell.textContent };
    });
    rows.sort(function (a, b) {
      if (a.none || b.none) return a.none - b.none;
      if (a.number !== null && b.number !== null) {
        return (a.number === b.number ? 0 : a.number < b.number ? -1 : 1) * (up ? 1 : -1);
      }
      if (a.number !== null || b.number !== null) return a.number !== null ? -1 : 1;
      return a.text.localeCompare(b.text, "en", { numeric: true }) * (up ? 1 : -1);
    });
    rows.forEach(function (entry) { body.appendChild(entry.row); });
  });
});
"""


@dataclass(frozen=True)
class Section:
    """Some tables and figures under a heading. figures: (what it shows, for who cannot see it;
    SVG).
    """

    title: str
    tables: list[Table]
    figures: list[tuple[str, str]]
    lead: str = ""

    @property
    def anchor(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


def page(
    title: str,
    lead: list[str],
    missing: list[str],
    sections: Iterable[Section],
    facts: dict[str, str],
) -> str:
    """The whole file. lead: sentences; missing: what the study lacks; facts: what is shown word for
    word at the end.
    """
    sections = [section for section in sections if section.tables or section.figures]
    links = "".join(
        f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in sections
    )
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(' '.join(lead))}</p><nav>{links}</nav>",
    ]
    if missing:
        items = "".join(f"<li>{escape(line)}</li>" for line in missing)
        parts.append(f'<div class="missing"><strong>What is missing</strong><ul>{items}</ul></div>')
    parts += [_section(section) for section in sections]
    parts += [f"<h2>{escape(name)}</h2><pre>{escape(text)}</pre>" for name, text in facts.items()]
    parts.append(f"<script>{SCRIPT}</script></body></html>\n")
    return "\n".join(parts)


def _section(section: Section) -> str:
    lead = f"<p>{escape(section.lead)}</p>" if section.lead else ""
    figures = "".join(_figure(*figure) for figure in section.figures)
    tables = "".join(_table(table) for table in section.tables)
    return f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>{lead}{figures}{tables}</section>'


def _figure(shows: str, svg: str) -> str:
    # As an image: the names inside of one SVG cannot meet those of another.
    data = base64.b64encode(svg.encode()).decode()
    return f'<figure><img alt="{escape(shows)}" src="data:image/svg+xml;base64,{data}"></figure>'


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"><button type="button">{escape(c)}</button></th>' for c in table.columns
    )
    body = "".join(_row(table, row) for row in table.rows)
    note = f'<p class="note">{escape(table.note)} <code>{table.name}.csv</code></p>'
    whole = f'<table id="table-{table.name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    whole = f'<div class="scroll">{whole}</div>'
    if len(table.rows) > FOLDED:
        whole = f"<details><summary>{len(table.rows)} rows</summary>{whole}</details>"
    return f"<h3>{escape(table.title)}</h3>{note}{whole}"


def _row(table: Table, row: list[Cell]) -> str:
    marked = (
        ' class="yes"'
        if "differs" in table.columns and row[table.columns.index("differs")] == "yes"
        else ""
    )
    cells = "".join(
        _cell(table.text(column, cell), cell)
        for column, cell in zip(table.columns, row, strict=True)
    )
    return f"<tr{marked}>{cells}</tr>"


def _cell(text: str, cell: Cell) -> str:
    value = sort_value(cell)
    if value is None and cell is not None:
        return f"<td>{escape(text)}</td>"
    order = (
        ""
        if value is None or isnan(value)
        else "Infinity"
        if value == float("inf")
        else f"{value:.8g}"
    )
    return f'<td class="number" data-sort="{order}">{escape(text)}</td>'
