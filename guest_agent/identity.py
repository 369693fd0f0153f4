"""Make this machine differ from every other clone of the same snapshot, and prove it to the host."""

import fcntl
import os
import struct
import time

import wire

BOOT_ID = "/proc/sys/kernel/random/boot_id"
BOOT_ID_FILE = "/run/boot_id"
MACHINE_ID = "/etc/machine-id"
MACHINE_ID_FILE = "/run/machine-id"
HOSTS = "/etc/hosts"
HOSTS_FILE = "/run/hosts"
_HOSTS_TEXT = b"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 "
HOSTNAME_PROC = "/proc/sys/kernel/hostname"

_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_ENTROPY = struct.Struct(f"ii{wire.ENTROPY_BYTES}s")


class Identity:
    """Holds its files open from before the snapshot, so that a fresh clone walks no path and warms no cache."""

    def __init__(self):
        self._random = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
        self._hostname = os.open(HOSTNAME_PROC, os.O_RDWR | os.O_CLOEXEC)
        self._machine_id = os.open(MACHINE_ID_FILE, os.O_RDWR | os.O_CLOEXEC)
        self._boot_id = os.open(BOOT_ID_FILE, os.O_RDWR | os.O_CLOEXEC)
        self._hosts = os.open(HOSTS_FILE, os.O_RDWR | os.O_CLOEXEC)
        self._name = b""

    def apply(self, entropy, clock_ns, nonce, machine_id, boot_id, hostname):
        """Take what HELLO brings: entropy, clock, names; return the proof: its nonce, and the names then in force.

        The entropy is mixed into the kernel's pool and the generator is made to use it at once; Python's `random`
        seeds itself anew in every forked child.
        """
        hostname = hostname.rstrip(b"\0")
        self._name = hostname
        fcntl.ioctl(self._random, _RNDADDENTROPY, _ENTROPY.pack(len(entropy) * 8, len(entropy), entropy))
        fcntl.ioctl(self._random, _RNDRESEEDCRNG)
        time.clock_settime_ns(time.CLOCK_REALTIME, clock_ns)
        os.pwrite(self._hostname, hostname, 0)
        os.pwrite(self._machine_id, machine_id, 0)
        os.pwrite(self._boot_id, boot_id, 0)
        return (
            nonce,
            os.pread(self._machine_id, 32, 0),
            os.pread(self._boot_id, 36, 0),
            os.pread(self._hostname, wire.HOSTNAME_BYTES + 1, 0).rstrip(b"\n"),
        )

    def settle(self):
        """Do what nobody waits for: the name that was applied gets an address."""
        os.pwrite(self._hosts, _HOSTS_TEXT + self._name.ljust(wire.HOSTNAME_BYTES) + b"\n", 0)
