"""A guest that does everything at once: root stops its agent, takes its channel and draws what to do from a seed.

It hears what the host asks and answers nearly as an agent would, so that its lies reach whatever reads them. Each life
draws how wicked it is: an unlawful frame ends it at once. `hostile_words.py` comes before this, in the same module.
"""

import ctypes
import os
import struct
import threading
import time

START, STDIN, KILL, WINDOW_OUT, ASK, PING = 2, 3, 5, 7, 8, 10
READY, OUT, ERR, EXITED, QUIESCED, WINDOW_IN, ANSWER, STARTED, PONG, PREPARED = range(65, 75)
LIMITS = {1: 2048, START: 8 << 20, STDIN: 65536, 4: 0, KILL: 65536, 6: 0, WINDOW_OUT: 5, ASK: 65536, 9: 4, PING: 0, 11: 0}
HEADER = struct.Struct("!IIIB")
WINDOW, PORTION = 262144, 65536
libc = ctypes.CDLL(None, use_errno=True)
wicked = draw.choice((0.0, 0.0, 0.001, 0.01, 0.1))
pace = draw.choice((0.001, 0.001, 0.01, 0.05, 0.3))
slow = draw.choice((0.0, 0.0, 0.0, 0.05))
lock = threading.RLock()
programs, ended = {}, []
deaf_until = 0.0


class Program:
    """What the host has started, or has asked although nothing is known of its start."""

    def __init__(self, ident, op=""):
        self.ident, self.op = ident, op
        self.credit = {OUT: WINDOW, ERR: WINDOW, ANSWER: WINDOW}
        self.owed = {STDIN: 0, ASK: 0}
        self.asked, self.unsaid, self.has_started = b"", b"", False


def say(kind, ident=0, payload=b"", epoch=EPOCH, length=None):
    frame = HEADER.pack(len(payload) if length is None else length, epoch, ident, kind) + payload
    step = draw.choice((1, 5, 13)) if slow and draw.random() < slow and len(frame) < 200 else len(frame)
    with lock:
        for start in range(0, len(frame), step):
            left = frame[start : start + step]
            while left:
                left = left[os.write(port, left) :]


def spend(program, kind, data):
    """Say so much of this as there is credit for, in pieces of a drawn size; return the rest."""
    while data and program.credit[kind] and programs.get(program.ident) is program:
        size = min(len(data), program.credit[kind], draw.choice(SIZES[2:]) if len(data) > 2000 else draw.choice(SIZES))
        program.credit[kind] -= size
        say(kind, program.ident, data[:size])
        data = data[size:]
    return data


def end(program):
    fields = {"code": None, "signal": 9} if draw.random() < 0.5 else {"code": draw.choice((0, 1, 137, 255)), "signal": None}
    fields |= {"cpu_us": draw.choice((None, 0, 10**15)), "oom_kills": draw.choice((None, 0, 1, 2**64 - 1))}
    if draw.random() < 0.05:
        fields["refused"] = draw.choice(TEXTS[:-1])[:200]
    if draw.random() < 0.3:
        log = (draw.choice(TEXTS[:-1]) * 3)[:1000]
        fields["evidence"] = {"forks_refused": 1, "disk_free_bytes": 0, "files_free": 0, "kernel_log": log}
    with lock:
        if programs.pop(program.ident, None) is program:
            ended.append(program.ident)
            say(EXITED, program.ident, json.dumps(fields).encode())  # a lie here would be the last one


# What the host says.


def hear(kind, ident, payload):
    program = programs.get(ident)
    if kind == START:
        program = programs[ident] = Program(ident, json.loads(payload).get("op"))
        if draw.random() < 0.8:
            program.has_started = True
            say(STARTED, ident, struct.pack("!I", draw.choice((1, 2, 2**32 - 1))))
    elif kind == PING:
        if draw.random() < 0.9:
            say(PONG)
    elif kind in {ASK, STDIN}:
        program = programs.setdefault(ident, Program(ident))
        program.owed[kind] += len(payload)
        if program.owed[kind] >= PORTION and draw.random() < 0.9:
            say(WINDOW_IN, ident, struct.pack("!BI", kind, program.owed[kind]))
            program.owed[kind] = 0
        if kind == ASK:
            asked(program, payload)
    elif program is not None and kind == WINDOW_OUT:
        stream, count = struct.unpack("!BI", payload)
        program.credit[stream] += count
        program.unsaid = spend(program, ANSWER, program.unsaid)
    elif program is not None and kind == KILL and (draw.random() < 0.85 or b"tree" not in payload):
        end(program)


def asked(program, payload):
    program.asked += payload
    while len(program.asked) >= 5:
        length, tag = struct.unpack_from("!IB", program.asked)
        if len(program.asked) < 5 + length:
            return
        body, program.asked = program.asked[5 : 5 + length], program.asked[5 + length :]
        request = json.loads(body) if tag == 1 else {}
        if op := wanted(tag, request):
            for said in answers(op, request):
                program.unsaid = spend(program, ANSWER, program.unsaid + said)
                if len(program.unsaid) > 2**20 or programs.get(program.ident) is not program:
                    break


def wanted(tag, request):
    """Return what has to be answered now; None if more of a request is to come."""
    if tag != 1:
        return "write" if tag == 3 else None
    if "op" in request:
        return None if request["op"] in {"write", "unpack"} else request["op"]
    return next((op for field, op in (("code", "cell"), ("done", "unpack"), ("recursive", "watch")) if field in request), None)


def listen():
    """Read frames for ever; between two of them that do not fit together, look for the next one that may be whole."""
    came = b""
    while True:
        while time.monotonic() < deaf_until:
            time.sleep(0.1)
        came += os.read(port, 65536)
        while len(came) >= HEADER.size:
            length, epoch, ident, kind = HEADER.unpack_from(came)
            if epoch != EPOCH or length > LIMITS.get(kind, -1):
                came = came[1:]
                continue
            if len(came) < HEADER.size + length:
                break
            payload, came = came[HEADER.size : HEADER.size + length], came[HEADER.size + length :]
            try:
                with lock:
                    hear(kind, ident, payload)
            except (ValueError, KeyError, RecursionError):
                pass  # half a message, from before this has heard anything


# What it does unasked.


def some():
    return programs.get(draw.choice(list(programs) or [0])) or Program(draw.choice((*ended, 999, 0, 2**32 - 1)))


def unlawful():
    """Say something that no agent would; mostly the last that this life says."""
    program, other = some(), draw.choice((*ended[-5:], 0, 10**6, 2**32 - 1))
    odd = draw.choice((b"", b"x", bytes(7), bytes(100), bytes(CHUNK)))
    kind = draw.choice((OUT, ERR, ANSWER, EXITED, STARTED, WINDOW_IN, PONG, READY, QUIESCED, PREPARED, 1, 0, 64, 75, 255))
    draw.choice((
        lambda: say(kind, program.ident, odd, epoch=draw.choice((0, EPOCH + 1 & 2**32 - 1))),
        lambda: say(kind, draw.choice((other, program.ident)), odd),
        lambda: say(kind, program.ident, odd, length=draw.choice((CHUNK + 1, 2**32 - 1, 16385, 7))),
        lambda: say(draw.choice((OUT, ERR)), other, b"x"),
        lambda: say(OUT, program.ident, bytes(CHUNK)) or [say(OUT, program.ident, bytes(CHUNK)) for _ in range(5)],
        lambda: [say(EXITED, program.ident, b'{"code":0,"signal":null}') for _ in range(2)],
        lambda: [say(STARTED, program.ident, bytes(4)) for _ in range(1000)],
        lambda: say(WINDOW_IN, program.ident, struct.pack("!BI", draw.choice((STDIN, ASK, OUT, 0)), draw.choice((0, 1, PORTION, WINDOW, 2**32 - 1)))),
        lambda: say(PONG),
        lambda: say(EXITED, program.ident, draw.choice(BOMBS).encode("utf-8", "surrogatepass")[:16384]),
        lambda: say(ANSWER, program.ident, message(draw.choice(BOMBS).encode("utf-8", "surrogatepass")[: CHUNK - 5])),
        lambda: say(OUT, program.ident, b"xx", length=draw.choice((3, 100, CHUNK))) or be_deaf(60),
        lambda: say(OUT, program.ident, draw.randbytes(CHUNK)[: draw.choice((1, 500, CHUNK))], length=1),
    ))()


def flood(kinds, size, count):
    """Send so many pieces, all that there is credit for; of large ones, wait for more credit."""
    program = some()
    for at in range(count):
        kind = kinds[at % len(kinds)]
        for _ in range(50):
            if program.credit[kind] >= size or size < CHUNK:
                break
            time.sleep(0.01)
        with lock:
            if program.credit[kind] < size or programs.get(program.ident) is not program:
                return
            program.credit[kind] -= size
            say(kind, program.ident, b"x" * size)


def be_deaf(seconds):
    global deaf_until
    deaf_until = time.monotonic() + seconds


def start_program():
    program = some()
    if programs.get(program.ident) is program and not program.has_started:
        program.has_started = True
        say(STARTED, program.ident, bytes(4))


def beside(work):
    threading.Thread(target=work, daemon=True).start()


def console():
    device = os.open(draw.choice(("/dev/ttyS0", "/dev/console")), os.O_WRONLY | os.O_NOCTTY)
    said = draw.choice((b"x", b"\x1b[2J\x1b]0;t\x07\n", b"Kernel panic - not syncing: no\n", b"y" * 100_000, bytes(range(256)), b"\n"))
    for _ in range(2000):
        os.write(device, said)


def misuse():
    """Write nonsense into the registers of a virtio device, by the window in its configuration space."""
    device = draw.choice([name for name in os.listdir("/sys/bus/pci/devices") if vendor(name) == b"0x1af4"])
    config = os.open(f"/sys/bus/pci/devices/{device}/config", os.O_RDWR)
    at, places, window = os.pread(config, 1, 0x34)[0], [], 0
    while at:
        kind, following, _, structure, bar = os.pread(config, 5, at)
        if kind == 9 and structure == 5:
            window = at
        elif kind == 9:
            places.append((bar, *struct.unpack("<II", os.pread(config, 8, at + 8))))
        at = following
    worst = draw.random() < 0.5
    for _ in range(3000):
        bar, offset, length = places[0]
        offset += 28 if worst else draw.randrange(min(length, 64))
        os.pwrite(config, bytes([bar]), window + 4)
        os.pwrite(config, struct.pack("<II", offset, 2 if worst else draw.choice((1, 2, 4))), window + 8)
        os.pwrite(config, b"\5\0" if worst else draw.randbytes(2), window + 16)


def vendor(name):
    with open(f"/sys/bus/pci/devices/{name}/vendor", "rb") as file:
        return file.read().strip()


def bomb(is_of_memory):
    if os.fork() == 0:
        kept = []
        while True:
            kept.append(b"x" * 2**20) if is_of_memory else os.fork()


def sysrq():
    with open("/proc/sysrq-trigger", "w") as file:
        file.write(draw.choice("cob"))


ACTS = {
    lambda: flood((OUT,), 1, 3000): 4,
    lambda: flood((OUT, ERR), 1, 3000): 4,
    lambda: flood((OUT, ERR), draw.choice(SIZES), 200): 6,
    lambda: flood((draw.choice((OUT, ERR)),), draw.choice(SIZES), 1): 8,
    lambda: end(some()) if programs else None: 2,
    start_program: 3,
    lambda: beside(console): 1,
    lambda: beside(misuse): 0.5,
    lambda: be_deaf(draw.choice((0.5, 3, 15))): 0.5,
    lambda: time.sleep(draw.choice((0.5, 3, 12))): 0.5,
    lambda: bomb(True): 0.1,
    lambda: bomb(False): 0.1,
    lambda: libc.reboot(draw.choice((0x1234567, 0x4321FEDC))): 0.05,
    sysrq: 0.1,
}

number, = (fd for fd in os.listdir("/proc/1/fd") if "vport" in os.readlink(f"/proc/1/fd/{fd}"))
port = libc.syscall(438, os.pidfd_open(1), int(number), 0)  # pidfd_getfd
print("begun", flush=True)
sys.stdin.read(1)  # the host has heard it, by way of the agent
assert libc.ptrace(0x4206, 1, 0, 0) == 0 == libc.ptrace(0x4207, 1, 0, 0)  # PTRACE_SEIZE, PTRACE_INTERRUPT
os.set_blocking(port, True)
beside(listen)
chosen = draw.sample(list(ACTS), draw.randrange(2, len(ACTS)))
while True:
    act, = draw.choices(chosen, [ACTS[each] for each in chosen])
    try:
        (unlawful if draw.random() < wicked else act)()
    except (OSError, LookupError, RuntimeError):
        pass  # a device that it has broken, a bomb that went off, a program that has ended meanwhile
    time.sleep(pace)
