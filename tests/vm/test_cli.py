"""The command line as a user meets it: real processes, real VMs, exit codes and words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox.config import HostConfig
from sandbox.hypervisor.process import Process
from tests.conftest import PROGRAMS

pytestmark = pytest.mark.usefixtures("built")
SANDBOX = [sys.executable, "-m", "sandbox"]
SECONDS = 60


@pytest.fixture(scope="module")
def built() -> None:
    """Image and template exist before the first command is timed or read."""
    subprocess.run([*SANDBOX, "setup"], check=True, capture_output=True, timeout=300)


def sandbox(
    *arguments: str, stdin: bytes = b"", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run the command; no output of ours is ever a traceback."""
    done = subprocess.run(
        [*SANDBOX, *arguments],
        input=stdin,
        capture_output=True,
        timeout=SECONDS,
        env={**os.environ, **(environment or {})},
        check=False,
    )
    assert b"src/sandbox" not in done.stderr, done.stderr.decode()
    return done


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*SANDBOX, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_real_program_runs_with_its_streams_and_status() -> None:
    """Modules, workers, subprocesses, a database, temporary files, arguments, input, exit code: as at home."""
    done = sandbox("exec", str(PROGRAMS / "inventory.py"), "--lines", "3000", "--fail-with", "3", stdin=b"four")
    assert done.returncode == 3, done.stderr.decode()
    report = json.loads(done.stdout)
    assert report["sha256_agrees"]
    assert report["compresses"]
    assert report["read"] == 4
    assert not report["left_over"]
    assert [entry["entries"] for entry in report["summaries"]] == [750] * 4
    assert len(report["histogram"]) == 6
    assert "für Käufer №" in report["slowest"][0]
    assert b"progress: done" in done.stderr


def test_output_is_live() -> None:
    """The first line is there while the program still runs."""
    code = "import time; print('first', flush=True); time.sleep(3); print('second')"
    with start("exec", "-c", code) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        seen = time.monotonic()
        assert process.poll() is None
        assert process.stdout.readline() == b"second\n"
        assert time.monotonic() - seen > 2
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["-c", "raise SystemExit(7)"], 7, b""),
        (["-c", "def f(:"], 1, b"SyntaxError"),
        (["-c", "import os; os.kill(os.getpid(), 15)"], 143, b"ended by SIGTERM"),
        (["--timeout", "0.5", "-c", "while True: pass"], 124, b"timed out after 0.5"),
        (["--timeout", "0", "-c", "1"], 125, b"positive number of seconds"),
        (["/no/such/script.py"], 127, b"no such file"),
        (["/etc"], 126, b"Is a directory"),
        (["--image", "nosuch", "-c", "1"], 125, b"recipes are default, minimal"),
        (["--memory", "lots", "-c", "1"], 125, b"is not a size"),
        (["--memory", "16", "-c", "1"], 125, b"memory_mib"),
        (["--env", "NO_SUCH_VARIABLE_HERE", "-c", "1"], 125, b"no such variable"),
        ([], 125, b"nothing to run"),
        (["--no-such-option"], 2, b"No such option"),
    ],
)
def test_every_ending_has_its_status_and_its_words(arguments: list[str], status: int, said: bytes) -> None:
    """The script's status is ours; our own failures say what to do, in one line."""
    done = sandbox("exec", *arguments)
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr.decode()


def test_code_may_come_from_standard_input() -> None:
    """With `-` the script is standard input."""
    assert sandbox("exec", "-", "x", stdin=b"import sys; print(sys.argv[1:])").stdout == b"['x']\n"


def test_arguments_environment_and_input_reach_the_program() -> None:
    """`-c CODE -- ARGS`, `--env K=V` and `--env K`, standard input."""
    code = "import os, sys; print(sys.argv[1:], os.environ['A'], os.environ['B'], sys.stdin.read())"
    done = sandbox(
        "exec", "--env", "A=1", "--env", "B", "-c", code, "--", "--flag", "x", stdin=b"in", environment={"B": "2"}
    )
    assert done.stdout == b"['--flag', 'x'] 1 2 in\n"


def test_fifty_mebibytes_pass_through() -> None:
    """Nothing is lost, cut or kept in between."""
    done = sandbox("exec", "-c", "import sys\nfor _ in range(50): sys.stdout.buffer.write(bytes(1048576))")
    assert (done.returncode, len(done.stdout)) == (0, 50 * 1048576)


def test_json_envelope_tells_everything() -> None:
    """One object on standard output, whatever happened."""
    envelope = json.loads(sandbox("exec", "--json", "-c", "import os; os.write(1, b'\\xff'); exit(3)").stdout)
    assert (envelope["kind"], envelope["exit_code"], envelope["stdout_base64"]) == ("exit", 3, "/w==")
    assert json.loads(sandbox("exec", "--json", "--timeout", "10", "-c", "input()").stdout)["kind"] == "exit"
    late = json.loads(sandbox("exec", "--json", "--timeout", "0.3", "-c", "while 1: pass").stdout)
    assert (late["kind"], late["exit_code"]) == ("timeout", 124)
    broken = json.loads(sandbox("exec", "--json", "/no/such").stdout)
    assert (broken["kind"], broken["exit_code"], broken["error"]["code"]) == ("infra", 127, "CONFIG")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_ends_the_vm(number: signal.Signals, status: int) -> None:
    """Ctrl-C and SIGTERM destroy the VM before the command goes."""
    code = "import signal\nsignal.signal(2, signal.SIG_DFL)\nprint('up', flush=True)\nwhile True: pass"
    with start("exec", "-c", code) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        machines = _machines_of(process.pid)
        assert len(machines) == 1
        process.send_signal(number)
        assert process.wait(SECONDS) == status
        assert machines[0].wait_dead_blocking(5)
        assert b"Traceback" not in process.communicate()[1]


def test_killed_qemu_is_told_in_one_line() -> None:
    """The VM dies under the program: status 125, one message, what was printed before is there."""
    with start("exec", "-c", "print('up', flush=True)\nwhile True: pass") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        _machines_of(process.pid)[0].kill()
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 125
    assert errors.startswith(b"sandbox: ")
    assert b"has ended" in errors
    assert errors.count(b"\n") == 1


def test_reader_that_goes_away_ends_the_command_quietly() -> None:
    """`sandbox exec … | head -1` leaves neither a trace nor a VM."""
    process = start("exec", "-c", "while True: print('x' * 1000)")
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(SECONDS) == 128 + signal.SIGPIPE
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("variable", ["SANDBOX_RUNTIME_DIR", "SANDBOX_DATA_DIR"])
def test_directory_that_cannot_be_written_is_named(variable: str) -> None:
    """No permission: the message names the directory and the variable that moves it."""
    done = sandbox("exec", "-c", "1", environment={variable: "/proc/nowhere"})
    assert done.returncode == 125
    assert b"/proc/nowhere" in done.stderr


def test_unreachable_libvirt_is_named() -> None:
    """A connection that is refused: the message names it."""
    done = sandbox("exec", "-c", "1", environment={"SANDBOX_LIBVIRT_URI": "qemu+unix:///system?socket=/nonexistent"})
    assert done.returncode == 125
    assert b"qemu+unix:///system" in done.stderr


def test_kvm_is_refused_where_it_does_not_work() -> None:
    """Asking for KVM on a host without it says why; on a host with it, it is used."""
    facts = json.loads(sandbox("doctor", "--json").stdout)
    verdict = next(check for check in facts["checks"] if check["name"] == "accelerator")
    done = sandbox("exec", "-c", "print(1)", environment={"SANDBOX_ACCELERATOR": "kvm"})
    if verdict["status"] == "ok":
        assert done.stdout == b"1\n"
    else:
        assert (done.returncode, b"does not work here" in done.stderr) == (125, True)


def test_doctor_finds_this_host_fit() -> None:
    """Every line has a finding; broken ones have a remedy; here nothing is broken."""
    done = sandbox("doctor", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["ok"]) == (0, True)
    names = {check["name"] for check in document["checks"]}
    assert {"packages", "qemu", "libvirt", "accelerator", "image", "template", "memory"} <= names
    assert all(check["remedy"] for check in document["checks"] if check["status"] == "fail")


def test_images_can_be_listed_inspected_and_verified() -> None:
    """The manifest names every package, and the files are as published."""
    rows = json.loads(sandbox("image", "ls", "--json").stdout)
    assert "default" in {row["name"] for row in rows}
    manifest = json.loads(sandbox("image", "inspect", "default").stdout)
    assert "python3-numpy" in {package["name"] for package in manifest["packages"]}
    assert sandbox("image", "verify", "default").returncode == 0
    missing = sandbox("image", "inspect", "nosuch")
    assert (missing.returncode, b"image build nosuch" in missing.stderr) == (125, True)


def test_bench_prints_one_document() -> None:
    """Figures with their boundary, samples and floor, from real VMs."""
    document = json.loads(sandbox("bench", "--only", "S3", "-n", "3", "--json").stdout)
    figure = document["figures"][0]
    assert (figure["id"], figure["unit"], figure["n"], len(figure["samples"])) == ("S3", "seconds", 3, 3)
    assert 0 < figure["p50"] <= figure["p95"] <= figure["p99"]
    assert figure["raw_ratio"] > 0
    assert figure["accelerator"] in ("kvm", "tcg")
    assert document["environment"]["qemu"]
    assert sandbox("bench", "--only", "Z9").returncode == 2


def _machines_of(pid: int) -> list[Process]:
    """Return the QEMU processes of the command with this pid: children of it, because it is their reaper."""
    children = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [process for child in children if (process := Process.open(child, "guest=sbx-"))]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
@pytest.mark.parametrize(("has_image", "said"), [(False, b"building an image needs"), (True, b"a template needs")])
def test_full_disk_is_named_before_anything_is_written(tmp_path: Path, has_image: bool, said: bytes) -> None:
    """Too little room for an image or a template: the message has both figures and what to do; nothing is left."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(tmp_path)], check=True)
    try:
        if has_image:
            (tmp_path / "images").symlink_to(HostConfig().paths.images)
        done = sandbox("exec", "-c", "1", environment={"SANDBOX_DATA_DIR": str(tmp_path)})
        assert (done.returncode, said in done.stderr) == (125, True), done.stderr.decode()
        assert not list(tmp_path.glob("templates/*/memory"))
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["ps"], ["image", "ls"], ["audit"], ["--help"]], ids="-".join)
def test_a_report_that_cannot_be_written_is_no_success(command: list[str], unbuffered: str) -> None:
    """A full disk under standard output is one line on standard error, and status 125."""
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    argv = [sys.executable, "-m", "sandbox", *command]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, env=environment, text=True, check=False)
    assert done.returncode == 125
    assert "cannot be written" in done.stderr
    assert len(done.stderr.splitlines()) == 1
