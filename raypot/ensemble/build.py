"""From a study to one calibrated ensemble: select on val, calibrate on cal, write one file.

**Shapes** M candidates.
"""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from raypot.config import did_you_mean
from raypot.ensemble.accuracy import Errors, collect
from raypot.ensemble.calibrate import COVERAGE, ENOUGH_STRUCTURES, Calibration, calibrate
from raypot.ensemble.candidates import Candidates, find_candidates
from raypot.ensemble.evaluate import METRICS, accuracies, store_blocks
from raypot.ensemble.instructions import write_instructions
from raypot.ensemble.predictor import Predictor
from raypot.ensemble.products import ErrorProducts
from raypot.ensemble.select import SELECTORS, agreement, alternatives
from raypot.errors import LabelError, OutputError, UsageError
from raypot.structures import Floats, Integers
from raypot.train.model_file import ModelFile, provenance, write_model


@dataclass(frozen=True)
class EnsembleReport:
    """What became of a study.

    Args:
        model: the model file.
        members: trial, seed, weight, architecture and validation accuracy of each.
        val: accuracy of `best_single`, `uniform` and `ensemble` on the validation rows. The
            members were chosen on these rows, so that the test rows will show a little less.
        rho: correlation of the members' errors; None for a single member.
        gain: RMSE of the ensemble over that of a mean member, measured and as rho predicts.
        calibration: error model of each property.
        warnings: what the user should know.
    """

    model: Path
    members: list[dict[str, Any]]
    val: dict[str, dict[str, Any]]
    rho: float | None
    gain: dict[str, float] | None
    calibration: dict[str, Calibration]
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "model": str(self.model),
            "members": self.members,
            "val": self.val,
            "rho": self.rho,
            "gain": self.gain,
            "calibration": {name: row.model_dump() for name, row in self.calibration.items()},
            "warnings": self.warnings,
        }


def build_ensemble(
    study_folder: Path, output: Path, *, n_members: int = 5, selector: str = "greedy"
) -> EnsembleReport:
    """Select members among the trials of a study, calibrate them, and write a model file.

    Beside the model file, `inference_instructions.txt` says how to use it.

    Args:
        study_folder: of the study.
        output: model file to write.
        n_members: largest number of different members.
        selector: a key of `SELECTORS`.

    Raises:
        UsageError: an unknown selector, no members, or trials with different data.
        OutputError: the output cannot be created.
        MissingInput: no study, or its store is gone.
        SearchError: no trial left a model.
        LabelError: the validation rows have no labels.
    """
    _check_request(output, n_members, selector)
    candidates = find_candidates(study_folder, n_members)
    everyone = _weighted(candidates, np.ones(len(candidates.rows)))
    on_val = _collect(candidates, candidates.split.val, everyone, check=False)
    candidates, on_val, warnings = _without_broken(candidates, on_val)
    spread = candidates.members[0].targets.spread
    products = ErrorProducts.of(on_val.members, on_val.offsets, spread)
    weights = SELECTORS[selector](products, n_members)

    file = _weighted(candidates, weights)
    calibration, notes = _calibrate(candidates, file)
    val = {
        name: _describe_choice(candidates, on_val, products, row)
        for name, row in alternatives(products, weights, n_members).items()
    }
    agreeing = agreement(on_val.members, on_val.offsets, weights)
    report = EnsembleReport(
        model=output,
        members=_describe(candidates, weights, on_val),
        val=val,
        rho=agreeing.get("rho"),
        gain=agreeing.get("gain"),
        calibration=calibration,
        warnings=warnings + notes,
    )
    write_model(output, _finished(file, report, candidates, study_folder, selector))
    write_instructions(output, candidates.store.path, report.members)
    return report


def _check_request(output: Path, n_members: int, selector: str) -> None:
    if selector not in SELECTORS:
        raise UsageError(f"selector {selector!r} is unknown{did_you_mean(selector, SELECTORS)}")
    if n_members < 1:
        raise UsageError(f"an ensemble of {n_members} members was asked for, expected at least 1")
    folder = output.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or output.is_dir():
        raise OutputError(
            f"{output}: cannot be created; choose a file in a folder that exists and may be "
            "written to",
            path=str(output),
        )


def _collect(candidates: Candidates, rows: Integers, file: ModelFile, *, check: bool) -> Errors:
    predictor = Predictor(file)
    store, level = candidates.store, candidates.level
    names = tuple(name for name in predictor.properties if name in store.census(level))
    blocks = store_blocks(store, rows, names, level)
    return collect(predictor, blocks, names, where=store.path, check=check)


def _weighted(candidates: Candidates, weights: Floats) -> ModelFile:
    """Return the candidates that have weight as the content of a model file."""
    total = weights.sum()
    members = tuple(
        replace(member, weight=float(weight / total))
        for member, weight in zip(candidates.members, weights, strict=True)
        if weight > 0
    )
    return ModelFile(members)


def _without_broken(candidates: Candidates, errors: Errors) -> tuple[Candidates, Errors, list[str]]:
    """Leave out candidates whose predictions are not finite where there are labels."""
    scored = [errors.members[name] for name in ("energy", "forces") if name in errors.members]
    is_broken = np.zeros(len(candidates.rows), dtype=bool)
    for values in scored:
        flat = values.reshape(len(values), -1)
        finite = np.isfinite(flat)
        is_broken |= (~finite & finite.any(axis=0)).any(axis=1)
    if is_broken.all():
        raise LabelError("no candidate predicts finite energies and forces on the val rows")
    kept = np.flatnonzero(~is_broken)
    notes = [
        f"trial {row.trial} was left out: it predicts no finite energies and forces on val"
        for row, broken in zip(candidates.rows, is_broken, strict=True)
        if broken
    ]
    members = {name: values[kept] for name, values in errors.members.items()}
    rows = tuple(candidates.rows[k] for k in kept)
    return candidates._replace(rows=rows), errors._replace(members=members), notes


def _calibrate(candidates: Candidates, file: ModelFile) -> tuple[dict[str, Calibration], list[str]]:
    """Fit the error model of every labelled property on the cal rows."""
    rows = candidates.split.cal
    if not len(rows):
        return {}, ["no calibration: the split has no cal rows, so there are no error bars"]
    found = _collect(candidates, rows, file, check=True)
    calibration = {}
    for name in METRICS:
        if name == "energy" or name not in found.ensemble:
            continue
        errors, spreads = found.ensemble[name], found.spreads[name]
        labelled = ~np.isnan(errors)
        if labelled.any():
            n_structures = int(found.labelled(name).sum())
            calibration[name] = calibrate(spreads[labelled], errors[labelled], n_structures)
    return calibration, calibration_warnings(calibration, len(file.members))


def calibration_warnings(calibration: dict[str, Calibration], n_members: int) -> list[str]:
    """Say where the error bars stand on thin ground."""
    lines = []
    fewest = min((row.n_structures for row in calibration.values()), default=ENOUGH_STRUCTURES)
    if fewest < ENOUGH_STRUCTURES:
        margin = (COVERAGE * (1 - COVERAGE) / fewest) ** 0.5
        lines.append(
            f"calibration: {fewest} cal structures, {ENOUGH_STRUCTURES} are wanted; intervals "
            f"meant to hold 90 % may hold {90 - 200 * margin:.0f} to "
            f"{min(90 + 200 * margin, 100):.0f} %; give cal a larger share of [data.split]"
        )
    if n_members == 1:
        lines.append(
            "the ensemble is a single model, which has no spread: its error bar is the same for "
            "every structure; train longer or search more trials, so that others are worth adding"
        )
    return lines


def _describe_choice(
    candidates: Candidates, errors: Errors, products: ErrorProducts, weights: Floats
) -> dict[str, Any]:
    """Return who is in a choice of weights, its score, and its accuracy on val."""
    inside = np.flatnonzero(weights)
    mean = {
        name: np.tensordot(weights[inside], values[inside], 1)
        for name, values in errors.members.items()
        if not np.isnan(values[inside].reshape(len(inside), -1)).all(axis=1).any()
    }
    return {
        "trials": [candidates.rows[k].trial for k in inside],
        "score": float(products.score(weights[None])[0]),
        **accuracies(mean),
    }


def _describe(candidates: Candidates, weights: Floats, errors: Errors) -> list[dict[str, Any]]:
    """Return one row for each member, the heaviest first."""
    order = [k for k in np.argsort(-weights, kind="stable") if weights[k] > 0]
    return [
        {
            "trial": candidates.rows[k].trial,
            "seed": candidates.rows[k].seed,
            "weight": float(weights[k]),
            "name": candidates.rows[k].member.name,
            "model": candidates.rows[k].member.model["name"],
            "val": accuracies(errors.of_member(k)),
        }
        for k in order
    ]


def _finished(
    file: ModelFile,
    report: EnsembleReport,
    candidates: Candidates,
    study_folder: Path,
    selector: str,
) -> ModelFile:
    """Add calibration and provenance to the members."""
    facts = {
        "selector": selector,
        "candidates": [row.trial for row in candidates.rows],
        **{key: report.to_json()[key] for key in ("members", "val", "rho", "gain", "warnings")},
    }
    return replace(
        file,
        calibration={"coverage": COVERAGE, "properties": report.to_json()["calibration"]},
        provenance=provenance(
            kind="ensemble",
            study=str(study_folder),
            data=candidates.rows[0].provenance.get("data", {}),
            selection=facts,
        ),
    )
