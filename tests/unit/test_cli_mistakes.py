"""Ordinary mistakes at the command line: one line that tells what is wrong, never a defect of ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.cli.template import _data_bytes
from sandbox.image.lock import build_lock, is_held
from sandbox.template.manifest import FileDigest, TemplateManifest
from sandbox.template.store import Stored

SANDBOX = [sys.executable, "-m", "sandbox"]
SOMEBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
UNKNOWN = ["setpriv", "--reuid=4242", "--regid=4242", "--clear-groups"]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that other users may enter, for all that these commands look at and change."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        monkeypatch.setenv("SANDBOX_DATA_DIR", f"{directory}/data")
        monkeypatch.setenv("SANDBOX_RUNTIME_DIR", f"{directory}/runtime")
        yield Path(directory)


def told(status: int, *arguments: str, user: list[str] | None = None, **variables: str) -> str:
    """Run a command that ends with this status; return what it printed, which is no word of a defect."""
    command = [*(user or []), *SANDBOX, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **variables}, check=False, timeout=60
    )
    assert "internal" not in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == status, done.stderr
    return done.stdout or done.stderr


def wrong_variable(*arguments: str) -> str:
    return told(125, *arguments, SANDBOX_NICE="abc")


@pytest.fixture
def somebody(place: Path) -> list[str]:
    """What makes a command another user's, who may not enter `place / "closed"`."""
    (place / "closed").mkdir(mode=0o700)
    if subprocess.run([*SOMEBODY, *SANDBOX, "--version"], check=False, capture_output=True).returncode:
        pytest.skip("other users may not read this checkout")
    return SOMEBODY


def test_an_interrupt_while_we_are_imported(place: Path) -> None:
    """It ends us as it ends other programs, and no traceback tells of our imports."""
    (place / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    done = subprocess.run(
        [*SANDBOX, "--version"],
        capture_output=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(place)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


@pytest.mark.parametrize(
    "arguments", [["ps"], ["top", "--once"], ["audit"], ["reap"], ["doctor"], ["image", "ls"], ["template", "ls"]]
)
def test_a_wrong_variable_is_named(arguments: list[str]) -> None:
    """Whatever the command is, and in one line."""
    said = wrong_variable(*arguments)
    assert "SANDBOX_NICE" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("arguments", [["ps"], ["top"], ["audit"], ["doctor"], ["image", "ls"], ["template", "ls"]])
def test_a_program_hears_of_it_in_json(arguments: list[str]) -> None:
    """With `--json` the failure is a document, as that of `exec` is."""
    document = json.loads(wrong_variable(*arguments, "--json"))
    assert (document["kind"], document["exit_code"], document["error"]["code"]) == ("infra", 125, "CONFIG")


@pytest.mark.parametrize("arguments", [["setup"], ["setup", "--check"]])
def test_another_distribution_is_told(arguments: list[str]) -> None:
    """Without dpkg nothing can be set up, and the check fails as a check does."""
    assert "expected a Debian system" in told(1, *arguments, PATH="/nowhere")


def test_nothing_is_reaped_where_others_write(place: Path) -> None:
    """The line says what to do about the directory."""
    (place / "runtime").mkdir()
    (place / "runtime").chmod(0o775)
    assert "chmod go-w" in told(125, "reap")


def test_requirements_are_text(place: Path) -> None:
    """A file in another encoding is named."""
    (place / "requirements.txt").write_bytes("attrs # für\n".encode("latin-1"))
    assert "requirements.txt is not UTF-8" in told(125, "image", "build", "--pip", str(place / "requirements.txt"))


@needs_root
@pytest.mark.parametrize(
    "arguments",
    [
        ["exec", "--put", "{}/x", "-c", "1"],
        ["exec", "--put", "{}/x:y", "-c", "1"],
        ["exec", "--get", "a:{}/x", "-c", "1"],
        ["exec", "--json", "--get", "a:{}/x", "-c", "1"],
    ],
)
def test_a_copy_from_where_one_may_not_look(somebody: list[str], place: Path, arguments: list[str]) -> None:
    """The option is named, and why it cannot be had; no VM was started."""
    said = told(125, *(word.format(place / "closed") for word in arguments), user=somebody)
    assert f"{arguments[-4]} " in said
    assert "cannot be looked at: Permission denied" in said


@needs_root
def test_a_report_where_one_may_not_look(somebody: list[str], place: Path) -> None:
    """It is told before hours of work."""
    said = told(2, "bench", "--html", str(place / "closed/x"), user=somebody)
    assert "cannot be written: Permission denied" in said


@needs_root
def test_images_of_another_user(somebody: list[str], place: Path) -> None:
    """The audit looks at them and changes nothing; who wants to prune them hears which file is not theirs."""
    (place / "data/images/tmp").mkdir(parents=True)
    assert "no leaks" in told(0, "audit", user=somebody)
    assert list((place / "data/images").iterdir()) == [place / "data/images/tmp"]
    with build_lock(place / "data/images/build.lock", lambda: None):
        (place / "data/images/tmp/build").touch()
        assert "no leaks" in told(0, "audit", user=somebody)
    assert "LEAK" in told(1, "audit", user=somebody)
    assert "build.lock: Permission denied" in told(125, "image", "prune", user=somebody)


def test_a_lock_that_is_held_is_seen_and_not_made(place: Path) -> None:
    """Who looks leaves no file behind."""
    path = place / "build.lock"
    assert not is_held(path)
    assert not path.exists()
    with build_lock(path, lambda: None):
        assert is_held(path)
    assert not is_held(path)


@needs_root
@pytest.mark.usefixtures("somebody")
def test_a_user_without_a_home() -> None:
    """Directories that are named need none; else the line says which variable to set."""
    without = ["env", "-u", "HOME", "-u", "XDG_CACHE_HOME", *UNKNOWN]
    assert json.loads(told(0, "image", "ls", "--json", user=without)) == []
    assert "SANDBOX_DATA_DIR" in told(125, "image", "ls", user=[*without, "env", "-u", "SANDBOX_DATA_DIR"])


def test_any_terminal_can_show_what_the_doctor_says(place: Path) -> None:
    """A character that its encoding lacks is replaced."""
    (place / "data").write_text("no directory")
    said = told(1, "doctor", PYTHONIOENCODING="ascii:strict", SANDBOX_ACCELERATOR="tcg", PATH="/nowhere")
    assert "? sandbox setup" in said


def test_a_template_may_lack_a_file(place: Path) -> None:
    """It is listed: a file may be lost, or be removed at that moment."""
    (place / "state").write_bytes(b"x" * 4096)
    files = {name: FileDigest(size=4096, sha256="") for name in ("memory", "state")}
    stored = Stored(place, TemplateManifest.model_construct(files=files))
    assert _data_bytes(stored) == (place / "state").stat().st_blocks * 512
