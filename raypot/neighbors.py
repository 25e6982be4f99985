"""Edges between atoms closer than a cutoff, periodic images included.

**Source** vesin (https://github.com/Luthaf/vesin), a cell-list and brute-force neighbor search.
"""

import numpy as np
import vesin

from raypot.structures import Block, Booleans, EdgeBlock, Floats


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
        source=np.concatenate(sources) if sources else np.zeros(0, np.int32),
        target=np.concatenate(targets) if targets else np.zeros(0, np.int32),
        shift=np.concatenate(shifts) if shifts else np.zeros((0, 3), np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


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
    completed = np.where(pbc[:, None], cell, 0.0)
    # The right singular vectors of the missing rank span the open directions.
    basis = np.linalg.svd(completed)[2][int(pbc.sum()) :]
    completed[~pbc] = basis
    return completed
