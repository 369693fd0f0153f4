"""Make this machine differ from every other clone of the same snapshot, and prove it to the host."""

import fcntl
import hashlib
import os
import random
import socket
import struct
import time

BOOT_ID = "/proc/sys/kernel/random/boot_id"
BOOT_ID_FILE = "/run/boot_id"
MACHINE_ID = "/etc/machine-id"

_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207


def apply(hello):
    """Take the host's entropy, clock, hostname and machine id; return what is now in force.

    `proof` can only be computed by one who has the entropy and has read the new names back from the system.
    """
    entropy = bytes.fromhex(hello["entropy"])
    _reseed(entropy)
    time.clock_settime_ns(time.CLOCK_REALTIME, hello["clock_ns"])
    socket.sethostname(hello["hostname"])
    _write("/etc/hostname", hello["hostname"])
    _write(MACHINE_ID, hello["machine_id"])
    _write(BOOT_ID_FILE, hello["boot_id"])
    random.seed()
    names = [socket.gethostname(), _read(MACHINE_ID), _read(BOOT_ID)]
    return {
        "proof": hashlib.sha256(entropy + "\n".join(names).encode()).hexdigest(),
        "clock_ns": time.time_ns(),
        "hostname": names[0],
        "machine_id": names[1],
        "boot_id": names[2],
    }


def _reseed(entropy):
    """Mix the host's bytes into the kernel's pool and make the generator use them at once."""
    fd = os.open("/dev/urandom", os.O_WRONLY)
    try:
        fcntl.ioctl(fd, _RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)


def _write(path, text):
    with open(path, "w") as file:
        file.write(text + "\n")


def _read(path):
    with open(path) as file:
        return file.read().strip()
