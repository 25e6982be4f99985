"""`raypot data`: make, look at and check stores."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from raypot.cli.console import json_option, print_json, print_table, say
from raypot.cli.progress import StatusLine

if TYPE_CHECKING:
    from raypot.data.store import Store

FILE = click.Path(path_type=Path)


@click.group()
def data() -> None:
    """Import raw files into a store, look into it, verify it, make a sample."""


@data.command("import")
@click.argument("sources", nargs=-1, required=True, type=FILE)
@click.argument("store", type=FILE)
@click.option(
    "--card",
    "card_file",
    type=FILE,
    help="Dataset card (dataset.toml): keys, units, signs. "
    "By default the `dataset.toml` beside the first source, if there is one.",
)
@click.option(
    "--format", "format_name", help="Importer to use; by default chosen by the file ending."
)
@click.option("--energy-key", help="Key of the energy in the source.")
@click.option("--forces-key", help="Key of the forces in the source.")
@click.option(
    "--level", default="reference", show_default=True, help="Name of the level of theory."
)
@click.option(
    "--on-bad",
    type=click.Choice(["quarantine", "error"]),
    default="quarantine",
    show_default=True,
    help="What to do with a structure that cannot be believed.",
)
@json_option
def import_command(
    sources: tuple[Path, ...],
    store: Path,
    card_file: Path | None,
    format_name: str | None,
    energy_key: str | None,
    forces_key: str | None,
    level: str,
    on_bad: Literal["quarantine", "error"],
    as_json: bool,
) -> None:
    """Import SOURCES (files) into a new store STORE, and print what was found."""
    from raypot.data.importing import import_data

    card = _card(card_file, sources, {"energy": energy_key, "forces": forces_key})
    with StatusLine("import") as line:
        report = import_data(
            sources,
            store,
            card=card,
            format=format_name,
            level=level,
            on_bad=on_bad,
            progress=lambda count: line.show(f"{count} structures"),
        )
    for warning in report.warnings:
        say(f"warning: {warning}")
    for bad in report.quarantined[:10]:
        say(f"left out: {bad.source[0]}, structure {bad.source[1]}: {bad.reason}")
    if as_json:
        census = census_json(report.store)
        keys = {"keys_used": report.keys_used, "n_quarantined": len(report.quarantined)}
        print_json(census | keys | {"warnings": report.warnings})
        return
    print_census(report.store, level, report.keys_used)
    say(f"{report.store.n_structures} structures imported, {len(report.quarantined)} left out")
    click.echo(f"store: {store}")


def _card(card_file: Path | None, sources: tuple[Path, ...], keys: dict[str, str | None]) -> Any:
    """Read the card that was named or lies beside the source; add keys of the command line."""
    from raypot.data.cards import Card

    beside = sources[0].parent / "dataset.toml"
    if card_file is None and beside.is_file():
        card_file = beside
        say(f"card: {beside}")
    card = Card.read(card_file) if card_file is not None else Card()
    given = {name: key for name, key in keys.items() if key is not None}
    return card.model_copy(update={"keys": {**card.keys, **given}})


@data.command("info")
@click.argument("store", type=FILE)
@json_option
def info_command(store: Path, as_json: bool) -> None:
    """Print what STORE holds: structures, elements, labels with unit and range."""
    from raypot.data.store import Store

    opened = Store.open(store)
    if as_json:
        print_json(census_json(opened))
        return
    for level in opened.levels:
        print_census(opened, level, {})


@data.command("verify")
@click.argument("store", type=FILE)
@json_option
def verify_command(store: Path, as_json: bool) -> None:
    """Compare every file of STORE with its hash; exit with 65 if one is damaged."""
    from raypot.data.store import verify
    from raypot.errors import StoreError

    damage = verify(store)
    if as_json:
        print_json({"store": str(store), "damaged": damage})
    if damage:
        raise StoreError("\n".join(damage), damage=damage)
    say(f"{store}: every file is as it was written")


@data.command("sample")
@click.argument("output", type=FILE)
@click.option(
    "--molecule",
    default="ethanol",
    show_default=True,
    help="Name: ethanol, or one that ase.build.molecule knows.",
)
@click.option(
    "--temperatures",
    default="300,400,500,600,700",
    show_default=True,
    help="Temperatures in K, separated by commas.",
)
@click.option("--n", "n_structures", default=1000, show_default=True, help="Number of structures.")
@click.option("--seed", default=0, show_default=True, help="Seed of velocities and thermostat.")
def sample_command(
    output: Path, molecule: str, temperatures: str, n_structures: int, seed: int
) -> None:
    """Make labelled structures by GFN2-xTB molecular dynamics (extra `label`), as extended XYZ."""
    # One small molecule has no work for two threads; the idle one would spin.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from raypot.config import build
    from raypot.data.sample import SampleConfig, write_sample
    from raypot.errors import UsageError

    try:
        kelvin = tuple(float(text) for text in temperatures.split(","))
    except ValueError as error:
        raise UsageError(
            f"--temperatures {temperatures!r}: expected numbers, e.g. 300,500"
        ) from error
    wanted = {"temperatures": kelvin, "n_structures": n_structures, "seed": seed}
    config = build(SampleConfig, wanted, "data sample")
    with StatusLine("sample") as line:
        write_sample(
            molecule,
            output,
            config,
            progress=lambda count: line.show(f"{count} of {n_structures} structures"),
        )
    say(f"wrote {output}")


def census_json(store: "Store") -> dict[str, Any]:
    """Return what a store holds as plain values."""
    from raypot.constants import SYMBOLS

    return {
        "store": str(store.path),
        "fingerprint": store.fingerprint,
        "n_structures": store.n_structures,
        "n_atoms": store.n_atoms,
        "elements": [SYMBOLS[z] for z in store.elements],
        "labels": {
            level: {name: row._asdict() for name, row in store.census(level).items()}
            for level in store.levels
        },
    }


def print_census(store: "Store", level: str, keys_used: dict[str, str]) -> None:
    """Print the census table of one level."""
    from raypot.constants import SYMBOLS

    elements = " ".join(SYMBOLS[z] for z in store.elements)
    title = (
        f"{store.path}: {store.n_structures} structures, {store.n_atoms} atoms, {elements}; "
        f"level {level}"
    )
    columns = ("property", "key", "unit", "with label", "missing", "min", "mean", "max")
    rows = [
        (name, keys_used.get(name), c.unit, c.count, c.missing, c.minimum, c.mean, c.maximum)
        for name, c in store.census(level).items()
    ]
    print_table(title, columns, rows)
