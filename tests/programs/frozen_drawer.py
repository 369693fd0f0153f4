"""A program that a snapshot was taken of: asked over the serial console, it draws with what was in memory by then.

It goes without the agent, so a clone can be asked before anybody has renewed anything in it.
"""

import json
import os
import random
import sys
import tempfile
import termios
import tty

COUNT = int(sys.argv[1])
console = os.open("/dev/ttyS0", os.O_RDWR | os.O_NOCTTY)
tty.setraw(console)
termios.tcflush(console, termios.TCIOFLUSH)
names = tempfile._get_candidate_names()
random.random(), next(names), os.urandom(1)  # a warm interpreter: all three generators are seeded
os.write(1, b"frozen drawer waits\n")  # the only word on the channel, before the snapshot
while os.read(console, 1) != b"?":
    pass
answer = {
    "os.urandom": [os.urandom(16).hex() for _ in range(COUNT)],
    "random": [random.random() for _ in range(COUNT)],
    "tempfile": [next(names) for _ in range(COUNT)],
}
os.write(console, f"\n<{json.dumps(answer)}>\n".encode())
while True:
    os.read(console, 1)
