"""The folder of a run: where its files are, who may write them, and whether a run goes on.

```
run.toml            the resolved configuration
split.json          row numbers of every role
targets.json        what was fitted on the training rows
metrics.jsonl       one line per epoch
tb/                 the same for TensorBoard
model.safetensors   the best averaged model
checkpoints/        last and previous
earlier/<n>/        what stood here before `--new`
```
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raypot.config import differences, to_toml
from raypot.durable import PARTIAL, failed, write_whole
from raypot.errors import Busy, ConfigError

EARLIER = "earlier"
_OF_A_RUN = (
    "run.toml", "split.json", "targets.json", "metrics.jsonl", "tb", "model.safetensors",
    "checkpoints", "report.html",
)  # fmt: skip


class RunFolder:
    """Paths of the files of a run.

    Args:
        path: the folder; it is created when it is claimed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "run.toml"
        self.split = path / "split.json"
        self.targets = path / "targets.json"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tb"
        self.model = path / "model.safetensors"
        self.checkpoints = path / "checkpoints"

    def create(self) -> None:
        """Create the folder.

        Raises:
            OutputError: it cannot be created there.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise failed(self.path, error, "nothing was trained") from error

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Create the folder and keep other processes from training in it.

        The lock belongs to the open file, so that it ends with the process, however that ends.

        Raises:
            OutputError: the folder cannot be created or written to.
            Busy: another process trains here.
        """
        self.create()
        try:
            file = (self.path / ".lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise failed(self.path, error, "nothing was trained") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise Busy(
                    f"{self.path}: a run is going on here ({file.read().strip() or 'just begun'}); "
                    "wait for it or choose another folder",
                    path=str(self.path),
                ) from error
            file.truncate(0)
            now = datetime.now(UTC).isoformat(timespec="seconds")
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
            file.flush()
            yield

    def check(self, tree: dict[str, Any], stored: dict[str, Any]) -> None:
        """Refuse to go on with another configuration than the one that the folder holds.

        Args:
            tree: resolved configuration asked for.
            stored: resolved configuration of the folder.

        Raises:
            ConfigError: listing what differs.
        """
        changes = forbidden_changes(stored, tree)
        if changes:
            raise ConfigError(
                f"{self.config}: this folder holds a run with other settings "
                f"({'; '.join(changes)}); use them, choose another folder, or start over with "
                "--new",
                changes=changes,
            )

    def write_config(self, tree: dict[str, Any]) -> None:
        """Write the resolved configuration."""
        write_whole(self.config, to_toml(tree).encode())

    def set_aside(self) -> None:
        """Move the files of the run that stands here to `earlier/<n>/`."""
        present = [self.path / name for name in _OF_A_RUN if (self.path / name).exists()]
        if not any(path.is_file() or any(path.iterdir()) for path in present):
            return
        earlier = self.path / EARLIER
        try:
            earlier.mkdir(exist_ok=True)
            taken = [int(path.name) for path in earlier.iterdir() if path.name.isdigit()]
            target = earlier / str(max(taken, default=0) + 1)
            target.mkdir()
            for path in present:
                path.replace(target / path.name)
            self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise failed(earlier, error, "the earlier run could not be moved") from error

    def sweep(self) -> None:
        """Remove what interrupted writes left behind."""
        for folder in (self.path, self.checkpoints):
            for path in folder.glob(f"*{PARTIAL}"):
                path.unlink(missing_ok=True)


def forbidden_changes(stored: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """List the settings in which a run may not change while it goes on.

    Allowed are more epochs, everything about the machine (`runtime`), and another path to the
    store, whose content is compared elsewhere.

    Args:
        stored: resolved configuration of the folder.
        asked: resolved configuration of the command.
    """
    grows = asked["training"]["n_epochs"] > stored["training"]["n_epochs"]
    return [
        line
        for line in differences(stored, asked)
        if not line.startswith(("runtime.", "data.store:"))
        and not (grows and line.startswith("training.n_epochs:"))
    ]
