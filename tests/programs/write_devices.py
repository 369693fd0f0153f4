"""Try, as root, to change every block device: by plain writes, after making it writable, and by discarding.

Not that of compressed memory (zram), which is the guest's own memory.
"""

import fcntl
import json
import os
import struct
import sys

BLKROSET, BLKDISCARD, BLKZEROOUT = 0x125D, 0x1277, 0x127F
mark = bytes.fromhex(sys.argv[1])
written, refused = [], 0

for name in sorted(name for name in os.listdir("/sys/block") if not name.startswith("zram")):
    try:
        os.close(os.open(f"/dev/{name}", os.O_RDONLY))
    except OSError:
        continue  # a loop device without a file
    for force in (False, True):
        try:
            if force:
                descriptor = os.open(f"/dev/{name}", os.O_RDONLY)
                fcntl.ioctl(descriptor, BLKROSET, struct.pack("i", 0))
                os.close(descriptor)
            descriptor = os.open(f"/dev/{name}", os.O_RDWR | os.O_SYNC)
        except OSError:
            refused += 1
            continue
        for offset in (0, 4096, 1 << 20):
            try:
                os.pwrite(descriptor, mark * 16, offset)
                os.fsync(descriptor)
                written.append(name)
            except OSError:
                refused += 1
        for order in (BLKDISCARD, BLKZEROOUT):
            try:
                fcntl.ioctl(descriptor, order, struct.pack("QQ", 1 << 21, 1 << 20))
                written.append(name)
            except OSError:
                refused += 1
        os.close(descriptor)
print(json.dumps({"written": written, "refused": refused}))
