"""What an init does before the first word with the host: mounts, loop-back, the channel, its own safety."""

import _socket  # `socket` takes a twentieth of a boot
import ctypes
import fcntl
import os
import resource
import struct

import cgroup
import identity
import limits
import script
import wire

_libc = ctypes.CDLL(None, use_errno=True)
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND = 2, 4, 8, 4096
_RESERVED = 5
SUDO = "/etc/sudoers.d/sandbox"
"""In images whose unprivileged user may become root; `images/init` looks for it, too."""
_NO_NEW_PRIVS = 38
_HARDENED = (
    ("fs/protected_symlinks", "1"),  # this and the next three as Debian's procps sets them
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_fifos", "1"),
    ("fs/protected_regular", "2"),
    # A child of the zygote that has become a user's is as open to that user as any program: it holds nothing else.
    ("fs/suid_dumpable", "1"),
    ("kernel/kptr_restrict", "2"),
    ("kernel/sysrq", "0"),
)
_RB_POWER_OFF = 0x4321FEDC


def mount(source, target, kind, flags=0, options=""):
    os.makedirs(target, exist_ok=True) if kind else None
    if _libc.mount(source.encode(), target.encode(), kind.encode() if kind else None, flags, options.encode()):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {target}: {os.strerror(error)}")


def mount_everything():
    mount("devpts", "/dev/pts", "devpts", _MS_NOSUID | _MS_NOEXEC, "mode=620,ptmxmode=666")
    mount("tmpfs", "/dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777,size=12%")
    mount("tmpfs", "/run", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
    mount("cgroup2", cgroup.ROOT, "cgroup2", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "favordynmods")
    cgroup.prepare()
    cgroup.restock()
    os.makedirs("/run/lock", mode=0o1777, exist_ok=True)
    os.mkdir(script.ASIDE)
    os.chmod(script.ASIDE, 0o1777)  # each user makes directories of its own there
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        if not os.path.lexists(f"/dev/{name}"):
            os.symlink(f"/proc/self/{target}", f"/dev/{name}")
    # All clones of a snapshot would share these values: they live in files that the host's word fills.
    for file, target, length in (
        (identity.BOOT_ID_FILE, identity.BOOT_ID, 36),
        (identity.MACHINE_ID_FILE, identity.MACHINE_ID, 32),
        (identity.HOSTS_FILE, identity.HOSTS, 0),
    ):
        with open(file, "w") as stream:
            stream.write("0" * length + "\n")
        mount(file, target, "", _MS_BIND)
    _bring_up_loopback()


def _bring_up_loopback():
    siocgifflags, siocsifflags, iff_up = 0x8913, 0x8914, 1
    sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    request = struct.pack("16sh14x", b"lo", 0)
    flags = struct.unpack("16sh14x", fcntl.ioctl(sock, siocgifflags, request))[1]
    fcntl.ioctl(sock, siocsifflags, struct.pack("16sh14x", b"lo", flags | iff_up))
    sock.close()


def protect_self():
    """Have room for descriptors, and keep those free that the programs' own streams are put on when they start.

    No lack of memory ends process 1: the kernel never chooses it. What it starts has an ordinary share of that risk.
    """
    while os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) < _RESERVED:
        pass
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits.OPEN_FILES, limits.OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_NPROC, (limits.PIDS_MAX, limits.PIDS_MAX))
    os.umask(0o022)


def harden():
    """Leave an unprivileged program no way to more rights, unless the image gives its user `sudo`."""
    for name, value in _HARDENED:
        _set_kernel(name, value)
    if not os.path.exists(SUDO) and _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")


def _set_kernel(name, value):
    try:
        with open(f"/proc/sys/{name}", "w") as file:
            file.write(value)
    except FileNotFoundError:  # a kernel built without it
        pass


def open_port():
    """Return the channel's descriptor: the virtio-serial port that bears our name."""
    ports = "/sys/class/virtio-ports"
    for port in os.listdir(ports):
        with open(f"{ports}/{port}/name") as file:
            if file.read().strip() == wire.PORT_NAME:
                return os.open(f"/dev/{port}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    raise FileNotFoundError(f"no virtio-serial port is named {wire.PORT_NAME}")


def calm_kernel():
    """Switch off the housekeeping that would wake a clone before it has done anything: nobody needs it for so short."""
    _set_kernel("vm/stat_interval", "3600")
    _set_kernel("vm/compaction_proactiveness", "0")


def remember_user(uid):
    """Have the kernel keep what it knows of a user while no process is theirs: making it anew is long work in a clone.

    It is kept as long as a file lives that was opened by a process of that real user.
    """
    os.setresuid(uid, 0, 0)
    os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.setresuid(0, 0, 0)


def power_off():
    os.sync()
    _libc.reboot(_RB_POWER_OFF)
