"""A libvirt daemon in a mount namespace of its own, for the programs beside this file. They run on the host, as root.

Its directories are small file systems of this namespace, so that it meets no daemon of the host's.
"""

import ctypes
import os
import signal
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
OWN = ("/etc/libvirt", "/run/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
SOCKET = Path("/run/libvirt/libvirt-sock")
QEMU = 'stdio_handler = "file"\nsecurity_driver = "none"\ndynamic_ownership = 0\nremember_owner = 0\nnamespaces = []\n'
QEMU += "cgroup_controllers = []\n"
PLAIN = 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n'


def begin(program):
    SOCKET.unlink(missing_ok=True)
    daemon = subprocess.Popen([program], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not SOCKET.exists():
        assert daemon.poll() is None, "the daemon does not start"
        time.sleep(0.01)
    return daemon


def prepare():
    """Give the daemon its directories, and bury its QEMUs as an init does: else the tests' process would adopt them."""
    for path in OWN:
        Path(path).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", path], check=True)
    Path("/etc/libvirt/qemu.conf").write_text(QEMU)
    Path("/etc/libvirt/libvirtd.conf").write_text(PLAIN)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    threading.Thread(target=_reap_orphans, daemon=True).start()


def _reap_orphans():
    while True:
        for status in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                name, _, fields = status.read_text().partition("(")[2].rpartition(")")
                if name.startswith("qemu") and fields.split()[:2] == ["Z", str(os.getpid())]:
                    os.waitpid(int(status.parent.name), 0)
        time.sleep(0.05)


def end(daemon, number):
    daemon.send_signal(number)
    daemon.wait(30)
