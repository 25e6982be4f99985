"""The columns of a store: one sharded zarr array each, written once in order, read by items.

An item is a structure or an atom. Inner chunks hold about a megabyte of the widest column; a
shard, which is one file, holds several. Chunks are zstd with a crc32c behind it.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from raypot.data.store_files import Files
from raypot.data.store_manifest import METADATA, Manifest, check_file, unreadable
from raypot.durable import write_synced
from raypot.properties import PROPERTIES
from raypot.structures import Integers

CHUNK = {"structure": 1 << 13, "atom": 1 << 15}  # items of an inner chunk
CHUNKS_PER_SHARD = 8
ZSTD_LEVEL = 3
Values = NDArray[Any]


class Column(NamedTuple):
    """What one column holds: one value of `shape` and `dtype` an item."""

    per: Literal["structure", "atom"]
    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def fill(self) -> Any:
        """What zarr shows where nothing was written; never a believable number."""
        kind = np.dtype(self.dtype)
        if kind.kind == "f":
            return np.nan
        return -1 if kind.kind == "i" else kind.type(0)

    @property
    def shard(self) -> int:
        """Items of a shard."""
        return CHUNK[self.per] * CHUNKS_PER_SHARD


WORD_COLUMNS = ("record", "config_type", "source_file")  # codes into `<name>_words`
COLUMNS: dict[str, Column] = {
    "structures/n_atoms": Column("structure", "int32"),
    "structures/cell": Column("structure", "float64", (3, 3)),
    "structures/pbc": Column("structure", "bool", (3,)),
    "structures/total_charge": Column("structure", "float64"),
    "structures/spin": Column("structure", "float64"),
    "structures/weight": Column("structure", "float64"),
    "structures/record": Column("structure", "int32"),
    "structures/config_type": Column("structure", "int32"),
    "structures/source_file": Column("structure", "int32"),
    "structures/source_index": Column("structure", "int64"),
    "structures/content_hash": Column("structure", "uint64"),
    "atoms/numbers": Column("atom", "uint8"),
    "atoms/positions": Column("atom", "float64", (3,)),
}
WORDS = Column("atom", "uint8")  # the UTF-8 of a JSON list


def label_column(name: str, is_precise: bool) -> Column:
    """Return the column of a label; float64 where asked or where the property needs it."""
    row = PROPERTIES[name]
    return Column(row.level, "float64" if is_precise or row.precise else "float32", row.shape)


class Shard(NamedTuple):
    """One written file of a column and the items in it."""

    size: int
    sha256: str
    first: int
    stop: int


class Encoder:
    """Let zarr encode arrays in memory, and write what it made file by file.

    zarr itself writes from several threads, which go on after one of them failed; here every
    write is one call that ends before the next begins.

    Args:
        folder: of the new store.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._encoded: dict[str, Any] = {}
        self.store = zarr.storage.MemoryStore(self._encoded)
        zarr.create_group(self.store)

    def write_chunks(self) -> list[tuple[str, int, str]]:
        """Write every shard that is ready; return name, size and hash of each."""
        return [self._write(name) for name in list(self._encoded) if not name.endswith(METADATA)]

    def write_metadata(self) -> list[tuple[str, int, str]]:
        """Write the descriptions of groups and arrays; return name, size and hash of each."""
        return [self._write(name) for name in list(self._encoded)]

    def _write(self, name: str) -> tuple[str, int, str]:
        content: bytes = self._encoded.pop(name).to_bytes()
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_synced(file, content)
        return name, len(content), hashlib.sha256(content).hexdigest()


class ColumnWriter:
    """Append to one column; at most one shard is held in memory.

    Args:
        encoder: of the store.
        name: path of the array below it.
        column: what it holds.
    """

    def __init__(self, encoder: Encoder, name: str, column: Column) -> None:
        self.name = name
        self.column = column
        self.n_items = 0
        self.files: dict[str, Shard] = {}
        self.digest = hashlib.sha256()
        self._encoder = encoder
        self._parts: list[Values] = []
        self._array: Any = None
        self._written = 0

    def append(self, values: Values) -> None:
        """Add items (K, ...) at the end."""
        values = np.ascontiguousarray(values, dtype=self.column.dtype)
        self.digest.update(values.tobytes())
        self.n_items += len(values)
        self._parts.append(values)
        if self.n_items - self._written >= self.column.shard:
            self._flush_whole_shards()

    def skip(self, n_items: int) -> None:
        """Add items without a value."""
        for start in range(0, n_items, self.column.shard):
            count = min(self.column.shard, n_items - start)
            self.append(np.full((count, *self.column.shape), self.column.fill))

    def finish(self) -> None:
        """Write what is left."""
        self._flush_whole_shards()
        if self._parts:
            self._write(np.concatenate(self._parts))
            self._parts = []

    def content(self) -> list[Any]:
        """Return type, shape and hash of the values: what the fingerprint is made of."""
        return [self.column.dtype, [self.n_items, *self.column.shape], self.digest.hexdigest()]

    def _flush_whole_shards(self) -> None:
        if not self._parts:
            return
        values, size = np.concatenate(self._parts), self.column.shard
        n_whole = len(values) // size * size
        for start in range(0, n_whole, size):
            self._write(values[start : start + size])
        self._parts = [values[n_whole:].copy()] if n_whole < len(values) else []

    def _write(self, values: Values) -> None:
        first, stop = self._written, self._written + len(values)
        if self._array is None:
            self._array = self._create(len(values))
        else:
            self._array.resize((stop, *self.column.shape))
        self._array[first:stop] = values
        self._written = stop
        for name, size, sha256 in self._encoder.write_chunks():
            self.files[name] = Shard(size, sha256, first, stop)

    def _create(self, n_items: int) -> Any:
        """Create the array; a column that fits one shard gets chunks of its own size."""
        chunk = min(CHUNK[self.column.per], n_items)
        per_shard = -(-n_items // chunk)
        return zarr.create_array(
            self._encoder.store,
            name=self.name,
            shape=(n_items, *self.column.shape),
            chunks=(chunk, *self.column.shape),
            shards=(chunk * per_shard, *self.column.shape),
            dtype=self.column.dtype,
            compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
            fill_value=self.column.fill,
            config={"write_empty_chunks": True},
        )


class ColumnReader:
    """Read items of one column, whole chunks at a time, checking what is read.

    Args:
        files: the files of the store.
        manifest: what they must be.
        where: the store, for messages.
        name: path of the array.
    """

    def __init__(self, files: Files, manifest: Manifest, where: str, name: str) -> None:
        self._files = files
        self._manifest = manifest
        self._where = where
        self.name = name
        self._array: Any = zarr.open_array(files.zarr_store(), path=name, mode="r")
        self.n_items: int = self._array.shape[0]
        self.shape: tuple[int, ...] = self._array.shape[1:]
        self._chunk: int = self._array.chunks[0]
        self.shard: int = self._array.shards[0]

    def select(self, items: slice | Integers) -> Values:
        """Return a range without a step, or items in the order given."""
        if isinstance(items, slice):
            return self.read(items.start, items.stop)
        return self.take(items)

    def read(self, start: int, stop: int) -> Values:
        """Return the items from `start` to before `stop`.

        Raises:
            StoreError: a file is missing, cut, or altered; it names file and structures.
        """
        pieces = [np.empty((0, *self.shape), self._array.dtype)]
        for first in range(start - start % self.shard, stop, self.shard):
            low, high = max(start, first), min(stop, first + self.shard)
            pieces.append(self._read_shard(first // self.shard, low, high))
        return pieces[1] if len(pieces) == 2 else np.concatenate(pieces)

    def take(self, items: Integers) -> Values:
        """Return `items` in the order given, reading each chunk that holds one once."""
        order = np.argsort(items, kind="stable")
        ordered = items[order]
        chunks = np.unique(ordered // self._chunk)
        out = np.empty((len(items), *self.shape), self._array.dtype)
        for run in np.split(chunks, np.flatnonzero(np.diff(chunks) != 1) + 1):
            if not len(run):
                continue
            start = int(run[0]) * self._chunk
            stop = min((int(run[-1]) + 1) * self._chunk, self.n_items)
            low, high = np.searchsorted(ordered, [start, stop])
            out[order[low:high]] = self.read(start, stop)[ordered[low:high] - start]
        return out

    def _read_shard(self, index: int, start: int, stop: int) -> Values:
        name = "/".join([self.name, "c", str(index), *["0"] * len(self.shape)])
        check_file(self._manifest, self._files, self._where, name)
        try:
            values: Values = self._array[start:stop]
        except (ValueError, RuntimeError, OSError) as error:
            raise unreadable(self._manifest, self._where, name, error) from error
        return values
