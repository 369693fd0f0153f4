"""Programs that want to harm, how each of them ends, and what is left of the VM that it ran in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sandbox.certificate import Cause
from sandbox.result import Outcome


@dataclass(frozen=True)
class Hostile:
    """A program, how it ends, and what is left of its VM: usable, lost, or it answers that it cannot run anything."""

    code: str
    outcome: Outcome
    cause: Cause | None = None
    after: Literal["usable", "lost", "either", "refuses"] = "usable"
    user: str | None = None
    timeout: float = 30

    @property
    def language(self) -> str:
        return "python" if self.code.startswith("import ") else "bash"


def _exits(code: str, cause: Cause | None = None, *, user: str | None = None) -> Hostile:
    return Hostile(code, Outcome.EXITED, cause, user=user)


def _hangs(code: str, after: Literal["usable", "lost", "either"], user: str | None = None) -> Hostile:
    return Hostile(code, Outcome.TIMED_OUT, Cause.DEADLINE, after, user, 1 if after == "usable" else 2)


def _breaks(code: str, cause: Cause | None = None) -> Hostile:
    return Hostile(code, Outcome.EXITED, cause, "refuses", "root")


def _kills(code: str, outcome: Outcome, cause: Cause) -> Hostile:
    return Hostile(code, outcome, cause, "lost", "root")


LIBC = "import ctypes, os, time\nlibc = ctypes.CDLL(None, use_errno=True)\n"
STEAL_PORT = """
number, = (fd for fd in os.listdir('/proc/1/fd') if 'vport' in os.readlink(f'/proc/1/fd/{fd}'))
port = libc.syscall(438, os.pidfd_open(1), int(number), 0)  # pidfd_getfd
"""
STOP_AGENT = "assert libc.ptrace(0x4206, 1, 0, 0) == 0 == libc.ptrace(0x4207, 1, 0, 0)\n"  # PTRACE_SEIZE, _INTERRUPT
OPEN_EVERYTHING = """import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (65536, 65536))
for _ in range(3): os.fork()
try:
    while True: os.open('/dev/null', os.O_RDONLY)
except OSError: pass
"""
THREADS = """import threading, time
while True:
    try: threading.Thread(target=time.sleep, args=(100,)).start()
    except RuntimeError: pass
"""
ZOMBIES = """
stack = ctypes.create_string_buffer(65536)
top = ctypes.c_void_p(ctypes.addressof(stack) + 65536 - 64)
for _ in range(7):
    if (parent := os.fork()) == 0:
        for _ in range(700): libc.clone(libc._exit, top, 0x4100 | 17, None)  # CLONE_VM | CLONE_VFORK | SIGCHLD
        os._exit(0)  # its zombies are init's now
    os.waitpid(parent, 0)
"""
REALTIME = """
open('/proc/sys/kernel/sched_rt_runtime_us', 'w').write('-1')
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
while True: pass
"""


def _sysrq(letter: str) -> str:
    return LIBC + f"open('/proc/sysrq-trigger', 'w').write('{letter}')"


HOSTILE = {
    "fork bomb": _hangs("bomb() { bomb | bomb & }; bomb; wait; sleep 100", "either"),
    "thread bomb": _hangs(THREADS, "either"),
    "zombie storm": _exits(LIBC + ZOMBIES),
    "memory bomb": Hostile(
        LIBC + "keep = []\nwhile True: keep.append(bytearray(b'x' * 2**20))",
        *(Outcome.OUT_OF_MEMORY, Cause.OUT_OF_MEMORY),
    ),
    "full disk": _exits("cat /dev/zero >/dev/shm/file; cat /dev/zero >/tmp/file", Cause.DISK_FULL),
    "no more files": _exits("import os\nn = 0\nwhile True: os.symlink('x', f'/tmp/{n}'); n += 1", Cause.DISK_FULL),
    "huge sparse file": _exits("truncate -s 4T file && dd if=/dev/zero of=file bs=1 count=1 seek=3T conv=notrunc"),
    "open files": _exits(OPEN_EVERYTHING),
    "removed everything": _breaks("rm -rf --no-preserve-root / 2>/dev/null", Cause.EXIT_STATUS),
    "mount over /proc": _exits(LIBC + "assert libc.mount(b'none', b'/proc', b'tmpfs', 0, b'') == 0", user="root"),
    "mount over the control groups": _breaks(
        LIBC + "assert libc.mount(b'none', b'/sys/fs/cgroup', b'tmpfs', 0, b'') == 0"
    ),
    "killed init": _exits("for s in KILL STOP TERM INT HUP QUIT SEGV ABRT; do kill -$s 1; done", user="root"),
    "killed everybody": _exits("kill -KILL -1", user="root"),
    "stopped everybody": _hangs("kill -STOP -1; kill -STOP $$", "usable", "root"),
    "ignored signals": _hangs("trap '' TERM INT HUP QUIT; while :; do :; done", "usable"),
    "daemon that holds the pipes": _exits("setsid bash -c 'trap \"\" HUP TERM; while :; do echo x; sleep 1; done' &"),
    "removed its control group": _hangs(
        "cd /sys/fs/cgroup; own=$(cut -d: -f3 /proc/self/cgroup); echo $$ >cgroup.procs; rmdir ./$own; sleep 99",
        *("usable", "root"),
    ),
    "left its control group": _hangs("echo $$ >/sys/fs/cgroup/cgroup.procs; setsid sleep 99", "lost", "root"),
    "traced the agent": _hangs((LIBC + STOP_AGENT + "time.sleep(99)"), "lost", "root"),
    "tried to trace the agent": _exits(LIBC + "assert libc.ptrace(0x4206, 1, 0, 0) == -1 and libc.kill(1, 9) == -1"),
    "realtime": _hangs((LIBC + REALTIME), "either", "root"),
    "crashed the kernel": _kills(_sysrq("c"), Outcome.GUEST_CRASHED, Cause.KERNEL_PANIC),
    "powered off": _kills(_sysrq("o"), Outcome.GUEST_SHUTDOWN, Cause.POWER_OFF),
    "restarted": _kills(LIBC + "libc.reboot(0x1234567)", Outcome.GUEST_SHUTDOWN, Cause.POWER_OFF),
    "wrote into the channel": _kills(
        LIBC + STEAL_PORT + "os.write(port, bytes(13))", Outcome.PROTOCOL_ERROR, Cause.PROTOCOL
    ),
    "half a frame, then silence": _hangs(
        (LIBC + STEAL_PORT + STOP_AGENT + r"os.write(port, b'\0\0'); time.sleep(99)"), "lost", "root"
    ),
    "tried to open the channel": _exits(
        "for port in /dev/vport*; do ! { : <>$port; } 2>/dev/null || exit 1; done; ! ls /proc/1/fd 2>/dev/null"
    ),
}
