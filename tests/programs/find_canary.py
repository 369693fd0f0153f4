"""Look for another tenant's secret, as root. The secret comes in two halves that never lie side by side.

With `everything` as fourth argument all files, the block device and all memory are searched; else what is quick to
search: files where tenants write, and what a kernel tells. The rest is in memory, which the host can search as well.
"""

import json
import os
import struct
import sys

halves = [bytes.fromhex(half) for half in sys.argv[1:3]]
texts = [half.encode() for half in sys.argv[1:3]]
port = int(sys.argv[3])
everything = sys.argv[4:] == ["everything"]
found = {}
DIRECT_MAP = 0xFFFF888000000000
WRITTEN = "/workspace /tmp /var/tmp /root /etc /usr/local /dev/shm /run /mnt"


def search(place, data):
    for first, second in (halves, texts):
        at = data.find(first)
        while at >= 0:
            if data[at + len(first) : at + len(first) + len(second)] == second:
                found[place] = found.get(place, 0) + 1
                return
            at = data.find(first, at + 1)


def read(place, path, size=1 << 20):
    try:
        with open(path, "rb", buffering=0) as file:
            while data := file.read(size):
                search(place, data)
    except OSError:
        pass  # a process that has ended, a file that is no file


def search_memory():
    with open("/proc/kcore", "rb", buffering=0) as core:  # all of the machine's memory, as its kernel maps it
        (offset,) = struct.unpack_from("<Q", header := core.read(64), 32)
        (count,) = struct.unpack_from("<H", header, 56)
        core.seek(offset)
        for _, _, start, address, _, size, *_ in struct.iter_unpack("<IIQQQQQQ", core.read(56 * count)):
            if DIRECT_MAP <= address < DIRECT_MAP + (1 << 40):
                for at in range(0, size, 1 << 20):
                    try:
                        core.seek(start + at)
                        search("memory", core.read(min(1 << 20, size - at)))
                    except OSError:
                        continue  # a page that the kernel does not give


roots = "/ -path /proc -prune -o -path /sys -prune -o" if everything else WRITTEN
for path in os.popen(f"find {roots} -type f -newerct '1 day ago' -print0").read().split("\0")[:-1]:
    places = {"/mnt/tmpfs/": "tmpfs", "/dev/shm/": "shared memory"}
    read(next((place for start, place in places.items() if path.startswith(start)), "file"), path)
mine = {str(os.getpid()), str(os.getppid())}
for pid in filter(str.isdecimal, os.listdir("/proc")):
    if pid not in mine:
        read("environment", f"/proc/{pid}/environ")
        read("command line", f"/proc/{pid}/cmdline")
for table in ("/proc/net/tcp", "/proc/net/tcp6"):
    with open(table) as file:
        if any(line.split()[1].endswith(f":{port:04X}") for line in list(file)[1:]):
            found["listening port"] = 1
kmsg = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
try:
    while True:
        search("kernel log", os.read(kmsg, 8192))
except BlockingIOError:
    os.close(kmsg)
with open("/proc/keys") as file:
    if "left-behind" in file.read():
        found["keyring"] = 1
if everything:
    read("block device", "/dev/vda")
    search_memory()
print(json.dumps(found))
