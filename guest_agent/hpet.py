"""The HPET: the kernel measured its processor's clock by it, and has no further use for it.

The kernel has only masked the timer that was its first tick. QEMU goes on firing that one, 250 times a second, and an
idle guest costs its host several times as much as it needs to.
"""

import mmap
import os

_CLOCK = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
_ADDRESS = 0xFED00000
_VENDOR = 0x8086  # of the one that QEMU has: without it, something else is at that address
_CAPABILITIES, _CONFIGURATION, _TIMERS = 0x00, 0x10, 0x100
_TIMER_BYTES, _TIMER_COUNT = 0x20, 3
_RUNS = 1
_INTERRUPTS = 4


def stop():
    """Stop its counter, unless the kernel still goes by it or lets nobody reach it."""
    with open(_CLOCK) as file:
        if file.read().strip() == "hpet":
            return
    try:
        memory = os.open("/dev/mem", os.O_RDWR | os.O_SYNC | os.O_CLOEXEC)
    except OSError:  # a kernel without that device
        return
    try:
        registers = mmap.mmap(memory, mmap.PAGESIZE, offset=_ADDRESS)
    except OSError:  # one that keeps its devices to itself
        return
    finally:
        os.close(memory)
    with registers, memoryview(registers).cast("I") as words:
        is_there = words[_CAPABILITIES // 4] >> 16 == _VENDOR
        timers = range(_TIMERS, _TIMERS + _TIMER_COUNT * _TIMER_BYTES, _TIMER_BYTES)
        if is_there and not any(words[timer // 4] & _INTERRUPTS for timer in timers):
            words[_CONFIGURATION // 4] &= ~_RUNS
