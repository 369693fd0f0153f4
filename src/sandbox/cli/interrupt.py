"""Ctrl-C while a program runs in a guest."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from sandbox.guest.execution import Status
from sandbox.vm import VM


@contextmanager
def interrupting(vm: VM, ident: str) -> Iterator[None]:
    """Give the first Ctrl-C to the program, as a terminal would. The next one, or one while none runs, cancels us."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        yield
        return
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    is_passed_on = False

    def interrupt() -> None:
        nonlocal is_passed_on
        if not is_passed_on and vm.status(ident) is Status.RUNNING:
            is_passed_on = True
            vm.attach(ident).send_signal(signal.SIGINT)
        else:
            task.cancel()

    loop.add_signal_handler(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, before)
