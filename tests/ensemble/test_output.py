"""Predictions as files: readable by others, equal to the predictor, whole or absent."""

import numpy as np
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from ase.io import read, write

from raypot.data.cards import Card
from raypot.data.store import write_store
from raypot.ensemble.output import predict_file
from raypot.ensemble.predictor import Predictor
from raypot.ensemble.sources import CHUNK, open_source
from raypot.errors import MissingInput, OutputError, UnknownElement, UsageError

ALL = ("energy", "forces", "stress", "charges", "dipole")


@pytest.fixture
def predictor(mixed_file):
    return Predictor(mixed_file, device="cpu")


@pytest.fixture
def mixed(ethanol, silicon):
    return [*ethanol[:5], silicon, *ethanol[5:7]]


@pytest.fixture
def store(mixed, tmp_path):
    write_store(tmp_path / "mixed.zarr", mixed, Card())
    return tmp_path / "mixed.zarr"


def test_extended_xyz_holds_everything(predictor, store, mixed, tmp_path):
    out = tmp_path / "out.xyz"
    assert predict_file(predictor, store, out, ALL) == len(mixed)
    expected = predictor.predict(mixed, ALL)
    frames = read(out, index=":")
    for frame, row, structure in zip(frames, expected, mixed, strict=True):
        np.testing.assert_allclose(frame.positions, structure.positions, atol=1e-8)
        assert frame.pbc.tolist() == structure.pbc.tolist()
        for name in ("energy", "energy_std", "dipole"):
            np.testing.assert_allclose(frame.info[f"raypot_{name}"], row[name], atol=1e-7)
        for name in ("forces", "forces_std", "charges"):
            np.testing.assert_allclose(frame.arrays[f"raypot_{name}"], row[name], atol=1e-7)
        assert ("raypot_stress" in frame.info) == bool(structure.pbc.all())
        if "forces" in structure.labels:
            labels = structure.labels
            np.testing.assert_allclose(frame.arrays["REF_forces"], labels["forces"], atol=1e-6)
            assert frame.info["REF_energy"] == pytest.approx(float(labels["energy"]))


@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather"])
def test_tables_hold_everything(predictor, store, mixed, tmp_path, ending):
    out = tmp_path / f"out.{ending}"
    predict_file(predictor, store, out, ALL)
    table = pq.read_table(out) if ending == "parquet" else feather.read_table(out)
    expected = predictor.predict(mixed, ALL)
    assert table.num_rows == len(mixed)
    np.testing.assert_allclose(table["raypot_energy_std"].to_numpy(), expected.energy_std)
    forces = np.concatenate(table["raypot_forces"].to_pylist()).reshape(-1, 3)
    np.testing.assert_allclose(forces, expected.forces, atol=1e-12)
    has_stress = [value is not None for value in table["raypot_stress"].to_pylist()]
    assert has_stress == [bool(s.pbc.all()) for s in mixed]


def test_what_was_written_can_be_read_and_predicted_again(predictor, store, tmp_path):
    first, second = tmp_path / "first.xyz", tmp_path / "second.extxyz"
    predict_file(predictor, store, first)
    predict_file(predictor, first, second)
    labels = [s.labels["energy"] for s in open_source(second) if s.labels]
    assert len(labels) == 7
    energies = [[f.info["raypot_energy"] for f in read(path, ":")] for path in (first, second)]
    np.testing.assert_allclose(energies[0], energies[1], atol=1e-5)


def test_bare_geometries_need_no_labels(predictor, ethanol, tmp_path):
    from ase import Atoms

    write(tmp_path / "bare.xyz", [Atoms(s.numbers, s.positions) for s in ethanol[:2]])
    (tmp_path / "dataset.toml").write_text('[keys]\nenergy = "E_dft"\n[units]\nenergy = "eV"\n')
    assert predict_file(predictor, tmp_path / "bare.xyz", tmp_path / "out.xyz") == 2


def test_files_longer_than_a_chunk_keep_their_order(predictor, ethanol, tmp_path, monkeypatch):
    assert CHUNK > 100
    monkeypatch.setattr("raypot.ensemble.sources.CHUNK", 5)
    write_store(tmp_path / "e.zarr", ethanol, Card())
    for name in ("out.xyz", "out.parquet"):
        predict_file(predictor, tmp_path / "e.zarr", tmp_path / name)
    expected = predictor.predict(ethanol).energy
    energies = [frame.info["raypot_energy"] for frame in read(tmp_path / "out.xyz", ":")]
    np.testing.assert_allclose(energies, expected, atol=1e-9)
    table = pq.read_table(tmp_path / "out.parquet")
    np.testing.assert_allclose(table["raypot_energy"].to_numpy(), expected, atol=1e-9)


def test_a_failure_leaves_no_file_and_keeps_the_old_one(predictor, ethanol, tmp_path):
    from ase.build import molecule

    write(tmp_path / "in.xyz", [molecule("CH3CH2OH"), molecule("CH3Cl")])
    out = tmp_path / "out.xyz"
    out.write_text("old")
    with pytest.raises(UnknownElement, match=r"in\.xyz, structure 1 \(CH3Cl\): Cl is unknown"):
        predict_file(predictor, tmp_path / "in.xyz", out)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.xyz", "out.xyz"]


def test_wrong_requests_are_refused_before_any_work(predictor, store, tmp_path):
    with pytest.raises(UsageError, match=r"the ending '\.csv' is unknown; use one of \.xyz"):
        predict_file(predictor, store, tmp_path / "out.csv")
    with pytest.raises(UsageError, match="'magmoms'"):
        predict_file(predictor, store, tmp_path / "out.xyz", ("magmoms",))
    with pytest.raises(MissingInput, match=r"none\.xyz"):
        predict_file(predictor, tmp_path / "none.xyz", tmp_path / "out.xyz")
    with pytest.raises(OutputError, match="no/such/out.xyz"):
        predict_file(predictor, store, tmp_path / "no" / "such" / "out.xyz")
