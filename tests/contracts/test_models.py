"""What every architecture must keep of physics: symmetry, derivatives, limits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from model_cases import (
    CUTOFF,
    EVERYTHING,
    GEOMETRIES,
    OPEN,
    batch_of,
    close,
    everything,
    geometry,
    made,
)

from raypot.models import MODELS, AtomisticModel
from raypot.nn.derivatives import model_state, predict
from raypot.structures import Floats, Structure

pytestmark = pytest.mark.parametrize("name", MODELS)


@pytest.fixture
def model(name: str) -> AtomisticModel:
    return made(name)


@pytest.mark.parametrize("handedness", [1.0, -1.0])
@pytest.mark.parametrize("kind", [*GEOMETRIES, "hydroxide"])
def test_rigid_motion(model: AtomisticModel, kind: str, handedness: float) -> None:
    before = geometry(kind)
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))[0]
    turn *= handedness * np.sign(np.linalg.det(turn))
    after = replace(
        before, positions=before.positions @ turn.T + [1.0, -2.0, 0.5], cell=before.cell @ turn.T
    )
    first, second = everything(model, [before]), everything(model, [after])
    rotation = torch.from_numpy(turn)
    close(second["energy"], first["energy"])
    close(second["charges"], first["charges"])
    close(second["forces"], first["forces"] @ rotation.T)
    close(second["dipole"], first["dipole"] @ rotation.T)
    close(second["stress"], rotation @ first["stress"] @ rotation.T)


@pytest.mark.parametrize("kind", GEOMETRIES)
def test_order_of_atoms(model: AtomisticModel, kind: str) -> None:
    before = geometry(kind)
    order = np.random.default_rng(3).permutation(len(before))
    after = replace(before, numbers=before.numbers[order], positions=before.positions[order])
    first, second = everything(model, [before]), everything(model, [after])
    for name in ("energy", "stress", "dipole"):
        close(second[name], first[name])
    for name in ("forces", "charges"):
        close(second[name], first[name][torch.from_numpy(order)])


def energy_at(model: AtomisticModel, structure: Structure) -> float:
    return model.energy(batch_of([structure])).item()


def slope(model: AtomisticModel, structure: Structure, positions: Floats, cell: Floats) -> float:
    """Central difference of the energy along a change of positions and cell."""
    step = 1e-4
    ends = [
        replace(
            structure,
            positions=structure.positions + sign * step * positions,
            cell=structure.cell + sign * step * cell,
        )
        for sign in (1.0, -1.0)
    ]
    return (energy_at(model, ends[0]) - energy_at(model, ends[1])) / (2.0 * step)


@pytest.mark.parametrize("kind", [*GEOMETRIES, "hydroxide"])
def test_forces_are_minus_the_gradient(model: AtomisticModel, kind: str) -> None:
    structure = geometry(kind)
    forces = everything(model, [structure])["forces"].numpy()
    assert np.abs(forces).max() > 1e-3
    np.testing.assert_allclose(forces.sum(0), 0.0, atol=1e-10)
    for seed in range(3):
        way = np.random.default_rng(seed).normal(size=structure.positions.shape)
        expected = -slope(model, structure, way, np.zeros((3, 3)))
        np.testing.assert_allclose((forces * way).sum(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["salt", "silicon"])
def test_stress_is_the_strain_derivative(model: AtomisticModel, kind: str) -> None:
    structure = geometry(kind)
    stress = everything(model, [structure])["stress"][0].numpy()
    np.testing.assert_allclose(stress, stress.T, atol=1e-14)
    volume = abs(np.linalg.det(structure.cell))
    for seed in range(3):
        way = np.random.default_rng(seed).normal(size=(3, 3))
        way = way + way.T
        expected = slope(model, structure, structure.positions @ way, structure.cell @ way)
        np.testing.assert_allclose((stress * way).sum() * volume, expected, rtol=1e-5, atol=1e-6)
    stretched = slope(model, structure, structure.positions, structure.cell)
    assert np.sign(np.trace(stress)) == np.sign(stretched)  # positive where it wants to contract


def test_stress_needs_three_periodic_directions(model: AtomisticModel) -> None:
    predicted = everything(model, [geometry("salt"), geometry("slab"), geometry("ethanol")])
    assert predicted["stress"][0].isfinite().all()
    assert predicted["stress"][1:].isnan().all()
    assert predicted["forces"].isfinite().all()


def test_batch_equals_singles(model: AtomisticModel) -> None:
    structures = [geometry(kind) for kind in ("atom", *GEOMETRIES, "hydroxide", "atom")]
    together = everything(model, structures)
    apart = [everything(model, [structure]) for structure in structures]
    for name in EVERYTHING:
        close(together[name], torch.cat([single[name] for single in apart]))


def test_supercell_has_twice_the_energy(model: AtomisticModel) -> None:
    salt = geometry("salt")
    double = replace(
        salt,
        numbers=np.tile(salt.numbers, 2),
        positions=np.concatenate([salt.positions, salt.positions + salt.cell[1]]),
        cell=salt.cell * [[1.0], [2.0], [1.0]],
    )
    one, two = everything(model, [salt]), everything(model, [double])
    close(two["energy"], 2.0 * one["energy"])
    close(two["forces"], one["forces"].repeat(2, 1))
    close(two["stress"], one["stress"])


def pair(distance: float) -> Structure:
    return Structure(
        numbers=np.array([6, 8]), positions=np.array([[0.0, 0.0, 0.0], [0.0, 0.0, distance]])
    )


def test_smooth_at_the_cutoff(model: AtomisticModel) -> None:
    inside = everything(model, [pair(CUTOFF - 1e-5)])
    outside = everything(model, [pair(CUTOFF + 1e-5)])
    apart = everything(model, [pair(50.0)])
    for name in OPEN:
        torch.testing.assert_close(inside[name], outside[name], rtol=0.0, atol=2e-4)
    assert inside["energy"].abs().item() < 1e-7
    assert (apart["energy"] == 0.0).all()
    assert (apart["forces"] == 0.0).all()


def test_edges_beyond_the_cutoff_count_for_nothing(model: AtomisticModel) -> None:
    structures = [geometry(kind) for kind in GEOMETRIES]
    state = model_state(model)
    wide = predict(model, state, batch_of(structures, CUTOFF + 1.5), EVERYTHING)
    for name, value in everything(model, structures).items():
        close(wide[name], value)


def test_isolated_atom_has_its_self_energy_alone(model: AtomisticModel) -> None:
    predicted = everything(model, [geometry("atom")])
    assert (predicted["energy"] == 0.0).all()
    assert (predicted["forces"] == 0.0).all()
    close(predicted["charges"], torch.ones(1, dtype=torch.float64))


def test_charges_sum_to_the_total_charge(model: AtomisticModel) -> None:
    structures = [geometry(kind) for kind in ("ethanol", "hydroxide", "salt", "atom")]
    charges = everything(model, structures)["charges"]
    sums = [part.sum() for part in charges.split([len(s) for s in structures])]
    expected = torch.tensor([s.total_charge for s in structures], dtype=torch.float64)
    close(torch.stack(sums), expected, 1e-12)


def test_nothing_at_all(model: AtomisticModel) -> None:
    predicted = predict(model, model_state(model), batch_of([]), EVERYTHING)
    shapes = {name: tuple(value.shape) for name, value in predicted.items()}
    assert shapes == {
        "energy": (0,),
        "forces": (0, 3),
        "stress": (0, 3, 3),
        "charges": (0,),
        "dipole": (0, 3),
    }


def test_atoms_in_one_place_give_finite_numbers(model: AtomisticModel) -> None:
    batch = batch_of([geometry("ethanol")])
    batch = batch._replace(positions=batch.positions.index_fill(0, torch.tensor([1]), 0.0))
    batch = batch._replace(positions=batch.positions.index_fill(0, torch.tensor([2]), 0.0))
    for value in predict(model, model_state(model), batch, OPEN).values():
        assert value.isfinite().all()
