"""Signals become a wish to stop; a second Ctrl-C does not wait."""

import os
import signal
import threading

import pytest

from raypot.train.signals import stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_a_wish_to_stop(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as stop:
        assert not stop()
        os.kill(os.getpid(), number)
        assert stop()
        assert stop.number == number
    assert signal.getsignal(number) is before


def test_the_second_interrupt_is_immediate() -> None:
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt, match="^$"):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_the_main_thread_the_caller_is_asked() -> None:
    seen = []

    def work() -> None:
        with stop_on_signals(lambda: True) as stop:
            seen.append(stop())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
