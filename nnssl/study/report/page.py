"""The HTML page: one file that needs no network. Click on a column's name to sort a table."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from nnssl.study.report.tables import Table

TEMPLATE = Path(__file__).with_name("page.html")
FOLDED = 120  # rows above which a table is folded away
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
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        autoescape=True,  # names of datasets, files and checkpoints are not to be trusted
        loader=FileSystemLoader(TEMPLATE.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"anchor": anchor, "data_url": data_url}
    return environment.get_template(TEMPLATE.name).render(
        title=title,
        lead=lead,
        missing=missing,
        sections=[section for section in sections if not section.is_empty],
        facts=facts,
        warning=warning,
        folded=FOLDED,
        prose=PROSE,
    )


def anchor(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def data_url(picture: bytes | str) -> str:
    """A PNG, or the text of an SVG, as the address of an image: names inside of one SVG cannot meet
    those of another.
    """
    if isinstance(picture, str):
        return f"data:image/svg+xml;base64,{_base64(picture.encode())}"
    return f"data:image/png;base64,{_base64(picture)}"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
