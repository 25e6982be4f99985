"""Where the files of a store lie: a local folder, or any fsspec URL.

zarr reads through its own store objects; this is what the manifest checks need besides.
"""

import hashlib
from pathlib import Path
from typing import Any, Protocol

from zarr.abc.store import Store as ZarrStore
from zarr.storage import FsspecStore, LocalStore

from raypot.errors import MissingInput, StorageError

BLOCK = 1 << 20  # bytes read at once when hashing


class Files(Protocol):
    """Read access to the files below one root, by their names relative to it."""

    def exists(self) -> bool:
        """Whether there is anything at the root."""
        ...

    def sizes(self, names: list[str]) -> dict[str, int]:
        """Return the size in bytes of every file of `names` that exists."""
        ...

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError: no such file.
        """
        ...

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file, read in blocks."""
        ...

    def zarr_store(self) -> ZarrStore:
        """Return the root as zarr reads it."""
        ...


class LocalFiles:
    """Files in a folder of this machine.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def exists(self) -> bool:
        """Whether there is anything at the root."""
        return self.root.exists()

    def sizes(self, names: list[str]) -> dict[str, int]:
        """Return the size in bytes of every file of `names` that exists."""
        found = {}
        for name in names:
            try:
                found[name] = (self.root / name).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                continue
        return found

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return (self.root / name).read_bytes()

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file, read in blocks."""
        with (self.root / name).open("rb") as file:
            return hash_blocks(file)

    def zarr_store(self) -> ZarrStore:
        """Return the root as zarr reads it."""
        return LocalStore(self.root, read_only=True)


class RemoteFiles:
    """Files below an fsspec URL such as `s3://bucket/set.zarr`.

    Args:
        url: the root.

    Raises:
        StorageError: the protocol is unknown or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        try:
            self.system, self.root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise StorageError(f"{url}: cannot be read: {error}", path=url) from error

    def exists(self) -> bool:
        """Whether there is anything at the root."""
        return bool(self.system.exists(self.root))

    def sizes(self, names: list[str]) -> dict[str, int]:
        """Return the size in bytes of every file of `names` that exists."""
        self.system.invalidate_cache()
        if len(names) == 1:
            path = f"{self.root}/{names[0]}"
            return {names[0]: self.system.size(path)} if self.system.exists(path) else {}
        listed: dict[str, Any] = self.system.find(self.root, detail=True)
        sizes = {path.removeprefix(self.root).lstrip("/"): x["size"] for path, x in listed.items()}
        return {name: sizes[name] for name in names if name in sizes}

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return bytes(self.system.cat_file(f"{self.root}/{name}"))

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a file, read in blocks."""
        with self.system.open(f"{self.root}/{name}", "rb") as file:
            return hash_blocks(file)

    def zarr_store(self) -> ZarrStore:
        """Return the root as zarr reads it."""
        return FsspecStore.from_url(self.url, read_only=True)


def hash_blocks(file: Any) -> str:
    """Return the SHA-256 of an open binary file."""
    digest = hashlib.sha256()
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()


def files_at(path: str | Path) -> Files:
    """Return the files below a folder or an fsspec URL.

    Raises:
        MissingInput: there is nothing.
        StorageError: the URL cannot be read.
    """
    files: Files = RemoteFiles(str(path)) if "://" in str(path) else LocalFiles(Path(path))
    if not files.exists():
        raise MissingInput(f"{path}: no such store; make one with `raypot data import`", path=path)
    return files
