"""Signals that come while a command works: what they end, what they do not, and what is left."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox.hypervisor.inventory import leaks
from sandbox.hypervisor.process import Process
from sandbox.hypervisor.rundir import reap

pytestmark = pytest.mark.usefixtures("template")
SANDBOX = [sys.executable, "-m", "sandbox"]
SECONDS = 60
END_SECONDS = 5


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A runtime directory of its own, which is empty when nothing is left."""
    with tempfile.TemporaryDirectory(prefix="sbx-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@contextmanager
def start(*command: str, **places: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command, which is killed if it has not ended by the end of the context."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env={**os.environ, **places}) as process:
        try:
            yield process
        finally:
            process.kill()


def machines_of(process: subprocess.Popen[bytes], count: int) -> list[Process]:
    """Return the QEMU processes of a command as soon as it has so many."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        found = [machine for child in children if (machine := Process.open(int(child), "guest=sbx-"))]
        if len(found) >= count:
            return found
        for machine in found:
            machine.close()
    raise AssertionError(f"it never had {count} VMs; it said {process.communicate(timeout=SECONDS)}")


def test_signal_that_was_ignored_from_the_beginning_stays_ignored() -> None:
    """Under `nohup` a command outlives its terminal's end and gives its script's status."""
    code = "print('up', flush=True); input(); raise SystemExit(3)"
    with start("bash", "-c", "trap '' HUP; exec \"$@\"", "bash", *SANDBOX, "exec", "-c", code) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGHUP)
        _, said = process.communicate(b"go on\n", timeout=SECONDS)
    assert (process.returncode, said) == (3, b"")


@pytest.mark.parametrize(("options", "count"), [((), 1), (("--clones",), 2)])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_doctor_that_is_ended_leaves_no_vm(
    runtime: Path, options: tuple[str, ...], count: int, number: signal.Signals, status: int
) -> None:
    """The VM that it looks at, and the clones that it compares, are destroyed before it goes."""
    with start(*SANDBOX, "doctor", *options, SANDBOX_RUNTIME_DIR=str(runtime)) as process:
        machines = machines_of(process, count)
        process.send_signal(number)
        _, said = process.communicate(timeout=SECONDS)
    assert (process.returncode, said) == (status, b"")
    for machine in machines:
        assert machine.wait_dead_blocking(0)
        machine.close()
    left = [str(path.relative_to(runtime)) for path in sorted(runtime.rglob("*"))]
    assert (leaks(runtime), reap(runtime)) == ([], 0), left
    assert list(runtime.iterdir()) == [], f"of {left}"


@pytest.fixture
def data() -> Iterator[Path]:
    """A data directory without an image."""
    with tempfile.TemporaryDirectory(prefix="sbx-", dir="/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("command", [("exec", "-c", "1"), ("trace", "boot")])
def test_first_run_that_waits_for_another_builder_can_be_ended(
    runtime: Path, data: Path, command: tuple[str, ...], number: signal.Signals, status: int
) -> None:
    """It goes at once, says nothing after the signal, and leaves nothing."""
    (data / "images").mkdir()
    with (data / "images" / "build.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        places = {"SANDBOX_DATA_DIR": str(data), "SANDBOX_RUNTIME_DIR": str(runtime)}
        with start(*SANDBOX, *command, **places) as process:
            assert process.stderr is not None
            assert b"waiting for another build" in process.stderr.readline()
            process.send_signal(number)
            assert process.wait(END_SECONDS) == status
            assert process.stderr.read() == b""
    assert list((data / "images" / "tmp").iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_first_run_that_builds_can_be_ended(
    runtime: Path, data: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    """The command that it builds with ends too, and nothing half-made is left."""
    os.mkfifo(data / "alive")
    builder = tmp_path / "mmdebstrap"
    builder.write_text(f'#!/bin/bash\ntouch "$TMPDIR/half"\nexec 3>{data}/alive\necho up >&3\nsleep 1000 & wait\n')
    builder.chmod(0o755)
    places = {"SANDBOX_DATA_DIR": str(data), "SANDBOX_RUNTIME_DIR": str(runtime)}
    path = f"{tmp_path}:{os.environ['PATH']}"
    alive = os.open(data / "alive", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with start(*SANDBOX, "exec", "-c", "1", PATH=path, **places) as process:
            assert select.select([alive], [], [], SECONDS)[0]
            assert os.read(alive, 10) == b"up\n"
            process.send_signal(number)
            assert process.wait(END_SECONDS) == status
            assert process.stderr is not None
            assert [b"Debian" in line for line in process.stderr.read().splitlines()] == [True]
        assert os.read(alive, 10) == b"", "the end of a pipe that nobody has open any more"
    finally:
        os.close(alive)
    assert list((data / "images" / "tmp").iterdir()) == []
