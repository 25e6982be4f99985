"""The manifest of a store: what is in it, and the size and hash of every file.

zarr reads a missing or empty shard as fill values, so a store is only believed when its files
are those that the manifest lists. The manifest is written last and carries its own hash.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from raypot.config import build, fingerprint
from raypot.data.cards import Card
from raypot.data.store_files import Files
from raypot.errors import NewerFormat, StoreError

MANIFEST = "manifest.json"
FORMAT = "raypot-store"
VERSION = 1
METADATA = "zarr.json"


class Census(NamedTuple):
    """One label over all structures of a store, over all its components."""

    name: str
    unit: str
    count: int  # type: ignore[assignment]  # structures with the label; hides tuple.count
    missing: int  # structures without
    minimum: float
    mean: float
    maximum: float


class FileEntry(NamedTuple):
    """What the manifest says about one file."""

    size: int  # bytes
    sha256: str
    first: int  # first structure that has something in it
    stop: int  # one past the last; equal to `first` for a file that describes arrays


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Args:
        n_structures: structures in the store.
        n_atoms: atoms of all structures.
        elements: atomic numbers that occur, sorted.
        fingerprint: hash of the content: the same wherever and whenever it was written.
        card: the card of the data set.
        census: level to label to its census.
        files: path below the store to its entry.
        written_by: version of raypot.
    """

    n_structures: int
    n_atoms: int
    elements: tuple[int, ...]
    fingerprint: str
    card: Card
    census: dict[str, dict[str, Census]]
    files: dict[str, FileEntry] = field(repr=False)
    written_by: str = ""

    def to_bytes(self) -> bytes:
        """Return the JSON text with the hash of the rest under `checksum`."""
        tree: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "written_by": self.written_by,
            "n_structures": self.n_structures,
            "n_atoms": self.n_atoms,
            "elements": list(self.elements),
            "fingerprint": self.fingerprint,
            "card": self.card.model_dump(mode="json"),
            "census": {
                level: {name: row._asdict() for name, row in rows.items()}
                for level, rows in self.census.items()
            },
            "files": {name: list(entry) for name, entry in sorted(self.files.items())},
        }
        tree["checksum"] = fingerprint(tree)
        return json.dumps(tree, indent=1, ensure_ascii=False).encode()

    @classmethod
    def read(cls, files: Files, where: str) -> "Manifest":
        """Read and check the manifest of the store at `where`.

        Raises:
            StoreError: missing, damaged, or not of a store.
            NewerFormat: a newer version of raypot wrote it.
        """
        tree = _parse(files, where)
        name = f"{where}/{MANIFEST}"
        if tree["version"] > VERSION:
            raise NewerFormat(
                f"{name}: format version {tree['version']}, this raypot reads up to {VERSION}; "
                "install a newer raypot or import the raw files again",
                path=where,
                version=tree["version"],
            )
        checksum = tree.pop("checksum", None)
        if fingerprint(tree) != checksum:
            raise StoreError(
                f"{name}: its content does not match its checksum; restore it from a copy or "
                "import the raw files again",
                path=where,
                file=MANIFEST,
            )
        census = {
            level: {label: Census(**row) for label, row in rows.items()}
            for level, rows in tree["census"].items()
        }
        return cls(
            n_structures=tree["n_structures"],
            n_atoms=tree["n_atoms"],
            elements=tuple(tree["elements"]),
            fingerprint=tree["fingerprint"],
            card=build(Card, tree["card"], name),
            census=census,
            files={file: FileEntry(*entry) for file, entry in tree["files"].items()},
            written_by=tree["written_by"],
        )


def _parse(files: Files, where: str) -> dict[str, Any]:
    """Return the JSON object of the manifest, checked to be one of ours."""
    name = f"{where}/{MANIFEST}"
    try:
        tree = json.loads(files.read(MANIFEST))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            f"{name}: missing, so this is not a whole store; import the raw files again",
            path=where,
            file=MANIFEST,
        ) from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or not JSON
        raise StoreError(
            f"{name}: not readable as JSON ({error}); restore it from a copy or import the raw "
            "files again",
            path=where,
            file=MANIFEST,
        ) from error
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise StoreError(f"{name}: not the manifest of a raypot store", path=where, file=MANIFEST)
    if not isinstance(tree.get("version"), int):
        raise StoreError(f"{name}: has no format version", path=where, file=MANIFEST)
    return tree


def check_files(manifest: Manifest, files: Files, where: str) -> None:
    """Check that every file is there with its size, and that array descriptions are unaltered.

    Raises:
        StoreError: naming the first file that is not, and its structures.
    """
    for damage in _size_damages(manifest, files, where):
        raise damage
    for name, entry in manifest.files.items():
        if name.endswith(METADATA) and files.sha256(name) != entry.sha256:
            raise _damage(where, name, entry, "altered since it was written")


def find_damages(manifest: Manifest, files: Files, where: str) -> Iterator[StoreError]:
    """Yield an error for every file that is not what was written; reads all of them."""
    broken = set()
    for damage in _size_damages(manifest, files, where):
        broken.add(damage.file)
        yield damage
    for name, entry in manifest.files.items():
        if name not in broken and files.sha256(name) != entry.sha256:
            yield _damage(where, name, entry, "altered since it was written")


def check_file(manifest: Manifest, files: Files, where: str, name: str) -> None:
    """Check that one file is there with its size, right before it is read.

    Raises:
        StoreError: it is not.
    """
    entry = manifest.files.get(name)
    if entry is None:
        raise StoreError(f"{where}/{name}: not in the manifest", path=where, file=name)
    size = files.sizes([name]).get(name)
    if size != entry.size:
        raise _size_damage(where, name, entry, size)


def unreadable(manifest: Manifest, where: str, name: str, cause: Exception) -> StoreError:
    """Return the error for a file that could not be decoded."""
    return _damage(where, name, manifest.files[name], f"cannot be decoded ({cause})")


def _size_damages(manifest: Manifest, files: Files, where: str) -> Iterator[StoreError]:
    sizes = files.sizes(list(manifest.files))
    for name, entry in manifest.files.items():
        if sizes.get(name) != entry.size:
            yield _size_damage(where, name, entry, sizes.get(name))


def _size_damage(where: str, name: str, entry: FileEntry, size: int | None) -> StoreError:
    what = "missing" if size is None else f"{size} bytes, expected {entry.size}"
    return _damage(where, name, entry, what)


def _damage(where: str, name: str, entry: FileEntry, what: str) -> StoreError:
    rows = f" (structures {entry.first} to {entry.stop - 1})" if entry.stop > entry.first else ""
    return StoreError(
        f"{where}/{name}{rows}: {what}; restore it from a copy or import the raw files again",
        path=where,
        file=name,
        rows=(entry.first, entry.stop),
    )
