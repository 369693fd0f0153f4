"""Programs in the background: attached to, fed, signalled, and how their end is told."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import AsyncIterator

import anyio
import pytest

from sandbox.certificate import Cause
from sandbox.config import Limits
from sandbox.errors import ConfigError, StateError
from sandbox.guest import client
from sandbox.guest.execution import Status
from sandbox.result import Outcome
from sandbox.vm import VM
from sandbox.wire import Kind, encode
from tests.waiting import until_written

MIB = 1024 * 1024


async def test_a_program_outlives_its_caller_and_is_attached_to_by_id(vm: VM) -> None:
    """A task starts a program and is cancelled; another one finds it by its id, reads all of it, and ends it."""
    started = anyio.Event()

    async def caller() -> None:
        execution = await vm.spawn("echo first; read line; echo got $line", id="mine", stdin=None)
        started.set()
        await execution.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(caller)
        await started.wait()
        group.cancel_scope.cancel()
    assert vm.status("mine") is Status.RUNNING
    execution = vm.attach("mine")
    await until_written(execution, 6)
    await execution.write(b"it\n")
    await execution.close_stdin()
    result = await execution.wait()
    assert (result.outcome, result.exit_code, result.stdout) == (Outcome.EXITED, 0, b"first\ngot it\n")
    assert vm.status("mine") is Status.FINISHED
    assert (await vm.attach("mine").wait()).stdout == result.stdout


async def test_input_has_back_pressure_and_an_end(vm: VM) -> None:
    """Writes wait for a program that does not read, arrive whole and in order, and end where they were ended."""
    execution = await vm.spawn("read -n 1 go; sha256sum | cut -c 1-64", stdin=None, timeout=60)
    with anyio.fail_after(20):
        await execution.write(b"x" + b"y" * MIB)
    stopped = await vm.spawn("echo up; kill -STOP $$; wc -c", stdin=None, timeout=60)
    await until_written(stopped, 3)
    is_stopped = f"grep -q '^State:.T' /proc/{stopped.pid}/status"
    (await vm.exec(f"until {is_stopped}; do sleep 0.05; done", timeout=30)).check()
    written = 0
    with anyio.move_on_after(0.5) as waiting:
        for _ in range(64):
            await stopped.write(b"z" * 65536)
            written += 65536
    assert waiting.cancelled_caught, "4 MiB went to a program that does not read"
    assert written <= 512 * 1024
    stopped.send_signal(signal.SIGCONT)
    await stopped.close_stdin()
    count = int((await stopped.wait()).text.split()[-1])
    assert written <= count <= written + 65536
    await execution.close_stdin()
    await execution.close_stdin()
    with pytest.raises(StateError, match="closed"):
        await execution.write(b"late")
    result = await execution.wait()
    assert result.text.strip() == hashlib.sha256(b"y" * MIB).hexdigest()
    await (await vm.spawn("exit 0", stdin=None)).wait()


async def test_two_who_write_at_once_both_come_to_their_end(vm: VM) -> None:
    """Concurrent writers share the guest's credit; none of them is forgotten."""
    execution = await vm.spawn("sleep 0.3; wc -c", stdin=None, timeout=60)
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(execution.write, bytes(MIB))
    await execution.close_stdin()
    assert int((await execution.wait()).text) == 4 * MIB


async def test_signals_reach_the_group_or_the_whole_tree(vm: VM) -> None:
    """A signal goes to the program's process group, with `tree` also to what left it; `kill` spares nothing."""
    away = "setsid bash -c 'trap \"echo away; exit\" USR2; echo up; while :; do sleep 0.05; done' &"
    loop = "trap 'echo one' USR1; trap 'echo both' USR2; echo up; while :; do sleep 0.05; done"
    execution = await vm.spawn(f"{away} {loop}", timeout=60)
    await until_written(execution, 6)
    execution.send_signal(signal.SIGUSR1)
    await until_written(execution, 10)
    execution.send_signal(signal.SIGUSR2, tree=True)
    await until_written(execution, 20)
    assert sorted((await execution.read("stdout")).data.split()) == [b"away", b"both", b"one", b"up", b"up"]
    execution.kill()
    result = await execution.wait()
    assert (result.outcome, result.signal, result.exit_code) == (Outcome.SIGNALED, signal.SIGKILL, None)
    assert result.certificate is not None
    assert result.certificate.cause is Cause.KILLED_BY_CALLER
    execution.kill()
    execution.send_signal(signal.SIGTERM)
    assert (await execution.wait()).signal == signal.SIGKILL
    polite = await vm.spawn("trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done", timeout=60)
    await until_written(polite, 3)
    polite.send_signal(signal.SIGTERM)
    assert (await polite.wait()).exit_code == 3


async def test_ids_are_used_once_and_their_status_is_never_unknown(vm: VM) -> None:
    """An id is taken once; whoever asks hears never started, running or finished, for forgotten ones too."""
    assert vm.status("one") is Status.NEVER_STARTED
    with pytest.raises(StateError, match="ever started"):
        vm.attach("one")
    running = await vm.spawn("read x", id="one", stdin=None)
    assert (vm.status("one"), running.status) == (Status.RUNNING, Status.RUNNING)
    with pytest.raises(StateError, match="started before"):
        await vm.spawn("true", id="one")
    with pytest.raises(ConfigError):
        await vm.spawn([], id="two")
    assert vm.status("two") is Status.NEVER_STARTED
    await running.close_stdin()
    await running.wait()
    assert vm.status("one") is Status.FINISHED
    for _ in range(4):
        await vm.exec("head -c 1000000 /dev/zero")
    assert vm.status("one") is Status.FINISHED
    with pytest.raises(StateError, match="not kept"):
        vm.attach("one")
    with pytest.raises(StateError, match="started before"):
        await vm.exec("true", id="one")
    assert (await running.wait()).exit_code == 1, "who holds the execution still has its result"


async def _lines() -> AsyncIterator[bytes]:
    for number in range(50):
        yield f"{number}\n".encode()


async def test_everything_runs_side_by_side(vm: VM) -> None:
    """20 programs, 5 contexts and 20 files in one VM at once: each gets its own bytes and nobody else's."""
    done: list[str] = []

    async def program(number: int) -> None:
        result = await vm.exec(f"cat; echo {number}", stdin=_lines(), timeout=90)
        assert result.text == "".join(f"{line}\n" for line in range(50)) + f"{number}\n"
        done.append("program")

    async def context(number: int) -> None:
        async with vm.context() as context:
            for turn in range(4):
                result = await context.run(f"x = {number} if {turn} == 0 else x + 1\nprint(x)\nx", timeout=60)
                assert (result.text, result.value) == (f"{number + turn}\n", {"text/plain": str(number + turn)})
        done.append("context")

    async def file(number: int) -> None:
        content = bytes([number]) * 50_000
        await vm.files.write(f"file {number}", content)
        assert await vm.files.read(f"file {number}") == content
        done.append("file")

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(program, number)
            group.start_soon(file, number)
        for number in range(5):
            group.start_soon(context, number * 100)
    assert sorted(done) == ["context"] * 5 + ["file"] * 20 + ["program"] * 20


@pytest.mark.parametrize(
    ("number", "tree"), [(signal.SIGKILL, True), (signal.SIGTERM, True), (signal.SIGTERM, False)], ids=str
)
async def test_a_signal_at_once_reaches_a_program_that_has_hardly_begun(
    vm: VM, number: signal.Signals, tree: bool
) -> None:
    """Its process may just have been forked and have entered neither its control group nor a session of its own."""
    for _ in range(20):
        execution = await vm.spawn(["sleep", "600"])
        execution.send_signal(number, tree=tree)
        with anyio.fail_after(20):
            result = await execution.wait()
        assert result.signal == number


@pytest.mark.parametrize("tree", [True, False])
async def test_a_number_that_is_no_signal_ends_nothing(vm: VM, tree: bool) -> None:
    """The caller is told; a guest that hears of one all the same sends nothing and goes on."""
    execution = await vm.spawn(["sleep", "600"])
    for number in (-1, 0, signal.SIGRTMAX + 1, 2**40):
        with pytest.raises(ConfigError, match=f"{number} is no signal; give a number from 1 to 64"):
            execution.send_signal(number, tree=tree)
        execution._send_json(Kind.KILL, {"signal": number, "tree": tree})
    assert (await vm.run("print(1)", timeout=30)).text == "1\n"
    execution.send_signal(signal.SIGRTMAX, tree=tree)
    assert (await execution.wait()).signal == signal.SIGRTMAX


async def test_a_request_that_the_guest_cannot_read_ends_only_itself(vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told as a program that cannot be started; those beside it go on."""
    beside = await vm.spawn("read line; echo $line", stdin=None, timeout=60)
    with monkeypatch.context() as spoiling:
        spoiling.setattr(client, "encode_json", lambda kind, epoch, ident, _: encode(kind, epoch, ident, b'{"op":NaN}'))
        refused = await vm.exec(["true"])
    assert refused.exit_code == 126
    assert refused.stderr.startswith(b"sandbox: the request cannot be read: ")
    assert (await vm.exec("echo $0", limits=Limits.model_construct(cpus=1e305), timeout=30)).text == "bash\n"
    await beside.write(b"still here\n")
    assert (await beside.wait()).text == "still here\n"


async def _sleepers(vm: VM) -> int:
    return len((await vm.exec(["pgrep", "-f", "sleep 100[5]"])).text.split())


async def test_what_outlives_its_program_can_be_killed(vm: VM) -> None:
    """By the execution that started it, also when that has ended long ago; other programs' children stay."""
    ended = await vm.exec("setsid sleep 1005 & sleep 1005 & echo done", id="left")
    other = await vm.exec("setsid sleep 1005 & echo done", id="other")
    assert (ended.text, other.text) == ("done\n", "done\n")
    assert await _sleepers(vm) == 3
    vm.attach("left").kill()
    with anyio.fail_after(10):
        while await _sleepers(vm) != 1:
            pass
    vm.attach("other").send_signal(signal.SIGTERM, tree=True)
    with anyio.fail_after(10):
        while await _sleepers(vm):
            pass
    vm.attach("other").kill()
    assert (await vm.run("print(1)")).ok


async def test_a_program_may_take_its_children_with_it(vm: VM) -> None:
    """With `kill_children` what it leaves behind is killed at its end, of commands and scripts alike."""
    (await vm.exec("setsid sleep 1005 & echo done", kill_children=True)).check()
    code = "import subprocess; subprocess.Popen(['sleep', '1005'], start_new_session=True)"
    (await vm.run(code, kill_children=True)).check()
    with anyio.fail_after(10):
        while await _sleepers(vm):
            pass
