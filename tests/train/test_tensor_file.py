"""Foreign and damaged tensor files are refused before anything is believed."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from raypot.errors import CheckpointError, MissingInput, NewerFormat
from raypot.train.tensor_file import TensorFile, is_word, pack, unpack

KIND = "raypot-test"


@pytest.fixture
def content() -> TensorFile:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    tensors = {
        "a.weight": weight,
        "a.view": weight[:2],
        "step": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "transposed": torch.randn(2, 5, generator=generator).mT,
        "flags": torch.tensor([True, False]),
    }
    return TensorFile({"epoch": 3, "rate": 0.1 + 0.2, "name": "Å"}, tensors)


@pytest.fixture
def path(tmp_path: Path, content: TensorFile) -> Path:
    path = tmp_path / "content.safetensors"
    path.write_bytes(pack(KIND, 2, content))
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a file and leave its data alone."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def test_round_trip_is_exact(path: Path, content: TensorFile) -> None:
    read = unpack(path, KIND, 2)
    assert read.tree == content.tree
    assert read.tensors.keys() == content.tensors.keys()
    for name, tensor in content.tensors.items():
        assert read.tensors[name].dtype == tensor.dtype
        assert torch.equal(read.tensors[name], tensor)


def test_truncation_anywhere_is_noticed(path: Path) -> None:
    data = path.read_bytes()
    for length in range(0, len(data), 37):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="damaged or was not written by raypot"):
            unpack(path, KIND, 2)


def test_a_flipped_bit_anywhere_is_noticed(path: Path) -> None:
    data = path.read_bytes()
    for position in range(0, len(data), 11):
        altered = bytearray(data)
        altered[position] ^= 1
        path.write_bytes(altered)
        with pytest.raises((CheckpointError, NewerFormat), match=r"content\.safetensors: "):
            unpack(path, KIND, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["a.weight"].update(dtype="F8_E5M2"), "has dtype 'F8_E5M2'"),
        (lambda h: h["a.weight"].update(dtype=["F64"]), "has dtype"),
        (lambda h: h["a.weight"].update(shape=[10**9, 10**9]), "does not have the size"),
        (lambda h: h["a.weight"].update(shape=[-3, -4]), "has shape"),
        (lambda h: h["a.weight"].update(shape=[True, 12]), "has shape"),
        (lambda h: h["a.view"].update(data_offsets=h["a.weight"]["data_offsets"]), "size of its"),
        (lambda h: h["flags"].update(data_offsets=[0, 2]), "overlap or leave a gap"),
        (lambda h: h.pop("a.weight"), "overlap or leave a gap"),
        (lambda h: h.update({"../../etc/passwd": h.pop("a.weight")}), "not words joined by dots"),
        (lambda h: h["a.weight"].update(extra=1), "not described by"),
        (lambda h: h.update(step=3), "not described by"),
        (lambda h: h["__metadata__"].update(version=2), "not a table of texts"),
        (lambda h: h["__metadata__"].update(tree="[1]"), "metadata is not a table"),
        (lambda h: h["__metadata__"].update(tree='{"a": NaN}'), "metadata is not valid JSON"),
        (lambda h: h["__metadata__"].update(tree='{"a": 1, "a": 2}'), "metadata is not valid JSON"),
        (lambda h: h["__metadata__"].update(tree="[" * 10**5), "metadata is not valid JSON"),
        (lambda h: h["__metadata__"].update(tree='{"epoch": 4}'), "checksum"),
        (lambda h: h["__metadata__"].update(kind="other"), "says kind 'other'"),
    ],
)
def test_a_hostile_header_is_refused(
    path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=message):
        unpack(path, KIND, 2)


def test_a_huge_header_is_refused_before_it_is_read(path: Path) -> None:
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match=r"a header of 4,611,686"):
        unpack(path, KIND, 2)


def test_a_newer_version_says_so(path: Path) -> None:
    with pytest.raises(NewerFormat, match=r"version '2', this raypot reads up to 1; install"):
        unpack(path, KIND, 1)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(canary),)

    for name, write in (
        ("a.pt", torch.save),
        ("b.pkl", lambda x, p: p.write_bytes(pickle.dumps(x))),
    ):
        write(Trap(), tmp_path / name)
        with pytest.raises(CheckpointError, match="looks like a pickle or a zip"):
            unpack(tmp_path / name, KIND, 2)
    assert not canary.exists()


def test_a_header_may_begin_like_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "content.safetensors"
    starts = set()
    for length in range(256):
        path.write_bytes(pack(KIND, 1, TensorFile({"pad": "x" * length}, {})))
        starts.add(path.read_bytes()[:1])
        assert unpack(path, KIND, 1).tree == {"pad": "x" * length}
    assert b"\x80" in starts


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"nothing\.safetensors: no such file"):
        unpack(tmp_path / "nothing.safetensors", KIND, 2)
    with pytest.raises(MissingInput, match="is a folder"):
        unpack(tmp_path, KIND, 2)


def test_words_are_harmless_names() -> None:
    assert is_word("trial-3.seed_1")
    for bad in ("", ".", "..", "a/b", "../a", "a..b", ".hidden", "a b", "å", "a" * 300, "a\n"):
        assert not is_word(bad)
