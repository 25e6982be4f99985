"""Files that are there whole or not at all, whatever happens while they are written.

The bytes go into a file beside the target, are flushed to the disk, and replace it by a rename. A
crash at any moment leaves the old file or the new one, never a mixture.
"""

import errno
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from raypot.errors import OutputError, RaypotError, StorageError

PARTIAL = ".partial"
NOT_ALLOWED = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.EISDIR,
    errno.ENAMETOOLONG,
}


def write_whole(path: Path, data: bytes) -> None:
    """Write `data` to `path`; the old file stays until the new one is safe on the disk.

    Raises:
        OutputError: the file cannot be created there.
        StorageError: the disk is full or failed; the old file is intact.
    """
    write_aside(path, data)
    commit(path)


def write_aside(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, flushed to the disk, for `commit` to put in place.

    Raises:
        OutputError: the file cannot be created there.
        StorageError: the disk is full or failed; nothing is left behind.
    """
    aside = _aside(path)
    try:
        write_synced(aside, data)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise failed(path, error, f"{len(data):,} bytes are needed") from error


def commit(path: Path, previous: Path | None = None) -> None:
    """Rename what `write_aside` wrote to `path`.

    Args:
        path: the file to replace.
        previous: where to keep the old file, if anywhere.

    Raises:
        StorageError: a rename failed; the old file is intact, here or there.
    """
    aside = _aside(path)
    try:
        if previous is not None and path.exists():
            path.replace(previous)
        aside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise failed(path, error, "the file before it is kept") from error


def write_json(path: Path, tree: Any) -> None:
    """Write a tree of plain values as JSON, whole or not at all."""
    text = json.dumps(tree, indent=1, allow_nan=False, ensure_ascii=False)
    write_whole(path, (text + "\n").encode())


def failed(path: Path, error: OSError, hint: str) -> RaypotError:
    """Turn a failed write into the error that a user meets.

    Args:
        path: what was to be written.
        error: what the system said.
        hint: what else the user should know.
    """
    reason = error.strerror or str(error)
    if error.errno in NOT_ALLOWED:
        return OutputError(
            f"{path}: cannot be written ({reason}); choose a folder that you may write to",
            path=str(path),
        )
    advice = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the disk"
    return StorageError(
        f"{path}: writing failed ({reason}); {hint}; {advice} and repeat the command",
        path=str(path),
    )


def _aside(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file in place and flush it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names of a folder, so that a rename in it survives a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
