"""A tenant's secret, put wherever a tenant may leave something. Runs as root and leaves processes behind."""

import ctypes
import os
import signal
import socket
import sys

canary = bytes.fromhex(sys.argv[1])
port = int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)

for directory in ("/workspace", "/tmp", "/var/tmp", "/root", "/etc", "/usr/local/bin", "/dev/shm", "/run"):
    with open(f"{directory}/left-behind", "wb") as file:
        file.write(canary)
os.makedirs("/mnt/tmpfs", exist_ok=True)
assert libc.mount(b"tmpfs", b"/mnt/tmpfs", b"tmpfs", 0, b"") == 0
with open("/mnt/tmpfs/left-behind", "wb") as file:
    file.write(canary * 1000)
with open("/dev/kmsg", "w") as file:
    file.write(f"left-behind {canary.hex()}\n")
planted = ["file", "shared memory", "tmpfs", "kernel log", "listening port", "environment", "command line"]
ADD_KEY, SESSION = 248, -3
if libc.syscall(ADD_KEY, b"user", b"left-behind", canary, len(canary), SESSION) >= 0:
    planted.append("keyring")

listener = socket.create_server(("0.0.0.0", port))
listener.set_inheritable(True)
# A program of its own, so that the environment and the command line are to be seen in /proc; it keeps the port.
command = ["sh", "-c", "sleep 600; exit", canary.hex()]
os.posix_spawn("/bin/sh", command, {"PATH": os.environ["PATH"], "LEFT_BEHIND": canary.hex()})
if os.fork() == 0:  # and one that only has it in its memory
    held = bytearray(canary * 100)
    while True:
        signal.pause()
print(",".join(planted))
