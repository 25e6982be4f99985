"""The store: round trips, order, ragged reads, levels, census, fingerprint."""

import itertools
import pickle
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr

from raypot.data import store_columns
from raypot.data.cards import Card
from raypot.data.store import Store, verify, write_store
from raypot.data.store_write import content_hash
from raypot.errors import ConfigError, FormatError, LabelError, OutputError, StoreError
from raypot.structures import Block, Structure

CARD = Card(name="test")


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three structures or ten atoms a chunk, two chunks a shard: many files from little data."""
    monkeypatch.setattr(store_columns, "CHUNK", {"structure": 3, "atom": 10})
    monkeypatch.setattr(store_columns, "CHUNKS_PER_SHARD", 2)


@pytest.fixture
def mixed(rng: np.random.Generator) -> list[Structure]:
    """Forty structures of one to seven atoms; every third lacks forces, late ones have charges."""
    structures = []
    for index in range(40):
        n_atoms = 1 + index % 7
        labels = {"energy": np.array(rng.normal() * 1e6), "dipole": rng.normal(size=3)}
        if index % 3:
            labels["forces"] = rng.normal(size=(n_atoms, 3))
        if index > 25:
            labels["charges"] = rng.normal(size=n_atoms)
        structures.append(
            Structure(
                rng.integers(1, 90, n_atoms),
                3 * rng.normal(size=(n_atoms, 3)),
                cell=8 * np.eye(3) if index % 2 else np.zeros((3, 3)),
                pbc=np.full(3, bool(index % 2)),
                total_charge=float(index % 3 - 1),
                spin=float(1 + index % 2),
                weight=0.5 + index,
                labels=labels,
                record=f"record {index // 5}",
                config_type="é,\n" if index % 2 else "",
                source=("a.xyz" if index < 20 else "b.xyz", index),
            )
        )
    return structures


def assert_same(found: Block, expected: Block) -> None:
    names = ("numbers", "positions", "offsets", "cell", "pbc", "total_charge", "spin", "weight")
    for name in names:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert found.labels.keys() == expected.labels.keys()
    for name, values in expected.labels.items():
        stored = values if name == "energy" else values.astype(np.float32)
        np.testing.assert_array_equal(found.labels[name], stored, err_msg=name)
        assert found.labels[name].dtype == np.float64


@pytest.mark.parametrize("size", ["usual", "small"])
def test_round_trip(
    size: str, mixed: list[Structure], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if size == "small":
        request.getfixturevalue("small_shards")
    store = write_store(tmp_path / "s", iter(mixed), CARD)
    expected = Block.from_structures(mixed)
    assert_same(store.read(), expected)
    assert (store.n_structures, store.n_atoms) == (40, len(expected.numbers))
    assert store.elements == tuple(np.unique(expected.numbers))
    assert store.card == CARD
    assert store.levels == ("reference",)
    assert list(store.column("record")) == [s.record for s in mixed]
    assert list(store.column("config_type")) == [s.config_type for s in mixed]
    assert list(store.column("source_file")) == [s.source[0] for s in mixed]
    assert list(store.column("source_index")) == list(range(40))
    assert list(store.column("n_atoms")) == [len(s) for s in mixed]
    assert list(store.column("weight")) == [s.weight for s in mixed]
    assert verify(store.path) == []


def test_many_shards_are_written(
    small_shards: None, mixed: list[Structure], tmp_path: Path
) -> None:
    write_store(tmp_path / "s", mixed, CARD)
    assert len(list((tmp_path / "s/atoms/positions/c").iterdir())) == 8  # 156 atoms, 20 a shard
    assert len(list((tmp_path / "s/structures/spin/c").iterdir())) == 7


def test_rows_in_any_order(
    small_shards: None, mixed: list[Structure], tmp_path: Path, rng: np.random.Generator
) -> None:
    store = write_store(tmp_path / "s", mixed, CARD)
    everything = store.read()
    for rows in (
        rng.permutation(40),
        rng.integers(0, 40, 25),
        np.array([39, 0, 0]),
        np.arange(7, 23),
        np.array([5]),
        np.zeros(0, dtype=np.int64),
    ):
        found = store.read(rows)
        assert_same(found, everything.take(rows))
        np.testing.assert_array_equal(found.rows, rows)


def test_labels_asked_by_name(mixed: list[Structure], tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", mixed, CARD)
    block = store.read([3, 1], labels=("stress", "energy", "polarizability"))
    assert list(block.labels) == ["stress", "energy", "polarizability"]
    assert block.labels["stress"].shape == (2, 3, 3)
    assert np.isnan(block.labels["stress"]).all()
    assert store.read([2], labels=()).labels == {}
    assert not (tmp_path / "s/labels/reference/stress").exists()
    with pytest.raises(ConfigError, match="property 'enegy': unknown"):
        store.read(labels=("enegy",))
    with pytest.raises(LabelError, match="has no level 'ccsd'; it has reference"):
        store.read(level="ccsd")
    with pytest.raises(ConfigError, match="column 'colour': unknown; known are n_atoms, cell"):
        store.column("colour")
    with pytest.raises(StoreError, match="rows -1 to 3 were asked for, it has 0 to 39"):
        store.read([3, -1])


def test_a_label_of_nan_is_not_written(tmp_path: Path) -> None:
    labels = {"energy": np.array(1.0), "forces": np.full((1, 3), np.nan)}
    store = write_store(tmp_path / "s", [Structure([1], [[0, 0, 0]], labels=labels)], CARD)
    assert list(store.census()) == ["energy"]
    assert not (tmp_path / "s/labels/reference/forces").exists()


def test_shards_cover_every_row_once(
    small_shards: None, mixed: list[Structure], tmp_path: Path
) -> None:
    store = write_store(tmp_path / "s", mixed, CARD)
    ranges = store.shards()
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 40
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    assert len(ranges) > 3
    blocks = [store.read(np.arange(*span)) for span in ranges]
    assert_same(Block.concatenate(blocks), store.read())


def test_one_structure_larger_than_shards(small_shards: None, tmp_path: Path) -> None:
    positions = np.arange(300.0).reshape(100, 3)
    several = [Structure(np.ones(n), positions[:n]) for n in (1, 100, 2)]
    store = write_store(tmp_path / "s", several, CARD)
    assert_same(store.read(), Block.from_structures(several))
    assert [list(span) for span in store.shards()] == [[0, 2], [2, 3]]


def test_census(mixed: list[Structure], tmp_path: Path) -> None:
    census = write_store(tmp_path / "s", mixed, CARD, level="pbe").census("pbe")
    forces = np.concatenate([s.labels["forces"] for s in mixed if "forces" in s.labels])
    row = census["forces"]
    assert (row.name, row.unit, row.count, row.missing) == ("forces", "eV/Å", 26, 14)
    assert row.minimum == pytest.approx(forces.min(), rel=1e-6)
    assert row.mean == pytest.approx(forces.mean(), rel=1e-5)
    assert row.maximum == pytest.approx(forces.max(), rel=1e-6)
    assert census["charges"].count == 14
    assert census["energy"].missing == 0


def test_precise_labels_keep_the_last_digit(tmp_path: Path, rng: np.random.Generator) -> None:
    forces = rng.normal(size=(2, 3))
    structure = Structure([1, 1], [[0, 0, 0], [0, 0, 1.0]], labels={"forces": forces})
    store = write_store(tmp_path / "s", [structure], Card(precise=("forces",)))
    np.testing.assert_array_equal(store.read().labels["forces"], forces)


def test_fingerprint_is_of_the_content_alone(
    mixed: list[Structure], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    first = write_store(tmp_path / "a", mixed, CARD).fingerprint
    assert write_store(tmp_path / "b", mixed, Card(name="other")).fingerprint == first
    changed = Block.from_structures(mixed).structure(39)
    assert write_store(tmp_path / "c", [*mixed[:39], changed], CARD).fingerprint != first
    assert write_store(tmp_path / "d", mixed, CARD, level="pbe").fingerprint != first
    request.getfixturevalue("small_shards")
    assert write_store(tmp_path / "e", mixed, CARD).fingerprint == first


def test_content_hash_is_of_the_geometry() -> None:
    water = Structure([8, 1, 1], [[0, 0, 0], [0.96, 0, 0], [0, 0.96, 0]])
    cell = 9 * np.eye(3)
    same = Structure(water.numbers, water.positions + 1e-9, labels={"energy": 1.0}, cell=cell)
    assert content_hash(water) == content_hash(same)
    others = [
        Structure(water.numbers, water.positions + 1e-5),
        Structure(water.numbers[::-1], water.positions),
        Structure(water.numbers, water.positions, total_charge=1.0),
        Structure(water.numbers, water.positions, spin=3.0),
        Structure(water.numbers, water.positions, cell=cell, pbc=[True] * 3),
    ]
    assert len({content_hash(s) for s in (water, *others)}) == 6


def test_store_is_pickled_by_its_path(mixed: list[Structure], tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", mixed, CARD)
    again = pickle.loads(pickle.dumps(store))
    assert again.fingerprint == store.fingerprint
    assert len(again) == 40


def test_store_is_read_through_a_url(mixed: list[Structure], tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", mixed, CARD)
    memory = fsspec.filesystem("memory")
    try:
        memory.put(str(tmp_path / "s"), "/set", recursive=True)
        remote = Store.open("memory://set")
        assert_same(remote.read([4, 2]), store.read().take([4, 2]))
        assert verify("memory://set") == []
        memory.rm("/set/atoms/positions/c/0/0")
        with pytest.raises(StoreError, match=r"positions/c/0/0 \(structures 0 to 39\): missing"):
            remote.read()
        assert len(verify("memory://set")) == 1
    finally:
        memory.rm("/set", recursive=True)


def test_plain_zarr_reads_it_too(mixed: list[Structure], tmp_path: Path) -> None:
    write_store(tmp_path / "s", mixed, CARD)
    group = zarr.open_group(tmp_path / "s", mode="r")
    expected = [s.labels["energy"] for s in mixed]
    np.testing.assert_array_equal(group["labels/reference/energy"][:], expected)


def test_refusals(mixed: list[Structure], tmp_path: Path) -> None:
    write_store(tmp_path / "s", mixed, CARD)
    with pytest.raises(OutputError, match="s: exists already; choose another name"):
        write_store(tmp_path / "s", mixed, CARD)
    with pytest.raises(ConfigError, match=r"level '\.\./up': expected letters"):
        write_store(tmp_path / "t", mixed, CARD, level="../up")
    with pytest.raises(FormatError, match="there is no structure to store"):
        write_store(tmp_path / "t", [], CARD)
    infinite = Structure([1], [[0, 0, 0]], labels={"charges": np.array([1e39])})
    with pytest.raises(FormatError, match="charges: a value between structures 0 and 0 is inf"):
        write_store(tmp_path / "t", [infinite], CARD)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]


def test_small_stores_open_and_read_fast(ethanol: list[Structure], tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", (ethanol * 42)[:1000], CARD)

    def seconds() -> float:
        start = time.perf_counter()
        Store.open(store.path).read()
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.05
