"""The page: sections of text, tables and figures, rendered into one self-contained HTML file.

Everything but the figures, which are our own SVG, is escaped by the template.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raypot.errors import MissingExtra

TEMPLATES = Path(__file__).parents[1] / "templates"


@dataclass(frozen=True)
class Table:
    """Rows of a table; cells are texts or numbers.

    Args:
        columns: heads.
        rows: one cell for each column.
        caption: how to read it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """Panels that belong together.

    Args:
        panels: `<svg>` elements made by `raypot.report.plots`.
        caption: how to read it.
    """

    panels: Sequence[str]
    caption: str


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Args:
        title: its head.
        text: paragraphs.
        pictures: figures.
        tables: tables.
        code: commands or a file, shown as they are.
    """

    title: str
    text: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    code: str = ""


@dataclass(frozen=True)
class Page:
    """A whole report.

    Args:
        title: of the page.
        subtitle: one line about what it is.
        tiles: label and value of the main results.
        sections: in order.
    """

    title: str
    subtitle: str
    tiles: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = field(default_factory=tuple)


def render(page: Page) -> str:
    """Return the HTML of a page.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "report: jinja2 is not installed; install it with `pip install raypot[report]`"
        ) from error

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell
    environment.tests["numeric"] = is_number
    return environment.get_template("report.html").render(page=page)


def is_number(value: Any) -> bool:
    """Return whether a cell is set to the right."""
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def cell(value: Any) -> str:
    """Return the text of a cell: three digits of a number, a dash where there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return significant(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def significant(value: float, digits: int = 3) -> str:
    """Return `value` with some digits; powers of ten only far from one."""
    if value == 0.0 or 1e-3 <= abs(value) < 1e5:
        decimals = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
        return f"{value:,.{max(decimals, 0)}f}"
    return f"{value:.{digits - 1}e}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return dotted keys and texts of the leaves of a tree; empty leaves are left out."""
    rows = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{key}.")
        elif value not in (None, "", [], ()):
            rows.append((f"{prefix}{key}", str(value)))
    return rows
