"""Row numbers of the four roles of a run: train, val, cal and test.

`val` decides (early stop, search, selection), `cal` only calibrates, `test` is never touched before
`evaluate`. Isolated atoms stand outside the roles: they say what an element costs, and a model
gets nothing else from them. The drawing itself is a pure function of columns.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from raypot.config import Config, build
from raypot.data.splits_draw import ROLES, Size, draw
from raypot.data.store import Store
from raypot.durable import write_json
from raypot.errors import CheckpointError, ConfigError, MissingInput
from raypot.neighbors import find_edges
from raypot.structures import Integers

ISOLATION = 6.0  # Å: a lone atom whose nearest image is farther away counts as isolated


class SplitConfig(Config):
    """How the structures of a store are divided into roles."""

    strategy: Literal["auto", "random", "by_record", "from_files", "first_come"] = Field(
        "auto",
        description="auto: from_files where files are given, by_record where structures belong to "
        "more than one record, else random",
    )
    train: Size = Field("rest", description="fraction (0.75), count (950) or rest")
    val: Size = Field(0.1, description="for early stop, search and selection")
    cal: Size = Field(0.075, description="for the calibration of uncertainties alone")
    test: Size = Field(0.075, description="untouched before evaluate")
    seed: int = Field(0, ge=0, description="draws train, val and cal")
    test_seed: int = Field(0, ge=0, description="draws test, whatever seed is")
    files: dict[str, list[str]] = Field(
        {},
        description="role to patterns of source files. The role takes all their structures; train "
        "gives from its own to the roles without files",
    )

    @field_validator(*ROLES, mode="before")
    @classmethod
    def _size(cls, size: Any) -> Any:
        if size is None:
            return "rest"
        if isinstance(size, float) and not 0.0 <= size <= 1.0:
            raise ValueError(f"{size} is not a fraction; expected 0.0 to 1.0, or a whole count")
        if isinstance(size, int) and size < 0:
            raise ValueError(f"{size} is below zero; expected a count, a fraction or rest")
        return size

    @model_validator(mode="after")
    def _fits(self) -> Self:
        sizes = self.sizes
        rest = [role for role in ROLES if sizes[role] == "rest"]
        if len(rest) > 1:
            raise ValueError(f"{' and '.join(rest)} all ask for the rest; give one of them a size")
        total = math.fsum(size for size in sizes.values() if isinstance(size, float))
        if total > 1.0 + 1e-9:
            raise ValueError(f"the fractions add up to {total:.6g}; expected at most 1")
        unknown = sorted(set(self.files) - set(ROLES))
        if unknown:
            raise ValueError(f"files: {unknown[0]!r} is no role; roles are {', '.join(ROLES)}")
        if self.files and self.strategy not in ("auto", "from_files"):
            raise ValueError(f"files are given, but strategy {self.strategy!r} does not read them")
        if self.strategy == "from_files" and not self.files:
            raise ValueError("strategy 'from_files' needs files, such as { test = ['test*.xyz'] }")
        return self

    @property
    def sizes(self) -> dict[str, Size]:
        """The size asked for each role."""
        return {role: getattr(self, role) for role in ROLES}


class _Written(Config):
    """The JSON form of a split."""

    train: list[int]
    val: list[int]
    cal: list[int]
    test: list[int]
    isolated: list[int]
    store: str
    fingerprint: str


@dataclass(frozen=True)
class Split:
    """Row numbers of each role, ascending; no row is in two roles.

    Args:
        train: rows that the model learns from.
        val: rows that stop, search and select.
        cal: rows that calibrate.
        test: rows that judge.
        isolated: rows of isolated atoms, in no role.
        store: fingerprint of the store that the rows belong to.
    """

    train: Integers
    val: Integers
    cal: Integers
    test: Integers
    isolated: Integers
    store: str

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the rows of every role and of the store's fingerprint."""
        digest = hashlib.sha256(self.store.encode())
        for role in (*ROLES, "isolated"):
            rows = self.rows(role)
            digest.update(f"/{role}:{len(rows)}/".encode())
            digest.update(rows.astype("<i8").tobytes())
        return digest.hexdigest()

    def rows(self, role: str) -> Integers:
        """Return the rows of a role, or of `isolated`.

        Raises:
            ConfigError: there is no such role.
        """
        if role not in (*ROLES, "isolated"):
            raise ConfigError(f"split: {role!r} is no role; roles are {', '.join(ROLES)}")
        rows: Integers = getattr(self, role)
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        rows = {role: self.rows(role).tolist() for role in (*ROLES, "isolated")}
        return {**rows, "store": self.store, "fingerprint": self.fingerprint}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], where: str = "split") -> "Split":
        """Rebuild a split from plain values.

        Raises:
            CheckpointError: not a split, or altered since it was written.
        """
        try:
            written = build(_Written, tree, where)
        except ConfigError as error:
            raise CheckpointError(f"{error}; remove the file to draw the split anew") from error
        columns = {
            role: np.array(getattr(written, role), dtype=np.int64) for role in (*ROLES, "isolated")
        }
        split = cls(**columns, store=written.store)
        if split.fingerprint != written.fingerprint:
            raise CheckpointError(
                f"{where}: the rows do not match their fingerprint {written.fingerprint[:12]}: "
                "altered since it was written; restore the file or remove it to draw anew"
            )
        return split

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "Split":
        """Read what `save` wrote.

        Raises:
            MissingInput: no such file.
            CheckpointError: not a split, or altered.
        """
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise MissingInput(f"{path}: no such file", path=str(path)) from error
        except ValueError as error:
            raise CheckpointError(f"{path}: not valid JSON: {error}", path=str(path)) from error
        if not isinstance(tree, dict):
            raise CheckpointError(f"{path}: a {type(tree).__name__}, expected a JSON object")
        return cls.from_json(tree, str(path))


def make_split(store: Store, config: SplitConfig) -> Split:
    """Divide the structures of a store.

    Raises:
        ConfigError: the sizes do not fit the store, or a role that is asked would be empty.
    """
    isolated = find_isolated(store)
    usable = np.setdiff1d(np.arange(store.n_structures), isolated)
    strategy, files = config.strategy, np.asarray(store.column("source_file"))[usable]
    records = np.asarray(store.column("record"))[usable]
    if strategy == "auto" and config.files:
        strategy = "from_files"
    drawn = draw(
        records,
        files,
        strategy=strategy,
        sizes=config.sizes,
        patterns=config.files,
        seeds=(config.seed, config.test_seed),
    )
    roles = {role: np.sort(usable[picked]) for role, picked in drawn.items()}
    return Split(**roles, isolated=isolated, store=store.fingerprint)


def find_isolated(store: Store) -> Integers:
    """Return the rows of atoms without any neighbor.

    A crystal with one atom in its cell has its own images as neighbors and is not isolated; an atom
    in a large periodic box is.
    """
    lone = np.flatnonzero(np.asarray(store.column("n_atoms")) == 1)
    if len(lone) == 0:
        return lone
    edges = find_edges(store.read(lone, labels=()), ISOLATION)
    isolated: Integers = lone[np.diff(edges.offsets) == 0]
    return isolated
