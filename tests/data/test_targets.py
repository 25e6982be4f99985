import json

import numpy as np
import pytest
from ase.build import molecule

from raypot.config import build
from raypot.constants import ATOMIC_NUMBERS
from raypot.data.targets import (
    FLOOR,
    Targets,
    TargetsConfig,
    fit_targets,
    isolated_energies,
    minimum_norm_fit,
)
from raypot.errors import CheckpointError, ConfigError, LabelError
from raypot.structures import Block, Structure

TRUE = {1: -13.6, 6: -1027.0, 7: -1484.0, 8: -2041.0}  # eV
MOLECULES = ("CH4", "NH3", "H2O", "CO2", "CH3OH", "HCN", "N2", "CH3CH2OH")


def labelled(name, energy, **labels):
    atoms = molecule(name)
    return Structure(atoms.numbers, atoms.positions, labels={"energy": energy, **labels})


def atom(symbol, energy, **changes):
    number = ATOMIC_NUMBERS[symbol]
    return Structure([number], np.zeros((1, 3)), labels={"energy": energy}, **changes)


@pytest.fixture
def mixture(rng):
    """Molecules whose energies are the sum over their atoms, and some noise."""
    found = []
    for name in MOLECULES * 3:
        total = sum(TRUE[z] for z in molecule(name).numbers)
        found.append(labelled(name, total + 0.1 * rng.normal()))
    return Block.from_structures(found)


def fit(block, isolated=None, **settings):
    atoms = None if isolated is None else Block.from_structures(isolated)
    return fit_targets(block, build(TargetsConfig, settings, "here"), atoms)


def test_least_squares_finds_the_energies_of_the_elements(mixture):
    targets = fit(mixture)
    assert targets.rank == 4
    assert list(targets.self_energies) == [1, 6, 7, 8]
    for number, energy in targets.self_energies.items():
        assert energy == pytest.approx(TRUE[number], abs=0.15)
    left = targets.subtract(mixture).labels["energy"]
    assert np.abs(left).max() < 0.6
    assert targets.spread["energy_per_atom"] == pytest.approx((left / mixture.n_atoms).std())


def test_the_fit_is_the_least_squares_solution(mixture, rng):
    counts = rng.integers(0, 4, size=(50, 3))
    energy = rng.normal(size=50)
    values, rank = minimum_norm_fit(counts, energy, np.array([5.0, -3.0, 1.0]))
    assert rank == 3
    np.testing.assert_allclose(values, np.linalg.lstsq(counts, energy, rcond=None)[0], atol=1e-12)


def test_one_composition_loses_exactly_its_mean(ethanol):
    block = Block.from_structures(ethanol)
    targets = fit(block)
    assert targets.rank == 1
    left = targets.subtract(block).labels["energy"]
    energy = block.labels["energy"]
    np.testing.assert_allclose(left, energy - energy.mean(), atol=1e-12)


def test_the_correction_stays_near_isolated_atoms():
    block = Block.from_structures([labelled("H2O", -2070.0), labelled("H2O", -2072.0)])
    atoms = [atom("H", -13.0), atom("O", -2040.0)]
    targets = fit(block, atoms)
    # 5 eV are missing; (2, 1) / 5 of them to H and to O is the shortest way.
    assert targets.self_energies[1] == pytest.approx(-13.0 - 5.0 * 2 / 5)
    assert targets.self_energies[8] == pytest.approx(-2040.0 - 5.0 * 1 / 5)


def test_without_atoms_every_element_starts_at_the_mean():
    block = Block.from_structures([labelled("H2O", -30.0), labelled("H2O", -36.0)])
    targets = fit(block)
    assert targets.self_energies == pytest.approx({1: -11.0, 8: -11.0})


def test_a_known_atom_leaves_the_rest_to_the_others():
    block = Block.from_structures([labelled("H2O", -2066.0)])
    assert fit(block, [atom("H", -13.0)]).self_energies == pytest.approx({1: -13.0, 8: -2040.0})


def test_huge_energies_keep_their_differences(rng):
    differences = 0.1 * rng.normal(size=40)
    block = Block.from_structures(
        [labelled("CH3CH2OH", -1.48e6 + difference) for difference in differences]
    )
    for settings in ({}, {"self_energies": {"C": -6.0e5, "H": -1.0e4, "O": -2.2e5}}):
        left = fit(block, **settings).subtract(block).labels["energy"]
        np.testing.assert_allclose(
            left - left.mean(), differences - differences.mean(), rtol=0, atol=1e-8
        )
    assert np.abs(fit(block).subtract(block).labels["energy"]).max() < 1.0


def test_huge_energies_of_mixed_composition(mixture, rng):
    scaled = 1000.0 * mixture.labels["energy"]
    block = Block(**{**vars(mixture), "labels": {"energy": scaled}})
    left = fit(block).subtract(block).labels["energy"]
    expected = fit(mixture).subtract(mixture).labels["energy"]
    np.testing.assert_allclose(left, 1000.0 * expected, rtol=0, atol=1e-6)


def test_rows_without_an_energy_do_not_count():
    known = [labelled("H2O", -30.0), labelled("CH4", -25.0)]
    missing = Structure([8, 8], [[0, 0, 0], [0, 0, 1.2]], labels={"forces": np.zeros((2, 3))})
    block = Block.from_structures([*known, missing], labels=["energy"])
    with_missing, without = fit(block), fit(Block.from_structures(known))
    assert with_missing.self_energies == pytest.approx(without.self_energies)
    assert np.isnan(with_missing.subtract(block).labels["energy"]).tolist() == [False, False, True]


def test_no_energy_at_all():
    block = Block.from_structures([Structure([1], np.zeros((1, 3)))], labels=["energy"])
    with pytest.raises(LabelError, match="none of the 1 training rows has an energy"):
        fit(block)


def test_labels_without_energies_need_no_self_energies(ethanol):
    block = Block.from_structures(ethanol, labels=["charges"])
    targets = fit(block)
    assert (targets.rank, targets.scale) == (0, 1.0)
    assert set(targets.self_energies.values()) == {0.0}
    assert targets.subtract(block) is block


def test_isolated_atoms_give_the_energies():
    block = Block.from_structures([labelled("H2O", -2070.0)])
    atoms = [atom("O", -2040.0), atom("O", -2041.0), atom("H", -13.0), atom("N", -1484.0)]
    targets = fit(block, atoms, self_energies="isolated_atoms")
    assert targets.self_energies == {1: -13.0, 8: -2041.0}
    assert targets.rank == 0
    assert targets.subtract(block).labels["energy"] == pytest.approx(-3.0)


@pytest.mark.parametrize("atoms", [None, [atom("H", -13.0)], [atom("O", 1.0, total_charge=1.0)]])
def test_missing_isolated_atoms_are_named(atoms):
    block = Block.from_structures([labelled("H2O", -2070.0)])
    with pytest.raises(LabelError, match=r"neutral isolated atom of (H, )?O; add"):
        fit(block, atoms, self_energies="isolated_atoms")


def test_ions_and_unlabelled_atoms_are_no_reference():
    block = Block.from_structures(
        [atom("H", 5.0, total_charge=1.0), atom("O", np.nan), atom("C", -1027.0)]
    )
    assert isolated_energies(block) == {6: -1027.0}


def test_given_energies():
    block = Block.from_structures([labelled("H2O", -30.0)])
    targets = fit(block, self_energies={"H": -10.0, "O": -5.0, "N": -7.0})
    assert targets.self_energies == {1: -10.0, 8: -5.0, 7: -7.0}
    assert targets.subtract(block).labels["energy"] == pytest.approx(-5.0)
    with pytest.raises(ConfigError, match="O missing; the training rows hold H, O"):
        fit(block, self_energies={"H": -10.0})
    with pytest.raises(ConfigError, match="'h' is no chemical symbol; did you mean H"):
        build(TargetsConfig, {"self_energies": {"h": 1.0}}, "run.toml")


def test_none_leaves_energies_alone(mixture):
    targets = fit(mixture, self_energies="none")
    np.testing.assert_array_equal(
        targets.subtract(mixture).labels["energy"], mixture.labels["energy"]
    )


def test_elements_that_were_not_trained_on(mixture):
    targets = fit(mixture)
    sulfur = Block.from_structures([labelled("SH2", -1.0), labelled("PH3", -1.0)])
    with pytest.raises(LabelError, match="no self energy of P, S; known are H, C, N, O"):
        targets.subtract(sulfur)


def test_self_energy_sums_over_structures():
    targets = Targets({1: 1.0, 8: 10.0}, scale=1.0, rank=0, spread={})
    numbers, offsets = np.array([8, 1, 1, 8, 1]), np.array([0, 3, 4, 5])
    assert targets.self_energy(numbers, offsets).tolist() == [12.0, 10.0, 1.0]
    nothing = targets.self_energy(np.zeros(0, np.int64), np.array([0]))
    assert (nothing.shape, nothing.dtype) == ((0,), np.float64)


def test_spread_and_scale(ethanol):
    block = Block.from_structures(ethanol)
    targets = fit(block)
    forces, dipole = block.labels["forces"], block.labels["dipole"]
    assert targets.spread["forces"] == pytest.approx(np.sqrt((forces**2).mean()))
    assert targets.spread["dipole"] == pytest.approx(dipole.std())
    assert set(targets.spread) == {"energy_per_atom", "forces", "charges", "dipole"}
    assert targets.scale == targets.spread["forces"]
    assert fit(block, scale="energy_std").scale == targets.spread["energy_per_atom"]
    assert fit(block, scale="none").scale == 1.0


def test_without_forces_the_energies_give_the_scale(ethanol):
    targets = fit(Block.from_structures(ethanol, labels=["energy"]))
    assert targets.scale == targets.spread["energy_per_atom"] > 0


def test_constant_labels_have_a_spread_above_zero():
    water = [labelled("H2O", -30.0, forces=np.zeros((3, 3))) for _ in range(3)]
    targets = fit(Block.from_structures(water))
    assert targets.spread == {"energy_per_atom": FLOOR, "forces": FLOOR}
    assert targets.scale == 1.0


def test_labels_that_never_occur_have_no_spread():
    block = Block.from_structures([labelled("H2O", -30.0)], labels=["energy", "forces"])
    assert set(fit(block).spread) == {"energy_per_atom"}


def test_targets_survive_json(mixture):
    targets = fit(mixture)
    assert Targets.from_json(json.loads(json.dumps(targets.to_json()))) == targets
    assert list(targets.to_json()["self_energies"]) == ["H", "C", "N", "O"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, "a scale that is not above zero"),
        ({"self_energies": {"Xx": 1.0}}, "an unknown element"),
        ({"rank": "many"}, "rank: input should be a valid integer"),
        ({"shift": 1.0}, "shift: unknown key"),
    ],
)
def test_json_that_is_no_targets(mixture, change, message):
    with pytest.raises(CheckpointError, match=message):
        Targets.from_json({**fit(mixture).to_json(), **change}, "model.safetensors")
