import json

import numpy as np
import pytest

from raypot.data.cards import Card
from raypot.data.splits import Split, SplitConfig, make_split
from raypot.data.splits_draw import ROLES
from raypot.data.store import write_store
from raypot.errors import CheckpointError, ConfigError, MissingInput
from raypot.structures import Structure


def atom(**changes):
    return Structure([18], np.zeros((1, 3)), **changes)


def dimer(index, **changes):
    return Structure([18, 18], [[0, 0, 0], [0, 0, 3.4 + 0.01 * index]], **changes)


@pytest.fixture
def store(tmp_path):
    cell = 1.7 * np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]])
    structures = [dimer(k, source=("dimers.xyz", k)) for k in range(40)]
    structures[5:5] = [
        atom(),
        atom(cell=np.diag([12.0] * 3), pbc=True),
        atom(cell=cell, pbc=True, source=("crystal.xyz", 0)),
    ]
    return write_store(tmp_path / "argon", structures, Card())


def test_isolated_atoms_are_in_no_role(store):
    split = make_split(store, SplitConfig())
    assert split.isolated.tolist() == [5, 6]  # row 7 is a crystal with one atom in its cell
    together = np.concatenate([split.rows(role) for role in ROLES])
    assert sorted(together) == sorted(set(range(43)) - {5, 6})
    assert all((np.diff(split.rows(role)) > 0).all() for role in ROLES)


def test_files_of_a_store(store):
    split = make_split(store, SplitConfig(files={"test": ["crystal*"]}))
    assert split.test.tolist() == [7]


def test_split_survives_its_file(store, tmp_path):
    split = make_split(store, SplitConfig(seed=3))
    path = tmp_path / "split.json"
    split.save(path)
    again = Split.load(path)
    for role in (*ROLES, "isolated"):
        np.testing.assert_array_equal(again.rows(role), split.rows(role))
    assert again.fingerprint == split.fingerprint
    assert [file.name for file in tmp_path.glob("split*")] == ["split.json"]


def test_fingerprint_covers_rows_and_store(store):
    split = make_split(store, SplitConfig())
    tree = split.to_json()
    assert make_split(store, SplitConfig()).fingerprint == split.fingerprint
    assert make_split(store, SplitConfig(seed=1)).fingerprint != split.fingerprint
    moved = {**tree, "val": tree["val"][1:], "train": [*tree["train"], tree["val"][0]]}
    for altered in (moved, {**tree, "store": "other"}):
        with pytest.raises(CheckpointError, match="rows do not match their fingerprint"):
            Split.from_json(altered)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "a list, expected a JSON object"),
        (json.dumps({"train": [1]}), "val: field required"),
    ],
)
def test_files_that_are_no_split(tmp_path, text, message):
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=message):
        Split.load(path)


def test_missing_split_file(tmp_path):
    with pytest.raises(MissingInput, match="no such file"):
        Split.load(tmp_path / "split.json")


def test_unknown_role(store):
    with pytest.raises(ConfigError, match="'trian' is no role"):
        make_split(store, SplitConfig()).rows("trian")
