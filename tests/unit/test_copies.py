"""What the library gives can be copied and sent to another process; what stands for a running thing refuses it."""

from __future__ import annotations

import copy
import errno
import pickle
from array import array
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

import sandbox
from sandbox.errors import SandboxError
from sandbox.handle import Handle

CERTIFICATE = sandbox.DeathCertificate(sandbox.Cause.DEADLINE, "too slow", False, 0.5, {"kernel_log": "a\nb"})
STREAMS: dict[str, Any] = {"stdout": b"a", "stderr": b"\xff", "stdout_bytes": 1, "stderr_bytes": 1, "duration": 0.1}
RESULT = sandbox.Result(
    outcome=sandbox.Outcome.TIMED_OUT,
    exit_code=None,
    signal=9,
    certificate=CERTIFICATE,
    runs=array("I", [1, 1]),
    timings={"run": 0.1},
    started_at=datetime.now(UTC),
    **STREAMS,
)
STAT: dict[str, Any] = {"type": "file", "size": 1, "mode": 0o644, "mtime": 0.5, "uid": 1, "gid": 1}
RECEIPT = sandbox.Receipt("m", "b", "h", 1, 1, 0.1, 0.1, timings={"start": 1.0})
VALUES: dict[str, object] = {
    "Anomaly": sandbox.Anomaly("rule", "pool", "said"),
    "Cause": sandbox.Cause.IDLE,
    "CellError": sandbox.CellError("E", "text", "trace\n"),
    "CellResult": sandbox.CellResult(
        outcome=sandbox.Outcome.EXITED,
        exit_code=1,
        signal=None,
        value={"text/plain": "1"},
        displayed=({"text/plain": "\ud800"},),
        error=sandbox.CellError("E", "text", "trace\n"),
        **STREAMS,
    ),
    "Change": sandbox.Change(type="created", path="a\udcff", is_directory=False),
    "CpuStorm": sandbox.CpuStorm(),
    "DeathCertificate": CERTIFICATE,
    "DeathRate": sandbox.DeathRate(),
    "Drift": sandbox.Drift(("age",), "wanted"),
    "Ended": sandbox.Ended(RESULT),
    "EventKind": sandbox.EventKind.VM_STARTED,
    "FileEntry": sandbox.FileEntry(name="a\udcff", **STAT),
    "FileStat": sandbox.FileStat(**STAT),
    "GenerationStatistics": sandbox.GenerationStatistics(1, True),
    "HitRate": sandbox.HitRate(),
    "HostConfig": sandbox.HostConfig(),
    "LifeEvent": sandbox.LifeEvent(sandbox.EventKind.VM_STARTED, "pool", fields={"receipt": RECEIPT}),
    "Limits": sandbox.Limits(),
    "LintReport": sandbox.LintReport(rules=("a",)),
    "Outcome": sandbox.Outcome.EXITED,
    "Output": sandbox.Output("stdout", 0, b"x"),
    "PoolConfig": sandbox.PoolConfig(),
    "PoolStatistics": sandbox.PoolStatistics(*range(14)),
    "Receipt": RECEIPT,
    "RestoreDrift": sandbox.RestoreDrift(),
    "Result": RESULT,
    "SpawnStorm": sandbox.SpawnStorm(),
    "Started": sandbox.Started(1),
    "Status": sandbox.Status.RUNNING,
    "TemplateConfig": sandbox.TemplateConfig(),
    "TemplateTarget": sandbox.TemplateTarget(template=sandbox.TemplateConfig()),
    "TreeReport": sandbox.TreeReport(1, 2, 3, 4, {"a\udcff": "it is a fifo"}),
}
PUBLIC = {name: getattr(sandbox, name) for name in sandbox.__all__}
CLASSES = {name: one for name, one in PUBLIC.items() if isinstance(one, type)}
ERRORS = {name: one for name, one in CLASSES.items() if issubclass(one, SandboxError)}
HANDLES = {name: one for name, one in CLASSES.items() if issubclass(one, Handle)}
NEITHER = {"VMSource"}
"""A protocol: the sources themselves are handles."""
COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "pickle 2": lambda value: pickle.loads(pickle.dumps(value, 2)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def test_every_public_class_is_a_value_an_error_or_a_handle() -> None:
    """A class that is new has to be put into one of the tables here."""
    assert set(CLASSES) == {*VALUES, *ERRORS, *HANDLES, *NEITHER}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", VALUES)
def test_values_are_copied_whole(name: str, how: str) -> None:
    """A copy equals what it was made from."""
    value = VALUES[name]
    copied = COPIES[how](value)
    assert type(copied) is type(value) is PUBLIC[name]
    assert copied == value


def _error(kind: type[SandboxError]) -> SandboxError:
    if issubclass(kind, sandbox.ExecutionFailed):
        return kind("it failed", RESULT)
    if issubclass(kind, sandbox.GuestFileError):
        return kind(errno.ENOENT, "No such file", "a\udcff")
    if issubclass(kind, OSError):
        return kind(errno.ENOENT, "No such file")
    error = kind("said")
    if isinstance(error, sandbox.GuestLost):
        error.partial, error.certificate = RESULT, CERTIFICATE
    return error


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_copied_with_all_that_they_carry(name: str, how: str) -> None:
    """Message, number, file, result and certificate come along."""
    error = _error(ERRORS[name])
    copied = COPIES[how](error)
    assert type(copied) is type(error)
    assert (copied.args, str(copied), copied.code) == (error.args, str(error), error.code)
    for carried in ("partial", "certificate", "result", "errno", "strerror", "filename"):
        assert getattr(copied, carried, None) == getattr(error, carried, None)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", HANDLES)
def test_handles_refuse_to_be_copied(name: str, how: str) -> None:
    """It is said in words, before anything of the inside is touched."""
    handle = object.__new__(HANDLES[name])
    with pytest.raises(TypeError, match=f"{name} stands for something that runs"):
        COPIES[how](handle)
