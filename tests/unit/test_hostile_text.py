"""A guest's words in messages of ours: one line that is short and does nothing to a terminal, on every way."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandbox import errors
from sandbox.certificate import Cause, DeathCertificate
from sandbox.cli.logs import _Plain
from sandbox.cli.run import complain, describe
from sandbox.errors import ExecutionFailed, GuestFileError, SandboxError, TemplateError
from sandbox.event import EventKind, LifeEvent
from sandbox.guest.context import Context
from sandbox.guest.ending import End, Evidence, certify
from sandbox.guest.entry import TreeEntry
from sandbox.guest.language import start_request
from sandbox.guest.tree import TreeWriter
from sandbox.guest.verdict import lost
from sandbox.log import log
from sandbox.observe.audit_line import audit_line
from sandbox.printable import MOST_CHARACTERS, printable
from sandbox.result import CellError, Outcome, Result
from sandbox.template.lint import Finding, LintReport
from sandbox.trace.boot import _name
from sandbox.wire import Kind, encode
from tests.fakes.file_guest import FileGuest, says, stat_of

HOSTILE = {
    "lines": "a\nb\r\nc\vd\fe",
    "lines of Unicode": "a\u2028b\u2029c\x85d",
    "terminal": "\x1b[2J\x1b]0;title\x07\x9b31m\b\b",
    "direction": "abc\u202egpj.exe\u2066\u200f",
    "halves of characters": "\ud800 \udcff \udc80",
    "nothing": "\0\0",
    "no width": "\u200b\ufeff\u00ad",
    "private": "\ue000\U000f0000\U0010ffff",
    "markup": "[bold red]x[/] {0} %s </b>",
    "long": "x" * 1_000_000,
    "long, each of it an escape": "\x1b" * 1_000_000,
    "long lines": "line\n" * 200_000,
}
LONGEST = MOST_CHARACTERS + 200
Said = dict[str, Any]


def _is_safe(text: str) -> bool:
    """Whether it is one short line that any terminal and encoding takes."""
    return text.isprintable() and len(text) <= LONGEST and text.encode() is not None


@pytest.fixture(params=list(HOSTILE.values()), ids=list(HOSTILE))
def text(request: pytest.FixtureRequest) -> str:
    """What a guest says."""
    said: str = request.param
    return said


def _result(**more: Any) -> Result:
    fields: Said = {"outcome": Outcome.EXITED, "exit_code": 1, "signal": None, "stdout": b"", "stderr": b""}
    return Result(**(fields | {"stdout_bytes": 0, "stderr_bytes": 0, "duration": 0.1} | more))


def test_printable_text_stays_as_it_is() -> None:
    """What is harmless is not touched, whatever script it is in; twice is the same as once."""
    for said in ("", "exited with 1", "größer → 日本語 😀", "C:\\temp"):
        assert printable(said) is said
    for said in HOSTILE.values():
        assert printable(printable(said)) == printable(said) or len(said) > MOST_CHARACTERS
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"
    assert printable("abcd", 3) == "abc…"


def test_certificates(text: str) -> None:
    """Whoever makes one, its summary is safe; its evidence is data, as it was said."""
    certificate = DeathCertificate(Cause.SIGNAL, text, False, evidence={"console": text})
    assert certificate.evidence["console"] == text
    for said in (certificate.summary, str(certificate), repr(DeathCertificate(Cause.SIGNAL, text, False))):
        assert _is_safe(said)
    assert _is_safe(str(lost(Cause.PROTOCOL, text).certificate))


def test_ends(text: str) -> None:
    """The kernel's line in the guest is evidence, and no part of the summary."""
    evidence = Evidence.model_construct(forks_refused=0, disk_free_bytes=1 << 30, files_free=9, kernel_log=text)
    end = End.model_construct(code=1, signal=None, evidence=evidence, oom_kills=0, peak_memory_bytes=1)
    _, certificate = certify(end, None, text, 1.0, None)
    assert certificate is not None
    assert _is_safe(str(certificate))


@pytest.mark.parametrize("kind", [one for one in vars(errors).values() if isinstance(one, type)], ids=str)
def test_errors(kind: type[object], text: str) -> None:
    """Every error of the tree is one line, and has what was said as data."""
    if not issubclass(kind, SandboxError) or kind is ExecutionFailed:
        return
    made = [kind(errno.EINVAL, text, "path"), kind(errno.EINVAL, text)] if issubclass(kind, OSError) else [kind(text)]
    for error in made:
        assert text in error.args
        assert _is_safe(str(error))
        assert repr(error).isprintable()
        assert _is_safe(describe(error)["message"])
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_last_words(text: str) -> None:
    """The failure of a program ends with its last words, of which only line ends and tabs are left."""
    result = _result(stderr=text.encode("utf-8", "replace") or b"x", stderr_bytes=len(text))
    with pytest.raises(ExecutionFailed) as caught:
        result.check()
    said = str(caught.value)
    assert said.replace("\n", "").replace("\t", "").isprintable()
    assert len(said) < LONGEST


def test_results(text: str) -> None:
    """A result is shown as one short line, however much the program has written."""
    data = text.encode("utf-8", "surrogatepass")
    certificate = DeathCertificate(Cause.SIGNAL, text, False)
    result = _result(stdout=data, stderr=data, stdout_bytes=len(data), stderr_bytes=len(data), certificate=certificate)
    for said in (str(result), repr(result), result.describe(), repr(CellError(text, text, text))):
        assert _is_safe(said)
    assert len(repr(result)) < 1500


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EINVAL, errno.ENAMETOOLONG, 4095, -1, 2**62])
async def test_refusals(number: int, text: str) -> None:
    """The words for a number are the host's own; only what is wrong with a path is explained in the guest's."""
    guest = FileGuest(lambda _: [says(errno=number, text=text[:5000])])
    with pytest.raises(GuestFileError) as caught:
        await guest.files.stat("f")
    error = caught.value
    assert error.errno == (number if number in errno.errorcode else errno.EIO)
    assert error.strerror is not None
    assert error.strerror.startswith(os.strerror(error.errno))
    assert (error.strerror == os.strerror(error.errno)) is (number not in (errno.EINVAL, errno.ENAMETOOLONG))
    assert len(error.strerror) < 300
    assert _is_safe(str(error))
    assert _is_safe(repr(error))
    guest.release()


@pytest.mark.parametrize("number", [True, "2", 2.0, None])
async def test_refusals_without_a_number(number: object) -> None:
    """What is no number of an error is no refusal."""
    guest = FileGuest(lambda _: [says(errno=number, text="x")])
    with pytest.raises(GuestFileError, match="without number and text"):
        await guest.files.stat("f")
    guest.release()


async def test_cells(text: str) -> None:
    """Name and text of an error are data; what is told of the cell is safe."""
    text = text[:100_000]  # as much as the agent leaves of it
    error = {"name": text, "text": text, "traceback": text}
    guest = FileGuest(lambda _: [says(number=1, value={"text/plain": text, text[:100]: text}, error=error)])
    context = Context(guest.client, "python", start_request("python", {}))
    result = await context.run("1")
    assert result.error is not None
    assert (result.error.name, result.error.traceback) == (text, text)
    assert result.certificate is not None
    for said in (str(result), repr(result), result.describe(), str(result.error), repr(result.error)):
        assert _is_safe(said)
        assert len(said) < 1500
    guest.release()


async def test_protocol_errors(text: str) -> None:
    """Names that the guest gives to fields are in what is told of its fault."""
    guest = FileGuest(lambda _: ())
    execution = guest.start()
    body = json.dumps({"code": 0, "signal": None, text[:1000]: 1}).encode()
    guest.say(encode(Kind.EXITED, 0, execution.number, body))
    assert guest.client.lost is not None
    assert _is_safe(str(guest.client.lost))
    assert "broke the protocol" in str(guest.client.lost)


async def test_faults_of_models(text: str) -> None:
    """So they are where a file server breaks its protocol."""
    guest = FileGuest(lambda _: [says(stat=stat_of("file", **{text[:1000]: 1}))])
    with pytest.raises(GuestFileError) as caught:
        await guest.files.stat("f")
    assert _is_safe(str(caught.value))
    guest.release()


def test_names_of_files(text: str, tmp_path: Path) -> None:
    """A name that cannot be one on the host is told in few characters."""
    writer = TreeWriter(tmp_path / "new", 1, 10)
    entry = TreeEntry(name=text + "/../x", type="file", size=0, mode=0, mtime=0)
    with pytest.raises(errors.HostFileError) as caught:
        writer.begin(entry)
    assert _is_safe(str(caught.value))
    writer.close()


def test_logs(text: str, caplog: pytest.LogCaptureFixture) -> None:
    """An event is one line for every logger, and for the command line a short one."""
    with caplog.at_level(logging.WARNING, "sandbox"):
        log.warning("told", said=text, error=str(SandboxError(text)))
    (record,) = caplog.records
    assert record.getMessage().isprintable()
    assert _is_safe(_Plain(in_words=True).format(record))


def test_events(text: str) -> None:
    """The audit's line is ASCII; an event shows itself on one line."""
    event = LifeEvent(EventKind.VM_START_FAILED, "pool", fields={"error": text, "why": text, "timings": {text: 1.0}})
    line = audit_line(event)
    assert (line.count("\n"), line[-1]) == (1, "\n")
    assert line.isascii()
    assert line[:-1].isprintable()
    assert len(line) < 4 * LONGEST
    assert repr(event).isprintable()


def test_traces_and_lint(text: str) -> None:
    """Stages are named, and findings are told, in what is safe to show."""
    assert _is_safe(_name(text))
    report = LintReport(rules=(), findings=(Finding(rule="pid_file", severity="fail", where=text),))
    with pytest.raises(TemplateError) as caught:
        report.check()
    assert _is_safe(str(caught.value))
    with pytest.raises(TemplateError) as caught:
        LintReport.of(text.encode("utf-8", "replace"))
    assert _is_safe(str(caught.value))


def test_lint_of_nothing_but_faults_is_quick() -> None:
    """A million entries that are none give one error, and more of them are not looked at."""
    with pytest.raises(TemplateError, match="something else"):
        LintReport.of(b"[" + b"1," * 1_000_000 + b"1]")
    with pytest.raises(TemplateError, match="more than"):
        LintReport.of(b"[" + b"1," * 2_000_000 + b"1]")


def test_the_command_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is complained of is one line on standard error."""
    complain(text)
    said = capsys.readouterr().err
    assert said.endswith("\n")
    assert _is_safe(said[:-1])


def test_without_escaping_a_line_does_act() -> None:
    """The control: what the guest says is neither printable nor, in part, text at all."""
    unsafe: Callable[[str], bool] = lambda said: not said.isprintable() or len(said) > LONGEST  # noqa: E731
    assert [name for name, said in HOSTILE.items() if not unsafe(said)] == ["markup"]
