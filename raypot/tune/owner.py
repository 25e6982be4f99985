"""One driver per study: a lock file that says who, and that a dead owner does not hold.

The file names process, its start time, host and boot. On the same boot the process table tells
whether the owner lives. From elsewhere only its heartbeat does: the time of the file, compared
with the clock of the same file system.
"""

import fcntl
import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from raypot.durable import failed
from raypot.errors import Busy, RaypotError

LOCK_FILE = "driver.lock"
HEARTBEAT_S = 5.0
SILENT_AFTER_S = 120.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Owner:
    """A process, named so that another one cannot be taken for it.

    Args:
        pid: process number.
        host: name of the machine.
        boot: identity of this boot of the machine; empty where the system does not tell.
        started: start time of the process in clock ticks since boot; 0 where unknown.
        since: seconds since 1970 at which the study was taken, for messages.
    """

    pid: int
    host: str
    boot: str
    started: int
    since: float

    @classmethod
    def this(cls) -> "Owner":
        """Return the process that asks."""
        return cls(
            os.getpid(), socket.gethostname(), boot_id(), start_time(os.getpid()), time.time()
        )

    def is_here(self) -> bool:
        """Say whether the owner is or was a process that this process could see."""
        return self.host == socket.gethostname() and self.boot == boot_id()

    def is_alive(self) -> bool:
        """Say whether the process still runs; only for one of this boot of this machine."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it exists and belongs to somebody else
        return start_time(self.pid) == self.started


class Ownership:
    """Holds a study for as long as the block lasts.

    Args:
        folder: the study; it must exist.

    Raises:
        Busy: another driver is alive.
        OutputError: the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_FILE
        self._beaten = time.monotonic()
        try:
            self._file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> "Ownership":
        # The file stays for ever and is locked for an instant, so that of two processes that
        # find a dead owner only one takes its place.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            self._refuse_if_owned()
            self._write(json.dumps(asdict(Owner.this())))
        except BaseException:
            self._file.close()
            raise
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._file:
            self._write("")

    def beat(self) -> None:
        """Show drivers on other machines that this one is alive; cheap to call often."""
        if time.monotonic() - self._beaten > HEARTBEAT_S:
            self._beaten = time.monotonic()
            os.utime(self.path)

    def _refuse_if_owned(self) -> None:
        owner = self._owner()
        if owner is None:
            return
        lives = owner.is_alive() if owner.is_here() else self._silence() < SILENT_AFTER_S
        if lives:
            since = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(owner.since))
            raise Busy(
                f"{self.path.parent}: process {owner.pid} on {owner.host} searches here since "
                f"{since}; wait for it, or choose another folder",
                **asdict(owner),
            )

    def _owner(self) -> Owner | None:
        """Return who is written in the file; None for nobody or a record that was cut off."""
        self._file.seek(0)
        try:
            record: dict[str, Any] = json.loads(self._file.read())
            return Owner(**record)
        except (ValueError, TypeError):
            return None

    def _silence(self) -> float:
        """Return the seconds since the last heartbeat by the clock of the file system."""
        probe = self.path.with_name(f"{LOCK_FILE}.{os.getpid()}")
        probe.touch()
        try:
            return probe.stat().st_mtime - self.path.stat().st_mtime
        finally:
            probe.unlink()

    def _write(self, text: str) -> None:
        try:
            self._file.truncate(0)
            self._file.write(text)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> RaypotError:
        return failed(self.path, error, "the study was not touched")


def boot_id() -> str:
    """Return the identity of this boot of the machine, or an empty text."""
    return BOOT_ID.read_text(encoding="utf-8").strip() if BOOT_ID.exists() else ""


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 where the system hides it."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0
    # The second field is the command in brackets, which may itself hold blanks and brackets.
    return int(text.rpartition(")")[2].split()[19])
