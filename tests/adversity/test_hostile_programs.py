"""Programs that want to harm: each ends as documented, within its deadline and two seconds, and the host is as before."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import anyio
import pytest
from anyio.to_thread import run_sync

from sandbox.certificate import Cause
from sandbox.config import Limits
from sandbox.errors import GuestLost
from sandbox.hypervisor.process import Process
from sandbox.result import Outcome, Result
from sandbox.template.template import Template
from sandbox.vm import VM

MIB = 1024 * 1024
GRACE = 2.5
"""A guest has two seconds to obey a kill, then its VM goes; half a second is for a busy host."""


@dataclass(frozen=True)
class Hostile:
    """A program, how it ends, and what is left of its VM: usable, lost, or it answers that it cannot run anything."""

    code: str
    outcome: Outcome
    cause: Cause | None = None
    after: Literal["usable", "lost", "either", "refuses"] = "usable"
    user: str | None = None
    timeout: float = 30
    language: str = "bash"


def _exits(code: str, cause: Cause | None = None, *, user: str | None = None, language: str = "bash") -> Hostile:
    return Hostile(code, Outcome.EXITED, cause, user=user, language=language)


def _hangs(
    code: str, after: Literal["usable", "lost", "either"], user: str | None = None, seconds: float = 1
) -> Hostile:
    return Hostile(code, Outcome.TIMED_OUT, Cause.DEADLINE, after, user, seconds)


def _breaks(code: str, cause: Cause | None = None) -> Hostile:
    return Hostile(code, Outcome.EXITED, cause, "refuses", "root")


def _kills(code: str, outcome: Outcome, cause: Cause) -> Hostile:
    return Hostile(code, outcome, cause, "lost", "root", language="python")


LIBC = "import ctypes, os, time\nlibc = ctypes.CDLL(None, use_errno=True)\n"
STEAL_PORT = """
number, = (fd for fd in os.listdir('/proc/1/fd') if 'vport' in os.readlink(f'/proc/1/fd/{fd}'))
port = libc.syscall(438, os.pidfd_open(1), int(number), 0)  # pidfd_getfd
"""
STOP_AGENT = "assert libc.ptrace(0x4206, 1, 0, 0) == 0 == libc.ptrace(0x4207, 1, 0, 0)\n"  # PTRACE_SEIZE, _INTERRUPT
OPEN_EVERYTHING = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (65536, 65536))
first = os.getpid()
for _ in range(3): os.fork()
try:
    while True: os.open('/dev/null', os.O_RDONLY)
except OSError: pass
"""
ZOMBIES = """
stack = ctypes.create_string_buffer(65536)
top = ctypes.c_void_p(ctypes.addressof(stack) + 65536 - 64)
for _ in range(14):
    if (parent := os.fork()) == 0:
        for _ in range(700): libc.clone(libc._exit, top, 0x4100 | 17, None)  # CLONE_VM | CLONE_VFORK | SIGCHLD
        os._exit(0)  # its zombies are init's now
    os.waitpid(parent, 0)
"""
OVERWRITE_INIT = """
text = next(line for line in open('/proc/1/maps') if 'r-xp' in line and 'python' in line)
start, end = (int(number, 16) for number in text.split()[0].split('-'))
memory = open('/proc/1/mem', 'r+b', 0)
memory.seek(start)
memory.write(b'\\xcc' * (end - start))
time.sleep(60)
"""
REALTIME = """
open('/proc/sys/kernel/sched_rt_runtime_us', 'w').write('-1')
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
while True: pass
"""


def _python(code: str) -> str:
    return f"exec python3 - <<'end'\n{LIBC}{code}\nend"


def _sysrq(letter: str) -> str:
    return f"open('/proc/sysrq-trigger', 'w').write('{letter}')"


HOSTILE = {
    "fork bomb": _hangs("bomb() { bomb | bomb & }; bomb; wait; sleep 100", "either", seconds=2),
    "thread bomb": Hostile(
        "import threading, time\nwhile True:\n try: threading.Thread(target=time.sleep, args=(100,)).start()\n"
        " except RuntimeError: pass",
        *(Outcome.TIMED_OUT, Cause.DEADLINE, "either", None, 2, "python"),
    ),
    "zombie storm": _exits(LIBC + ZOMBIES, language="python"),
    "memory bomb": Hostile(
        "keep = []\nwhile True: keep.append(bytearray(b'x' * 2**20))",
        *(Outcome.OUT_OF_MEMORY, Cause.OUT_OF_MEMORY),
        language="python",
    ),
    "full disk": _exits("cat /dev/zero >/dev/shm/file; cat /dev/zero >/tmp/file", Cause.DISK_FULL),
    "no more files": _exits(
        "import os\nn = 0\nwhile True: os.symlink('x', f'/tmp/{n}'); n += 1", Cause.DISK_FULL, language="python"
    ),
    "huge sparse file": _exits("truncate -s 4T file && dd if=/dev/zero of=file bs=1 count=1 seek=3T conv=notrunc"),
    "open files": _exits(OPEN_EVERYTHING, language="python"),
    "removed everything": _breaks("rm -rf --no-preserve-root / 2>/dev/null", Cause.EXIT_STATUS),
    "mount over /proc": _breaks(_python("assert libc.mount(b'none', b'/proc', b'tmpfs', 0, b'') == 0")),
    "mount over the control groups": _breaks(
        _python("assert libc.mount(b'none', b'/sys/fs/cgroup', b'tmpfs', 0, b'') == 0")
    ),
    "killed init": _exits("for s in KILL STOP TERM INT HUP QUIT SEGV ABRT; do kill -$s 1; done", user="root"),
    "killed everybody": _exits("kill -KILL -1", user="root"),
    "stopped everybody": _hangs("kill -STOP -1; kill -STOP $$", "usable", "root"),
    "ignored signals": _hangs("trap '' TERM INT HUP QUIT; while :; do :; done", "usable"),
    "daemon that holds the pipes": _exits("setsid bash -c 'trap \"\" HUP TERM; while :; do echo x; sleep 1; done' &"),
    "removed its control group": _hangs(
        "own=/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); echo $$ >/sys/fs/cgroup/cgroup.procs; rmdir $own; sleep 99",
        *("usable", "root"),
    ),
    "left its control group": _hangs("echo $$ >/sys/fs/cgroup/cgroup.procs; setsid sleep 99", "lost", "root"),
    "traced the agent": _hangs(_python(STOP_AGENT + "time.sleep(99)"), "lost", "root"),
    "tried to trace the agent": _exits(_python("assert libc.ptrace(0x4206, 1, 0, 0) == -1 and libc.kill(1, 9) == -1")),
    "realtime": _hangs(_python(REALTIME), "either", "root"),
    "crashed the kernel": _kills(_sysrq("c"), Outcome.GUEST_CRASHED, Cause.KERNEL_PANIC),
    "overwrote init": _kills(LIBC + OVERWRITE_INIT, Outcome.GUEST_CRASHED, Cause.KERNEL_PANIC),
    "powered off": _kills(_sysrq("o"), Outcome.GUEST_SHUTDOWN, Cause.POWER_OFF),
    "restarted": _kills(LIBC + "libc.reboot(0x1234567)", Outcome.GUEST_SHUTDOWN, Cause.POWER_OFF),
    "wrote into the channel": _kills(
        LIBC + STEAL_PORT + "os.write(port, bytes(13))", Outcome.PROTOCOL_ERROR, Cause.PROTOCOL
    ),
    "half a frame, then silence": _hangs(
        _python(STEAL_PORT + STOP_AGENT + r"os.write(port, b'\0\0'); time.sleep(99)"), "lost", "root"
    ),
    "tried to open the channel": _exits(
        "for port in /dev/vport*; do ! { : <>$port; } 2>/dev/null || exit 1; done; ! ls /proc/1/fd 2>/dev/null"
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_program_ends_as_documented_and_the_host_is_as_before(template: Template, name: str) -> None:
    """Its end is typed and in time; no process but the VM's QEMU came of it, and no descriptor stays open."""
    hostile = HOSTILE[name]
    descriptors, children = _descriptors(), _children(os.getpid())
    async with template.lease() as vm:
        started = time.monotonic()
        try:
            result = await vm.run(
                hostile.code, language=hostile.language, user=hostile.user, timeout=hostile.timeout, capture_bytes=4096
            )
        except GuestLost as lost:
            assert lost.partial is not None
            result = lost.partial
        elapsed = time.monotonic() - started
        cause = result.certificate.cause if result.certificate else None
        assert (result.outcome, cause) == (hostile.outcome, hostile.cause), result
        assert elapsed < hostile.timeout + GRACE
        found = [process.pid for process in await run_sync(Process.find, f"{template.host.rundir.path}/")]
        assert found in ([vm.pid], []) if hostile.after != "usable" else found == [vm.pid]
        assert _children(os.getpid()) - children <= {vm.pid}
        await _check_what_is_left(vm, hostile)
    with anyio.fail_after(5):  # libvirt closes what it had of a dead VM within 0.2 s
        while _descriptors() > descriptors:
            await anyio.sleep(0.02)
    assert _children(os.getpid()) == children


async def _check_what_is_left(vm: VM, hostile: Hostile) -> None:
    if hostile.after == "either":
        assert vm.is_alive or (await _is_lost(vm))
    elif hostile.after == "lost":
        assert await _is_lost(vm)
    if not vm.is_alive:
        return
    result = await vm.run("print(6 * 7)", timeout=10)
    if hostile.after == "refuses":
        assert result.exit_code in (126, 127)
        assert result.stderr.startswith(b"sandbox: ")
    else:
        assert result.stdout == b"42\n", result


async def _is_lost(vm: VM) -> bool:
    with pytest.raises(GuestLost) as lost:
        await vm.run("")
    return lost.value.certificate is not None and not vm.is_alive


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _children(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return {int(child) for task in tasks for child in (task / "children").read_text().split()}
