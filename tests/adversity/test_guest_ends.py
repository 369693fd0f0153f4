"""How guests end, and how programs end at their limits: the right reason, at once, never taken for another."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import anyio
import pytest

from sandbox.certificate import Cause
from sandbox.config import Limits
from sandbox.errors import GuestLost
from sandbox.guest.execution import KILL_SECONDS
from sandbox.guest.watchdog import SILENCE_SECONDS
from sandbox.result import Outcome, Result
from sandbox.template.template import Template
from sandbox.vm import VM
from tests.waiting import until_written

MIB = 1024 * 1024
TIMES = int(os.environ.get("SANDBOX_GUEST_ENDS", "1"))
LIBC = "import ctypes, time; libc = ctypes.CDLL(None)\n"
SYSRQ = "open('/proc/sysrq-trigger', 'w').write('{}')\n"
AGENT_DIES = """
text = next(line for line in open('/proc/1/maps') if 'r-xp' in line and 'python' in line)
start, end = (int(number, 16) for number in text.split()[0].split('-'))
memory = open('/proc/1/mem', 'r+b', 0)
memory.seek(start)
memory.write(b'\\xcc' * (end - start))
print('wake up')
"""
ENDS = {
    "panic": (SYSRQ.format("c"), Outcome.GUEST_CRASHED, Cause.KERNEL_PANIC),
    "agent dies": (AGENT_DIES, Outcome.GUEST_CRASHED, Cause.KERNEL_PANIC),
    "power off by sysrq": (SYSRQ.format("o"), Outcome.GUEST_SHUTDOWN, Cause.POWER_OFF),
    "reset by sysrq": (SYSRQ.format("b"), Outcome.GUEST_SHUTDOWN, Cause.POWER_OFF),
    "power off": (LIBC + "libc.reboot(0x4321fedc)", Outcome.GUEST_SHUTDOWN, Cause.POWER_OFF),
    "restart": (LIBC + "libc.reboot(0x1234567)", Outcome.GUEST_SHUTDOWN, Cause.POWER_OFF),
}
SILENT = {
    "halt": LIBC + "libc.reboot(0xcdef0123)",
    "suspend": "open('/sys/power/state', 'w').write('mem')",
    "stopped agent": LIBC + "libc.ptrace(0x4206, 1, 0, 0); libc.ptrace(0x4207, 1, 0, 0)\ntime.sleep(99)",
}


@pytest.mark.parametrize("_time", range(TIMES))
@pytest.mark.parametrize("name", ENDS)
async def test_a_guest_that_ends_itself_is_lost_at_once_with_the_right_cause(vm: VM, name: str, _time: int) -> None:
    """What was said before is kept, the certificate names cause and console, and nobody waits for a time-out."""
    act, outcome, cause = ENDS[name]
    code = f"import sys, time\nprint('last words', flush=True)\nsys.stdin.readline()\n{act}\ntime.sleep(99)"
    execution = await vm.spawn(["python3", "-c", code], stdin=None, user="root", timeout=60)
    await until_written(execution, 1)
    assert vm.is_alive, "not before"
    told = time.monotonic()
    await execution.write(b"now\n")
    with pytest.raises(GuestLost) as lost:
        await execution.wait()
    assert time.monotonic() - told < 5
    result, certificate = lost.value.partial, lost.value.certificate
    assert result is not None
    assert certificate is not None
    assert (result.outcome, certificate.cause, certificate.retry_safe) == (outcome, cause, False)
    assert result.stdout.startswith(b"last words")  # its line end may have been on the way
    assert certificate.evidence["console"] if cause is Cause.KERNEL_PANIC else "qemu_status" in certificate.evidence
    with pytest.raises(GuestLost) as after:
        await vm.run("")
    assert after.value.certificate is not None
    assert after.value.certificate.cause is cause


async def test_a_killed_qemu_is_noticed_within_a_second(vm: VM) -> None:
    """Everybody who waits hears at once that it was killed on the host, and by which signal."""
    execution = await vm.spawn("sleep 99", timeout=60)
    started = time.monotonic()
    os.kill(vm.pid, signal.SIGKILL)
    with pytest.raises(GuestLost) as lost:
        await execution.wait()
    assert time.monotonic() - started < 1
    assert lost.value.partial is not None
    assert lost.value.certificate is not None
    assert (lost.value.partial.outcome, lost.value.certificate.cause) == (Outcome.VM_LOST, Cause.QEMU_KILLED)


async def test_a_deadline_is_kept_although_qemu_is_stopped(vm: VM) -> None:
    """A VM that cannot obey is destroyed two seconds after the deadline, and the outcome is the deadline's."""
    execution = await vm.spawn("echo there; sleep 99", timeout=1)
    await until_written(execution, 1)
    os.kill(vm.pid, signal.SIGSTOP)
    result = await execution.wait()
    assert (result.outcome, result.stdout) == (Outcome.TIMED_OUT, b"there\n")
    assert result.certificate is not None
    assert (result.certificate.cause, "vm" in result.certificate.evidence) == (Cause.DEADLINE, True)
    assert result.duration < 1 + KILL_SECONDS + 0.5
    assert not vm.is_alive


async def test_silent_guests_are_found_without_any_deadline(template: Template) -> None:
    """A guest that halts, sleeps or hangs, or whose QEMU is stopped, ends as unresponsive; one that idles does not."""

    async def lose(act: Callable[[VM], object] | None, code: str) -> None:
        async with template.lease() as vm:
            execution = await vm.spawn(["python3", "-c", f"print('there', flush=True)\n{code}"], user="root")
            await until_written(execution, 1)
            if act is not None:
                act(vm)
            with pytest.raises(GuestLost) as lost:
                await execution.wait()
            assert lost.value.partial is not None
            assert lost.value.certificate is not None
            ended = (lost.value.partial.outcome, lost.value.certificate.cause)
            assert ended == (Outcome.GUEST_CRASHED, Cause.UNRESPONSIVE)
            assert 2 * SILENCE_SECONDS - 1 < lost.value.partial.duration < 3 * SILENCE_SECONDS + 1

    async with template.lease() as idle:
        can_suspend = (await idle.exec("test -e /sys/power/state")).ok  # the minimal kernel cannot
        waiting = await idle.spawn("sleep 99")
        async with anyio.create_task_group() as group:
            group.start_soon(lose, lambda vm: os.kill(vm.pid, signal.SIGSTOP), "import time; time.sleep(99)")
            for name, code in SILENT.items():
                if name != "suspend" or can_suspend:
                    group.start_soon(lose, None, code)
        assert idle.is_alive
        waiting.kill()
        assert (await waiting.wait()).signal == signal.SIGKILL


LIMITED = {
    "memory": ("b = bytearray(b'x' * (64 << 20))", Limits(memory_bytes=32 * MIB), Cause.OUT_OF_MEMORY, b""),
    "processes": (
        "import os, time\nfor _ in range(6):\n if os.fork() == 0: time.sleep(99)",
        *(Limits(processes=4), Cause.PROCESS_LIMIT, b"BlockingIOError"),
    ),
    "open files": ("x = [open('/dev/null') for _ in range(50)]", Limits(open_files=20), Cause.EXIT_STATUS, b"Errno 24"),
    "file size": ("open('file', 'wb').write(bytes(99999))", Limits(file_bytes=9999), Cause.EXIT_STATUS, b"Errno 27"),
    "file size, by signal": (
        "import os; os.execvp('head', ['head', '-c', '99999', '/dev/zero'])",
        *(Limits(file_bytes=9999), None, b""),
    ),
    "processor time": (
        "import time\nwhile time.process_time() < 3: pass",
        *(Limits(cpu_seconds=1), Cause.CPU_LIMIT, b""),
    ),
    "output": ("print('x' * 99999)", Limits(output_bytes=9999), Cause.OUTPUT_LIMIT, b""),
}


@pytest.mark.parametrize("name", LIMITED)
async def test_a_limit_ends_what_exceeds_it_and_nothing_else(vm: VM, name: str) -> None:
    """The limit's own outcome or errno tells of it; without the limit the same program succeeds."""
    code, limits, cause, said = LIMITED[name]
    result = await vm.run(code, limits=limits, timeout=30)
    assert _cause(result) is cause
    assert said in result.stderr
    assert (await vm.run(code, timeout=30)).ok, "the control"


async def test_a_share_of_the_processor_is_what_the_program_gets(vm: VM) -> None:
    """With a fifth of a processor, work takes several times as long as without a limit."""
    work = """
import time
began, used = time.monotonic(), time.process_time()
while time.process_time() - used < 0.4: pass
print(time.monotonic() - began)"""
    limited = await vm.run(work, limits=Limits(cpus=0.2), timeout=30)
    free = await vm.run(work, timeout=30)
    assert float(limited.text) > max(1.4, 1.5 * float(free.text))


async def test_the_whole_tree_is_gone_when_a_time_out_is_reported(vm: VM) -> None:
    """Children in sessions of their own that ignore every signal end with their parent, within a second."""
    stubborn = "trap '' TERM INT HUP; for i in $(seq 20); do setsid bash -c 'while :; do sleep 77; done' & done; wait"
    result = await vm.exec(stubborn, timeout=1)
    assert result.timed_out
    assert result.duration < 2
    assert not (await vm.exec("pgrep -f 'sleep 7[7]'")).ok


def _cause(result: Result) -> Cause | None:
    return result.certificate.cause if result.certificate is not None else None


async def test_refused_processes_are_counted_whoever_asked_for_them(vm: VM) -> None:
    """Threads without end meet the control group's limit, which counts, not one of the kernel's own that does not."""
    code = "import threading\nwhile True:\n    threading.Thread(target=threading.Event().wait, daemon=True).start()"
    result = await vm.run(code, timeout=60, capture_bytes=1000)
    assert result.exit_code == 1
    assert result.certificate is not None
    assert result.certificate.cause is Cause.PROCESS_LIMIT
    refused = result.certificate.evidence["forks_refused"]
    assert isinstance(refused, int)
    assert refused > 0
