"""Thermal samples of one molecule: Langevin dynamics on a reference method, labelled.

Molecular dynamics is chaotic: a difference in the last bit, from another processor or another
number of threads, grows about tenfold every one or two picoseconds. Positions and velocities are
therefore rounded to a grid each time that a frame is taken, while such a difference is still
millions of times smaller than the grid. So the same seed gives the same file everywhere.

**Source** the integrator is that of Vanden-Eijnden & Ciccotti, Chem. Phys. Lett. 429, 310 (2006),
eq. 23, as implemented in ASE.
"""

import gzip
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from raypot.config import Config, did_you_mean
from raypot.constants import SYMBOLS
from raypot.data.label import METHODS, label
from raypot.durable import write_whole
from raypot.errors import ConfigError, LabelError, OutputError
from raypot.structures import Floats, Structure

POSITION_DECIMALS = 6  # Å; the frames are labelled after rounding, so the labels are exact
VELOCITY_DECIMALS = 8  # ASE's unit of velocity, 0.098 Å/fs
FRICTION = 0.02  # 1/fs: energies of frames 100 fs apart are independent
MOLECULES = {"ethanol": "CH3CH2OH", "water": "H2O", "methanol": "CH3OH", "ammonia": "NH3"}


class SampleConfig(Config):
    """What a sample holds.

    Args:
        temperatures: of the independent trajectories, in K, in the order of the file.
        n_structures: frames in all, shared equally; the first trajectories take the remainder.
        seed: of velocities and noise; a trajectory depends on the seed and its temperature only.
        timestep: in fs; a tenth of the fastest vibration (O-H, 9 fs) is the upper end.
        interval: time between frames, in fs.
        equilibration: time before the first frame, in fs.
    """

    temperatures: tuple[Annotated[float, Field(gt=0.0)], ...] = Field(
        (300.0, 400.0, 500.0, 600.0, 700.0), min_length=1
    )
    n_structures: int = Field(1000, ge=1)
    seed: int = Field(0, ge=0)
    timestep: float = Field(0.5, gt=0.0, le=2.0)
    interval: float = Field(100.0, gt=0.0)
    equilibration: float = Field(1000.0, ge=0.0)


def write_sample(
    name: str,
    output: Path,
    config: SampleConfig,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write a labelled thermal sample of one molecule, by GFN2-xTB, as extended XYZ.

    Args:
        name: see `read_molecule`.
        output: a name that ends in `.xyz` or `.xyz.gz` and does not exist.
        config: temperatures, number of frames, times.
        progress: called with the number of frames done, after each.

    Returns:
        The number of frames.

    Raises:
        OutputError: the file exists or cannot be created.
        StorageError: writing failed.
        ConfigError: no such molecule.
        LabelError: the molecule cannot be labelled.
        MissingExtra: tblite is not installed.
    """
    if output.exists():
        raise OutputError(f"{output}: exists already; remove it or choose another name")
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise OutputError(f"{output}: its folder does not exist or is not writable")
    frames = []
    for frame in sample(read_molecule(name), config):
        frames.append(frame)
        if progress is not None:
            progress(len(frames))
    write_frames(output, frames)
    return len(frames)


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


def trajectory(atoms: Any, temperature: float, config: SampleConfig) -> Iterator[Floats]:
    """Yield positions (N, 3) in Å of Langevin dynamics at one temperature, without end.

    Args:
        atoms: `ase.Atoms` near equilibrium, with a calculator; they are moved.
        temperature: in K.
        config: seed and times.

    Raises:
        LabelError: the calculator failed.
    """
    from ase import units
    from ase.md.langevin import Langevin

    rng = np.random.default_rng([config.seed, round(1000 * temperature)])
    thermal = np.sqrt(atoms.get_masses()[:, None] * units.kB * temperature)  # (N, 1)
    atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * thermal)
    dynamics = Langevin(
        atoms,
        config.timestep * units.fs,
        temperature_K=temperature,
        friction=FRICTION / units.fs,
        fixcm=False,  # fixing it biases the distribution; the frames are centered instead
        rng=rng,
        logfile=None,
    )
    steps = max(round(config.interval / config.timestep), 1)
    skipped = round(config.equilibration / config.interval)
    return islice(_snapped_frames(dynamics, atoms, steps), skipped, None)


def _snapped_frames(dynamics: Any, atoms: Any, steps: int) -> Iterator[Floats]:
    """Run `steps` at a time; yield the positions after centering and rounding."""
    from ase.calculators.calculator import CalculationFailed

    while True:
        try:
            dynamics.run(steps)
        except CalculationFailed as error:
            raise LabelError(f"{atoms.symbols}: molecular dynamics failed: {error}") from error
        centered = atoms.positions - atoms.get_center_of_mass()
        atoms.positions = centered.round(POSITION_DECIMALS)
        atoms.set_velocities(atoms.get_velocities().round(VELOCITY_DECIMALS))
        yield atoms.positions.copy()


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


def write_frames(output: Path, frames: Iterable[Structure]) -> None:
    """Write labelled structures as extended XYZ, gzipped if the name ends in `.gz`.

    The file appears under its name when it is whole.

    Raises:
        OutputError: the file cannot be created there.
        StorageError: writing failed.
    """
    content = "".join(map(_as_text, frames)).encode()
    if output.suffix == ".gz":
        content = gzip.compress(content, compresslevel=9, mtime=0)
    write_whole(output, content)


def _as_text(structure: Structure) -> str:
    """Return one frame of extended XYZ: eV, eV/Å, e, e·Å, e·Å²."""
    labels = structure.labels
    dipole = " ".join(f"{x:.6f}" for x in labels["dipole"])
    quadrupole = " ".join(f"{x:.6f}" for x in labels["quadrupole"].ravel())
    ion = f"total_charge={structure.total_charge:g} spin={structure.spin:g} "
    is_plain = (structure.total_charge, structure.spin) == (0.0, 1.0)
    lines = [
        f"{len(structure)}",
        "Properties=species:S:1:pos:R:3:forces:R:3:charges:R:1 "
        f'energy={labels["energy"]:.7f} dipole="{dipole}" quadrupole="{quadrupole}" '
        f'{"" if is_plain else ion}config_type={structure.config_type} pbc="F F F"',
    ]
    atoms = np.column_stack([structure.positions, labels["forces"], labels["charges"]])
    for number, row in zip(structure.numbers, atoms, strict=True):
        lines.append(f"{SYMBOLS[number]:2s} " + " ".join(f"{x:.6f}" for x in row))
    return "\n".join(lines) + "\n"
