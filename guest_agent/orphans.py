"""How process 1 hears that a child has ended: by a descriptor, so that nothing interrupts the loop."""

import _signal  # `signal` makes enumerations, at a cost to each boot
import ctypes
import os

_SFD_NONBLOCK, _SFD_CLOEXEC = 0o4000, 0o2000000
_RECORD_BYTES = 128
_SIGSET_BYTES = 128


def open_deaths():
    """Block SIGCHLD and return a descriptor that can be read when a child has ended."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, {_signal.SIGCHLD})
    mask = (1 << _signal.SIGCHLD - 1).to_bytes(_SIGSET_BYTES, "little")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.signalfd(-1, mask, _SFD_NONBLOCK | _SFD_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "signalfd")
    return fd


def forget(deaths):
    """Read what is there: that children have ended, not which. Only when something is there."""
    os.read(deaths, _RECORD_BYTES)
