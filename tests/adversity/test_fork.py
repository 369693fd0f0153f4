"""A process that has VMs forks: they, and all that tells of their owner's life, stay the parent's alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sandbox.config import HostConfig
from sandbox.errors import ConfigError
from sandbox.hypervisor.ledger import Ledger
from sandbox.hypervisor.process import Process
from sandbox.hypervisor.rundir import reap
from sandbox.image.lock import is_held
from sandbox.observe.rotating_file import RotatingFile
from sandbox.template.hold import is_being_baked, removing
from sandbox.template.manifest import MANIFEST, MEMORY

HOLDER = """
import json, os, signal, sys
import sandbox.sync
from sandbox import PoolConfig
from sandbox.config import HostConfig
from sandbox.errors import HypervisorError, StateError
from sandbox.hypervisor.host import Hypervisor

pool = sandbox.sync.VMPool(PoolConfig(min_size=1, max_size=1, warm_up=False))
pool.open()
acquired = pool.acquire()
vm = acquired.__enter__()
refused = []
child = os.fork()
if child == 0:
    if sys.argv[1] == "sleep":
        signal.pause()
    for attempt in (lambda: Hypervisor.connect_blocking(HostConfig()), lambda: sandbox.sync.run("pass"), pool.close):
        try:
            attempt()
        except (HypervisorError, StateError) as error:
            refused.append("forked" in str(error))
    sys.exit(0 if refused == [True] * 3 else 1)
if sys.argv[1] == "sleep":
    print(json.dumps({"child": child, "name": vm.name}), flush=True)
    signal.pause()
said = {"status": os.waitpid(child, 0)[1], "text": vm.run("print(6 * 7)").text}
acquired.__exit__(None, None, None)
pool.run("pass").check()
print(json.dumps(said), flush=True)
pool.close()
"""
LOCKER = """
import asyncio, os, signal, sys
from pathlib import Path
from sandbox.hypervisor.ledger import Ledger
from sandbox.hypervisor.rundir import RunDirectory
from sandbox.image.lock import build_lock
from sandbox.observe.rotating_file import RotatingFile
from sandbox.template.hold import Hold, baking

async def main():
    runtime = Path(sys.argv[1])
    held, ledger = RunDirectory.create(runtime), Ledger(runtime / "ledger", "0123abcd")
    ledger.promise("a vm", 100, 1000)
    hold, log = Hold.take(runtime / "template"), RotatingFile(runtime / "log", max_bytes=100, keep=1)
    async with baking(runtime / "key.lock"):
        with build_lock(runtime / "build.lock", lambda: None):
            child = os.fork()
            if child == 0:
                held.remove()
                ledger.release("a vm")
                ledger.close()
                os.write(1, b"%d\\n" % os.getpid())
            signal.pause()

asyncio.run(main())
"""


LEAVER = """
import os, sys
import sandbox.sync
from sandbox.hypervisor import connection
from sandbox import PoolConfig

with sandbox.sync.VMPool(PoolConfig(min_size=0, max_size=1, warm_up=False)) as pool, pool.acquire() as vm:
    with vm.context() as context:
        child = os.fork()
        if child == 0:
            connection.libvirt.virEventAddTimeout = lambda *_: print("libvirt was called", flush=True)
            sys.exit(3)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print([status, vm.run("print(6 * 7)").text], flush=True)
"""


@contextmanager
def _run(program: str, argument: str) -> Iterator[subprocess.Popen[str]]:
    command, pipe = [sys.executable, "-c", program, argument], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _line(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


@pytest.mark.usefixtures("template")
def test_a_child_that_exits_ends_nothing_of_its_parent() -> None:
    """A child may exit as a program does: the lease goes on, VMs are started as before. It gets none itself."""
    with _run(HOLDER, "exit") as holder:
        said = _line(holder)
        assert said == {"status": 0, "text": "42\n"}
        assert "StateError" not in holder.communicate(timeout=30)[1]
        assert holder.returncode == 0


@pytest.mark.usefixtures("template")
def test_a_child_that_lives_on_keeps_nothing_of_a_killed_parent() -> None:
    """While its child lives, the guests of a killed process notice its end, and its run directory is cleared."""
    runtime = HostConfig().runtime_dir
    with _run(HOLDER, "sleep") as holder:
        said = _line(holder)
        rundir = runtime / said["name"].split("-")[1]
        machines = Process.find(f"{rundir}/")
        assert machines
        child = os.pidfd_open(said["child"])
        try:
            holder.kill()
            holder.wait()
            assert all(machine.wait_dead_blocking(10) for machine in machines), "their channels are open elsewhere"
            reap(runtime)
            assert not rundir.exists()
        finally:
            signal.pidfd_send_signal(child, signal.SIGKILL)
            os.close(child)
            for machine in machines:
                machine.kill()
                machine.close()


@pytest.mark.usefixtures("template")
def test_a_child_leaves_its_parents_contexts_as_if_they_were_nothing() -> None:
    """Its own exit status counts, and libvirt is not asked for anything."""
    with _run(LEAVER, "") as process:
        said, _ = process.communicate(timeout=60)
        assert (said, process.returncode) == ("[3, '42\\n']\n", 0)


def test_connection_that_fails_says_nothing_of_children() -> None:
    """A process that could not use libvirt may have children that do: they are not told that they were forked."""
    program = (
        "import os\nfrom sandbox.config import HostConfig\nfrom sandbox.errors import HypervisorError\n"
        "from sandbox.hypervisor.host import Hypervisor\n"
        "def fail():\n    try:\n        Hypervisor.connect_blocking(HostConfig())\n"
        "    except HypervisorError as error:\n        return str(error)\n"
        "fail()\nif os.fork() == 0:\n    print(fail(), flush=True)\nelse:\n    os.wait()\n"
    )
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as runtime:  # sockets' paths are short
        Path(runtime).chmod(0o777)
        environment = {**os.environ, "SANDBOX_RUNTIME_DIR": runtime}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "others may write in" in done.stdout


def test_locks_are_the_parents_alone(tmp_path: Path) -> None:
    """A child can give nothing of its parent's back, and keeps no lock, promise or template that its parent had."""
    (tmp_path / "template").mkdir()
    for name in (MANIFEST, MEMORY):
        (tmp_path / "template" / name).touch()

    def is_locked(path: Path) -> bool:
        try:
            RotatingFile(path, max_bytes=100, keep=1).close()
        except ConfigError:
            return True
        return False

    def taken() -> dict[str, bool]:
        with removing(tmp_path / "template") as is_free:
            return {
                "log": is_locked(tmp_path / "log"),
                "template": not is_free,
                "bake": is_being_baked(tmp_path / "key.lock"),
                "build": is_held(tmp_path / "build.lock"),
                "memory": ledger.total_mib() == 100,
                "run directory": reap(tmp_path) == 0,
            }

    with _run(LOCKER, str(tmp_path)) as parent:
        child = os.pidfd_open(_line(parent))
        try:
            ledger = Ledger(tmp_path / "ledger", "89abcdef")
            assert all(taken().values()), "the control: they are the parent's while it lives"
            parent.kill()
            parent.wait()
            assert not any((found := taken()).values()), found
            ledger.close()
        finally:
            signal.pidfd_send_signal(child, signal.SIGKILL)
            os.close(child)
