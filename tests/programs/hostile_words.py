"""What a hostile guest says as a server: nearly what was asked for, and lies. The first part of `hostile_guest.py`.

Arguments: the channel's epoch, and a seed.
"""

import json
import random
import struct
import sys

EPOCH, SEED = int(sys.argv[1]), sys.argv[2]
CHUNK = 65536
SIZES = (1, 7, 100, 1000, CHUNK)
ESCAPED = "sandbox-escaped"
NAMES = (
    *("a", "b", "d", "d/a", "d/b", "e/f/g", "l", "l/x", "", ".", "..", "/", "d/..", "d//a", "a/../b", "con\n", "\x1b[2J", "\udcff"),
    *(f"../{ESCAPED}", f"/tmp/{ESCAPED}", f"d/../../{ESCAPED}", f"l/{ESCAPED}", "x" * 255, "y" * 5000, "p/" * 2000, "\0"),
)
TARGETS = ("a", "..", "../..", "/tmp", "/", "d", "l", f"../{ESCAPED}", "/proc/self/cwd", "z" * 4096, "")
TYPES = ("file", "file", "file", "directory", "directory", "symlink", "fifo", "socket", "device", "other")
NUMBERS = (0, 1, -1, 7, 0o4777, 0o644, 2**31, 2**63 - 1, -(2**63), 2**63, 2**64, 10**30, 1.5, 1e300, True, None, "1")
BOMBS = (
    *("[" * 50 + "]" * 50, "[" * 30_000, '{"a":' * 5_000, "[" + "0," * 30_000 + "0]", '"' + r"\u0000" * 10_000 + '"'),
    *('"' + "\\" * 20_001 + '"', "9" * 5_000, "1e999", "NaN", "-Infinity", '"\\ud800"', '{"a":1,"a":2}', '"\xff"', ""),
    *('{"a":', "[[]," * 2_000, '{"a":{},' * 2_000, '"' + r"\u001b[2J" * 3_000 + '"', "[" + '{"":0},' * 5_000 + "0]"),
)
TEXTS = ("", "x", "\x1b[31m" * 20, "line\n" * 50, "\u202e", "e" * 1500, "\x9b2J", "\ud800")

draw = random.Random(SEED)
lying = draw.choice((0.0, 0.002, 0.05, 0.5))


def text_of(value):
    """Return JSON of this, in which a liar has put something else for some of the values."""
    if draw.random() < lying * 0.1:
        return draw.choice(BOMBS).encode("utf-8", "surrogatepass")
    if isinstance(value, dict):
        pairs = [json.dumps(key).encode() + b":" + text_of(one) for key, one in value.items() if draw.random() > lying * 0.02]
        return b"{" + b",".join(pairs) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(text_of, value)) + b"]"
    return json.dumps(draw.choice(NUMBERS) if draw.random() < lying * 0.05 else value).encode()


def message(body, tag=1):
    length = len(body) + (draw.choice((1, -1, 2**24, 2**31)) if draw.random() < lying * 0.02 else 0)
    return struct.pack("!IB", max(0, length), draw.choice((0, 2, 3, 4, 255)) if draw.random() < lying * 0.02 else tag) + body


def says(**fields):
    return message(text_of(fields))


def stat(kind=None, **more):
    kind = kind or draw.choice(TYPES)
    found = {"type": kind, "size": draw.choice((0, 1, 100, 2**40)), "mode": 0o755, "mtime": 1e9, "uid": 1, "gid": 1}
    return found | ({"target": draw.choice(TARGETS)} if kind == "symlink" else {}) | more


def entry():
    kind = draw.choice(TYPES)
    size = draw.choice((0, 1, 100, 3000)) if kind == "file" else 0
    found = {"type": kind, "name": draw.choice(NAMES), "size": size, "mode": draw.choice((0o644, 0o4777, 0)), "mtime": 10**18}
    return found | ({"target": draw.choice(TARGETS)} if kind == "symlink" else {})


def contents(most):
    for _ in range(draw.choice((0, 1, 3, most))):
        yield message(draw.randbytes(draw.choice((1, 7, 100, 4096))) * draw.choice((1, 16)), 2)
    yield message(b"", 3)


def tree():
    for _ in range(draw.choice((0, 1, 5, 40))):
        if draw.random() < 0.2:
            yield says(entry=entry() | {"type": draw.choice(TYPES)})
            yield from contents(100)
            yield says(error=draw.choice((None, None, {"name": "a", "errno": 5, "text": draw.choice(TEXTS)})))
            continue
        entries = [entry() for _ in range(draw.choice((0, 1, 10, 60)))]
        yield says(entries=entries, errors=[{"name": draw.choice(NAMES), "errno": 13, "text": draw.choice(TEXTS)}])
        if content := b"".join(bytes(one["size"]) for one in entries):
            yield message(content, 2)
    yield says(done=True)


def answers(op, request):
    """Yield what is said to a request, nearly as asked for."""
    if draw.random() < 0.05 or "interrupt" in request:
        return
    if draw.random() < 0.1:
        yield says(errno=draw.choice((2, 13, 22, 0, -1, 10**6)), text=draw.choice(TEXTS))
    elif op == "list":
        for number in range(draw.choice((1, 3, 30))):
            yield says(entries=[stat(name=draw.choice((*NAMES, f"n{number}"))) for _ in range(draw.choice((0, 1, 50)))])
        yield says()
    elif op in {"read", "pack"}:
        yield from (says(), *contents(300), says()) if op == "read" else tree()
    elif op == "cell":
        error = draw.choice((None, {"name": draw.choice(TEXTS), "text": draw.choice(TEXTS), "traceback": "t" * 3000}))
        shown = [{"text/plain": draw.choice(TEXTS)} for _ in range(draw.choice((0, 1, 200)))]
        yield says(number=request.get("number", 1), value={"text/plain": "4"}, displayed=shown, error=error)
    elif op == "watch":
        yield says()
        for _ in range(draw.choice((0, 1, 50))):
            yield says(events=[{"type": "created", "path": draw.choice(NAMES), "is_directory": False}] * 10)
    elif op == "unpack":
        errors = [{"name": draw.choice(NAMES), "errno": 13, "text": draw.choice(TEXTS)}] * draw.choice((0, 1, 900))
        yield says(files=1, directories=draw.choice(NUMBERS[:8]), links=0, bytes=100, errors=errors)
    else:
        yield says(stat=stat(draw.choice(("directory", "directory", "file", None))), exists=True)
