"""Have the disk's device complain again and again: as root, switch a queue on with a value that means nothing.

The registers are reached by the window that virtio has in a device's configuration space: see its specification, 4.1.4.
"""

import os
import struct
import sys

VENDOR, COMMON, WINDOW, QUEUE_ENABLE = 9, 1, 5, 28

config = os.open("/sys/bus/pci/devices/0000:00:04.0/config", os.O_RDWR)
places = {}
at = os.pread(config, 1, 0x34)[0]
while at:
    kind, following, _, structure, bar = os.pread(config, 5, at)
    if kind == VENDOR:
        places[structure] = at, bar, struct.unpack("<I", os.pread(config, 4, at + 8))[0]
    at = following
_, bar, offset = places[COMMON]
window = places[WINDOW][0]
os.pwrite(config, bytes([bar]), window + 4)
os.pwrite(config, struct.pack("<II", offset + QUEUE_ENABLE, 2), window + 8)
print("begins", flush=True)
for _ in range(int(sys.argv[1])):
    os.pwrite(config, b"\5\0", window + 16)
print("ends", flush=True)
