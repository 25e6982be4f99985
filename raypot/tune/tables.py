"""The tables of a study: every trial as Parquet, the leaderboard as CSV, the best run as TOML."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from raypot.config import to_toml
from raypot.durable import write_whole
from raypot.tune.trial import TrialRow

SHOWN_METRICS = ("val/energy_per_atom/rmse", "val/forces/rmse")  # eV, eV/Å


def ranked(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Return the trials that left a model, the best first."""
    return sorted((row for row in rows if row.has_model), key=lambda row: (row.value, row.number))


def write_tables(folder: Path, rows: Sequence[TrialRow]) -> None:
    """Write trials.parquet, leaderboard.csv and, once there is a best trial, best.toml.

    Args:
        folder: the study.
        rows: every trial.

    Raises:
        StorageError: the disk is full or failed; the tables before are intact.
    """
    write_whole(folder / "trials.parquet", _parquet(rows))
    best = ranked(rows)
    rest = [row for row in rows if not row.has_model]
    write_whole(folder / "leaderboard.csv", _csv(best, rest).encode())
    if best:
        write_whole(folder / "best.toml", to_toml(best[0].config).encode())


def _parquet(rows: Sequence[TrialRow]) -> bytes:
    """Write one row per trial; parameters and metrics are columns of their own."""
    records = [
        {
            "number": row.number,
            "state": row.state,
            "value": row.value,
            "epochs": row.epochs,
            "wall_s": row.wall_s,
            "attempts": row.attempts,
            "reason": row.reason,
            "folder": f"trials/{row.number}",
            "config": json.dumps(row.config),
            **{f"params.{name}": value for name, value in row.params.items()},
            **row.metrics,
        }
        for row in rows
    ]
    names = list(dict.fromkeys(name for record in records for name in record))
    columns = {name: _column([record.get(name) for record in records]) for name in names}
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return bytes(sink.getvalue())


def _column(values: list[Any]) -> list[Any]:
    """Return values of one type: choices may mix numbers, texts and booleans."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) < 2:
        return values
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else json.dumps(value) for value in values]


def _csv(best: Sequence[TrialRow], rest: Sequence[TrialRow]) -> str:
    """Write ranked trials, then those without a model and why."""
    names = list(dict.fromkeys(name for row in (*best, *rest) for name in row.params))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        (
            "rank",
            "number",
            "state",
            "val/score",
            "epochs",
            "wall_s",
            *SHOWN_METRICS,
            *names,
            "reason",
        )
    )
    for rank, row in enumerate((*best, *rest), start=1):
        metrics = [row.metrics.get(name) for name in SHOWN_METRICS]
        params = [row.params.get(name) for name in names]
        head = (rank if row.has_model else None, row.number, row.state, row.value, row.epochs)
        writer.writerow((*head, round(row.wall_s, 2), *metrics, *params, row.reason))
    return text.getvalue()
