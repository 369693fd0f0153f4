"""Programs end, time out and are followed while sniffio is installed, to which a callback has no asynchronous library.

The stand-in behaves as sniffio does under `asyncio.run`: only within a task it says "asyncio".
"""

import asyncio
import json
import socket
import sys
import types
from contextvars import ContextVar


class AsyncLibraryNotFoundError(RuntimeError):
    pass


def current_async_library():
    if name := stand_in.current_async_library_cvar.get():
        return name
    try:
        if asyncio.current_task() is not None:
            return "asyncio"
    except RuntimeError:
        pass
    raise AsyncLibraryNotFoundError("unknown async library, or not in async context")


stand_in = types.ModuleType("sniffio")
stand_in.current_async_library_cvar = ContextVar("current_async_library", default=None)
stand_in.AsyncLibraryNotFoundError = AsyncLibraryNotFoundError
stand_in.current_async_library = current_async_library
sys.modules["sniffio"] = stand_in

import anyio  # noqa: E402

from sandbox.guest import watchdog  # noqa: E402
from sandbox.guest.client import GuestClient  # noqa: E402
from sandbox.guest.request import Request  # noqa: E402
from sandbox.hypervisor.stream import SocketStream  # noqa: E402
from sandbox.wire import HOST_LIMITS, Decoder, Kind, encode  # noqa: E402

END = json.dumps({"code": 0, "signal": None, "cpu_us": 100}).encode()
watchdog.SILENCE_SECONDS = 0.05


def in_a_callback_anyio_has_no_clock():
    try:
        anyio.current_time()
    except anyio.NoEventLoopError:
        return True
    return False


async def main():
    faults = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: faults.append(context))
    blind = loop.create_future()
    loop.call_soon(lambda: blind.set_result(in_a_callback_anyio_has_no_clock()))
    assert await blind, "the control: sniffio is not asked"

    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    client, decoder = GuestClient(SocketStream(ours)), Decoder(HOST_LIMITS)
    heard = []

    def answer():
        for frame in decoder.feed(theirs.recv(65536)):
            heard.append(frame.kind)
            if frame.kind is Kind.PING:
                theirs.send(encode(Kind.PONG, 0))
            elif frame.kind is Kind.KILL:
                theirs.send(encode(Kind.EXITED, 0, frame.id, END))

    loop.add_reader(theirs, answer)
    first = client.start(Request("argv", {"argv": ["x"]}, timeout=1))
    second = client.start(Request("argv", {"argv": ["x"]}))
    events = second.events()
    theirs.send((encode(Kind.OUT, 0, 2, b"x") + encode(Kind.ERR, 0, 2, b"x")) * 2000 + encode(Kind.EXITED, 0, 2, END))
    seen = [event async for event in events]
    while Kind.PING not in heard:
        await asyncio.sleep(0.001)
    result = await first.wait()
    loop.remove_reader(theirs)
    theirs.close()
    while client.lost is None:
        await asyncio.sleep(0.001)
    assert client.idle_seconds >= 0
    print(json.dumps({"events": len(seen), "outcome": result.outcome, "faults": list(map(str, faults))}))


asyncio.run(main())
