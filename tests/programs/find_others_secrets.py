# What an unprivileged program can find of marked secrets: in its own memory, in /proc, and in files that it may read.
# Prints the SHA-256 of each that it finds; it holds none of them itself but what its own caller gave it.
import hashlib
import os
import re

MARK = re.compile(rb"CANARY-[0-9a-f]{32}")
found = set()


def look(data):
    found.update(hashlib.sha256(secret).hexdigest() for secret in MARK.findall(data))


with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in maps.read().splitlines():
        span, rights = line.split()[:2]
        start, end = (int(number, 16) for number in span.split("-"))
        if "r" in rights and not line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
            try:
                memory.seek(start)
                look(memory.read(end - start))
            except (OSError, ValueError):
                pass
for process in filter(str.isdigit, os.listdir("/proc")):
    for name in ("environ", "cmdline", "mem"):
        try:
            with open(f"/proc/{process}/{name}", "rb") as file:
                look(file.read(1 << 20))
        except OSError:
            pass
for top in ("/workspace", "/run", "/tmp", "/dev/shm", "/var/tmp", "/home", "/root"):
    for directory, _, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            try:
                if os.path.isfile(path) and os.path.getsize(path) < 1 << 20 and path != __file__:
                    with open(path, "rb") as file:
                        look(file.read())
            except OSError:
                pass
print(*sorted(found))
