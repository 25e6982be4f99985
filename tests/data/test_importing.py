"""Import: several sources into one store, what is left out and what is said about it."""

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from raypot.data import importing
from raypot.data.cards import Card
from raypot.data.importing import (
    OVERLAP,
    closest_distance,
    distinct_names,
    fault,
    import_data,
    read_structures,
)
from raypot.data.store import Store, verify
from raypot.errors import ConfigError, FormatError, MissingInput, OutputError, UsageError
from raypot.structures import Structure

H2 = """2
energy={energy} Properties=species:S:1:pos:R:3:forces:R:3
H 0 0 0 {f} 0 0
H 0 0 {r} 0 0 0
"""


def h2(r: float = 0.74, energy: float = -1.0, f: float = 0.1) -> str:
    return H2.format(r=r, energy=energy, f=f)


@pytest.fixture
def trio(tmp_path: Path) -> Path:
    file = tmp_path / "trio.xyz"
    file.write_text(h2(0.7, -1.0) + h2(0.8, -1.1) + h2(0.9, -1.2))
    return file


def test_sources_are_merged_in_order(trio: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", R=2 * np.eye(2, 3)[None], z=np.array([1, 6]), E=np.array([-9.0]))
    seen: list[int] = []
    report = import_data(
        [trio, tmp_path / "b.npz"], tmp_path / "s", card=Card(name="x"), progress=seen.append
    )
    store = Store.open(tmp_path / "s")
    assert store.fingerprint == report.store.fingerprint
    assert list(store.column("source_file")) == ["trio.xyz"] * 3 + ["b.npz"]
    assert list(store.column("source_index")) == [0, 1, 2, 0]
    assert list(store.read().labels["energy"]) == [-1.0, -1.1, -1.2, -9.0]
    assert store.census()["forces"].missing == 1
    assert report.keys_used == {"energy": "E, calculator.energy", "forces": "calculator.forces"}
    assert report.warnings == ["energy: read from different keys: calculator.energy (3), E (1)"]
    assert report.quarantined == []
    assert seen == [1, 2, 3, 4]
    assert verify(tmp_path / "s") == []


def test_bad_rows_are_left_out_with_a_reason(trio: Path, tmp_path: Path) -> None:
    trio.write_text(h2() + h2(energy=np.inf) + h2(0.1) + h2(f=np.nan) + h2(0.9) + "2\n\nH 0 0 0\n")
    report = import_data([trio], tmp_path / "s", card=Card())
    assert report.store.n_structures == 2
    assert list(report.store.column("source_index")) == [0, 4]
    assert [(bad.source[1], bad.reason) for bad in report.quarantined] == [
        (1, "energy: 'energy' is partly NaN or infinite"),
        (2, "two atoms are 0.100 Å apart, expected at least 0.3 Å"),
        (3, "forces: 'forces' is partly NaN or infinite"),
        (5, "lines 21 to 23: the file ends after 1 of 2 atoms"),
    ]
    assert np.isfinite(report.store.read().labels["forces"]).all()


def test_a_bad_row_can_stop_the_import(trio: Path, tmp_path: Path) -> None:
    trio.write_text(h2() + h2(0.1))
    message = r"trio\.xyz, structure 1: two atoms are 0\.100 Å apart.*--on-bad quarantine"
    with pytest.raises(FormatError, match=message):
        import_data([trio], tmp_path / "s", card=Card(), on_bad="error")
    assert [p.name for p in tmp_path.iterdir()] == ["trio.xyz"]
    with pytest.raises(FormatError, match=message):
        list(read_structures([trio]))


def test_refusals(trio: Path, tmp_path: Path) -> None:
    def attempt(*sources: Path, **settings: Any) -> None:
        import_data(sources, tmp_path / "s", **({"card": Card()} | settings))

    with pytest.raises(MissingInput, match=r"nothing\.xyz: no such file"):
        attempt(trio, tmp_path / "nothing.xyz")
    with pytest.raises(MissingInput, match="is a folder; name the files in it"):
        attempt(tmp_path)
    with pytest.raises(ConfigError, match=r"format 'npy': unknown; did you mean npz\?"):
        attempt(trio, format="npy")
    with pytest.raises(UsageError, match="no source was named"):
        attempt()
    with pytest.raises(FormatError, match=r"= 'total_enrgy': no structure has this key; .*energy"):
        attempt(trio, card=Card(keys={"energy": "total_enrgy"}))
    with pytest.raises(FormatError, match=r"trio\.xyz: not an \.npz file"):
        attempt(trio, format="npz")
    empty = tmp_path / "empty.xyz"
    empty.write_text("\n\n")
    with pytest.raises(FormatError, match=r"empty\.xyz: no usable structure"):
        attempt(trio, empty)
    empty.write_text(h2(0.0) + h2(0.0))
    with pytest.raises(
        FormatError, match="no usable structure; the first of 2 bad rows: two atoms"
    ):
        attempt(empty)
    assert not (tmp_path / "s").exists()
    (tmp_path / "s").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        attempt(trio)


def test_what_looks_odd_is_said(trio: Path, tmp_path: Path) -> None:
    trio.write_text(h2(energy=0.0, f=0.0) + h2(0.8, energy=0.0, f=0.0) + h2(energy=0.0, f=0.0))
    report = import_data([trio], tmp_path / "s", card=Card())
    assert report.warnings == [
        "energy: every value is 0 eV; a placeholder?",
        "forces: every value is 0 eV/Å; a placeholder?",
        "forces: all zero in 3 structures of several atoms",
        "1 structures repeat the geometry of an earlier one",
    ]
    assert report.n_duplicates == 1
    copper = bulk("Cu")
    copper.info["virial"] = np.eye(3)
    ase.io.write(tmp_path / "cu.xyz", copper, format="extxyz")
    report = import_data([tmp_path / "cu.xyz"], tmp_path / "t", card=Card())
    assert report.warnings == ["stress: 'virial' was not used; name it in the card to use it"]


def test_names_that_tell_sources_apart() -> None:
    assert distinct_names([Path("/a/x.xyz"), Path("/b/y.xyz")]) == ["x.xyz", "y.xyz"]
    assert distinct_names([Path("/d/a/x.xyz"), Path("/d/b/x.xyz")]) == ["a/x.xyz", "b/x.xyz"]
    assert distinct_names([Path("x.xyz")]) == ["x.xyz"]


def test_the_fingerprint_does_not_depend_on_the_place(trio: Path, tmp_path: Path) -> None:
    first = import_data([trio], tmp_path / "s", card=Card()).store.fingerprint
    (tmp_path / "deep").mkdir()
    moved = trio.rename(tmp_path / "deep" / "other.xyz")
    assert import_data([moved], tmp_path / "t", card=Card()).store.fingerprint == first


# Geometries


def crystal(cell: Any, fractional: Any, pbc: Any = True) -> Structure:
    cell = np.asarray(cell, dtype=float)
    positions = np.asarray(fractional, dtype=float) @ cell
    return Structure(np.ones(len(positions)), positions, cell, np.broadcast_to(pbc, 3))


SKEWED = [[4.0, 0, 0], [3.9, 1.0, 0], [0.5, 3.0, 2.0]]


@pytest.mark.parametrize(
    ("structure", "reason"),
    [
        (crystal(4 * np.eye(3), [[0, 0, 0], [0.99, 0, 0]]), "0.040 Å apart"),
        (crystal(4 * np.eye(3), [[0, 0, 0], [0.99, 0, 0]], [False, True, True]), None),
        (crystal(SKEWED, [[0.01, 0.01, 0.01], [0.99, 0.99, 0.99]]), "apart"),
        (crystal(SKEWED, [[0, 0, 0], [0.5, 0.5, 0.5]]), None),
        (crystal(0.2 * np.eye(3), [[0, 0, 0]]), "0.200 Å apart"),
        (crystal(np.diag([4, 4, 0.5]), [[0, 0, 0], [0.5, 0.5, 0]]), None),
        (crystal([[0, 4, 0], [4, 0, 0], [0, 0, 4]], [[0, 0, 0]]), "left-handed"),
        (crystal([[4, 0, 0], [8, 0, 0], [0, 0, 4]], [[0, 0, 0]], [1, 1, 0]), "one line or plane"),
        (crystal(np.zeros((3, 3)), [[0, 0, 0]], False), None),
        (Structure([1, 1], [[0, 0, 0], [0, 0, 1e-7]]), "0.000 Å apart"),
        (Structure([1], [[0, 0, 0]]), None),
    ],
)
def test_geometries_that_cannot_be(structure: Structure, reason: str | None) -> None:
    found = fault(structure)
    assert (found is None) == (reason is None), found
    assert reason is None or reason in str(found)


def test_both_ways_to_find_overlaps_agree(rng: np.random.Generator) -> None:
    """All pairs for small structures, a neighbor search for large ones: the same distance."""
    for _ in range(60):
        cell = np.eye(3) * 3 + rng.normal(size=(3, 3))
        pbc = rng.integers(0, 2, 3).astype(bool)
        if np.linalg.det(cell) < 1:
            continue
        structure = crystal(cell, rng.random((12, 3)), pbc)
        first, second = closest_distance(structure), importing._closest_edge(structure)
        assert first == pytest.approx(second) or min(first, second) > OVERLAP


def test_large_structures_are_searched(rng: np.random.Generator) -> None:
    grid = np.stack(np.meshgrid(*[np.arange(9.0)] * 3), axis=-1).reshape(-1, 3)
    assert fault(Structure(np.ones(len(grid)), grid)) is None
    grid[700] = grid[3] + 0.1
    assert "0.173 Å apart" in str(fault(Structure(np.ones(len(grid)), grid)))


# Real data


def test_3bpa_agrees_with_its_sources_to_the_last_digit(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "3bpa"
    sources = [folder / "train_300K.xyz", folder / "test_300K.npz"]
    store = import_data(sources, tmp_path / "s", card=Card(precise=("forces",))).store
    assert store.n_structures == 500 + 1669
    assert list(np.unique(store.column("source_file"), return_counts=True)[1]) == [1669, 500]
    block = store.read()
    energies, numbers = [], []
    lines = iter((folder / "train_300K.xyz").read_text().splitlines())
    for line in lines:
        comment = next(lines)
        energies.append(float(comment.partition("energy=")[2].split()[0]))
        numbers += [[float(x) for x in next(lines).split()[1:]] for _ in range(int(line))]
    columns = np.array(numbers)
    n_atoms = len(columns)
    np.testing.assert_array_equal(block.labels["energy"][:500], energies)
    np.testing.assert_array_equal(block.positions[:n_atoms], columns[:, :3])
    np.testing.assert_array_equal(block.labels["forces"][:n_atoms], columns[:, 3:])
    with np.load(folder / "test_300K.npz") as archive:
        np.testing.assert_array_equal(block.labels["energy"][500:], archive["energy"][:, 0])
        np.testing.assert_array_equal(block.positions[n_atoms:], archive["pos"].reshape(-1, 3))
        forces = archive["forces"].reshape(-1, 3)
    np.testing.assert_array_equal(block.labels["forces"][n_atoms:], forces)
    # The two files disagree about periodicity; without a card each is believed.
    assert not block.pbc[:500].any()
    assert block.pbc[500:].all()


def test_3bpa_card_overrides_periodicity(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "3bpa" / "test_300K.npz"
    store = import_data([source], tmp_path / "s", card=Card(pbc=False)).store
    assert not store.read(labels=()).pbc.any()


def test_3bpa_repeated_frames_are_counted(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "3bpa"
    sources = [folder / f"{name}.xyz" for name in ("train_300K", "train_mixedT", "iso_atoms")]
    report = import_data(sources, tmp_path / "s", card=Card())
    assert report.n_duplicates == 31
    assert report.store.census()["forces"].missing == 4


def test_ec_emc_virial_has_the_sign_of_the_energy(shared_data: Path, tmp_path: Path) -> None:
    """virial = -V stress; isolated atoms have none and the boxes are under pressure."""
    source = shared_data / "ec_emc" / "ECEMC.xyz.gz"
    store = import_data([source], tmp_path / "s", card=Card(keys={"stress": "virial"})).store
    assert store.census()["stress"].count == 200
    row = 50
    atoms = next(ase.io.iread(source, index=row))
    found = store.read([row]).labels["stress"][0]
    np.testing.assert_allclose(found, -atoms.info["virial"] / atoms.get_volume(), rtol=1e-6)


def test_sio2_keys_are_found_on_both_sides_of_ase(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "sio2_response" / "SiO2.xyz.gz"
    card = Card(units={"polarizability": "e*angstrom^2/v"})
    report = import_data([source], tmp_path / "s", card=card)
    assert report.store.n_structures == 201
    assert report.keys_used == {
        "energy": "info.total_energy",
        "forces": "calculator.forces",
        "stress": "calculator.stress",
        "polarizability": "info.polarizability",
    }
    row = report.store.census()["stress"]
    assert -0.1 < row.minimum < row.maximum < 0.04  # eV/Å³, as the file says
    assert report.store.census()["polarizability"].maximum > 100  # Å³ of a cell of 72 atoms


def test_aumgo_energies_keep_their_small_differences(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "aumgo_charges" / "test_solid.npz"
    report = import_data([source], tmp_path / "s", card=Card(pbc=(True, True, False)))
    with np.load(source) as archive:
        expected = archive["E"][:, 0]
    np.testing.assert_array_equal(report.store.read().labels["energy"], expected)
    assert report.keys_used["charges"] == "q"
    unflagged = import_data([source], tmp_path / "t", card=Card())
    assert "a cell without pbc was read as not repeating" in unflagged.warnings[0]


def test_atoms_of_ase_are_not_changed(tmp_path: Path) -> None:
    water: Atoms = molecule("H2O")
    ase.io.write(tmp_path / "w.xyz", water)
    (found,) = read_structures([tmp_path / "w.xyz"])
    np.testing.assert_allclose(found.positions, water.positions, atol=1e-7)
