"""The very first act of a clone: draw a thousand values of everything that should be random, and say who one is."""

import json
import os
import random
import socket
import sys
import tempfile
import time
import uuid

COUNT, WITH_NUMPY = int(sys.argv[1]), "numpy" in sys.argv

draws = {
    "os.urandom": [os.urandom(16).hex() for _ in range(COUNT)],
    "uuid4": [uuid.uuid4().hex for _ in range(COUNT)],
    "random": [random.random() for _ in range(COUNT)],
    "tempfile": [tempfile.mktemp() for _ in range(COUNT)],
}
clock = time.time()

if WITH_NUMPY:  # to import it takes longer than all of the above
    import numpy

    draws["numpy.random"] = numpy.random.random(COUNT).tolist()
    draws["numpy default_rng"] = numpy.random.default_rng().random(COUNT).tolist()


def text(path):
    with open(path) as file:
        return file.read().strip()


print(
    json.dumps(
        {
            "draws": draws,
            "clock": clock,
            "hash": hash("x"),
            "fresh hash": os.popen("python3 -S -E -c 'print(hash(\"x\"))'").read().strip(),
            "names": {
                "machine id": text("/etc/machine-id"),
                "boot id": text("/proc/sys/kernel/random/boot_id"),
                "host name": socket.gethostname(),
                "own name in /etc/hosts": text("/etc/hosts").split()[-1],
            },
        }
    )
)
