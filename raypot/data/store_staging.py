"""A folder that appears under its name whole or not at all.

It is filled beside its destination, brought to the disk and renamed. A lock beside it keeps two
writers apart; it is the system's, so it ends with its process, however that ends.
"""

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from raypot.durable import NOT_ALLOWED, sync_folder
from raypot.errors import Busy, OutputError, StorageError


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `destination` when the block ends well.

    What processes that died left behind is removed first.

    Args:
        destination: must not exist; its parents are made.

    Raises:
        OutputError: it exists, or cannot be created there.
        Busy: another process is writing it.
        StorageError: the disk is full or fails.
    """
    destination = Path(os.path.abspath(destination))  # noqa: PTH100, links are kept
    _refuse_existing(destination)
    with _output_errors(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        lock = _lock(destination)
    staging = destination.parent / f".{destination.name}.staging-{os.getpid()}"
    try:
        with _output_errors(destination):
            for leftover in destination.parent.glob(f".{escape(destination.name)}.staging-*"):
                shutil.rmtree(leftover)
            staging.mkdir()
        with _storage_errors(destination, staging):
            yield staging
            _commit(staging, destination)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        _unlock(lock, destination)


def _commit(staging: Path, destination: Path) -> None:
    for folder, _, _ in os.walk(staging):
        sync_folder(Path(folder))
    _refuse_existing(destination)
    staging.rename(destination)
    try:
        sync_folder(destination.parent)
    except OSError:
        destination.rename(staging)
        raise


def _refuse_existing(destination: Path) -> None:
    if os.path.lexists(destination):
        raise OutputError(
            f"{destination}: exists already; choose another name or remove it first",
            path=str(destination),
        )


def _lock_file(destination: Path) -> Path:
    return destination.parent / f".{destination.name}.lock"


def _lock(destination: Path) -> int:
    """Take the lock of `destination` and return its descriptor."""
    file = _lock_file(destination)
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(descriptor, destination)
        except Busy:
            os.close(descriptor)
            raise
        if not _is_same_file(descriptor, file):  # its last holder removed it in between
            os.close(descriptor)
            continue
        try:
            _sign(descriptor)
        except OSError:
            _unlock(descriptor, destination)
            raise
        return descriptor


def _take(descriptor: int, destination: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        raise Busy(
            f"{destination}: being written by {holder or 'another process'}; wait for it",
            path=str(destination),
        ) from error


def _sign(descriptor: int) -> None:
    """Say in the lock who holds it."""
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}".encode())


def _is_same_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _unlock(descriptor: int, destination: Path) -> None:
    _lock_file(destination).unlink(missing_ok=True)
    os.close(descriptor)


@contextmanager
def _output_errors(destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NOT_ALLOWED or isinstance(error, FileExistsError):
            raise OutputError(
                f"{destination}: cannot be created here: {error.strerror}; choose another folder",
                path=str(destination),
            ) from error
        raise StorageError(
            f"{destination}: cannot be created: {error}", path=str(destination)
        ) from error


@contextmanager
def _storage_errors(destination: Path, staging: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        written = sum(file.stat().st_size for file in staging.rglob("*") if file.is_file())
        raise StorageError(
            f"{destination}: writing failed after {written} bytes: {error.strerror or error}; "
            "nothing was left there; make room or choose another disk, and repeat",
            path=str(destination),
            n_bytes=written,
        ) from error
