"""A tenant's secret, put wherever a tenant may leave something. Runs as root, and stays as a background process."""

import ctypes
import os
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
planted = ["file", "tmpfs", "kernel log", "listening port", "environment", "command line", "memory"]
ADD_KEY, SESSION = 248, -3
if libc.syscall(ADD_KEY, b"user", b"left-behind", canary, len(canary), SESSION) >= 0:
    planted.append("keyring")

if os.fork() == 0:  # exec, so that the environment and the command line are to be seen in /proc
    hold = "import socket, time; s = socket.create_server(('0.0.0.0', {})); print('{}', flush=True); time.sleep(600)"
    code = hold.format(port, ",".join(planted))
    os.execve(sys.executable, ["python3", "-c", code, canary.hex()], {"LEFT_BEHIND": canary.hex()})
os.wait()
