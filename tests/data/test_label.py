"""The labels of the reference method, and the shipped sample that they made."""

import gzip
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import ase.io
import numpy as np
import pytest

from raypot.config import read_toml
from raypot.constants import unit_factor
from raypot.data.label import label
from raypot.data.sample import SampleConfig, read_molecule, sample, write_sample
from raypot.errors import ConfigError, LabelError, MissingExtra, OutputError
from raypot.properties import PROPERTIES
from raypot.structures import Structure

SHIPPED = Path(__file__).parents[2] / "datasets" / "ethanol_gfn2"
SHORT = SampleConfig(temperatures=(500.0,), n_structures=2, equilibration=50.0, interval=25.0)


def shifted(structure: Structure, atom: int, axis: int, step: float) -> Structure:
    positions = structure.positions.copy()
    positions[atom, axis] += step
    return replace(structure, positions=positions)


@pytest.fixture(scope="module")
def ethanol_frame():
    positions = read_molecule("ethanol").positions
    noise = np.random.default_rng(1).normal(0.0, 0.05, positions.shape)
    return label(replace(read_molecule("ethanol"), positions=positions + noise))


@pytest.fixture(scope="module")
def shipped_frames():
    with gzip.open(SHIPPED / "ethanol_gfn2.xyz.gz", "rt") as file:
        return ase.io.read(file, index=":", format="extxyz")


def test_forces_are_minus_the_gradient_of_the_energy(ethanol_frame):
    step = 3e-4
    for atom, axis in [(0, 0), (2, 1), (3, 2)]:
        above, below = (label(shifted(ethanol_frame, atom, axis, sign * step)) for sign in (1, -1))
        slope = (above.labels["energy"] - below.labels["energy"]) / (2 * step)
        assert -slope == pytest.approx(ethanol_frame.labels["forces"][atom, axis], abs=5e-6)


def test_energy_of_water_is_in_electronvolt():
    assert label(read_molecule("water")).labels["energy"] == pytest.approx(-137.968, abs=1e-3)


@pytest.mark.parametrize("name", ["water", "HF"])
def test_dipole_points_from_the_negative_to_the_positive_end(name):
    labelled = label(read_molecule(name))  # the heavy atom lies above its hydrogens on z
    charges, dipole = labelled.labels["charges"], labelled.labels["dipole"]
    assert charges[0] < 0 < charges[1]
    assert dipole[:2] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert -0.60 < dipole[2] < -0.35  # experiment: 0.386 (water) and 0.380 (HF) e·Å


@pytest.mark.parametrize(("charge", "spin"), [(0.0, 1.0), (1.0, 2.0)])
def test_charges_add_up_to_the_total_charge(charge, spin):
    ion = label(replace(read_molecule("ammonia"), total_charge=charge, spin=spin))
    assert ion.labels["charges"].sum() == pytest.approx(charge, abs=1e-8)


def test_moments_of_an_ion_move_with_its_origin():
    ion = replace(read_molecule("ammonia"), total_charge=1.0, spin=2.0)
    here = label(ion).labels
    there = label(replace(ion, positions=ion.positions + np.array([0.0, 0.0, 0.5]))).labels
    growth = 2 * here["dipole"][2] * 0.5 + 0.5**2  # of the second moment along z
    assert there["dipole"] - here["dipole"] == pytest.approx([0.0, 0.0, 0.5], abs=1e-5)
    expected = growth * np.diag([-0.5, -0.5, 1.0])
    assert there["quadrupole"] - here["quadrupole"] == pytest.approx(expected, abs=1e-4)


def test_what_cannot_be_labelled_is_refused(ethanol_frame):
    boxed = replace(ethanol_frame, cell=10 * np.eye(3), pbc=np.array([True, True, True]))
    with pytest.raises(LabelError, match="is periodic"):
        label(boxed)
    with pytest.raises(ConfigError, match="did you mean gfn2"):
        label(ethanol_frame, "gfn3")
    with pytest.raises(LabelError, match="GFN2-xTB failed"):
        label(replace(ethanol_frame, positions=np.zeros((9, 3))))


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tblite.interface", None)
    with pytest.raises(MissingExtra, match=r"pip install raypot\[label\]"):
        label(read_molecule("water"))


def test_unknown_molecule_is_named():
    with pytest.raises(ConfigError, match="did you mean ethanol"):
        read_molecule("etanol")


def test_a_sample_is_written_once_and_remade_the_same(tmp_path):
    progress: list[int] = []
    for name in ("a.xyz.gz", "b.xyz.gz"):
        assert write_sample("water", tmp_path / name, SHORT, progress.append) == 2
    assert (tmp_path / "a.xyz.gz").read_bytes() == (tmp_path / "b.xyz.gz").read_bytes()
    assert progress == [1, 2, 1, 2]
    assert len(ase.io.read(tmp_path / "a.xyz.gz", index=":")) == 2
    with pytest.raises(OutputError, match="exists already"):
        write_sample("water", tmp_path / "a.xyz.gz", SHORT)
    with pytest.raises(OutputError, match="folder does not exist"):
        write_sample("water", tmp_path / "nowhere" / "a.xyz.gz", SHORT)


def test_an_ion_from_a_file_keeps_its_charge_and_spin(tmp_path):
    source = tmp_path / "ion.xyz"
    atoms = ase.Atoms("OH", [[0, 0, 0], [0, 0, 1.0]], info={"total_charge": 1, "spin": 3})
    atoms.write(source, format="extxyz")
    write_sample(str(source), tmp_path / "ions.xyz", SHORT)
    written = ase.io.read(tmp_path / "ions.xyz")
    assert (written.info["total_charge"], written.info["spin"]) == (1, 3)
    assert written.get_charges().sum() == pytest.approx(1.0, abs=1e-5)


def test_round_off_does_not_reach_the_frames():
    start = read_molecule("ethanol")
    nudged = replace(start, positions=start.positions * (1 + 1e-13))
    frames, again = (list(sample(s, SHORT)) for s in (start, nudged))
    for frame, same in zip(frames, again, strict=True):
        np.testing.assert_array_equal(frame.positions, same.positions)


def test_temperatures_share_the_frames():
    config = SampleConfig(
        temperatures=(300.0, 450.0), n_structures=5, equilibration=0.0, interval=5.0
    )
    kinds = [frame.config_type for frame in sample(read_molecule("water"), config)]
    assert kinds == ["300K"] * 3 + ["450K"] * 2


def test_the_first_shipped_frames_are_remade(shipped_frames):
    remade = list(islice(sample(read_molecule("ethanol"), SampleConfig()), 2))
    for frame, shipped in zip(remade, shipped_frames, strict=False):
        np.testing.assert_array_equal(frame.positions, shipped.positions)
        labels = frame.labels
        assert labels["energy"] == pytest.approx(shipped.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(labels["forces"], shipped.get_forces(), atol=2e-6)


def test_shipped_labels_belong_to_their_frames(shipped_frames):
    for index in (0, 499, 999):
        atoms = shipped_frames[index]
        labels = label(Structure(atoms.numbers, atoms.positions)).labels
        results = {**atoms.calc.results, "quadrupole": atoms.info["quadrupole"].reshape(3, 3)}
        for name, value in labels.items():
            np.testing.assert_allclose(results[name], value, atol=2e-6, err_msg=name)


def test_shipped_sample_is_what_its_card_says(shipped_frames):
    card = read_toml(SHIPPED / "dataset.toml")
    assert len(shipped_frames) == 1000
    kinds = [atoms.info["config_type"] for atoms in shipped_frames]
    assert {kind: kinds.count(kind) for kind in kinds} == {f"{t}00K": 200 for t in range(3, 8)}
    for name in ("energy", "forces", "charges", "dipole", "quadrupole"):
        assert card["keys"][name] == name
        assert unit_factor(card["units"][name]) == 1.0
        assert unit_factor(PROPERTIES[name].unit) == 1.0
    assert (SHIPPED / "ethanol_gfn2.xyz.gz").stat().st_size < 1_000_000


def test_shipped_frames_are_thermal_and_decorrelated(shipped_frames):
    energies = np.array([a.get_potential_energy() for a in shipped_frames]).reshape(5, 200)
    means = energies.mean(axis=1)
    assert (np.diff(means) > 0.04).all()  # eV; 21 vibrations hold 0.09 eV per 100 K
    centered = energies - energies.mean(axis=1, keepdims=True)
    lag = (centered[:, 1:] * centered[:, :-1]).mean(axis=1) / centered.var(axis=1)
    assert (np.abs(lag) < 0.3).all()
    total = np.array([a.get_forces().sum(axis=0) for a in shipped_frames])
    assert np.abs(total).max() < 1e-4
