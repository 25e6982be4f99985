"""Prediction: any mix of structures, members of different kinds, honest errors."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from conftest_ensemble import CALIBRATION, make_member

from raypot.data.cards import Card
from raypot.data.store import write_store
from raypot.ensemble.members import edges_within
from raypot.ensemble.predictor import Predictor
from raypot.errors import CheckpointError, FormatError, MissingInput, UnknownElement, UsageError
from raypot.neighbors import find_edges
from raypot.structures import Block, Structure
from raypot.train.model_file import ModelFile, write_model

ALL = ("energy", "forces", "stress", "charges", "dipole")


@pytest.fixture
def predictor(mixed_file):
    return Predictor(mixed_file, device="cpu")


@pytest.fixture
def zoo(ethanol, silicon):
    """Molecules, a crystal, a slab, a single atom, a charged molecule, of very different sizes."""
    slab = Structure(silicon.numbers, silicon.positions, silicon.cell, [True, True, False])
    atom = Structure([8], [[0.1, 0.2, 0.3]])
    ion = Structure(ethanol[3].numbers, ethanol[3].positions, total_charge=1.0, spin=2.0)
    return [ethanol[0], silicon, atom, *ethanol[1:6], slab, ion]


def test_a_batch_equals_its_structures_one_by_one(predictor, zoo):
    together = predictor.predict(zoo, ALL, batch_atoms=40)
    assert len(together) == len(zoo)
    for structure, row in zip(zoo, together, strict=True):
        alone = predictor.predict([structure], ALL).of(0)
        assert row.keys() == alone.keys()
        for name, value in alone.items():
            np.testing.assert_allclose(row[name], value, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("batch_atoms", [1, 9, 30, 10_000])
def test_the_batch_size_does_not_matter(predictor, zoo, batch_atoms):
    reference = predictor.predict(zoo, ALL, members=True)
    other = predictor.predict(zoo, ALL, members=True, batch_atoms=batch_atoms)
    for name in ALL:
        np.testing.assert_allclose(other.values[name], reference.values[name], atol=1e-10)
        np.testing.assert_allclose(other.members[name], reference.members[name], atol=1e-10)
    for name, std in reference.stds.items():
        np.testing.assert_allclose(other.stds[name], std, atol=1e-10)


def test_shapes_and_meaning_of_every_array(predictor, zoo):
    result = predictor.predict(zoo, ALL, members=True)
    n_structures, n_atoms = len(zoo), sum(len(s) for s in zoo)
    assert result.energy.shape == result.energy_std.shape == (n_structures,)
    assert result.forces.shape == result.forces_std.shape == (n_atoms, 3)
    assert result.values["stress"].shape == (n_structures, 3, 3)
    assert result.values["charges"].shape == (n_atoms,)
    assert result.values["dipole"].shape == (n_structures, 3)
    assert result.members["forces"].shape == (3, n_atoms, 3)
    bulk = np.isfinite(result.values["stress"]).all(axis=(1, 2))
    assert bulk.tolist() == [bool(s.pbc.all()) for s in zoo]
    for name in ("energy", "forces", "charges", "dipole"):
        assert np.isfinite(result.values[name]).all()
    charge = np.add.reduceat(result.values["charges"], result.offsets[:-1])
    assert charge == pytest.approx([s.total_charge for s in zoo], abs=1e-9)
    assert set(result.stds) == {"energy", "forces"}
    assert set(result.spreads) == set(ALL) - {"dipole"}  # one member has it


def test_the_value_is_the_weighted_mean_of_single_models(mixed_file, ethanol):
    result = Predictor(mixed_file).predict(ethanol, ("energy", "forces"), members=True)
    singles = [Predictor(ModelFile((m,))).predict(ethanol) for m in mixed_file.members]
    for m, single in enumerate(singles):
        np.testing.assert_allclose(result.members["forces"][m], single.forces, atol=1e-12)
        np.testing.assert_allclose(result.members["energy"][m], single.energy, atol=1e-9)
    mean = 0.5 * singles[0].forces + 0.3 * singles[1].forces + 0.2 * singles[2].forces
    np.testing.assert_allclose(result.forces, mean, atol=1e-12)
    assert singles[0].members is None
    assert singles[0].stds == {}
    assert singles[0].spreads == {}


def test_members_without_a_head_do_not_enter_its_mean(mixed_file, ethanol):
    result = Predictor(mixed_file).predict(ethanol, ("charges", "dipole"), members=True)
    charges = result.members["charges"]
    assert np.isnan(charges[1]).all()
    expected = (0.5 * charges[0] + 0.2 * charges[2]) / 0.7
    np.testing.assert_allclose(result.values["charges"], expected, atol=1e-14)
    np.testing.assert_allclose(result.values["dipole"], result.members["dipole"][0], atol=1e-14)
    assert set(result.spreads) == {"charges"}


def test_error_bars_follow_the_calibration(predictor, ethanol):
    result = predictor.predict(ethanol)
    std = np.sqrt(3.0 * result.spreads["forces"] ** 2 + 4e-4)
    np.testing.assert_allclose(result.forces_std, std, rtol=1e-12)
    per_atom = np.sqrt(2.0 * (result.spreads["energy"] / 9) ** 2 + 1e-6)
    np.testing.assert_allclose(result.energy_std, 9 * per_atom, rtol=1e-12)
    low, high = result.interval_90("forces")
    np.testing.assert_allclose(high - low, 2 * 1.6 * std, rtol=1e-9)


def test_total_energies_keep_their_digits_in_float32(ethanol):
    """Self energies of 4,000 eV are added in float64, whatever the members compute in."""
    precise = Predictor(ModelFile((make_member(seed=5),))).predict(ethanol)
    single = make_member(seed=5)
    state = {k: v.float() if v.is_floating_point() else v for k, v in single.state.items()}
    rough = Predictor(ModelFile((single.__class__(**{**vars(single), "state": state}),)))
    assert rough.models.models[0].scale.dtype == torch.float32
    result = rough.predict(ethanol)
    assert result.energy.dtype == np.float64
    np.testing.assert_allclose(result.energy, precise.energy, atol=2e-5)
    np.testing.assert_allclose(result.forces, precise.forces, atol=2e-4)
    wide = Predictor(rough.file, dtype=torch.float64).predict(ethanol)
    np.testing.assert_allclose(wide.energy, precise.energy, atol=2e-5)


def test_edges_within_a_smaller_cutoff_are_those_of_a_search(silicon, ethanol):
    block = Block.from_structures([ethanol[0], silicon, ethanol[1]], labels=())
    found = edges_within(block, find_edges(block, 6.0), 3.3)
    expected = find_edges(block, 3.3)
    assert np.array_equal(found.offsets, expected.offsets)
    assert np.array_equal(found.target, expected.target)
    rows = [
        sorted(zip(e.target.tolist(), e.source.tolist(), e.shift.tolist(), strict=True))
        for e in (found.take(np.array([1])), expected.take(np.array([1])))
    ]
    assert rows[0] == rows[1]


def test_all_kinds_of_input_agree(predictor, ethanol, tmp_path):
    reference = predictor.predict(ethanol, ALL)
    atoms = [Atoms(numbers=s.numbers, positions=s.positions) for s in ethanol]
    store = write_store(tmp_path / "ethanol.zarr", ethanol, Card())
    for source in (atoms, iter(atoms), Block.from_structures(ethanol), store, tuple(ethanol)):
        other = predictor.predict(source, ALL)
        for name in ("energy", "forces", "charges", "dipole"):
            np.testing.assert_allclose(other.values[name], reference.values[name], atol=1e-9)
    one = predictor.predict(atoms[0], ALL)
    assert one.energy == pytest.approx(reference.energy[:1])


def test_charge_and_spin_come_from_info_and_nothing_is_changed(predictor):
    atoms = molecule("CH3CH2OH")
    atoms.info = {"charge": -1, "spin": np.int64(2)}
    before = atoms.copy()
    charges = predictor.predict([atoms], ("charges",)).values["charges"]
    assert charges.sum() == pytest.approx(-1.0)
    assert atoms == before
    assert atoms.info == before.info
    assert atoms.calc is None


def test_nothing_in_nothing_out(predictor):
    for members in (False, True):
        result = predictor.predict([], ALL, members=members)
        assert len(result) == 0
        assert result.energy.shape == result.energy_std.shape == (0,)
        assert result.forces.shape == (0, 3)
        assert result.values["stress"].shape == (0, 3, 3)
        assert (result.members is None) != members


def test_an_unknown_element_names_structure_and_supported_set(predictor, ethanol):
    chloride = molecule("CH3Cl")
    with pytest.raises(UnknownElement, match=r"structure 2 \(CH3Cl\): Cl is unknown.*H, C, O, Si"):
        predictor.predict([ethanol[0], ethanol[1], chloride])


@pytest.mark.parametrize("name", ["energy", "forces", "charges", "dipole"])
def test_a_prediction_that_is_not_finite_is_an_error(predictor, ethanol, monkeypatch, name):
    predict = predictor.models.predict

    def broken(block, properties, where):
        stacked = predict(block, properties, where)
        stacked[name][0, 12 if name in ("forces", "charges") else 1] = np.inf
        return stacked

    monkeypatch.setattr(predictor.models, "predict", broken)
    with pytest.raises(FormatError, match=rf"structure 1 \(C2H6O\): the predicted {name} is not"):
        predictor.predict(ethanol[:3], ALL)


def test_elements_are_those_that_every_member_knows():
    file = ModelFile((make_member(seed=1), make_member(seed=2, elements=(1, 6, 8))))
    predictor = Predictor(file)
    assert predictor.elements == (1, 6, 8)
    assert predictor.cutoff == 4.0
    apart = (make_member(seed=1, elements=(1,)), make_member(seed=2, elements=(8,)))
    with pytest.raises(CheckpointError, match="no element in common"):
        Predictor(ModelFile(apart))


def test_wrong_questions_are_answered_clearly(ethanol, tmp_path):
    predictor = Predictor(ModelFile((make_member(outputs=("energy",)),)))
    assert predictor.properties == ("energy", "forces", "stress")
    with pytest.raises(UsageError, match="'dipole': the model does not predict it; it predicts en"):
        predictor.predict(ethanol, ("energy", "dipole"))
    with pytest.raises(UsageError, match="'enrgy'"):
        predictor.predict(ethanol, ("enrgy",))
    with pytest.raises(UsageError, match="batch_atoms is 0"):
        predictor.predict(ethanol, batch_atoms=0)
    bad = molecule("CH3CH2OH")
    bad.info["charge"] = "plus one"
    with pytest.raises(FormatError, match=r"structure 1: info\['charge'\] is 'plus one'"):
        predictor.predict([molecule("H2O"), bad])
    bad.info["charge"] = 0
    bad.positions[2, 1] = np.nan
    with pytest.raises(FormatError, match="structure 1: positions or cell are not finite"):
        predictor.predict([molecule("H2O"), bad])
    with pytest.raises(MissingInput, match=r"none\.safetensors"):
        Predictor.load(tmp_path / "none.safetensors")


def test_weights_and_calibration_of_a_file_are_checked():
    with pytest.raises(CheckpointError, match="weights of its members are all zero"):
        Predictor(ModelFile((make_member(weight=0.0),)))
    rows = {"forces": {**CALIBRATION["properties"]["forces"], "a": -1.0}}
    with pytest.raises(CheckpointError, match=r"forces: a: .*greater than or equal to 0"):
        Predictor(ModelFile((make_member(),), {"properties": rows}))
    with pytest.raises(CheckpointError, match="not a table"):
        Predictor(ModelFile((make_member(),), {"properties": [1]}))


def test_a_file_predicts_as_what_was_written(mixed_file, ethanol, tmp_path):
    path = tmp_path / "ensemble.safetensors"
    write_model(path, mixed_file)
    loaded, direct = Predictor.load(path).predict(ethanol), Predictor(mixed_file).predict(ethanol)
    assert np.array_equal(loaded.forces, direct.forces)
    assert np.array_equal(loaded.forces_std, direct.forces_std)
