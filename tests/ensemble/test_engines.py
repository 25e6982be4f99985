"""The ASE calculator: exact derivatives, names of other programs, molecular dynamics."""

import io

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.io import write
from ase.md.verlet import VelocityVerlet
from conftest_ensemble import make_member

from raypot.ensemble.engines import to_voigt
from raypot.ensemble.predictor import Predictor
from raypot.errors import UnknownElement
from raypot.train.model_file import ModelFile


@pytest.fixture
def calculator(mixed_file):
    return Predictor(mixed_file, device="cpu").calculator()


@pytest.fixture
def crystal(silicon, calculator):
    return Atoms(
        silicon.numbers, silicon.positions, cell=silicon.cell, pbc=True, calculator=calculator
    )


@pytest.fixture
def ethanol_atoms(calculator):
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    atoms.calc = calculator
    return atoms


@pytest.mark.parametrize("system", ["crystal", "ethanol_atoms"])
def test_forces_are_derivatives_of_the_ensemble_energy(system, request):
    atoms, step = request.getfixturevalue(system), 1e-4
    forces = atoms.get_forces().copy()
    for atom, axis in [(0, 0), (1, 2), (4, 1), (7, 0)]:
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.calc = atoms.calc
            moved.positions[atom, axis] += sign * step
            energies.append(moved.get_potential_energy())
        slope = (energies[0] - energies[1]) / (2 * step)
        assert forces[atom, axis] == pytest.approx(-slope, abs=2e-6)


def test_stress_is_the_derivative_of_the_ensemble_energy(crystal):
    stress, step = crystal.get_stress().copy(), 1e-5
    for k, (a, b) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        energies = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * step / 2
            strain[b, a] += sign * step / 2
            moved = crystal.copy()
            moved.calc = crystal.calc
            moved.set_cell(crystal.cell @ strain, scale_atoms=True)
            energies.append(moved.get_potential_energy())
        slope = (energies[0] - energies[1]) / (2 * step) / crystal.get_volume()
        assert stress[k] == pytest.approx(slope, abs=1e-7)


def test_voigt_order_is_that_of_ase():
    stress = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
    assert to_voigt(stress).tolist() == [1, 2, 3, 4, 5, 6]


def test_results_carry_error_bars_under_all_names(ethanol_atoms, mixed_file):
    energy = ethanol_atoms.get_potential_energy()
    results = ethanol_atoms.calc.results
    assert results["free_energy"] == results["energy"] == energy
    assert ethanol_atoms.get_potential_energy(force_consistent=True) == energy
    expected = Predictor(mixed_file).predict([ethanol_atoms], ("energy", "forces"), members=True)
    assert results["energy_std"] == pytest.approx(expected.energy_std[0])
    np.testing.assert_allclose(results["forces_std"], expected.forces_std)
    assert results["energy_var"] == pytest.approx(results["energy_std"] ** 2)
    np.testing.assert_allclose(results["forces_var"], results["forces_std"] ** 2)
    np.testing.assert_allclose(results["energy_comm"], expected.members["energy"][:, 0])
    np.testing.assert_allclose(results["forces_comm"], expected.members["forces"])
    assert results["energy_uncertainty"] == results["energy_std"]
    assert results["forces_uncertainty"] is results["forces_std"]
    assert results["energy_ensemble"].shape == (3,)
    assert results["forces_ensemble"].shape == (3, 9, 3)
    assert ethanol_atoms.get_charges().sum() == pytest.approx(0, abs=1e-12)
    assert ethanol_atoms.get_dipole_moment().shape == (3,)


def test_a_model_without_calibration_or_charges_says_so():
    predictor = Predictor(ModelFile((make_member(outputs=("energy",)),)))
    atoms = molecule("H2O")
    atoms.calc = predictor.calculator()
    assert atoms.calc.implemented_properties == ["energy", "free_energy", "forces", "stress"]
    atoms.get_forces()
    assert not [key for key in atoms.calc.results if key.endswith(("_std", "_var", "_uncertainty"))]
    with pytest.raises(PropertyNotImplementedError, match="charges"):
        atoms.get_charges()
    with pytest.raises(PropertyNotImplementedError, match="repeats in all directions"):
        atoms.get_stress()


def test_an_unknown_element_is_named(calculator):
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.calc = calculator
    with pytest.raises(UnknownElement, match="Na, Cl is unknown|Cl, Na is unknown|Na is unknown"):
        atoms.get_potential_energy()


def test_the_charge_counts_and_a_new_one_is_noticed(ethanol_atoms):
    assert ethanol_atoms.get_charges().sum() == pytest.approx(0.0, abs=1e-12)
    ethanol_atoms.info["charge"] = 1
    assert ethanol_atoms.get_charges().sum() == pytest.approx(1.0)


def test_atoms_are_not_changed_and_results_are_kept(ethanol_atoms, monkeypatch):
    before = ethanol_atoms.copy()
    ethanol_atoms.get_forces()
    monkeypatch.setattr(
        ethanol_atoms.calc.predictor, "predict", lambda *a, **k: pytest.fail("again")
    )
    ethanol_atoms.get_potential_energy()
    ethanol_atoms.get_charges()
    assert ethanol_atoms == before
    assert ethanol_atoms.info == before.info


def test_ase_can_write_structures_with_this_calculator(crystal):
    crystal.get_stress()
    text = io.StringIO()
    write(text, crystal, format="extxyz")
    assert "stress=" in text.getvalue()


@pytest.mark.parametrize("system", ["crystal", "ethanol_atoms"])
def test_nve_conserves_the_energy(system, request):
    """Constant weights and smooth cutoffs: the drift is that of the integrator."""
    atoms = request.getfixturevalue(system)
    rng = np.random.default_rng(5)
    masses = atoms.get_masses()[:, None]
    atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * 300))
    totals = []
    dynamics = VelocityVerlet(atoms, timestep=0.2 * units.fs)
    dynamics.attach(lambda: totals.append(atoms.get_total_energy()))
    kinetic = atoms.get_kinetic_energy()
    dynamics.run(60)
    assert np.ptp(totals) < 2e-3 * kinetic
