"""Runs on the host: a guest gives hostile answers to one operation, in every shape; tells what each has cost."""

import asyncio
import ctypes
import gc
import json
import sys
import tempfile
import time
from pathlib import Path

from sandbox.guest.answers import CELL, FILE, FILES, STATUS, Bound
from sandbox.guest.context import Context
from sandbox.guest.language import start_request
from sandbox.guest.transfer import download
from sandbox.message import Tag, decode_json, encode
from sandbox.wire import CHUNK_BYTES, GUEST_LIMITS, Kind
from sandbox.wire import encode as encode_frame
from tests.fakes.file_guest import FileGuest, data, says, stat_of

ATTEMPTS, SHORT = 3, 0.008  # a machine that does other things besides makes one measurement long, not all of them
libc = ctypes.CDLL(None)


def many(unit, size):
    """Return a list of as many as fit."""
    return b"[" + unit * ((size - 2 - len(unit)) // len(unit)) + unit.rstrip(b",") + b"]"


def wide(size, key="{}"):
    found = bytearray()
    number = 0
    while len(found) < size - 2000:
        found += b'"%s":0,' % key.format(number).encode()
        number += 1
    return b"{" + bytes(found[:-1]) + b"}"


SHAPES = {
    "plain text": lambda size: b'"' + b"x" * (size - 2) + b'"',
    "commas in a text": lambda size: b'"' + b",:[{" * (size // 4 - 1) + b'"',
    "escapes": lambda size: b'"' + b"\\n" * (size // 2 - 1) + b'"',
    "escaped characters": lambda size: b'"' + b"\\u00e9" * (size // 6 - 1) + b'"',
    "halves of characters": lambda size: b'"' + b"\\ud800" * (size // 6 - 1) + b'"',
    "one wide character": lambda size: b'"\\ud83d\\ude00' + b"x" * (size - 20) + b'"',
    "quotes": lambda size: b'"\\' * (size // 2),
    "a text without end": lambda size: b'"' + b"x" * (size - 1),
    "commas": lambda size: many(b"0,", size),
    "floats": lambda size: many(b"1.5e3,", size),
    "short texts": lambda size: many(b'"ab",', size),
    "texts that end in an escape": lambda size: many(b'"\\\\",', size),
    "texts of a kilobyte": lambda size: many(b'"' + b"x" * 1000 + b'",', size) if size > 3000 else b"[]",
    "empty objects": lambda size: many(b"{},", size),
    "empty lists": lambda size: many(b"[],", size),
    "objects of one field": lambda size: many(b'{"":0},', size),
    "as many values as allowed": lambda size: many(b'{"":0},', min(size, 230_000)),
    "deep lists": lambda size: b"[" * (size // 2) + b"]" * (size // 2),
    "deep objects": lambda size: b'{"a":' * (size // 6) + b"0" + b"}" * (size // 6),
    "no end of depth": lambda size: b"[" * size,
    "wide": lambda size: wide(size),
    "long keys": lambda size: wide(size, "{:>0500}") if size > 3000 else b"{}",
    "one long key": lambda size: b'{"' + b"k" * (size - 6) + b'":0}',
    "a field again and again": lambda size: b"{" + b'"a":0,' * (size // 6 - 1) + b'"a":0}',
    "a huge number": lambda size: b"9" * size,
    "huge numbers": lambda size: many(b"9" * 4000 + b",", size) if size > 9000 else b"[0]",
    "numbers that are too large": lambda size: many(b"9e" + b"9" * 300 + b",", size) if size > 2000 else b"[0]",
    "white space": lambda size: b" " * size,
    "white space between": lambda size: many(b" " * 1000 + b"0,", size) if size > 3000 else b"[0]",
    "no JSON": lambda size: b"\xff" * size,
}


def pieces(body):
    """Return a message in parts, so that the guest here costs nothing."""
    message = encode(Tag.JSON, body)
    return [message[start : start + CHUNK_BYTES] for start in range(0, len(message), CHUNK_BYTES)]


def on_files(bound, fields, call, before=(), after=()):
    """Say it in place of the mark in `fields`, as the answer to a call."""

    async def run(shape):
        head, tail = json.dumps(fields).encode().split(b'"@"')
        body = head + shape(bound.bytes - len(head) - len(tail)) + tail
        said = [*before, *pieces(body[: bound.bytes]), *after]

        def script(request):
            return [says(stat=stat_of("directory"))] if request.get("op") == "stat" and call is fetch else said

        guest = FileGuest(script)
        return guest, lambda: call(guest.files)

    return bound, run


def on_cell(language, bound, fields):
    async def run(shape):
        head, tail = json.dumps(fields).encode().split(b'"@"')
        body = head + shape(bound.bytes - len(head) - len(tail)) + tail
        said = [*pieces(body[: bound.bytes])]
        guest = FileGuest(lambda _: said, is_shell=language == "bash")
        context = Context(guest.client, language, start_request(language, {}))
        return guest, lambda: context.run("1")

    return bound, run


def at_once(bound):
    """The control: the decoder that does all of it in one go."""

    async def run(shape):
        body = b'{"x":' + shape(bound.bytes - 6) + b"}"

        async def call():
            return decode_json(body)

        return FileGuest(lambda _: ()), call

    return bound, run


def on_end(fields):
    """The end of a program is no message of a server, but a frame."""
    size = GUEST_LIMITS[Kind.EXITED]

    async def run(shape):
        head, tail = json.dumps(fields).encode().split(b'"@"')
        body = (head + shape(size - len(head) - len(tail)) + tail)[:size]
        guest = FileGuest(lambda _: ())
        execution = guest.start()

        async def end():
            guest.say(encode_frame(Kind.EXITED, 0, execution.number, body))
            return await execution.wait()

        return guest, end

    return Bound(size, 0), run


async def fetch(files):
    with tempfile.TemporaryDirectory() as directory:
        return await download(files, "d", Path(directory) / "copy")


async def watch(files):
    async with files.watch("w") as changes:
        async for _ in changes:
            pass


STAT = stat_of("symlink", target="@")
ENTRY = stat_of("file", name="@")
CHANGE = {"type": "created", "path": "@", "is_directory": False}
TAIL = [encode(Tag.END), says()]
HEAD = [says(stat=stat_of("file")), data(b"x")]
CELLS = {"number": 1, "value": {"text/plain": "x"}, "displayed": []}
END = {"code": 1, "signal": None, "cpu_us": 100}
OPERATIONS = {
    "stat": on_files(FILE, {"stat": "@"}, lambda files: files.stat("f")),
    "stat, target": on_files(FILE, {"stat": STAT}, lambda files: files.stat("f")),
    "stat, field": on_files(FILE, {"stat": STAT | {"target": None, "more": "@"}}, lambda files: files.stat("f")),
    "stat, size": on_files(FILE, {"stat": STAT | {"target": None, "size": "@"}}, lambda files: files.stat("f")),
    "stat, refusal": on_files(FILE, {"errno": "@", "text": "no"}, lambda files: files.stat("f")),
    "stat, words": on_files(FILE, {"errno": 22, "text": "@"}, lambda files: files.stat("f")),
    "exists": on_files(FILE, {"exists": "@"}, lambda files: files.exists("f")),
    "remove": on_files(FILE, {"x": "@"}, lambda files: files.remove("f")),
    "read": on_files(FILE, {"stat": "@"}, lambda files: files.read("f"), after=TAIL),
    "read, refusal": on_files(FILE, {"errno": 5, "text": "@"}, lambda files: files.read("f"), before=HEAD),
    "write": on_files(FILE, {"stat": "@"}, lambda files: files.write("f", b"x")),
    "list": on_files(FILES, {"entries": "@"}, lambda files: files.list("d")),
    "list, entry": on_files(FILES, {"entries": ["@"]}, lambda files: files.list("d")),
    "list, name": on_files(FILES, {"entries": [ENTRY]}, lambda files: files.list("d")),
    "pack": on_files(FILE, {"entry": "@"}, fetch),
    "pack, name": on_files(FILE, {"entry": ENTRY}, fetch, after=[encode(Tag.END), says(done=True)]),
    "watch": on_files(FILES, {"events": "@"}, lambda files: watch(files), before=[says()]),
    "watch, path": on_files(FILES, {"events": [CHANGE]}, lambda files: watch(files), before=[says()]),
    "python": on_cell("python", CELL, {"number": 1, "x": "@"}),
    "python, number": on_cell("python", CELL, {"number": "@"}),
    "python, value": on_cell("python", CELL, CELLS | {"value": "@"}),
    "python, text": on_cell("python", CELL, CELLS | {"value": {"text/plain": "@"}}),
    "python, displayed": on_cell("python", CELL, CELLS | {"displayed": "@"}),
    "python, displayed one": on_cell("python", CELL, CELLS | {"displayed": ["@"]}),
    "python, error": on_cell("python", CELL, CELLS | {"error": "@"}),
    "python, words": on_cell("python", CELL, CELLS | {"error": {"name": "@", "text": "", "traceback": ""}}),
    "bash": on_cell("bash", STATUS, {"number": 1, "status": "@"}),
    "undefended": at_once(CELL),
    "end": on_end(END | {"x": "@"}),
    "end, code": on_end(END | {"code": "@"}),
    "end, evidence": on_end(END | {"evidence": "@"}),
    "end, log": on_end(END | {"evidence": {"forks_refused": 0, "disk_free_bytes": 9, "files_free": 9, "kernel_log": "@"}}),
}


def status(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) * 1024


async def measure(run, shape):
    """Return what the call gave, by how much memory grew, and for how long the event loop did nothing else."""
    guest, call = await run(shape)
    await asyncio.sleep(0)
    gc.collect()
    libc.malloc_trim(0)
    stall, is_over = 0.0, False

    async def take_turns():
        nonlocal stall
        while not is_over:
            begun = time.thread_time()
            await asyncio.sleep(0)
            stall = max(stall, time.thread_time() - begun)

    ticks = asyncio.ensure_future(take_turns())
    await asyncio.sleep(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    try:
        outcome = str(getattr(await asyncio.wait_for(call(), 5), "outcome", "taken"))
    except Exception as error:
        outcome = type(error).__name__
        for attempt in (str, repr):
            if len(attempt(error)) > 5000:
                outcome = f"a message of {len(attempt(error))} characters"
    grown = status("VmHWM") - before
    is_over = True
    await ticks
    guest.release()
    return outcome, grown, stall


async def main():
    for name, (bound, run) in OPERATIONS.items():
        if name.partition(",")[0] != sys.argv[1]:
            continue
        await measure(run, SHAPES["no JSON"])  # what is done once is done then
        for shape, make in SHAPES.items():
            for _ in range(ATTEMPTS):
                outcome, grown, stall = await measure(run, make)
                if stall < SHORT and grown < bound.memory:
                    break
            print(json.dumps([name, shape, outcome, grown - bound.memory, stall]), flush=True)


asyncio.run(main())
