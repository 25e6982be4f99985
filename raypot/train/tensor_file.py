"""Named tensors and one JSON tree in a `.safetensors` file, checked before it is believed.

The JSON tree stands in the header's metadata beside a SHA-256 of everything. Reading parses the
header with bounds of its own, so that a foreign or damaged file is refused before memory is
allocated for it, and never runs code.

**Source** The safetensors format, https://github.com/huggingface/safetensors.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from raypot.errors import CheckpointError, MissingInput, NewerFormat, StorageError

MAX_HEADER = 64 * 1024 * 1024  # bytes
MAX_DIMENSIONS = 8
ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1,
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*")
_PICKLE_STARTS = (b"PK", b"\x80")


@dataclass(frozen=True)
class TensorFile:
    """What one file holds.

    Args:
        tree: plain values.
        tensors: by name; names are words joined by dots.
    """

    tree: dict[str, Any]
    tensors: dict[str, Tensor]


def pack(kind: str, version: int, content: TensorFile) -> bytes:
    """Turn a tree and tensors into the bytes of a file.

    Args:
        kind: what the file is, for example `raypot-model`.
        version: version of the layout of tree and tensors.
        content: the tree must be JSON without NaN.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in content.tensors.items()}
    text = json.dumps(content.tree, allow_nan=False, sort_keys=True, ensure_ascii=False)
    head = {
        "kind": kind,
        "version": str(version),
        "tree": text,
        "sha256": _digest(kind, version, text, tensors),
    }
    return save(_separate(tensors), head)


def unpack(path: Path, kind: str, version: int) -> TensorFile:
    """Read a file that `pack` made.

    Args:
        path: the file.
        kind: what it must be.
        version: the newest version that the caller understands.

    Raises:
        MissingInput: no such file.
        NewerFormat: it was written by a newer raypot.
        CheckpointError: it is anything else than a whole file of that kind.
        StorageError: the disk failed.
    """
    data = _read_bytes(path)
    head = _checked_header(path, data)
    if head.get("kind") != kind:
        raise CheckpointError(
            f"{path}: its header says kind {head.get('kind')!r}, expected {kind!r}; "
            "name a file that raypot wrote for this purpose",
            path=str(path),
        )
    written = head.get("version", "")
    if not (written.isascii() and written.isdigit()) or int(written) > version:
        raise NewerFormat(
            f"{path}: format version {written!r}, this raypot reads up to {version}; "
            "install a newer raypot",
            path=str(path),
        )
    text = head.get("tree", "")
    tree = _parse(path, text, "metadata")
    tensors = load(data)
    if head.get("sha256") != _digest(kind, int(written), text, tensors):
        raise _damaged(path, "its checksum does not fit its content")
    return TensorFile(tree, tensors)


def is_word(name: str) -> bool:
    """Say whether a name is words joined by dots, and so harmless as a file name."""
    return len(name) <= 256 and _NAME.fullmatch(name) is not None


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that share memory with an earlier one, which the format cannot express."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        start = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if start in seen else tensor
        seen.add(start)
    return separate


def _digest(kind: str, version: int, text: str, tensors: Mapping[str, Tensor]) -> str:
    """Hash names, types, shapes and values, independent of the order in the file."""
    digest = hashlib.sha256(f"{kind} {version} {text}".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MissingInput(f"{path}: no such file", path=str(path)) from error
    except IsADirectoryError as error:
        raise MissingInput(f"{path}: is a folder, a .safetensors file is expected") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})", path=str(path)) from error


def _checked_header(path: Path, data: bytes) -> dict[str, str]:
    """Check the header against the size of the file and return its metadata."""
    if data.startswith(_PICKLE_STARTS) and data[8:9] != b"{":
        raise CheckpointError(
            f"{path}: looks like a pickle or a zip, which could run code and is never opened; "
            "only .safetensors files that raypot wrote are read",
            path=str(path),
        )
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER, len(data) - 8):
        raise _damaged(path, f"a header of {length:,} bytes in a file of {len(data):,} bytes")
    try:
        text = data[8 : 8 + length].decode()
    except UnicodeDecodeError as error:
        raise _damaged(path, "its header is not text") from error
    header = _parse(path, text, "header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "its metadata is not a table of texts")
    _check_layout(path, header, len(data) - 8 - length)
    return metadata


def _check_layout(path: Path, header: Mapping[str, Any], n_bytes: int) -> None:
    """Check that the tensors fill the file exactly, without gap or overlap."""
    spans = []
    for name, entry in header.items():
        if not is_word(name):
            raise _damaged(path, f"tensor name {name[:80]!r} is not words joined by dots")
        spans.append(_checked_span(path, name, entry))
    position = 0
    for start, end in sorted(spans):
        if start != position:
            raise _damaged(path, f"tensors overlap or leave a gap at byte {start:,}")
        position = end
    if position != n_bytes:
        raise _damaged(path, f"its tensors need {position:,} bytes and it holds {n_bytes:,}")


def _checked_span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Return first and last byte of a tensor after checking them against type and shape."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise _damaged(path, f"tensor {name!r} has dtype {dtype!r}; known: {', '.join(ITEM_SIZES)}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise _damaged(path, f"tensor {name!r} has shape {shape!r}")
    if not _are_counts(span) or len(span) != 2:
        raise _damaged(path, f"tensor {name!r} has data_offsets {span!r}")
    if span[1] - span[0] != math.prod(shape) * ITEM_SIZES[dtype]:
        raise _damaged(path, f"tensor {name!r} does not have the size of its shape {shape}")
    return span[0], span[1]


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**53 for v in values)


def _parse(path: Path, text: str, what: str) -> dict[str, Any]:
    """Parse JSON that must be a table, without repeated keys and without NaN."""
    try:
        tree = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its {what} is not valid JSON") from error
    if not isinstance(tree, dict):
        raise _damaged(path, f"its {what} is not a table")
    return tree


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        raise ValueError("a key occurs twice")
    return tree


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {reason}; the file is damaged or was not written by raypot", path=str(path)
    )
