"""The HTML page: one file that needs no network. Its tables sort by a click on a column's name."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from math import isnan

from nnssl.study.report.tables import Cell, Table, sort_value

FOLDED = 120  # rows above which a table is folded away

# The browser itself is told to load nothing.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; }
body { margin: 0 auto; max-width: 1180px; padding: 0 24px 80px; }
h1 { margin: 32px 0 4px; } h2 { margin: 44px 0 8px; border-bottom: 1px solid #ccc; }
h3 { margin: 24px 0 6px; }
p, li { max-width: 78ch; } p.note { color: #444; font-size: 14px; }
nav a { margin-right: 14px; white-space: nowrap; } a { color: #0b57a4; }
figure { margin: 12px 0; } figure img { max-width: 100%; height: auto; display: block; }
.tiles { display: grid; gap: 14px; margin: 12px 0; }
.tile { margin: 0; min-width: 0; font-size: 13px; line-height: 1.4; }
.tile div { overflow-x: auto; }
.tile img { width: 100%; height: auto; max-width: none; min-width: var(--least, 0); }
.tile figcaption { overflow-wrap: anywhere; }
.none { background: #eee; color: #555; padding: 24px 8px; text-align: center; }
.scroll { overflow: auto; max-height: 70vh; border: 1px solid #ddd; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 10px; text-align: left; white-space: nowrap; }
td.number { text-align: right; } td.prose { white-space: normal; min-width: 40ch; }
th { position: sticky; top: 0; background: #f2f2f2; padding: 0; }
th button { all: unset; cursor: pointer; padding: 5px 10px; display: block; font-weight: 600; }
th button:focus-visible { outline: 2px solid #0b57a4; outline-offset: -2px; }
th button::after { content: " \\2195"; color: #aaa; }
th[aria-sort=ascending] button::after { content: " \\2191"; color: #000; }
th[aria-sort=descending] button::after { content: " \\2193"; color: #000; }
tbody tr:nth-child(even) { background: #fafafa; } tr.yes td { font-weight: 600; }
summary { cursor: pointer; margin: 6px 0; }
pre { background: #f6f6f6; padding: 10px; overflow: auto; font-size: 12px; }
.missing { background: #fff4e5; border-left: 4px solid #e69f00; padding: 6px 14px; }
.missing { margin-top: 12px; } .missing ul { padding-left: 20px; overflow-wrap: anywhere; }
@media (max-width: 600px) { body { padding: 0 12px 48px; } h1 { font-size: 24px; } }
@media print { .scroll { max-height: none; overflow: visible; } nav { display: none; } }
"""

SCRIPT = """
document.querySelectorAll("th button").forEach(function (button) {
  button.addEventListener("click", function () {
    var head = button.parentNode, body = head.closest("table").tBodies[0], column = head.cellIndex;
    var up = head.getAttribute("aria-sort") !== "ascending";
    Array.from(head.parentNode.cells).forEach(function (th) { th.removeAttribute("aria-sort"); });
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

PROSE = 80  # letters above which a cell is text of several lines


@dataclass(frozen=True)
class Tile:
    """A picture, PNG or SVG, with words below it. alt: what it shows, for who cannot see it.

    Without a picture `alt` stands in its place.
    """

    title: str
    alt: str
    picture: bytes | str | None
    text: str = ""


@dataclass(frozen=True)
class Tiles:
    """Tiles side by side, as many as fit at `width` pixels or more; on a phone one below the other.

    least: pixels below which a picture does not shrink but scrolls.
    """

    tiles: list[Tile]
    width: int = 300
    least: int = 0


@dataclass(frozen=True)
class Section:
    """Some tables and figures under a heading. figures: (what it shows, for who cannot see it;
    SVG).
    """

    title: str
    tables: list[Table]
    figures: list[tuple[str, str]]
    lead: str = ""
    tiles: list[Tiles] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        return _anchor(self.title)

    @property
    def is_empty(self) -> bool:
        return not (self.tables or self.figures or any(group.tiles for group in self.tiles))


def page(
    title: str,
    lead: list[str],
    missing: list[str],
    sections: Iterable[Section],
    facts: dict[str, str],
    warning: str = "What is missing",
) -> str:
    """The whole file. lead: sentences; missing: what the study lacks, or another `warning`; facts:
    what is shown word for word at the end.
    """
    sections = [section for section in sections if not section.is_empty]
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
        parts.append(
            f'<div class="missing"><strong>{escape(warning)}</strong><ul>{items}</ul></div>'
        )
    parts += [_section(section) for section in sections]
    parts += [f"<h2>{escape(name)}</h2><pre>{escape(text)}</pre>" for name, text in facts.items()]
    parts.append(f"<script>{SCRIPT}</script></body></html>\n")
    return "\n".join(parts)


def _anchor(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def _section(section: Section) -> str:
    lead = f"<p>{escape(section.lead)}</p>" if section.lead else ""
    figures = "".join(_figure(*figure) for figure in section.figures)
    tiles = "".join(_tiles(group) for group in section.tiles if group.tiles)
    tables = "".join(_table(table) for table in section.tables)
    inside = f"<h2>{escape(section.title)}</h2>{lead}{figures}{tiles}{tables}"
    return f'<section id="{section.anchor}">{inside}</section>'


def _figure(shows: str, svg: str) -> str:
    return f"<figure>{_image(shows, svg)}</figure>"


def _image(shows: str, picture: bytes | str) -> str:
    # As an image: the names inside of one SVG cannot meet those of another.
    kind = "svg+xml" if isinstance(picture, str) else "png"
    content = picture.encode() if isinstance(picture, str) else picture
    data = base64.b64encode(content).decode()
    return f'<img alt="{escape(shows)}" src="data:image/{kind};base64,{data}">'


def _tiles(group: Tiles) -> str:
    columns = f"repeat(auto-fill, minmax(min(100%, {group.width}px), 1fr))"
    style = f"grid-template-columns: {columns}; --least: {group.least}px"
    return f'<div class="tiles" style="{style}">{"".join(map(_tile, group.tiles))}</div>'


def _tile(tile: Tile) -> str:
    if tile.picture is None:
        image = f'<div class="none">{escape(tile.alt)}</div>'
    else:
        image = f"<div>{_image(tile.alt, tile.picture)}</div>"
    words = [f"<strong>{escape(tile.title)}</strong>" if tile.title else "", escape(tile.text)]
    caption = "<br>".join(filter(None, words))
    if caption:
        caption = f"<figcaption>{caption}</figcaption>"
    return f'<figure class="tile">{image}{caption}</figure>'


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"><button type="button">{escape(c)}</button></th>' for c in table.columns
    )
    body = "".join(_row(table, row) for row in table.rows)
    file = f" <code>{table.name}.csv</code>" if table.name else ""
    note = f'<p class="note">{escape(table.note)}{file}</p>'
    parts = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    whole = f'<table id="table-{table.name or _anchor(table.title)}">{parts}</table>'
    whole = f'<div class="scroll">{whole}</div>'
    if len(table.rows) > FOLDED:
        whole = f"<details><summary>{len(table.rows)} rows</summary>{whole}</details>"
    return f"<h3>{escape(table.title)}</h3>{note}{whole}"


def _row(table: Table, row: Sequence[Cell]) -> str:
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
        prose = ' class="prose"' if len(text) > PROSE else ""
        return f"<td{prose}>{escape(text)}</td>"
    order = (
        ""
        if value is None or isnan(value)
        else "Infinity"
        if value == float("inf")
        else f"{value:.8g}"
    )
    return f'<td class="number" data-sort="{order}">{escape(text)}</td>'
