"""A damaged store is an error that names the file and the structures, never a number."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raypot.data import store_columns
from raypot.data.cards import Card
from raypot.data.store import Store, verify, write_store
from raypot.data.store_columns import COLUMNS
from raypot.data.store_manifest import Census
from raypot.errors import MissingInput, NewerFormat, RaypotError, StorageError, StoreError
from raypot.structures import Structure


def flip(raw: bytes, at: float) -> bytes:
    """Return `raw` with one bit flipped at a fraction of its length."""
    damaged = bytearray(raw)
    position = min(int(at * len(raw)), len(raw) - 1)
    damaged[position] ^= 1 << position % 8
    return bytes(damaged)


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda raw: None,
    "truncated": lambda raw: raw[: len(raw) // 2],
    "empty": lambda raw: b"",
    "one byte short": lambda raw: raw[:-1],
    "flipped at the start": lambda raw: flip(raw, 0.0),
    "flipped inside": lambda raw: flip(raw, 0.4),
    "flipped at the end": lambda raw: flip(raw, 1.0),
}


def damage(file: Path, kind: str) -> None:
    changed = DAMAGES[kind](file.read_bytes())
    if changed is None:
        file.unlink()
    else:
        file.write_bytes(changed)


def read_everything(path: Path) -> None:
    store = Store.open(path)
    store.read()
    for name, column in COLUMNS.items():
        if column.per == "structure":
            store.column(name.partition("/")[2])


@pytest.fixture
def store(ethanol: list[Structure], tmp_path: Path) -> Path:
    """Twenty-four structures with records; one shard a column."""
    named = [
        Structure(s.numbers, s.positions, labels=s.labels, record=f"r{i}")
        for i, s in enumerate(ethanol)
    ]
    write_store(tmp_path / "s", named, Card())
    return tmp_path / "s"


@pytest.fixture
def sharded(ethanol: list[Structure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with five structures or forty-five atoms a shard."""
    monkeypatch.setattr(store_columns, "CHUNK", {"structure": 5, "atom": 45})
    monkeypatch.setattr(store_columns, "CHUNKS_PER_SHARD", 1)
    write_store(tmp_path / "sharded", ethanol, Card())
    return tmp_path / "sharded"


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damage_of_every_file_is_named(kind: str, store: Path) -> None:
    files = sorted(file for file in store.rglob("*") if file.is_file())
    assert len(files) > 40
    for file in files:
        whole = file.read_bytes()
        damage(file, kind)
        name = file.relative_to(store).as_posix()
        with pytest.raises((StoreError, NewerFormat), match=name) as caught:
            read_everything(store)
        assert caught.value.exit_code in (65, 78)
        if "/c/" in name:
            assert "(structures 0 to 23)" in str(caught.value), name
            assert caught.value.rows == (0, 24)
        found = verify(store)
        assert len(found) == 1, name
        assert name in found[0]
        file.write_bytes(whole)
    read_everything(store)
    assert verify(store) == []


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("atoms/positions/c/1/0", (5, 10)),
        ("labels/reference/energy/c/4", (20, 24)),
        ("labels/reference/forces/c/2/0", (10, 15)),
    ],
)
def test_the_structures_of_a_damaged_shard_are_named(
    name: str, rows: tuple[int, int], kind: str, sharded: Path
) -> None:
    opened = Store.open(sharded)
    expected = opened.read(np.arange(0, 5))
    damage(sharded / name, kind)
    message = rf"{name} \(structures {rows[0]} to {rows[1] - 1}\): "
    with pytest.raises(StoreError, match=message) as caught:
        opened.read(np.arange(*rows))
    assert caught.value.file == name
    assert caught.value.rows == rows
    with pytest.raises(StoreError, match=message):
        opened.read([rows[0], 0])
    # What is whole can still be read by whoever has the store open.
    again = opened.read(np.arange(0, 5))
    np.testing.assert_array_equal(again.labels["forces"], expected.labels["forces"])


def test_rows_of_atom_shards_overlap_where_structures_do(
    ethanol: list[Structure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_columns, "CHUNK", {"structure": 5, "atom": 10})
    monkeypatch.setattr(store_columns, "CHUNKS_PER_SHARD", 1)
    write_store(tmp_path / "s", ethanol[:3], Card())
    for index, rows in enumerate([(0, 2), (1, 3), (2, 3)]):
        (tmp_path / f"s/atoms/numbers/c/{index}").unlink()
        found = verify(tmp_path / "s")
        assert f"numbers/c/{index} (structures {rows[0]} to {rows[1] - 1})" in found[index]


def outcome(store: Path, before: dict[str, Census]) -> str:
    """Say whether a store opens as it was, fails with the name of its manifest, or lies."""
    try:
        return "same" if Store.open(store).census() == before else "lie"
    except (StoreError, NewerFormat) as error:
        return "error" if "manifest.json" in str(error) else str(error)


def test_altered_manifests_never_give_numbers(store: Path) -> None:
    manifest = store / "manifest.json"
    whole, before = manifest.read_bytes(), Store.open(store).census()
    for at in np.linspace(0, 1, 150):
        manifest.write_bytes(flip(whole, at))
        assert outcome(store, before) in ("same", "error")


def test_two_damages_are_both_listed(store: Path) -> None:
    damage(store / "atoms/positions/c/0/0", "flipped inside")
    damage(store / "structures/cell/c/0/0/0", "missing")
    damage(store / "structures/pbc/zarr.json", "flipped inside")
    assert len(verify(store)) == 3


def test_newer_version(store: Path) -> None:
    manifest = store / "manifest.json"
    tree = json.loads(manifest.read_text())
    tree["version"] += 1
    manifest.write_text(json.dumps(tree))
    for call in (Store.open, verify):
        with pytest.raises(NewerFormat, match="format version 2, this raypot reads up to 1") as e:
            call(store)
        assert e.value.exit_code == 78


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "not the manifest of a raypot store"),
        (b'{"format": "other"}', "not the manifest of a raypot store"),
        (b'{"format": "raypot-store"}', "has no format version"),
        (b'{"format": "raypot-store", "version": 1}', "does not match its checksum"),
        (b"[" * 100_000, "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
    ],
)
def test_foreign_manifests(content: bytes, message: str, store: Path) -> None:
    (store / "manifest.json").write_bytes(content)
    with pytest.raises(StoreError, match=message):
        Store.open(store)


def test_what_is_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="no such store; make one with `raypot data import`"):
        Store.open(tmp_path / "nothing")
    with pytest.raises(MissingInput, match="no such store"):
        verify(tmp_path / "nothing")
    with pytest.raises(StoreError, match=r"manifest\.json: missing, so this is not a whole store"):
        Store.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="missing, so this is not a whole store"):
        Store.open(tmp_path / "file")
    with pytest.raises(StorageError, match="nosuch://x: cannot be read"):
        Store.open("nosuch://x")


def test_a_folder_in_the_place_of_a_file(store: Path) -> None:
    (store / "manifest.json").unlink()
    (store / "manifest.json").mkdir()
    with pytest.raises(StorageError, match="cannot be read: .*manifest.json"):
        Store.open(store)


def test_errors_survive_pickling_between_processes(store: Path) -> None:
    damage(store / "atoms/positions/c/0/0", "empty")
    with pytest.raises(RaypotError, match="0 bytes, expected") as caught:
        Store.open(store)
    assert pickle.loads(pickle.dumps(caught.value)).rows == (0, 24)


def test_moved_and_copied_stores_are_whole(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "copy")
    store.rename(tmp_path / "moved")
    assert Store.open(tmp_path / "copy").fingerprint == Store.open(tmp_path / "moved").fingerprint
    assert verify(tmp_path / "copy") == verify(tmp_path / "moved") == []
