"""How good a model is on labelled structures: errors, error bars, members.

**Shapes** M members, S structures, N atoms.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raypot.config import build
from raypot.data.splits import SplitConfig, make_split
from raypot.data.store import Store
from raypot.ensemble.accuracy import PER_ATOM, Errors, accuracy, collect, labelled_properties
from raypot.ensemble.judge import judge
from raypot.ensemble.predictor import Predictor
from raypot.ensemble.select import agreement
from raypot.ensemble.sources import open_source
from raypot.errors import LabelError, StoreError, UsageError
from raypot.structures import Block, Integers

ROLES = ("train", "val", "cal", "test")
CHUNK = 4096  # rows read from a store at once
METRICS = (PER_ATOM, "energy", "forces", "stress", "charges", "dipole")


class Rows(NamedTuple):
    """Labelled structures to judge by."""

    split: str
    properties: tuple[str, ...]
    blocks: Iterator[Block]
    where: str


def evaluate(predictor: Predictor, data: str | Path, *, split: str | None = None) -> dict[str, Any]:
    """Compare a model with labels.

    On the store that the model was made from, the rows of a role are found again from the
    settings of its split; `test` is the default there. All other data count whole.

    Args:
        predictor: the model.
        data: a store, or any readable structure file.
        split: `train`, `val`, `cal`, `test` (own store only) or `all`.

    Returns:
        `n_structures` and `n_atoms` with a label, `split`, one entry for each labelled property
        (`rmse`, `mae`, `unit`, `count`), `uncertainty` for each calibrated one, `members`, `rho`
        (correlation of the members' errors) and `gain` (RMSE of the ensemble over that of a mean
        member, measured and as rho predicts).

    Raises:
        MissingInput: nothing is there.
        UsageError: a role is asked of data that the model does not come from.
        LabelError: there is no label to compare with.
        UnknownElement: an element that the model was not trained on.
    """
    rows = _open(predictor, data, split)
    found = collect(predictor, rows.blocks, rows.properties, where=rows.where)
    return {
        "data": str(data),
        "split": rows.split,
        "n_structures": found.n_structures,
        "n_atoms": int(found.offsets[-1]),
        **accuracies(found.ensemble),
        "uncertainty": uncertainties(predictor, found),
        "members": [
            {"name": member.name, "weight": float(weight), **accuracies(found.of_member(m))}
            for m, (member, weight) in enumerate(
                zip(predictor.members, predictor.weights, strict=True)
            )
        ],
        **agreement(found.members, found.offsets, predictor.weights),
    }


def accuracies(errors: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the accuracy of each metric that has a label."""
    rows = {name: accuracy(name, errors[name]) for name in METRICS if name in errors}
    return {name: row for name, row in rows.items() if row}


def uncertainties(predictor: Predictor, found: Errors) -> dict[str, dict[str, float]]:
    """Return how good the error bars of each calibrated metric are."""
    marks = {}
    for name, std in found.stds.items():
        errors, model = found.ensemble[name], predictor.calibration[name]
        labelled = ~np.isnan(errors)
        if labelled.any():
            marks[name] = judge(std[labelled], errors[labelled], model.factor, model.constant)
    return marks


def store_blocks(
    store: Store, rows: Integers, labels: tuple[str, ...], level: str
) -> Iterator[Block]:
    """Read rows of a store, a bounded number at a time."""
    for start in range(0, len(rows), CHUNK):
        yield store.read(rows[start : start + CHUNK], labels=labels, level=level)


def _open(predictor: Predictor, data: str | Path, split: str | None) -> Rows:
    source = open_source(data)
    if isinstance(source, Store):
        return _of_store(predictor, source, split)
    _refuse_role(split, str(data), "a file")
    block = Block.from_structures(list(source))
    properties = labelled_properties(block, predictor.properties)
    return Rows("all", properties, iter([block]), str(data))


def _of_store(predictor: Predictor, store: Store, split: str | None) -> Rows:
    facts = predictor.file.provenance.get("data")
    facts = facts if isinstance(facts, dict) else {}
    level = facts.get("level", "reference")
    level = level if level in store.levels else "reference"
    if facts.get("fingerprint") == store.fingerprint:
        role = split or "test"
        rows = _rows_of_role(store, role, facts)
    else:
        _refuse_role(split, store.path, "another store than the one that the model comes from")
        role, rows = "all", np.arange(store.n_structures)
    properties = tuple(name for name in predictor.properties if name in store.census(level))
    if not len(rows):
        raise LabelError(f"{store.path}: the role {role} has no rows; choose another --split")
    return Rows(role, properties, store_blocks(store, rows, properties, level), store.path)


def _refuse_role(split: str | None, where: str, what: str) -> None:
    if split is not None and split not in (*ROLES, "all"):
        raise UsageError(f"split {split!r}: expected {', '.join(ROLES)} or all", split=split)
    if split in ROLES:
        raise UsageError(
            f"{where}: is {what}, it has no role {split!r}; leave --split out to use all of it",
            split=split,
        )


def _rows_of_role(store: Store, role: str, facts: dict[str, Any]) -> Integers:
    """Draw the split again and return the rows of a role.

    Raises:
        UsageError: no such role.
        StoreError: the split comes out differently than when the model was made.
    """
    if role == "all":
        return np.arange(store.n_structures)
    if role not in ROLES:
        _refuse_role(role, store.path, "")
    split = make_split(store, build(SplitConfig, facts.get("split", {}), f"{store.path}: split"))
    if split.fingerprint != facts.get("split_fingerprint"):
        raise StoreError(
            f"{store.path}: its split comes out differently than when the model was made; use the "
            "raypot that made the model, or --split all"
        )
    return split.rows(role)
