"""Readers of raw files: keys, units, signs, shapes, faults."""

import contextlib
import gzip
import hashlib
import re
import sqlite3
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from raypot.constants import BOHR, GIGAPASCAL, HARTREE
from raypot.data.cards import Card
from raypot.data.importers import IMPORTERS, importer_name
from raypot.data.importers.rows import BadRow, KeyLog
from raypot.errors import ConfigError, FormatError
from raypot.structures import Structure


def read(path: Path, **card: Any) -> list[Structure | BadRow]:
    return list(IMPORTERS[importer_name(path)](path, Card(**card), KeyLog()))


def read_one(path: Path, **card: Any) -> Structure:
    (row,) = read(path, **card)
    assert isinstance(row, Structure), row
    return row


def write_xyz(path: Path, comment: str, columns: str = "species:S:1:pos:R:3") -> Path:
    """Write one H2 molecule; `columns` beyond the position count up from 1."""
    extra = sum(int(part) for part in columns.split(":")[2::3]) - 4
    numbers = [" ".join(str(1.0 + extra * atom + k) for k in range(extra)) for atom in range(2)]
    path.write_text(
        f"2\nProperties={columns} {comment}\nH 0 0 0 {numbers[0]}\nH 0 0 0.74 {numbers[1]}\n"
    )
    return path


# Keys


@pytest.mark.parametrize(
    ("comment", "key", "expected"),
    [
        ("energy=-1 REF_energy=-2 dft_energy=-3", None, -2.0),
        ("energy=-1 dft_energy=-3", None, -1.0),
        ("dft_energy=-3 TotEnergy=-4", None, -3.0),
        ("energy_xtb=-5", None, -5.0),
        ("energy=-1 REF_energy=-2 mine=-6", "mine", -6.0),
        ("energy=-1 REF_energy=-2", "energy", -1.0),
    ],
)
def test_order_of_lookup(comment: str, key: str | None, expected: float, tmp_path: Path) -> None:
    file = write_xyz(tmp_path / "h2.xyz", comment)
    card = {} if key is None else {"keys": {"energy": key}}
    assert read_one(file, **card).labels["energy"] == expected


@pytest.mark.parametrize("key", ["forces", "REF_forces", "dft_forces", "force", "forces_xtb"])
def test_keys_of_forces(key: str, tmp_path: Path) -> None:
    file = write_xyz(tmp_path / "h2.xyz", "", f"species:S:1:pos:R:3:{key}:R:3")
    np.testing.assert_array_equal(read_one(file).labels["forces"], [[1, 2, 3], [4, 5, 6]])


def test_the_log_says_which_key_was_used(tmp_path: Path) -> None:
    file = write_xyz(
        tmp_path / "h2.xyz", "energy=-1 REF_dipole='1 2 3'", "species:S:1:pos:R:3:force:R:3"
    )
    log = KeyLog()
    list(IMPORTERS["ase"](file, Card(), log))
    assert {name: list(keys) for name, keys in log.used.items()} == {
        "energy": ["calculator.energy"],
        "forces": ["arrays.force"],
        "dipole": ["info.REF_dipole"],
    }


def test_an_explicit_key_is_never_replaced_by_another(tmp_path: Path) -> None:
    file = write_xyz(tmp_path / "h2.xyz", "energy=-1")
    assert "energy" not in read_one(file, keys={"energy": "REF_energy"}).labels
    assert "energy" not in read_one(file, keys={"energy": ""}).labels


def test_facts_of_the_structure(tmp_path: Path) -> None:
    file = write_xyz(tmp_path / "h2.xyz", "charge=-1 spin=2 config_type=dimer config_weight=0.5")
    s = read_one(file)
    assert (s.total_charge, s.spin, s.config_type, s.weight) == (-1.0, 2.0, "dimer", 0.5)
    assert (s.record, s.source) == ("", ("h2.xyz", 0))
    assert read_one(file, total_charge=0.0).total_charge == 0.0
    assert read_one(file, keys={"record": "config_type"}).record == "dimer"
    assert read_one(file, record="{formula} in {file}").record == "H2 in h2.xyz"
    assert read_one(file, keys={"total_charge": "spin"}).total_charge == 2.0


def test_the_card_decides_about_periodicity(tmp_path: Path) -> None:
    lattice = 'Lattice="9 0 0 0 9 0 0 0 9"'
    file = write_xyz(tmp_path / "h2.xyz", f'{lattice} pbc="F F F"')
    assert not read_one(file).pbc.any()
    assert read_one(file, pbc=True).pbc.all()
    assert list(read_one(file, pbc=(True, True, False)).pbc) == [True, True, False]
    assert read_one(write_xyz(tmp_path / "b.xyz", lattice)).pbc.all()


# Units, signs, shapes


def test_units_and_signs(tmp_path: Path) -> None:
    file = write_xyz(
        tmp_path / "h2.xyz", "energy=-1.1", "species:S:1:pos:R:3:gradient:R:3:mbis_charges:R:1"
    )
    s = read_one(
        file,
        keys={"forces": "gradient"},
        units={"length": "bohr", "energy": "hartree", "forces": "hartree/bohr"},
        signs={"forces": -1},
    )
    assert s.labels["energy"] == -1.1 * HARTREE
    np.testing.assert_allclose(s.labels["forces"][0], [-HARTREE / BOHR * k for k in (1, 2, 3)])
    np.testing.assert_array_equal(s.labels["charges"], [4, 8])
    np.testing.assert_allclose(s.positions[1], [0, 0, 0.74 * BOHR])


STRESS = np.array([[1.0, 6, 5], [6, 2, 4], [5, 4, 3]])
BOX = 'Lattice="2 0 0 0 3 0 0 0 4" pbc="T T T"'


@pytest.mark.parametrize(
    ("comment", "card", "expected"),
    [
        ("stress='1 6 5 6 2 4 5 4 3'", {}, STRESS),
        ("REF_stress='1 2 3 4 5 6'", {}, STRESS),
        ("DFT_stress='1 6 5 6 2 4 5 4 3'", {}, STRESS),
        ("virial='1 6 5 6 2 4 5 4 3'", {"keys": {"stress": "virial"}}, -STRESS / 24),
        ("REF_virials='1 2 3 4 5 6'", {"keys": {"stress": "REF_virials"}}, -STRESS / 24),
        (
            "vasp='1 2 3 4 5 6'",
            {"keys": {"stress": "vasp"}, "units": {"stress": "kbar"}, "signs": {"stress": -1}},
            -STRESS * GIGAPASCAL / 10,
        ),
    ],
)
def test_stress(comment: str, card: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    s = read_one(write_xyz(tmp_path / "h2.xyz", f"{BOX} {comment}"), **card)
    np.testing.assert_allclose(s.labels["stress"], expected, rtol=1e-14)


def test_a_virial_is_not_used_unasked(tmp_path: Path) -> None:
    file = write_xyz(tmp_path / "h2.xyz", f"{BOX} virial='1 6 5 6 2 4 5 4 3'")
    assert "stress" not in read_one(file).labels


def test_stress_of_a_molecule_is_left_out(tmp_path: Path) -> None:
    file = write_xyz(tmp_path / "h2.xyz", "stress='0 0 0 0 0 0 0 0 0'")
    log = KeyLog()
    (s,) = IMPORTERS["ase"](file, Card(), log)
    assert isinstance(s, Structure)
    assert s.labels == {}
    assert sum(log.notes.values()) == 1


@pytest.mark.parametrize(
    ("comment", "columns", "reason"),
    [
        ("energy=nope", "", "energy: 'nope' is not a number"),
        ("energy='1 2'", "", r"energy: has shape \(2,\), expected \(\)"),
        ("REF_energy=inf", "", "energy: 'REF_energy' is partly NaN or infinite"),
        ("dipole='1 nan 3'", "", "dipole: 'dipole' is partly NaN"),
        ("", ":forces:R:2", r"forces: has shape \(2, 2\), expected \(2, 3\)"),
        ("quadrupole='1 2 3 4 5 6'", "", r"quadrupole: has shape \(6,\)"),
        ("charge='1 2'", "", "total_charge: .* expected one finite number"),
        ("spin=up", "", "spin: 'up' is not a number"),
        ('Lattice="1 0 0 0 0 0 0 0 1"', "", "its cell has no volume"),
        ('Lattice="1 0 0 0 nan 0 0 0 1"', "", "positions or cell are not finite"),
    ],
)
def test_bad_rows(comment: str, columns: str, reason: str, tmp_path: Path) -> None:
    (row,) = read(write_xyz(tmp_path / "h2.xyz", comment, f"species:S:1:pos:R:3{columns}"))
    assert isinstance(row, BadRow)
    assert row.source == ("h2.xyz", 0)
    assert re.search(reason, row.reason), row.reason
    assert "h2.xyz" not in row.reason


def test_a_label_of_nan_is_a_missing_one(tmp_path: Path) -> None:
    assert read_one(write_xyz(tmp_path / "h2.xyz", "energy=nan")).labels == {}


# Extended XYZ

GOOD = "1\nenergy=1\nH 0 0 0\n"


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        (
            GOOD + "3\n\nH 0 0 0\nH 0 0 1\n",
            [None, "lines 4 to 7: the file ends after 2 of 3 atoms"],
        ),
        (GOOD + "3\n", [None, "lines 4 to 4: the file ends after 0 of 3 atoms"]),
        (
            GOOD + "2\n\nH 0 0 0\nH 0 0\n" + GOOD,
            [None, "line 7: 3 columns, the lines before", None],
        ),
        (GOOD + "1\n\nQq 0 0 0\n" + GOOD, [None, "lines 4 to 6: 'Qq' is not an element", None]),
        (GOOD + "1\n\nH 0 x 0\n", [None, "lines 4 to 6: could not convert string to float"]),
        (GOOD + "1\n\nH 0 nan 0\n", [None, "positions or cell are not finite"]),
        (GOOD + "1\n\nX 0 0 0\n", [None, "atomic numbers [0]; expected 1 to 118"]),
        (GOOD + "0\n\n" + GOOD, [None, "lines 4 to 5: has no atoms", None]),
        (GOOD + "\n\n" + GOOD + "\n", [None, None]),
        ("1\n\nH 0 0 0", [None]),
        ("1\r\n\r\nH 0 0 0\r\n", [None]),
        ("1\nProperties=species:S:1:pos:Z:3\nH 0 0 0\n", ["lines 1 to 3: "]),
    ],
)
def test_faults_of_xyz_files_name_their_lines(
    text: str, reasons: list[str | None], tmp_path: Path
) -> None:
    (tmp_path / "x.xyz").write_bytes(text.encode())
    rows = read(tmp_path / "x.xyz")
    assert len(rows) == len(reasons)
    for index, (row, reason) in enumerate(zip(rows, reasons, strict=True)):
        assert row.source == ("x.xyz", index)
        assert isinstance(row, BadRow) == (reason is not None), row
        assert reason is None or reason in row.reason


def test_a_wrong_count_loses_the_rest_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.xyz").write_text(GOOD + "1\n\nH 0 0 0\nH 0 0 1\n" + GOOD)
    message = r"x\.xyz, line 7: 'H 0 0 1', expected the number of atoms of the next structure"
    with pytest.raises(FormatError, match=message) as caught:
        read(tmp_path / "x.xyz")
    assert caught.value.line == 7


def test_compressed_xyz(tmp_path: Path) -> None:
    content = gzip.compress((GOOD * 500).encode(), mtime=0)
    (tmp_path / "x.xyz.gz").write_bytes(content)
    assert len(read(tmp_path / "x.xyz.gz")) == 500
    for damaged in (content[: len(content) // 2], content[:-4] + b"\0\0\0\0", b"not gzip"):
        (tmp_path / "x.xyz.gz").write_bytes(damaged)
        with pytest.raises(FormatError, match=r"x\.xyz\.gz: cannot be read to its end"):
            read(tmp_path / "x.xyz.gz")


@pytest.mark.parametrize("seed", range(20))
def test_shuffled_bytes_never_crash(seed: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(seed)
    raw = bytearray((GOOD * 3 + f"2\n{BOX} dipole='1 2 3'\nH 0 0 0\nH 0 0 1\n").encode())
    for _ in range(4):
        raw[generator.integers(len(raw))] = generator.integers(256)
    (tmp_path / "x.xyz").write_bytes(bytes(raw))
    with contextlib.suppress(FormatError):
        rows = read(tmp_path / "x.xyz")
        assert all(isinstance(row, (Structure, BadRow)) for row in rows)


# Other files that ASE reads


def labelled() -> list[Atoms]:
    """Copper and water with results of a calculator."""
    several = []
    for index, atoms in enumerate((bulk("Cu", cubic=True), molecule("H2O"))):
        forces = np.arange(3.0 * len(atoms)).reshape(-1, 3)
        stress = {"stress": [1, 2, 3, 4, 5, 6]} if atoms.pbc.all() else {}
        atoms.calc = SinglePointCalculator(atoms, energy=-float(index), forces=forces, **stress)
        several.append(atoms)
    return several


@pytest.mark.parametrize("name", ["a.traj", "a.json", "a.db", "a.xyz", "a.extxyz"])
def test_formats_of_ase(name: str, tmp_path: Path) -> None:
    ase.io.write(tmp_path / name, labelled(), format="extxyz" if "xyz" in name else None)
    copper, water = read(tmp_path / name)
    assert isinstance(copper, Structure)
    assert isinstance(water, Structure)
    assert list(copper.numbers) == [29] * 4
    np.testing.assert_allclose(copper.labels["stress"], STRESS)
    np.testing.assert_allclose(water.labels["forces"], np.arange(9.0).reshape(3, 3))
    assert water.labels["energy"] == -1.0
    assert not water.pbc.any()


def test_database_pairs_and_data_are_found(tmp_path: Path) -> None:
    with connect(tmp_path / "a.db") as database:
        for index in range(3):
            database.write(
                molecule("OH"), total_charge=-1, my_energy=float(index), data={"F": [[1, 2, 3]] * 2}
            )
    rows = read(tmp_path / "a.db", keys={"energy": "my_energy", "forces": "F"})
    assert [row.labels["energy"] for row in rows] == [0.0, 1.0, 2.0]
    assert rows[1].total_charge == -1.0
    np.testing.assert_array_equal(rows[2].labels["forces"], [[1, 2, 3]] * 2)


def test_foreign_databases_are_refused_and_left_alone(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "a.db")
    connection.execute("CREATE TABLE xyz (id INTEGER)")
    connection.commit()
    connection.close()
    before = hashlib.sha256((tmp_path / "a.db").read_bytes()).digest()
    with pytest.raises(FormatError, match="not a readable ASE database .*it has the tables xyz"):
        read(tmp_path / "a.db")
    assert hashlib.sha256((tmp_path / "a.db").read_bytes()).digest() == before
    raw = (tmp_path / "a.db").read_bytes()
    (tmp_path / "b.db").write_bytes(raw[:100])
    with pytest.raises(FormatError, match="not a readable ASE database"):
        read(tmp_path / "b.db")


@pytest.mark.parametrize("content", [b"", b"hello\n", bytes(range(256))])
def test_files_that_nobody_reads(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(content)
    with pytest.raises(FormatError, match=r"a\.dat: ASE cannot read it after 0 structures"):
        read(tmp_path / "a.dat")


def test_keys_of_the_geometry_mean_nothing_to_ase(tmp_path: Path) -> None:
    file = write_xyz(tmp_path / "h2.xyz", "")
    with pytest.raises(ConfigError, match="names a key for positions, but ASE finds"):
        read(file, keys={"positions": "pos"})


# Numpy archives

NUMBERS = np.array([8, 1, 1])
R = np.arange(18.0).reshape(2, 3, 3)


@pytest.mark.parametrize(
    "names",
    [
        ("R", "z", "E", "F"),
        ("positions", "atomic_numbers", "energy", "forces"),
        ("pos", "numbers", "energy", "forces"),
        ("coords", "nuclear_charges", "energies", "forces"),
    ],
)
def test_npz_names(names: tuple[str, str, str, str], tmp_path: Path) -> None:
    arrays = dict(zip(names, (R, NUMBERS, np.array([[-1.0], [-2.0]]), -R), strict=True))
    np.savez(tmp_path / "a.npz", **arrays)
    first, second = read(tmp_path / "a.npz")
    np.testing.assert_array_equal(second.positions, R[1])
    np.testing.assert_array_equal(second.numbers, NUMBERS)
    np.testing.assert_array_equal(first.labels["forces"], -R[0])
    assert [first.labels["energy"], second.labels["energy"]] == [-1.0, -2.0]
    assert not first.pbc.any()
    assert second.source == ("a.npz", 1)


def test_npz_cells_charges_and_padding(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz",
        R=R,
        z=np.array([[8, 1, 1], [1, 1, 0]]),
        q=np.ones((2, 3, 1)),
        Q=np.array([0.0, -1.0]),
        E=np.array([1.0, np.nan]),
        unit_cell=np.broadcast_to(20 * np.eye(3), (2, 3, 3)),
        pbc=np.array([True, True, False]),
        name="a set",
    )
    first, second = read(tmp_path / "a.npz")
    assert (len(first), len(second)) == (3, 2)
    assert second.labels.keys() == {"charges"}
    assert second.labels["charges"].shape == (2,)
    assert (first.total_charge, second.total_charge) == (0.0, -1.0)
    assert list(second.pbc) == [True, True, False]
    np.testing.assert_array_equal(first.cell, 20 * np.eye(3))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": NUMBERS}, r"no array of positions \(positions, pos, R, .*\); it has z"),
        ({"R": R}, "no array of numbers .* name it under .keys. in the card"),
        ({"R": R[0], "z": NUMBERS}, r"R has shape \(3, 3\), expected \(S, N, 3\)"),
        ({"R": R, "z": NUMBERS[:2]}, r"z has shape \(2,\), expected \(2, 3\) or \(3,\)"),
        ({"R": R, "z": NUMBERS, "cell": np.eye(2)}, r"cell has shape \(2, 2\)"),
    ],
)
def test_npz_arrays_that_do_not_fit(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(FormatError, match=message):
        read(tmp_path / "a.npz")


def test_npz_keys_of_the_card(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", where=R, what=NUMBERS, E=np.zeros((2, 4)))
    keys = {"positions": "where", "numbers": "what", "energy": ""}
    assert len(read(tmp_path / "a.npz", keys=keys)) == 2
    keys["cell"] = "box"
    with pytest.raises(FormatError, match=r"no array of cell \(box\); it has where, what, E"):
        read(tmp_path / "a.npz", keys=keys)
    rows = read(tmp_path / "a.npz", keys={"positions": "where", "numbers": "what"})
    assert [row.reason for row in rows] == ["energy: has shape (4,), expected ()"] * 2


class Bomb:
    """Unpickling this would write a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.write_text, (self.canary, "executed")


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bombs = np.array([Bomb(canary), Bomb(canary)], dtype=object)
    np.savez(tmp_path / "a.npz", R=R, z=NUMBERS, E=bombs)
    with pytest.raises(FormatError, match=r"a\.npz: not an \.npz file of plain arrays .*allow_pic"):
        read(tmp_path / "a.npz")
    np.save(tmp_path / "b.npy", bombs)
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    with pytest.raises(FormatError, match=r"b\.npz: not an \.npz file"):
        read(tmp_path / "b.npz")
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x93NUMPY", b"hello"])
def test_what_is_not_npz(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(FormatError, match=r"a\.npz: not an \.npz file of plain arrays"):
        read(tmp_path / "a.npz")


def test_truncated_npz(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", R=R, z=NUMBERS)
    whole = (tmp_path / "a.npz").read_bytes()
    for length in range(0, len(whole), 29):
        (tmp_path / "a.npz").write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"a\.npz: not an \.npz file"):
            read(tmp_path / "a.npz")
