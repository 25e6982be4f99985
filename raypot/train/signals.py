"""Turn signals into a wish to stop that the loop looks at between two steps.

SIGTERM and SIGUSR1 (sent by schedulers before they take a machine away) and a first Ctrl-C let the
running step finish and a checkpoint be written. A second Ctrl-C stops at once.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass
class StopWish:
    """What a signal, or the caller, asked for.

    Args:
        ask: the caller's own wish, asked between two steps.
        number: the signal that came; 0 for none.
    """

    ask: Callable[[], bool] | None = None
    number: int = 0

    def __call__(self) -> bool:
        """Say whether to stop after this step."""
        asked = self.ask is not None and self.ask()
        return asked or self.number != 0

    @property
    def name(self) -> str:
        """The name of the signal that came; empty for none."""
        return signal.Signals(self.number).name if self.number else ""


@contextmanager
def stop_on_signals(ask: Callable[[], bool] | None = None) -> Iterator[StopWish]:
    """Catch the signals while the block runs; the earlier handlers come back after it.

    Outside the main thread, where Python allows no handlers, only `ask` counts.

    Args:
        ask: the caller's own wish to stop.
    """
    wish = StopWish(ask)
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return

    def handle(number: int, _: FrameType | None) -> None:
        if wish.number == signal.SIGINT == number:
            raise KeyboardInterrupt
        wish.number = number

    before = {number: signal.signal(number, handle) for number in HANDLED}
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
