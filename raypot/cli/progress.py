"""Live progress: a line that renews itself on a terminal, one line each 30 s elsewhere."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from raypot.cli.console import say
from raypot.properties import PROPERTIES

if TYPE_CHECKING:
    from raypot.tune.search import SearchEvent

QUIET_INTERVAL = 30.0  # seconds between lines where stderr is not a terminal


class StatusLine:
    """The current state of long work, on stderr.

    On a terminal the line renews itself; elsewhere it is printed every `QUIET_INTERVAL` seconds,
    and once at the end.

    Args:
        title: what is being done.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.text = ""
        self._status: Any = None
        self._printed = float("-inf")
        self._unprinted = False

    def __enter__(self) -> "StatusLine":
        if sys.stderr.isatty():
            from rich.console import Console

            self._status = Console(stderr=True).status(self.title)
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()
        if self.text and (self._unprinted or self._status is not None):
            say(f"{self.title}: {self.text}")

    def show(self, text: str) -> None:
        """Show `text` as the state of the work."""
        self.text = text
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(f"{self.title}: {text}"))
            return
        self._unprinted = time.monotonic() - self._printed < QUIET_INTERVAL
        if not self._unprinted:
            say(f"{self.title}: {text}")
            self._printed = time.monotonic()


def describe_epoch(row: dict[str, float], n_epochs: int) -> str:
    """Return one line about an epoch: errors on val, rate, speed."""
    parts = [f"epoch {int(row['epoch'])} of {n_epochs}"]
    parts += [f"{name} {text}" for name, text in errors_of(row, "val/").items()]
    parts.append(f"learning rate {row['learning_rate']:.2g}")
    parts.append(f"{row['structures_per_second']:.0f} structures/s")
    return ", ".join(parts)


def errors_of(metrics: dict[str, float], prefix: str = "") -> dict[str, str]:
    """Return the RMSE of each property in its report unit."""
    found = {}
    for key, value in metrics.items():
        name, _, kind = key.removeprefix(prefix).partition("/")
        if not key.startswith(prefix) or kind != "rmse" or name == "energy":
            continue
        row = PROPERTIES[name.removesuffix("_per_atom")]
        unit = row.report_unit + ("/atom" if name.endswith("_per_atom") else "")
        found[name] = f"{value * row.report_factor:.3g} {unit}"
    return found


def describe_search(event: "SearchEvent") -> str:
    """Return one line about a search: trials, best so far, speed, time left."""
    parts = [
        f"{event.done} of {event.total} trials done",
        f"{event.running} running, {event.pruned} pruned, {event.failed} failed",
    ]
    if event.best is not None:
        errors = ", ".join(errors_of(event.best_metrics, "val/").values())
        parts.append(f"best #{event.best_number} {event.best:.4f} ({errors})")
    parts.append(f"{event.structures_per_second:.0f} structures/s")
    parts.append(f"{duration(event.elapsed_s)} gone")
    if event.eta_s is not None:
        parts.append(f"about {duration(event.eta_s)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Write a time as `1:05` or `2:03:10`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
