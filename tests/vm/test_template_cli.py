"""`sandbox template …` as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.template.lint import Finding
from sandbox.template.manifest import MEMORY
from sandbox.template.store import TemplateStore
from tests.stored import save_template

SANDBOX = [sys.executable, "-m", "sandbox", "template"]
SERIES = "mine-256m-1c"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory with three generations of a series, whose image is nowhere."""
    monkeypatch.setenv("SANDBOX_DATA_DIR", str(tmp_path))
    for generation in (1, 2, 3):
        finding = Finding(rule="log_file", severity="warn", where="/var/log/x")
        save_template(tmp_path / "templates", f"image-{generation}", SERIES, generation, (finding,))
    return tmp_path


def _template(*arguments: str, status: int = 0) -> str:
    done = subprocess.run([*SANDBOX, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done
    return done.stdout if status == 0 else done.stderr


@pytest.mark.usefixtures("data")
def test_ls_and_inspect_tell_the_verdict() -> None:
    """Series, generation, age and the inspection's verdict; a name's beginning is enough."""
    rows = json.loads(_template("ls", "--json"))
    assert [(row["series"], row["generation"], row["lint"]) for row in rows] == [
        (SERIES, number, "warned") for number in (1, 2, 3)
    ]
    assert all(row["age_seconds"] > 0 for row in rows)
    assert "warned" in _template("ls")
    document = json.loads(_template("inspect", rows[0]["name"][:10]))
    assert document["generation"] == 1
    assert document["lint"] == "warned"
    assert document["manifest"]["lint"]["findings"] == [{"rule": "log_file", "severity": "warn", "where": "/var/log/x"}]
    assert json.loads(_template("inspect", SERIES))["generation"] == 3
    assert "there is no template 'nothing'" in _template("inspect", "nothing", status=125)


def test_verify_finds_a_changed_byte(data: Path) -> None:
    """Exit 0 for what was baked, 1 when one byte differs."""
    assert "every byte is as it was baked" in _template("verify", SERIES)
    (memory,) = data.glob(f"templates/*.3/{MEMORY}")
    memory.write_bytes(b"memorymemorymemorx")
    assert "differs from its manifest" in _template("verify", SERIES, status=1)


def test_rollback_chooses_and_undo_ends_it(data: Path) -> None:
    """The generation before, then the one before that, none before the first; `--undo` lets the newest be used."""
    store = TemplateStore(data / "templates")
    for generation in (2, 1):
        assert f"generation {generation} is used" in _template("rollback", SERIES)
        pinned = store.pinned(SERIES)
        assert pinned is not None
        assert pinned.manifest.generation == generation
    assert "no generation before 1" in _template("rollback", SERIES, status=125)
    assert [row["pinned"] for row in json.loads(_template("ls", "--json"))] == [True, False, False]
    _template("rollback", SERIES, "--undo")
    assert store.pinned(SERIES) is None


def test_prune_keeps_two_generations_of_images_that_are_there(data: Path) -> None:
    """Templates whose image is gone go, and work of dead bakes; the control keeps the newest two and the pinned."""
    store = TemplateStore(data / "templates")
    store.pin(SERIES, store.ls()[0])
    assert store.prune() == []
    store.pin(SERIES, None)
    assert [name.rpartition(".")[2] for name in store.prune()] == ["1"]
    left = data / "templates" / f".bake-{'0' * 32}.1"
    left.mkdir()
    assert "3 removed" in _template("prune")
    assert store.ls() == []
    assert not left.exists()
