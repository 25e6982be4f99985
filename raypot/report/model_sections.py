"""The sections about a model: errors, parity, error bars, members, data, provenance."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raypot.config import read_toml
from raypot.constants import SYMBOLS
from raypot.data.splits import Split
from raypot.data.splits_draw import ROLES
from raypot.data.store import Store
from raypot.ensemble.predictor import Predictor
from raypot.errors import RaypotError, StoreError
from raypot.report.judged import MAX_STRUCTURES, Judged, judge_rows
from raypot.report.page import Picture, Section, Table, flatten, significant
from raypot.report.plots import label_of, parity, unit_of
from raypot.report.plots_uncertainty import error_against_std, reliability

JUDGED_ROLES = ("test", "val")
MAX_KINDS = 20  # config types in the table
MEASURES = {
    "coverage_90": "90 % coverage",
    "miscalibration_area": "miscalibration area",
    "ence": "ENCE",
    "nll": "NLL",
    "nll_constant": "NLL of a constant bar",
    "spearman": "Spearman",
    "spearman_ceiling": "its ceiling",
}


@dataclass(frozen=True)
class RunData:
    """The data behind a run.

    Args:
        store: opened.
        split: rows of every role.
        level: of the labels.
    """

    store: Store
    split: Split
    level: str

    @classmethod
    def of(cls, run_folder: Path) -> "RunData":
        """Open the store that a run folder names.

        Raises:
            MissingInput: the run has no split yet, or the store is not there.
            StoreError: it changed since the run, or it is damaged.
        """
        data = read_toml(run_folder / "run.toml")["data"]
        split = Split.load(run_folder / "split.json")
        store = Store.open(data["store"])
        if store.fingerprint != split.store:
            raise StoreError(f"{store.path}: its content changed since the run was made")
        return cls(store, split, data["level"])


Evidence = Mapping[str, Sequence[Judged]]


def gather(predictor: Predictor, data: RunData) -> dict[str, list[Judged]]:
    """Predict the rows of each role that has some; see `judge_rows`."""
    roles = [role for role in JUDGED_ROLES if len(data.split.rows(role))]
    found = {
        role: judge_rows(predictor, data.store, data.split.rows(role), data.level) for role in roles
    }
    return {role: judged for role, judged in found.items() if judged}


def tiles_of(evidence: Evidence) -> list[tuple[str, str]]:
    """Return the main errors, of the first role that there is."""
    tiles = []
    for role, judged in list(evidence.items())[:1]:
        for one in judged:
            factor, unit = unit_of(one.name)
            measures = one.measures()
            value = f"{significant(measures['rmse'] * factor)} {unit}"
            tiles.append((f"{label_of(one.name)} RMSE on {role}", value))
            if one.name == "forces" and "coverage_90" in measures:
                tiles.append(("forces inside 90 % intervals", f"{measures['coverage_90']:.1%}"))
    return tiles


def error_section(evidence: Evidence, predictor: Predictor) -> Section:
    """Say how large the errors are and what each member contributes."""
    rows = []
    for role, judged in evidence.items():
        for one in judged:
            factor, unit = unit_of(one.name)
            measures = one.measures()
            errors = [measures["rmse"] * factor, measures["mae"] * factor]
            rows.append((label_of(one.name), role, unit, *errors, len(one.reference)))
    columns = ("property", "rows", "unit", "RMSE", "MAE", "values")
    text = (
        "Test rows took no part in training, search, selection or calibration. "
        f"Of a role with more than {MAX_STRUCTURES:,} structures, so many are drawn at random.",
    )
    tables = (
        Table(columns, rows),
        *member_table(evidence, predictor),
        *selection_tables(predictor.file.provenance.get("selection", {})),
    )
    return Section("Errors", (*text, *_warnings(predictor)), tables=tables)


def _warnings(predictor: Predictor) -> list[str]:
    """Return what was noticed when the ensemble was built."""
    selection = predictor.file.provenance.get("selection", {})
    return [f"Warning: {line}." for line in selection.get("warnings", ())]


def member_table(evidence: Evidence, predictor: Predictor) -> list[Table]:
    """Compare the members with the ensemble, on the first role that there is."""
    if len(predictor.members) < 2 or not evidence:
        return []
    role, judged = next(iter(evidence.items()))
    judged = [one for one in judged if one.name in ("energy_per_atom", "forces")]
    factors = [unit_of(one.name)[0] for one in judged]
    heads = [f"{label_of(one.name)} RMSE, {unit_of(one.name)[1]}" for one in judged]
    singles = np.array([one.member_rmse() * f for one, f in zip(judged, factors, strict=True)])
    rows = [
        (member.name, str(member.model.get("name", "")), float(weight), *singles[:, m].tolist())
        for m, (member, weight) in enumerate(zip(predictor.members, predictor.weights, strict=True))
    ]
    whole = [one.measures()["rmse"] * f for one, f in zip(judged, factors, strict=True)]
    rows.append(("ensemble", "", float(predictor.weights.sum()), *whole))
    caption = f"Members and their weights; errors on {role}."
    return [Table(("member", "model", "weight", *heads), rows, caption)]


def selection_tables(selection: Mapping[str, Any]) -> list[Table]:
    """Compare the ensemble with the plain alternatives on the rows that chose it."""
    names = ("energy_per_atom", "forces")
    rows = []
    for choice, found in selection.get("val", {}).items():
        errors = [
            found[name]["rmse"] * unit_of(name)[0] if name in found else None for name in names
        ]
        trials = ", ".join(str(number) for number in found.get("trials", ()))
        rows.append((choice.replace("_", " "), found.get("score"), *errors, trials))
    heads = [f"{label_of(name)} RMSE, {unit_of(name)[1]}" for name in names]
    caption = "Choices of members on val; a little better than on test, because val chose."
    if selection.get("rho") is not None:
        caption += f" The errors of the members correlate by rho = {selection['rho']:.2f}."
    return [Table(("choice", "score", *heads, "trials"), rows, caption)] if rows else []


def parity_sections(evidence: Evidence) -> list[Section]:
    """Show predictions over labels for each role."""
    sections = []
    for role, judged in evidence.items():
        title = f"Predictions on {role}"
        panels = [parity(one.name, one.reference, one.predicted, role) for one in judged]
        caption = (
            "Above: predictions over labels, on the line where they agree. Below: their "
            "difference. Energies without the self energies of the atoms."
        )
        picture = Picture(panels, caption)
        sections.append(Section(title, pictures=(picture,)))
    return sections


def uncertainty_section(evidence: Evidence) -> list[Section]:
    """Say how good the error bars are on test rows; nothing where none were calibrated."""
    judged = [one for one in evidence.get("test", ()) if one.std is not None]
    if not judged:
        return []
    rows = []
    for one in judged:
        measures = one.measures()
        rows.append((label_of(one.name), *[measures[key] for key in MEASURES]))
    pictures = [
        Picture(
            [reliability(one, "test") for one in judged],
            "Share of errors inside of central intervals, over what a normal distribution "
            "promises. On the line: honest. Below: too sure of itself. Dashed: the spread "
            "between members, before calibration.",
        ),
    ]
    varied = [error_against_std(one, "test") for one in judged if one.has_own_bars]
    if varied:
        caption = (
            "Each value's error over its calibrated uncertainty. The RMS error of equal bins "
            "should follow the line."
        )
        pictures.append(Picture(varied, caption))
    text = [
        "Fitted on the calibration rows, judged on test. Best values: coverage 90 %, area 0, "
        "ENCE 0, NLL below that of a constant bar, Spearman near its ceiling."
    ]
    text += [
        f"{label_of(one.name).capitalize()}: one error bar for all values, because on the "
        "calibration rows the spread between members told nothing about the errors, or because "
        "there is one member."
        for one in judged
        if not one.has_own_bars
    ]
    table = Table(("property", *MEASURES.values()), rows)
    return [Section("Error bars", text, pictures, (table,))]


def data_section(data: RunData) -> Section:
    """Say what the store holds and how it was divided."""
    store = data.store
    symbols = " ".join(SYMBOLS[number] for number in store.elements)
    text = [f"{store.n_structures:,} structures, {store.n_atoms:,} atoms of {symbols}."]
    text += [line for line in (store.card.description, store.card.citation) if line]
    census = [
        (c.name, c.unit, c.count, c.missing, c.minimum, c.mean, c.maximum)
        for c in store.census(data.level).values()
    ]
    columns = ("label", "unit", "structures", "missing", "minimum", "mean", "maximum")
    roles = [(role, len(data.split.rows(role))) for role in (*ROLES, "isolated")]
    tables = [
        Table(columns, census, f"Labels at level {data.level}, over all components."),
        Table(("role", "structures"), roles, "Split."),
    ]
    kinds = Counter(str(kind) for kind in store.column("config_type"))
    if set(kinds) != {""}:
        shown = kinds.most_common(MAX_KINDS)
        caption = f"The {MAX_KINDS} most frequent types." if len(kinds) > MAX_KINDS else "Types."
        tables.append(Table(("config_type", "structures"), shown, caption))
    return Section("Data", text, tables=tables)


def provenance_section(predictor: Predictor) -> Section:
    """List what the model file says about its origin."""
    tree = dict(predictor.file.provenance)
    shown = ("selector", "candidates")
    if "selection" in tree:
        tree["selection"] = {key: tree["selection"].get(key) for key in shown}
    rows = flatten(tree)
    return Section("Provenance", tables=(Table(("key", "value"), rows),))


def model_sections(model: Path, run_folder: Path) -> tuple[list[tuple[str, str]], list[Section]]:
    """Return tiles and sections about a model file.

    Args:
        model: the file.
        run_folder: of a run on the same data and split.
    """
    predictor = Predictor.load(model, device="cpu")
    try:
        data = RunData.of(run_folder)
    except RaypotError as error:
        missing = Section("Data", (f"No predictions are shown: {error}.",))
        return [], [missing, provenance_section(predictor)]
    evidence = gather(predictor, data)
    sections = [
        error_section(evidence, predictor),
        *uncertainty_section(evidence),
        *parity_sections(evidence),
        data_section(data),
        provenance_section(predictor),
    ]
    return tiles_of(evidence), sections
