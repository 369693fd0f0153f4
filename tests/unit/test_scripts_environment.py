"""What `scripts/environment` does at first use, and when Python was replaced; with a Python that only takes notes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
CALL = """\
#!/bin/sh
set -eu
. "$(dirname "$(readlink -f "$0")")/environment"
python=$root/python
prepare run
exec ls /proc/self/fd
"""
# `venv` makes the interpreter first and pip last; what is between lasts until somebody writes to `go`.
PYTHON = """\
#!/bin/sh
set -eu
root=$(dirname "$(readlink -f "$0")")
[ ! -e "/proc/$$/fd/9" ] || echo "the lock is open" >>"$root/log"
case "$*" in
"-m venv --clear "*)
    echo venv >>"$root/log"
    rm -rf "$4"
    mkdir -p "$4/bin" "$4/lib/$(basename "$(readlink -f "$0")")"
    cp "$0" "$root/.venv/bin/python"
    sed -i "s|^root=.*|root=$root|" "$root/.venv/bin/python"
    [ ! -e "$root/go" ] || { echo begun >"$root/begun"; read -r line <"$root/go"; }
    touch "$4/bin/pip"
    chmod +x "$4/bin/pip"
    ;;
"-m pip install "*)
    [ -x "$root/.venv/bin/pip" ]
    echo pip >>"$root/log"
    touch "$root/.venv/bin/sandbox"
    chmod +x "$root/.venv/bin/sandbox"
    ;;
esac
"""


class Checkout:
    """A directory with the script, and programs in place of those that it looks for and calls."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "scripts").mkdir()
        shutil.copy(SCRIPTS / "environment", root / "scripts")
        (root / "pyproject.toml").touch()
        self._program("scripts/call", CALL)
        for name in ("qemu-system-x86_64", "mmdebstrap", "mkfs.erofs"):
            self._program(f"tools/{name}", "#!/bin/sh\n")
        self.use_python("3.11")

    def _program(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def use_python(self, version: str) -> None:
        """Let `python` lead to another version, as an upgrade of Debian does."""
        self._program(f"python{version}", PYTHON)
        (self.root / "python").unlink(missing_ok=True)
        (self.root / "python").symlink_to(f"python{version}")

    @contextmanager
    def calling(self) -> Iterator[subprocess.Popen[str]]:
        path = f"{self.root / 'tools'}:{os.environ['PATH']}"
        command = [str(self.root / "scripts/call")]
        with subprocess.Popen(
            command,
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def call(self) -> list[str]:
        """Call it once; return what was done for that."""
        (self.root / "log").unlink(missing_ok=True)
        with self.calling() as process:
            output, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert "9" not in output.split()
        return (self.root / "log").read_text().split() if (self.root / "log").exists() else []


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_second_call_does_nothing(checkout: Checkout) -> None:
    """The first makes the environment, and no program that it starts has the lock."""
    assert checkout.call() == ["venv", "pip"]
    assert checkout.call() == []


@pytest.mark.timeout(60)
def test_two_first_calls_make_one_environment(checkout: Checkout) -> None:
    """The second waits until the first is done, although an interpreter is there before that."""
    for name in ("begun", "go"):
        os.mkfifo(checkout.root / name)
    with checkout.calling() as first:
        assert (checkout.root / "begun").read_text() == "begun\n"
        with checkout.calling() as second:
            assert second.stderr is not None
            assert "waiting for another call" in second.stderr.readline()
            (checkout.root / "go").write_text("\n")
            for process in (first, second):
                _, errors = process.communicate(timeout=30)
                assert process.returncode == 0, errors
    assert (checkout.root / "log").read_text().split() == ["venv", "pip"]


def test_another_python_gets_an_environment_of_its_own(checkout: Checkout) -> None:
    """After an upgrade of Debian the old one's interpreter still starts, and finds nothing that was installed."""
    checkout.call()
    checkout.use_python("3.13")
    assert checkout.call() == ["venv", "pip"]
    assert [path.name for path in (checkout.root / ".venv/lib").iterdir()] == ["python3.13"]
    assert checkout.call() == []


def test_an_environment_that_was_interrupted_is_made_anew(checkout: Checkout) -> None:
    """Its interpreter is there, but pip is not."""
    (checkout.root / ".venv/bin").mkdir(parents=True)
    shutil.copy(checkout.root / "python3.11", checkout.root / ".venv/bin/python")
    assert checkout.call() == ["venv", "pip"]


def test_a_changed_project_is_installed_into_the_same_environment(checkout: Checkout) -> None:
    """What else was installed there stays."""
    checkout.call()
    (checkout.root / "pyproject.toml").write_text("[project]\n")
    assert checkout.call() == ["pip"]
