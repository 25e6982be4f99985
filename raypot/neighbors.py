"""Edges between atoms closer than a cutoff, periodic images included.

**Shapes** S structures, N atoms, E edges.

**Source** vesin (https://github.com/Luthaf/vesin), a cell-list and brute-force neighbor search.
"""

import numpy as np
import vesin

from raypot.structures import Block, Booleans, EdgeBlock, Floats

MOLECULE = 64  # atoms up to which trying all pairs of many structures at once is faster
PAIRS_AT_ONCE = 100_000  # keeps the arrays of the pairs in cache


def find_edges(block: Block, cutoff: float) -> EdgeBlock:
    """Find the edges of every structure of `block`.

    Both directions of a pair are listed; an atom is the neighbor of its own images but not of
    itself. The search releases the GIL.

    Args:
        block: S structures.
        cutoff: largest distance in Å.

    Returns:
        Edges sorted by target; none for an isolated atom.
    """
    is_molecule = ~block.pbc.any(axis=1) & (block.n_atoms <= MOLECULE)
    sizes = np.where(is_molecule, block.n_atoms, 0)
    groups = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    if len(groups) == 1:
        return _find_alike(block, cutoff, is_molecule[0])
    found = [_find_alike(block.take(group), cutoff, is_molecule[group[0]]) for group in groups]
    order = np.argsort(np.concatenate([np.zeros(0, np.int64), *groups]))
    return EdgeBlock.concatenate(found).take(order)


def _find_alike(block: Block, cutoff: float, is_molecule: np.bool_) -> EdgeBlock:
    """Find the edges of structures that are all molecules of one size, or of anything else."""
    return _try_all_pairs(block, cutoff) if is_molecule else _search(block, cutoff)


def complete_cell(cell: Floats, pbc: Booleans) -> Floats:
    """Replace the vectors of open directions by ones that make the cell invertible.

    Only the vectors along which the structure repeats matter to its edges; the others get unit
    length at right angles, so that a slab without a third vector can be searched.

    Args:
        cell: (3, 3) in Å.
        pbc: (3,).
    """
    if pbc.all():
        return cell
    if not pbc.any():
        return np.eye(3)
    completed = np.where(pbc[:, None], cell, 0.0)
    # The right singular vectors of the missing rank span the open directions.
    basis = np.linalg.svd(completed)[2][int(pbc.sum()) :]
    completed[~pbc] = basis
    return completed


def _search(block: Block, cutoff: float) -> EdgeBlock:
    """Search the structures one by one, with cell lists where they pay."""
    search = vesin.NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=1)
    sources, targets, shifts, counts = [], [], [], []
    for k in range(len(block)):
        positions = block.positions[block.offsets[k] : block.offsets[k + 1]]
        box = complete_cell(block.cell[k], block.pbc[k])
        i, j, shift = search.compute(positions, box, block.pbc[k], quantities="ijS")
        targets.append(i.astype(np.int32))
        sources.append(j.astype(np.int32))
        shifts.append(shift.astype(np.int32).reshape(-1, 3))
        counts.append(len(i))
    return EdgeBlock(
        source=np.concatenate([np.zeros(0, np.int32), *sources]),
        target=np.concatenate([np.zeros(0, np.int32), *targets]),
        shift=np.concatenate([np.zeros((0, 3), np.int32), *shifts]),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


def _try_all_pairs(block: Block, cutoff: float) -> EdgeBlock:
    """Measure all pairs of open structures of one size, many structures at once."""
    n_atoms = int(block.n_atoms[0])
    positions = block.positions.reshape(-1, n_atoms, 3)
    step = max(1, PAIRS_AT_ONCE // n_atoms**2)
    sources, targets, counts = [], [], []
    for start in range(0, len(block), step):
        is_edge = _is_within(positions[start : start + step], cutoff)
        pair = np.flatnonzero(is_edge) % n_atoms**2
        target = pair // n_atoms
        targets.append(target.astype(np.int32))
        sources.append((pair - target * n_atoms).astype(np.int32))
        counts.append(np.count_nonzero(is_edge, axis=(1, 2)))
    return EdgeBlock(
        source=np.concatenate(sources),
        target=np.concatenate(targets),
        shift=np.zeros((sum(map(len, targets)), 3), np.int32),
        offsets=np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64),
    )


def _is_within(positions: Floats, cutoff: float) -> Booleans:
    """Say which pairs (S, target, source) of different atoms are closer than `cutoff`.

    Args:
        positions: of structures of one size (S, N, 3) in Å.
        cutoff: in Å.
    """
    squared = np.zeros((*positions.shape[:2], positions.shape[1]))
    for axis in range(3):
        along = positions[:, :, axis]
        squared += np.square(along[:, :, None] - along[:, None, :])
    diagonal = np.arange(positions.shape[1])
    squared[:, diagonal, diagonal] = np.inf
    within: Booleans = squared < cutoff**2
    return within
