"""What commands print: tables for people, one JSON object for programs.

Results go to stdout. With `--json` stdout holds one object and everything else goes to stderr.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, all else on stderr."
)
override_option = click.option(
    "-o",
    "--override",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override any key of the file, e.g. -o training.n_epochs=50; may be repeated.",
)


def say(message: str) -> None:
    """Print one line for people on stderr."""
    click.echo(message, err=True)


def print_json(value: Any) -> None:
    """Print `value` as one JSON object on stdout; not-a-number becomes null."""
    click.echo(json.dumps(_finite(value), ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table on stdout; numbers are aligned to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    table = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], (int, float, type(None))) for row in rows)
        table.add_column(column, justify="right" if numeric and rows else "left")
    for row in rows:
        table.add_row(*[Text(cell(value)) for value in row])
    console = Console()
    width = None if console.is_terminal else 160
    Console(width=width).print(table)


def cell(value: Any) -> str:
    """Write one value of a table: four significant digits, a dash for nothing."""
    if value is None or (isinstance(value, float) and value != value):
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
