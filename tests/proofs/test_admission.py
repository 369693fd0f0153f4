"""Admission: what all processes and users promise together, pressure, and memory files that find no room."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sandbox.config import HostConfig
from sandbox.errors import HostResources
from sandbox.hypervisor.admission import Admission
from sandbox.hypervisor.ledger import Ledger
from sandbox.hypervisor.memory_file import allocate
from sandbox.hypervisor.resources import HostMemory

MIB = 1024 * 1024
CALM = "some avg10=1.50 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"
PRESSED = CALM.replace("1.50", "35.25", 1)
HOLDER = """
import asyncio, sys
from contextlib import AsyncExitStack
from sandbox.config import HostConfig
from sandbox.errors import HostResources
from sandbox.template.template import Template

async def main():
    template = await Template.ensure(host_config=HostConfig(memory_overcommit=float(sys.argv[1])))
    held, refused = 0, ""
    async with AsyncExitStack() as stack:
        for _ in range(2):
            try:
                await stack.enter_async_context(template.lease())
                held += 1
            except HostResources as error:
                refused = str(error)
        print(held, refused, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
    assert template.host.admission.ledger.own_mib == 0

asyncio.run(main())
"""
RACER = """
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from sandbox.errors import HostResources
from sandbox.hypervisor.ledger import Ledger

ledger = Ledger(Path(sys.argv[1]), sys.argv[2])
sys.stdin.readline()
most = admitted = refused = 0
for number in range(300):
    try:
        ledger.promise("a", 7, 30)
        admitted += 1
        most = max(most, ledger.total_mib())
    except HostResources:
        refused += 1
    ledger.release("a")
print(most, admitted, refused)
"""
PROMISER = """
import os, sys
from pathlib import Path
from tempfile import TemporaryDirectory
from sandbox.hypervisor.ledger import Ledger

if len(sys.argv) > 3:
    os.setgid(int(sys.argv[3]))
    os.setuid(int(sys.argv[3]))
ledger = Ledger(Path(sys.argv[1]), sys.argv[2])
ledger.promise("vm", 500, 10_000)
print("promised", flush=True)
sys.stdin.readline()
"""


def _python(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger", "00000000")
    yield ledger
    ledger.close()


@pytest.mark.usefixtures("template")
@pytest.mark.parametrize("shared", [True, False])
def test_two_processes_never_promise_more_than_the_host_has(tmp_path: Path, *, shared: bool) -> None:
    """Room for three guests: two processes that want two each get three together; the control shares no ledger."""
    memory = HostMemory()
    factor = (3 * 256 + 100) / (memory.total_mib - HostConfig().memory_reserve_mib)
    places = [tmp_path / ("one" if shared else name) for name in ("one", "two")]
    held, said = 0, ""
    processes = [_python(HOLDER, str(factor), SANDBOX_ADMISSION_DIR=str(place)) for place in places]
    for process in processes:
        assert process.stdout is not None
        count, _, refused = process.stdout.readline().strip().partition(" ")
        held, said = held + int(count), said + refused
    for process in processes:
        process.communicate("\n", timeout=60)
        assert process.returncode == 0
    assert held == (3 if shared else 4)
    assert ("raise `memory_overcommit`" in said) is shared


def test_processes_that_race_stay_within_the_budget(tmp_path: Path) -> None:
    """Six processes, 300 tries each for a share of a budget of four: never more, whoever is first, and nobody fails."""
    racers = [_python(RACER, str(tmp_path / "ledger"), f"{number:08x}") for number in range(6)]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    told = [[int(word) for word in racer.communicate(timeout=60)[0].split()] for racer in racers]
    assert max(most for most, _, _ in told) <= 28
    assert all(admitted for _, admitted, _ in told)


def test_the_dead_promise_nothing(tmp_path: Path, ledger: Ledger) -> None:
    """A killed process's promise counts until the moment of its death, and its file goes."""
    process = _python(PROMISER, str(ledger.directory), "11111111")
    assert process.stdout is not None
    assert process.stdout.readline() == "promised\n"
    with pytest.raises(HostResources, match="500 MiB by others"):
        ledger.promise("vm", 100, 550)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    ledger.promise("vm", 100, 550)
    assert ledger.total_mib() == 100
    assert sorted(path.name for path in ledger.directory.glob("*/*")) == ["00000000", "lock"]


def test_users_count_each_other_and_cannot_erase_each_other(ledger: Ledger) -> None:
    """Another user's promise is seen; that user can neither write nor remove our file, nor lend a name of ours."""
    if os.geteuid() != 0:
        pytest.skip("only root can be two users")
    for parent in (ledger.directory, *ledger.directory.parents[:3]):
        parent.chmod(0o1777 if parent == ledger.directory else 0o711)
    ledger.promise("vm", 300, 10_000)
    process = _python(PROMISER, str(ledger.directory), "22222222", "65534")
    assert process.stdout is not None
    assert process.stdout.readline() == "promised\n"
    assert ledger.total_mib() == 800
    ours, forged = ledger.directory / "sandbox-0" / "00000000", ledger.directory / "sandbox-4711"
    act = "import os; os.setuid(65534); os.{}; print('did')"
    for what in (f"unlink({str(ours)!r})", f"open({str(ours)!r}, os.O_WRONLY)"):
        done = subprocess.run([sys.executable, "-c", act.format(what)], capture_output=True, check=False)
        assert b"PermissionError" in done.stderr
    forged.mkdir()
    os.chown(forged, 65534, 65534)
    (forged / "33333333").write_text("9000")
    assert ledger.total_mib() == 800
    process.communicate("\n", timeout=30)
    assert ledger.total_mib() == 300


@pytest.mark.parametrize(("text", "limit", "is_refused"), [
    (PRESSED, 20.0, True), (CALM, 20.0, False), (PRESSED, 50.0, False), (PRESSED, 100.0, False), (None, 20.0, False),
    ("garbage", 20.0, False),
])  # fmt: skip
def test_a_host_under_pressure_takes_no_more(
    tmp_path: Path, text: str | None, limit: float, *, is_refused: bool
) -> None:
    """Above the threshold the error has the figure; below it, or where the kernel has none, a VM is admitted."""
    pressure = tmp_path / "pressure"
    if text is not None:
        pressure.write_text(text)
    config = HostConfig(admission_dir=tmp_path / "ledger", memory_pressure_max=limit)
    admission = Admission(config, "00000000", pressure=pressure)
    if is_refused:
        with pytest.raises(HostResources, match=r"35\.25 % of the last 10 s"):
            admission.admit("vm", 1, 0)
    else:
        admission.admit("vm", 1, 0)
    assert admission.ledger.own_mib == (0 if is_refused else 1)
    admission.close()


def test_the_default_lets_a_host_carry_many_clones(tmp_path: Path) -> None:
    """By default four times the memory may be promised, 400 clones of 256 MiB on 24 GiB; 1.0 promises it once."""
    total = HostMemory().total_mib
    by_default = HostConfig(admission_dir=tmp_path)
    for config, least, most in ((by_default, 4, 6), (by_default.model_copy(update={"memory_overcommit": 1.0}), 0.5, 1)):
        admission = Admission(config, "00000000")
        assert least * total <= admission.budget_mib <= most * total
        admission.close()


@pytest.fixture
def small() -> Iterator[Path]:
    """A file system in memory with 300 MiB, where QEMU's user can get to."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount one")
    with TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m,mode=755", "tmpfs", path], check=False).returncode:
            pytest.skip("this container may not mount")
        try:
            yield path
        finally:
            subprocess.run(["umount", "--lazy", path], check=True)


@pytest.mark.usefixtures("template")
def test_a_full_shared_memory_is_an_error_and_no_sigbus(small: Path, host_config: HostConfig) -> None:
    """A template on tmpfs: too little room is told before anything runs, and later fullness hurts no clone of it."""
    (small / "images").symlink_to(host_config.data_dir / "images")
    filler = small / "filler"
    filler.write_bytes(bytes(100 * MIB))
    code = """
import asyncio, sys
from sandbox.errors import SandboxError
from sandbox.template.template import Template

async def main():
    try:
        template = await Template.ensure()
        open(sys.argv[1], "a").close()
        try:
            with open(sys.argv[1], "wb") as file:
                while True:
                    file.write(bytes(1 << 20))
        except OSError as error:
            print(error.errno, end=" ")
        async with template.lease() as vm:
            result = await vm.run("kept = bytearray(b'x') * (150 << 20); print(len(kept) >> 20)", timeout=60)
            print(result.text.strip())
    except SandboxError as error:
        print(error.code, error)

asyncio.run(main())
"""
    told = _python(code, str(small / "more"), SANDBOX_DATA_DIR=str(small)).communicate(timeout=120)[0]
    assert told.startswith("HOST_RESOURCES")
    assert not list((small / "templates").glob(".bake-*"))
    filler.unlink()
    told = _python(code, str(small / "more"), SANDBOX_DATA_DIR=str(small)).communicate(timeout=120)[0]
    assert told == "28 150\n"


def test_a_file_with_holes_is_what_sigbus_comes_from(small: Path) -> None:
    """The control: on a full tmpfs, reading a hole kills; a file that was allocated can be read to its end."""
    code = (
        "import mmap, sys; f = open(sys.argv[1], 'rb'); print(sum(mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE)[::4096]))"
    )
    for name in ("holes", "whole"):
        descriptor = os.open(small / name, os.O_CREAT | os.O_RDWR)
        if name == "holes":
            os.truncate(descriptor, 64 * MIB)
        else:
            allocate(descriptor, 64 * MIB)
        os.close(descriptor)
    with pytest.raises(HostResources, match="No space left"), (small / "none").open("wb") as file:
        allocate(file.fileno(), 1000 * MIB)
    (small / "none").unlink()
    with pytest.raises(OSError, match="No space left"):
        (small / "filler").write_bytes(bytes(300 * MIB))
    status = [
        subprocess.run([sys.executable, "-c", code, small / name], check=False).returncode
        for name in ("holes", "whole")
    ]
    assert status == [-signal.SIGBUS, 0]
