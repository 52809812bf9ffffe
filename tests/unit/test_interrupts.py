"""The children of tests of Ctrl-C."""

from __future__ import annotations

import signal
import sys

from interrupts import interruptible


def test_a_child_heeds_an_interrupt_also_of_a_suite_that_ignores_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible([sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGINT).__name__)"], stdout=-1,
                           text=True) as child:
            assert child.communicate(timeout=60)[0] == "default_int_handler\n"
    finally:
        signal.signal(signal.SIGINT, before)
