"""Labels from a reference method: semiempirical tight binding through tblite.

Dipole and quadrupole belong to the origin of the coordinates. The quadrupole is the traceless
tensor Q_ab = sum_n q_n (3 r_a r_b - r^2 delta_ab) / 2, continuous charge included.

**Shapes** N atoms.

**Source** GFN1-xTB: Grimme, Bannwarth & Shushkov, J. Chem. Theory Comput. 13, 1989 (2017).
GFN2-xTB: Bannwarth, Ehlert & Grimme, J. Chem. Theory Comput. 15, 1652 (2019).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from raypot.config import build, did_you_mean
from raypot.constants import BOHR, HARTREE
from raypot.data.sample import SampleConfig, trajectory, write_frames
from raypot.errors import ConfigError, LabelError, MissingExtra, OutputError
from raypot.structures import Floats, Structure

MOLECULES = {"ethanol": "CH3CH2OH", "water": "H2O", "methanol": "CH3OH", "ammonia": "NH3"}
METHODS = {"gfn1": "GFN1-xTB", "gfn2": "GFN2-xTB"}

# Tightness of the self-consistent cycle relative to tblite's default. Forces of distorted ethanol
# then miss finite differences of the energy by 2e-6 eV/Å; at the default by 4e-5.
ACCURACY = 0.01


def label(structure: Structure, method: str = "gfn2") -> Structure:
    """Return `structure` with energy, forces, charges, dipole and quadrupole of `method`.

    Every structure starts from a fresh electron density, so that its labels depend on its
    geometry alone and not on what was labelled before.

    Args:
        structure: a molecule or ion; its total charge and spin are used.
        method: a key of `METHODS`.

    Raises:
        MissingExtra: tblite is not installed.
        ConfigError: no such method.
        LabelError: periodic, or the self-consistent cycle did not converge.
    """
    try:
        result = _open_calculator(structure, method).singlepoint()
    except RuntimeError as error:
        raise LabelError(
            f"{structure.where}: {METHODS[method]} failed: {error}; look at the geometry, "
            "the total charge and the spin"
        ) from error
    labels = {
        "energy": result["energy"] * HARTREE,
        "forces": -result["gradient"] * (HARTREE / BOHR),
        "charges": result["charges"],
        "dipole": result["dipole"] * BOHR,
        "quadrupole": _full_tensor(result["quadrupole"]) * BOHR**2,
    }
    return replace(structure, labels={**structure.labels, **labels})


def _open_calculator(structure: Structure, method: str) -> Any:
    """Build the tblite calculator of a structure; see `label` for what is raised."""
    try:
        from tblite.interface import Calculator
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "data label: tblite is not installed; install it with `pip install raypot[label]`"
        ) from error

    if method not in METHODS:
        raise ConfigError(f"method {method!r}: unknown{did_you_mean(method, METHODS)}")
    if structure.pbc.any():
        raise LabelError(
            f"{structure.where}: is periodic, the reference methods label molecules; "
            "remove the cell or label it with another program"
        )
    calculator = Calculator(
        METHODS[method],
        structure.numbers,
        structure.positions / BOHR,
        charge=structure.total_charge,
        uhf=round(structure.spin) - 1,
    )
    calculator.set("verbosity", 0)
    calculator.set("accuracy", ACCURACY)
    return calculator


def _full_tensor(packed: Floats) -> Floats:
    """Return the symmetric (3, 3) of tblite's order xx xy yy xz yz zz."""
    return np.asarray(packed)[[[0, 1, 3], [1, 2, 4], [3, 4, 5]]]


def sample(start: Structure, config: SampleConfig, method: str = "gfn2") -> Iterator[Structure]:
    """Yield labelled frames of Langevin dynamics, one temperature after the other in time order.

    Frames are centered at their center of mass and carry `config_type` such as `300K`. None is
    left out: a geometry that cannot be labelled ends the sampling.

    Args:
        start: a molecule near equilibrium, with more than one atom.
        config: temperatures, number of frames, times.
        method: a key of `METHODS`.

    Raises:
        MissingExtra: tblite is not installed.
        ConfigError: no such method.
        LabelError: the molecule cannot be labelled.
    """
    share, rest = divmod(config.n_structures, len(config.temperatures))
    for index, temperature in enumerate(config.temperatures):
        frames = trajectory(_moving_atoms(start, method), temperature, config)
        for positions in islice(frames, share + (index < rest)):
            frame = replace(start, positions=positions, config_type=f"{temperature:g}K")
            yield label(frame, method)


def _moving_atoms(start: Structure, method: str) -> Any:
    """Return ASE atoms of `start` with a calculator for the dynamics."""
    from ase import Atoms

    label(start, method)  # what is wrong with the method or the molecule is said here
    from tblite.ase import TBLite

    atoms = Atoms(start.numbers, start.positions)
    atoms.calc = TBLite(
        method=METHODS[method],
        charge=start.total_charge,
        multiplicity=round(start.spin),
        verbosity=0,
    )
    return atoms


def read_molecule(name: str) -> Structure:
    """Return the first geometry of a structure file, or a named molecule from ASE's G2 set.

    Args:
        name: an existing file that ASE reads, a word of `MOLECULES`, or a name of
            `ase.build.molecule` such as `CH3CH2OH`.

    Raises:
        ConfigError: no such molecule.
    """
    import ase.io
    from ase.build import molecule as build_molecule
    from ase.collections import g2

    if Path(name).is_file():
        atoms = ase.io.read(name, index=0)
    else:
        formula = MOLECULES.get(name, name)
        if formula not in g2.names:
            near = did_you_mean(name, MOLECULES)
            raise ConfigError(f"molecule {name!r}: neither a file nor a known name{near}")
        atoms = build_molecule(formula)
    unpaired = abs(float(atoms.get_initial_magnetic_moments().sum()))
    return Structure(
        atoms.numbers,
        atoms.positions,
        cell=np.asarray(atoms.cell),
        pbc=atoms.pbc,
        total_charge=float(atoms.info.get("total_charge", 0.0)),
        spin=float(atoms.info.get("spin", 1 + round(unpaired))),
        source=(name, 0),
    )


def write_sample(
    output: Path,
    *,
    molecule: str = "ethanol",
    temperatures: Sequence[float] = (300.0, 400.0, 500.0, 600.0, 700.0),
    n_structures: int = 1000,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write a labelled thermal sample of one molecule, by GFN2-xTB, as extended XYZ.

    Args:
        output: a name that ends in `.xyz` or `.xyz.gz` and does not exist.
        molecule: see `read_molecule`.
        temperatures: in K, in the order of the file.
        n_structures: frames in all.
        seed: of velocities and noise.
        progress: called with the number of frames done, after each.

    Raises:
        OutputError: the file exists or cannot be created.
        StorageError: writing failed.
        ConfigError: no such molecule, or a number out of range.
    """
    if output.exists():
        raise OutputError(f"{output}: exists already; remove it or choose another name")
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise OutputError(f"{output}: its folder does not exist or is not writable")
    settings = {"temperatures": tuple(temperatures), "n_structures": n_structures, "seed": seed}
    config = build(SampleConfig, settings, "data sample")
    frames = []
    for frame in sample(read_molecule(molecule), config):
        frames.append(frame)
        if progress is not None:
            progress(len(frames))
    write_frames(output, frames)
