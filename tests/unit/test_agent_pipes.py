"""The agent's pipes without a machine: its own modules, and a channel that nobody reads for a while."""

from __future__ import annotations

import importlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox import wire
from sandbox.paths import resource

MIB = 1024 * 1024


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Modules of the agent by name."""
    home = str(resource("guest_agent"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", [home, *sys.path])
    monkeypatch.setitem(sys.modules, "wire", wire)
    yield {name: importlib.import_module(name) for name in ("agent", "channel", "pipe", "poller")}
    for name, module in list(sys.modules.items()):
        if str(Path(getattr(module, "__file__", None) or "/").parent) == home:
            del sys.modules[name]


class _Execution:
    """A program on a terminal: it has ended, and its end waits for what is still to be forwarded."""

    def __init__(self, agent: Any) -> None:
        self.id = 1
        self.agent = agent
        self.outlet: Any = None
        self.end_is_told = threading.Event()

    def advance(self) -> None:
        if not self.outlet.left:
            self.end_is_told.set()


def _agent(modules: dict[str, Any], port: int) -> Any:
    """Return an agent as it is after its handshake, without a machine of its own."""
    agent = modules["agent"].Agent.__new__(modules["agent"].Agent)
    agent.poller = modules["poller"].Poller()
    agent.channel = modules["channel"].Channel(port, agent.poller, agent.handle)
    agent.executions, agent.paused, agent.epoch = {}, [], 1
    agent._programs, agent._dead_are_left = modules, False
    return agent


def test_an_end_that_met_a_full_channel_is_told_when_there_is_room(modules: dict[str, Any]) -> None:
    """A terminal's last program has written nothing more, and a silent one in the background holds it open."""
    host, port = socket.socketpair()
    port.setblocking(False)
    terminal, held = os.openpty()
    os.set_blocking(terminal, False)
    agent = _agent(modules, port.fileno())
    execution = _Execution(agent)
    execution.outlet = modules["pipe"].Outlet(execution, wire.Kind.OUT, terminal, is_terminal=True)
    agent.channel.send(b"", bytes(MIB))
    assert agent.channel.is_full
    execution.outlet.mark()
    execution.outlet.move()
    assert agent.paused == [execution.outlet]
    assert not execution.end_is_told.is_set()

    def read_all() -> None:
        left = MIB
        while left:
            left -= len(host.recv(MIB))
        execution.end_is_told.wait(5)
        host.close()

    reader = threading.Thread(target=read_all)
    reader.start()
    agent.serve()
    reader.join()
    port.close()
    for fd in (terminal, held):
        os.close(fd)
    assert execution.end_is_told.is_set()
