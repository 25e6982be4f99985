"""The exact commands with which a finished ensemble is used, in a text file beside it."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raypot.durable import write_whole

NAME = "inference_instructions.txt"

TEXT = """\
This ensemble: {model}
{members}

How good is it on structures that nothing has seen (RMSE, MAE, quality of the error bars)?

    raypot evaluate {quoted} {store}

Predict the structures of a file (extended XYZ or anything that ASE reads), or of a store:

    raypot predict {quoted} structures.xyz predicted.xyz
    raypot predict {quoted} structures.xyz predicted.parquet

In Python, energies in eV, forces in eV/Å:

    import raypot

    ensemble = raypot.load({path!r})
    result = ensemble.predict(structures)  # a list of ase.Atoms
    print(result.energy, result.energy_std)
    print(result.forces, result.forces_std)

With ASE, for molecular dynamics, relaxation and vibrations:

    atoms.calc = ensemble.calculator()
    atoms.get_potential_energy(), atoms.get_forces()
    atoms.calc.results["energy_std"], atoms.calc.results["forces_std"]
"""


def write_instructions(model: Path, store: str, members: Sequence[dict[str, Any]]) -> Path:
    """Write `inference_instructions.txt` beside a model file and return its path.

    Args:
        model: the model file.
        store: the store that it comes from.
        members: name, architecture and weight of each, for the head of the text.

    Raises:
        OutputError: the file cannot be created.
        StorageError: the disk is full.
    """
    lines = [f"    {row['weight']:.3f}  {row['name']} ({row['model']})" for row in members]
    text = TEXT.format(
        model=model,
        quoted=shlex.quote(str(model)),
        path=str(model),
        store=shlex.quote(store),
        members="\n".join(lines),
    )
    path = model.with_name(NAME)
    write_whole(path, text.encode())
    return path
