"""The page of a study: its ensemble, its search, its data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raypot.errors import RaypotError
from raypot.report.model_sections import RunData, data_section, model_sections
from raypot.report.page import Page, Picture, Section, Table
from raypot.report.plots import unit_of
from raypot.report.plots_search import MAX_TRIALS, search_history, trial_curves
from raypot.train.recorder import read_rows
from raypot.tune.study import Study
from raypot.tune.trial import TrialRow

MODEL, HOW_TO = "ensemble.safetensors", "inference_instructions.txt"
N_LEADERS = 25


def study_page(folder: Path) -> Page:
    """Build the page of a study; it may still be running."""
    study = Study.open(folder)
    trials, leaders = study.trials(), study.leaderboard()
    best = leaders[0] if leaders else None
    tiles, about_model = _model(folder, best)
    if best is not None and best.value is not None:
        tiles.append((f"best score on val, trial {best.number}", f"{best.value:.4g}"))
    counts = ", ".join(
        f"{sum(t.state == state for t in trials)} {state}"
        for state in ("complete", "pruned", "failed", "running")
        if any(t.state == state for t in trials)
    )
    return Page(
        title=f"Study {folder.resolve().name}",
        subtitle=f"{len(trials)} trials ({counts or 'none yet'}), "
        f"{sum(t.epochs for t in trials):,} epochs, "
        f"{study.journal.wall_s / 60:.1f} minutes of searching.",
        tiles=tiles,
        sections=(
            *about_model[:-2][:1],
            *_how_to_use(folder),
            *about_model[:-2][1:],
            *_search(trials, leaders),
            *about_model[-2:],
        ),
    )


def _model(folder: Path, best: TrialRow | None) -> tuple[list[tuple[str, str]], list[Section]]:
    """Return tiles and sections about the ensemble, the last two about data and provenance."""
    if best is None:
        return [], []
    if (folder / MODEL).exists():
        return model_sections(folder / MODEL, best.folder)
    hint = Section("Ensemble", (f"Not built yet. Next: raypot ensemble {folder}",))
    try:
        data = data_section(RunData.of(best.folder))
    except RaypotError as error:
        data = Section("Data", (f"The data cannot be shown: {error}.",))
    settings = Section("Provenance", (f"Settings of the best trial: {folder}/best.toml",))
    return [], [hint, data, settings]


def _how_to_use(folder: Path) -> list[Section]:
    """Show the instructions that were written with the ensemble."""
    path = folder / HOW_TO
    if not path.exists():
        return []
    return [Section("How to use it", code=path.read_text(encoding="utf-8").strip())]


def _search(trials: Sequence[TrialRow], leaders: Sequence[TrialRow]) -> list[Section]:
    if not trials:
        return []
    pictures = []
    scored = [trial for trial in trials if trial.value is not None]
    if scored:
        shown = sorted([*leaders, *(t for t in scored if t not in leaders)][:MAX_TRIALS], key=_key)
        curves = {t.number: read_rows(t.folder / "metrics.jsonl") for t in shown}
        best = leaders[0].number if leaders else None
        count = f"the {MAX_TRIALS} best of " if len(scored) > MAX_TRIALS else ""
        panels = [
            search_history(trials, "Search history"),
            trial_curves(shown, curves, best, "Learning curves of the trials"),
        ]
        caption = (
            "Left: score of every trial, the geometric mean of energy and force RMSE, each over "
            "the spread of its labels; dotted lines are failed trials. Right: scores of "
            f"{count}{len(scored)} trials while they were trained."
        )
        pictures = [Picture(panels, caption)]
    tables = [table for table in (_leaderboard(leaders), _failures(trials)) if table.rows]
    return [Section("Search", pictures=pictures, tables=tables)]


def _key(trial: TrialRow) -> int:
    return trial.number


def _leaderboard(leaders: Sequence[TrialRow]) -> Table:
    shown = leaders[:N_LEADERS]
    names = list(dict.fromkeys(name for trial in shown for name in trial.params))
    errors = ("energy_per_atom", "forces")
    heads = [f"{name.split('_')[0]} RMSE, {unit_of(name)[1]}" for name in errors]
    rows = [
        (
            rank,
            trial.number,
            trial.state,
            trial.value,
            *[_in_report_unit(trial, name) for name in errors],
            trial.epochs,
            trial.wall_s or None,
            *[trial.params.get(name) for name in names],
        )
        for rank, trial in enumerate(shown, start=1)
    ]
    columns = ("rank", "trial", "state", "score", *heads, "epochs", "seconds", *names)
    caption = f"The {len(shown)} best of {len(leaders)} trials that left a model; errors on val."
    return Table(columns, rows, caption)


def _in_report_unit(trial: TrialRow, name: str) -> float | None:
    value = trial.metrics.get(f"val/{name}/rmse")
    return None if value is None else value * unit_of(name)[0]


def _failures(trials: Sequence[TrialRow]) -> Table:
    rows: list[Any] = [(t.number, t.epochs, t.reason) for t in trials if t.state == "failed"]
    return Table(("trial", "epochs", "reason"), rows, "Failed trials.")
