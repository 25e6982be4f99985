"""Measure the loader: structures per second with neighbor lists, cold and warm.

    python benchmarks/loader.py [STORE] [--structures 20000] [--batch-size 32] [--cutoff 5.0]

Without a store the shipped ethanol sample is taken, written again and again into a temporary store
of the size asked, so that the loader is measured and not its start. `cold` is the first epoch,
which finds every neighbor list; `warm` is the best of the following ones; `streamed` has so little
memory that rows are read from disk and neighbors found anew in every epoch (left out where the
rows fit into --stream-gb). One JSON object is printed.
"""

import argparse
import json
import tempfile
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from ase.io import read

from raypot.data.cards import Card
from raypot.data.loader import Loader, LoaderConfig
from raypot.data.store import Store, write_store
from raypot.data.targets import TargetsConfig, fit_targets
from raypot.structures import Structure

SAMPLE = Path(__file__).parent.parent / "datasets" / "ethanol_gfn2"


def open_sample(folder: Path, n_structures: int) -> Store:
    """Write the shipped sample into a store, energies and forces only, until it is large enough."""
    structures = [
        Structure(
            atoms.numbers,
            atoms.positions,
            labels={"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()},
        )
        for atoms in read(SAMPLE / "ethanol_gfn2.xyz.gz", index=":")
    ]
    enough = islice(cycle(structures), n_structures)
    return write_store(folder / "sample", enough, Card.read(SAMPLE / "dataset.toml"))


def measure(loader: Loader, number: int) -> float:
    """Read one epoch and return structures per second."""
    before, n_read = perf_counter(), 0
    for step in loader.epoch(number):
        n_read += sum(len(batch.cell) for batch in step)
    return n_read / (perf_counter() - before)


def run(store: Store, options: argparse.Namespace) -> dict[str, Any]:
    """Measure every way to load."""
    rows = np.flatnonzero(store.column("n_atoms") > 1)[: options.structures]
    targets = fit_targets(store.read(rows, labels=("energy", "forces")), TargetsConfig())

    def build(**settings: Any) -> Loader:
        return Loader(
            store,
            rows,
            labels=("energy", "forces"),
            targets=targets,
            cutoff=options.cutoff,
            batch_size=options.batch_size,
            dtype=torch.float32,
            config=LoaderConfig(**settings),
        )

    def warm(**settings: Any) -> float:
        loader = build(memory_gb=64.0, **settings)
        return max(measure(loader, number) for number in range(4))

    streamed = build(memory_gb=options.stream_gb)
    rates = {
        "cold": max(measure(build(memory_gb=64.0), 0) for _ in range(3)),
        "warm": warm(),
        "warm_without_thread": warm(prefetch=0),
        "warm_whole_batches": warm(micro_batch_atoms=0),
    }
    if not streamed.is_held:
        rates["streamed"] = max(measure(streamed, number) for number in range(3))
    return {
        "store": str(store.path),
        "n_structures": len(rows),
        "atoms_per_structure": round(float(store.column("n_atoms")[rows].mean()), 2),
        "batch_size": options.batch_size,
        "cutoff": options.cutoff,
        "threads": torch.get_num_threads(),
        "structures_per_second": {name: round(rate) for name, rate in rates.items()},
    }


def main() -> None:
    """Read the options and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("store", nargs="?", help="a store; default: the shipped ethanol sample")
    parser.add_argument("--structures", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--cutoff", type=float, default=5.0, help="Å")
    parser.add_argument("--stream-gb", type=float, default=0.01, help="memory when streaming")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.store:
            store = Store.open(options.store)
        else:
            store = open_sample(Path(folder), options.structures)
        print(json.dumps(run(store, options), indent=2))


if __name__ == "__main__":
    main()
