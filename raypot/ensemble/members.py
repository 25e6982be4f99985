"""The members of an ensemble at work: every member's own prediction for the same structures.

Everything that predicts goes through `MemberModels.predict`: building, evaluating and using an
ensemble. Neighbors are searched once, for the largest cutoff; a member with a smaller one sees
the edges within its own.

**Shapes** M members, S structures, N atoms, E edges.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raypot.batch import Batch, collate
from raypot.constants import MAX_ATOMIC_NUMBER, SYMBOLS, formula
from raypot.errors import CheckpointError, UnknownElement, UsageError
from raypot.models import AtomisticModel, outputs_for
from raypot.neighbors import find_edges
from raypot.nn.derivatives import model_state, predict
from raypot.properties import PROPERTIES
from raypot.structures import Block, EdgeBlock, Floats
from raypot.train.model_file import Member, build_member

PREDICTABLE = ("energy", "forces", "stress", "charges", "dipole")
BATCH_ATOMS = {"cpu": 256, "cuda": 8192}  # small batches stay in the cache of a core


class MemberModels:
    """Models that predict side by side; they may differ in architecture, cutoff and dtype.

    Args:
        members: at least one.
        device: `auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`.
        dtype: of all members; by default each keeps its own.
    """

    def __init__(
        self, members: Sequence[Member], device: str = "auto", dtype: torch.dtype | None = None
    ) -> None:
        self.members = tuple(members)
        self.device = torch.device(_resolve(device))
        self.models = [build_member(member, dtype).to(self.device) for member in self.members]
        self.states = [model_state(model) for model in self.models]
        self.cutoff = max(model.cutoff for model in self.models)
        shared = set.intersection(*(set(member.elements) for member in self.members))
        if not shared:
            raise CheckpointError("ensemble: its members have no element in common")
        self.elements = tuple(sorted(shared))

    @property
    def properties(self) -> tuple[str, ...]:
        """What at least one member predicts."""
        return tuple(
            name for name in PREDICTABLE if any(gives(member, name) for member in self.members)
        )

    def check(self, properties: Sequence[str]) -> tuple[str, ...]:
        """Return `properties` without repetitions.

        Raises:
            UsageError: no member predicts one of them.
        """
        for name in properties:
            if name not in self.properties:
                raise UsageError(
                    f"property {name!r}: the model does not predict it; it predicts "
                    f"{', '.join(self.properties)}",
                    name=name,
                )
        return tuple(dict.fromkeys(properties))

    def predict(
        self, block: Block, properties: Sequence[str], where: str = "input"
    ) -> dict[str, Floats]:
        """Predict with every member.

        Args:
            block: S structures, together small enough for the memory.
            properties: some of `properties`.
            where: where the structures come from, for messages.

        Returns:
            Property to (M, S, ...) or (M, N, ...) in raypot's units, self energies included; NaN
            for a member that does not predict it.

        Raises:
            UnknownElement: an element that a member was not trained on.
        """
        self._check_elements(block, where)
        edges = find_edges(block, self.cutoff)
        batches: dict[tuple[float, torch.dtype], Batch] = {}
        stacked = {name: np.full(_shape(self, name, block), np.nan) for name in properties}
        for m, (member, model) in enumerate(zip(self.members, self.models, strict=True)):
            key = (model.cutoff, dtype_of(model))
            if key not in batches:
                own = edges_within(block, edges, model.cutoff)
                batches[key] = collate(block, own, key[1]).to(self.device)
            wanted = tuple(name for name in properties if gives(member, name))
            outputs = predict(model, self.states[m], batches[key], wanted) if wanted else {}
            for name, tensor in outputs.items():
                stacked[name][m] = _to_numpy(tensor)
            if "energy" in outputs:
                stacked["energy"][m] += member.targets.self_energy(block.numbers, block.offsets)
        return stacked

    def batch_atoms(self) -> int:
        """Return how many atoms make a good batch on this device."""
        return BATCH_ATOMS.get(self.device.type, BATCH_ATOMS["cpu"])

    def _check_elements(self, block: Block, where: str) -> None:
        known = np.zeros(MAX_ATOMIC_NUMBER + 1, dtype=bool)
        known[list(self.elements)] = True
        strange = np.flatnonzero(~known[block.numbers])
        if len(strange) == 0:
            return
        k = int(np.searchsorted(block.offsets, strange[0], side="right")) - 1
        numbers = block.numbers[block.offsets[k] : block.offsets[k + 1]]
        found = ", ".join(SYMBOLS[z] for z in np.unique(numbers[~known[numbers]]))
        supported = ", ".join(SYMBOLS[z] for z in self.elements)
        raise UnknownElement(
            f"{describe(block, k, where)}: {found} is unknown to the model; it was trained on "
            f"{supported}: leave the structure out or train with {found}",
            structure=int(block.rows[k]),
            unknown=found,
            supported=supported,
        )


def describe(block: Block, index: int, where: str) -> str:
    """Return where a structure comes from and its formula, for messages."""
    numbers = block.numbers[block.offsets[index] : block.offsets[index + 1]]
    return f"{where}, structure {block.rows[index]} ({formula(numbers)})"


def gives(member: Member, name: str) -> bool:
    """Say whether a member predicts a property."""
    return set(outputs_for((name,))) <= set(member.outputs)


def dtype_of(model: AtomisticModel) -> torch.dtype:
    """Return the floating type of a model."""
    return model.scale.dtype


def edges_within(block: Block, edges: EdgeBlock, cutoff: float) -> EdgeBlock:
    """Return the edges that are shorter than `cutoff` in Å, in the same order."""
    counts = np.diff(edges.offsets)
    first_atom = np.repeat(block.offsets[:-1], counts)
    cell = block.cell[np.repeat(np.arange(len(block)), counts)]  # (E, 3, 3)
    vectors = block.positions[edges.source + first_atom]
    vectors = vectors - block.positions[edges.target + first_atom]
    vectors = vectors + np.einsum("ea,eab->eb", edges.shift, cell)  # (E, 3)
    near = np.square(vectors).sum(axis=1) < cutoff**2
    offsets = np.concatenate([[0], np.cumsum(near)])[edges.offsets].astype(np.int64)
    return EdgeBlock(edges.source[near], edges.target[near], edges.shift[near], offsets)


def _shape(models: MemberModels, name: str, block: Block) -> tuple[int, ...]:
    row = PROPERTIES[name]
    n_rows = len(block.numbers) if row.level == "atom" else len(block)
    return (len(models.members), n_rows, *row.shape)


def _to_numpy(tensor: Tensor) -> Floats:
    array: Floats = tensor.detach().double().cpu().numpy()
    return array


def _resolve(device: str) -> str:
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
