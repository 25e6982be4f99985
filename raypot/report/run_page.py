"""The page of one run: learning curves, errors, data, settings."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from raypot.config import read_toml, to_toml
from raypot.report.model_sections import model_sections
from raypot.report.page import Page, Picture, Section, Table
from raypot.report.plots import label_of, learning_curves, unit_of
from raypot.train.folder import RunFolder
from raypot.train.recorder import read_rows

Row = Mapping[str, float]


def run_page(folder: Path) -> Page:
    """Build the page of a run; it may still be going on."""
    run = RunFolder(folder)
    rows = read_rows(run.metrics)
    settings = read_toml(run.config)
    tiles, about_model = model_sections(run.model, folder) if run.model.exists() else ([], [])
    seconds = sum(row.get("epoch_s", 0.0) for row in rows)
    return Page(
        title=f"Run {folder.resolve().name}",
        subtitle=f"{settings['model']['name']}, {len(rows)} of "
        f"{settings['training']['n_epochs']} epochs, {seconds / 60:.1f} minutes of training.",
        tiles=tiles,
        sections=(
            *_training(rows),
            *about_model,
            Section("Settings", ("run.toml, usable with raypot train:",), code=to_toml(settings)),
        ),
    )


def _training(rows: Sequence[Row]) -> list[Section]:
    if not rows:
        return [Section("Training", ("No epoch has ended yet.",))]
    caption = "Loss, errors of the averaged model on val, and learning rate."
    picture = Picture(learning_curves(rows), caption)
    return [Section("Training", pictures=(picture,), tables=(_metrics(rows),))]


def _metrics(rows: Sequence[Row]) -> Table:
    """Compare the best and the last epoch."""
    scored = [row for row in rows if "val/score" in row]
    best = min(scored, key=lambda row: row["val/score"]) if scored else rows[-1]
    last = rows[-1]
    cells: list[tuple[str, str, float | None, float]] = []
    for key in last:
        kind, _, rest = key.partition("/")
        name, _, measure = rest.partition("/")
        if kind == "val" and measure:
            factor, unit = unit_of(name)
            words = f"{label_of(name)} {measure.upper()} on val"
            cells.append((words, unit, best.get(key, float("nan")) * factor, last[key] * factor))
    plain = ("val/score", "val/loss", "train/loss", "structures_per_second", "loader_wait_s")
    for key in plain:
        if key in last:
            cells.append((key, "", best.get(key), last[key]))
    columns = ("", "unit", f"best epoch ({best['epoch']:g})", f"last epoch ({last['epoch']:g})")
    return Table(columns, cells)
