"""Prediction with a model file: a single potential or a calibrated ensemble.

    predictor = Predictor.load("ensemble.safetensors")
    result = predictor.predict(structures)
    result.energy, result.energy_std, result.forces, result.forces_std
    atoms.calc = predictor.calculator()

**Shapes** M members, S structures, N atoms.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from raypot.config import build
from raypot.ensemble.calibrate import Calibration
from raypot.ensemble.members import MemberModels, describe, gives
from raypot.ensemble.prediction import Prediction, combine, join
from raypot.ensemble.sources import Source, batches, blocks
from raypot.errors import CheckpointError, ConfigError, FormatError, UsageError
from raypot.properties import PROPERTIES
from raypot.structures import Block, Floats
from raypot.train.model_file import Member, ModelFile, read_model

if TYPE_CHECKING:
    from raypot.ensemble.engines import RaypotCalculator

DEFAULT = ("energy", "forces")


class Predictor:
    """Predicts properties with error bars.

    Args:
        file: what a model file holds.
        device: `auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`.
        dtype: of all members; by default each keeps its own. Energies are added up in float64.
        path: where the file lies, for messages.

    Raises:
        CheckpointError: members or calibration that cannot be used.
    """

    def __init__(
        self,
        file: ModelFile,
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        path: str = "model",
    ) -> None:
        self.path = path
        self.file = file
        self.models = MemberModels(file.members, device, dtype)
        weights = np.array([member.weight for member in file.members])
        if not weights.sum() > 0:
            raise CheckpointError(f"{path}: the weights of its members are all zero")
        self.weights: Floats = weights / weights.sum()
        self.weights_of = {name: self._weights_of(name) for name in self.models.properties}
        self.calibration = read_calibration(file.calibration, path)

    @classmethod
    def load(
        cls,
        path: "str | PathLike[str]",
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
    ) -> "Predictor":
        """Load a model file.

        Args:
            path: a `.safetensors` file that raypot wrote.
            device: `auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`.
            dtype: of all members; by default each keeps its own.

        Raises:
            MissingInput: no such file.
            CheckpointError: not a model file, or a damaged one.
        """
        return cls(read_model(Path(path)), device=device, dtype=dtype, path=str(path))

    @property
    def members(self) -> tuple[Member, ...]:
        """The members with architecture, weight and validation errors."""
        return self.models.members

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that every member knows, ascending."""
        return self.models.elements

    @property
    def cutoff(self) -> float:
        """The largest cutoff of a member in Å."""
        return self.models.cutoff

    @property
    def properties(self) -> tuple[str, ...]:
        """What can be asked for."""
        return self.models.properties

    def predict(
        self,
        source: Source,
        properties: Sequence[str] = DEFAULT,
        *,
        members: bool = False,
        batch_atoms: int | None = None,
    ) -> Prediction:
        """Predict properties of structures of any mix of sizes, elements and periodicity.

        Args:
            source: `Structure`s, `ase.Atoms`, a `Block` or a `Store`; nothing is changed.
            properties: some of energy, forces, stress, charges, dipole.
            members: also return what each member predicts.
            batch_atoms: atoms computed at once; by default what suits the device.

        Returns:
            Values, calibrated standard deviations and raw spreads, in the order of the source.

        Raises:
            UnknownElement: an element that the model was not trained on.
            UsageError: a property that the model does not predict.
            FormatError: a structure that cannot be believed.
        """
        names = self.models.check(properties)
        parts = [
            part if members else replace(part, members=None)
            for block in blocks(source)
            for _, part in self.predict_batches(block, names, batch_atoms=batch_atoms)
        ]
        empty = self._combine(Block.from_structures([]), names, self.path)
        return join(parts) if parts else empty if members else replace(empty, members=None)

    def predict_batches(
        self,
        block: Block,
        properties: Sequence[str] = DEFAULT,
        *,
        batch_atoms: int | None = None,
        where: str = "input",
        check: bool = True,
    ) -> Iterator[tuple[Block, Prediction]]:
        """Predict one batch after the other, with the values of every member.

        Args:
            block: S structures; their labels come along with the batches.
            properties: some of energy, forces, stress, charges, dipole.
            batch_atoms: atoms computed at once; by default what suits the device.
            where: where the structures come from, for messages.
            check: refuse predictions that are not finite.
        """
        if batch_atoms is not None and batch_atoms < 1:
            raise UsageError(f"batch_atoms is {batch_atoms}, expected at least 1")
        for part in batches(block, batch_atoms or self.models.batch_atoms()):
            result = self._combine(part, properties, where)
            if check:
                _check_finite(result, part, where)
            yield part, result

    def calculator(self) -> "RaypotCalculator":
        """Return an ASE calculator."""
        from raypot.ensemble.engines import RaypotCalculator  # which imports this file

        return RaypotCalculator(self)

    def _combine(self, block: Block, properties: Sequence[str], where: str) -> Prediction:
        stacked = self.models.predict(block, properties, where)
        return combine(stacked, self.weights_of, block.offsets, self.calibration)

    def _weights_of(self, name: str) -> Floats:
        """Return the weights for one property: members that lack it leave theirs to the others."""
        has = np.array([gives(member, name) for member in self.members])
        share = np.where(has, self.weights, 0.0)
        if not share.any():
            raise CheckpointError(f"{self.path}: the members that predict {name} have no weight")
        return np.asarray(share / share.sum())


def _check_finite(result: Prediction, block: Block, where: str) -> None:
    """Refuse to return NaN or infinity as if it were a prediction.

    Raises:
        FormatError: naming the structure.
    """
    structure_of_atom = np.repeat(np.arange(len(block)), block.n_atoms)
    for name, value in result.values.items():
        odd = ~np.isfinite(value).all(axis=tuple(range(1, value.ndim)))
        if PROPERTIES[name].level == "atom":
            odd = np.bincount(structure_of_atom[odd], minlength=len(block)) > 0
        if name == "stress":
            odd &= block.pbc.all(axis=1)
        if odd.any():
            structure = describe(block, int(np.argmax(odd)), where)
            raise FormatError(
                f"{structure}: the predicted {name} is not finite; "
                "look for atoms at the same place or far outside of what the model has seen"
            )


def read_calibration(tree: dict[str, Any], where: str) -> dict[str, Calibration]:
    """Return the error model of each property of a model file; none where it holds none.

    Raises:
        CheckpointError: a calibration that raypot did not write.
    """
    rows = tree.get("properties", {})
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise CheckpointError(f"{where}: its calibration is not a table of properties")
    try:
        return {name: build(Calibration, row, f"{where}: {name}") for name, row in rows.items()}
    except ConfigError as error:
        raise CheckpointError(f"{error}; the calibration is damaged") from error
