"""Words of real programs in our messages: they arrive whole as data, and harmless in what is told."""

from __future__ import annotations

import pytest

from sandbox.certificate import Cause
from sandbox.errors import ExecutionFailed, GuestFileError
from sandbox.vm import VM

ODD = "\x1b[2J\r\n\u202e\x9b31m\udcff"


async def test_an_error_in_a_cell(vm: VM) -> None:
    """Name and text of an exception are told on one line, and are there as they were."""
    async with vm.context() as context:
        result = await context.run(f"raise type({ODD[:-1]!r}, (Exception,), {{}})({ODD!r} * 1000)")
    assert result.error is not None
    assert result.error.name == ODD[:-1]
    assert result.error.text == ODD * 1000
    assert result.certificate is not None
    assert result.certificate.cause is Cause.EXIT_STATUS
    for said in (result.describe(), str(result), repr(result), str(result.error)):
        assert said.isprintable()
        assert len(said.encode()) < 5000


async def test_last_words_of_a_program(vm: VM) -> None:
    """They keep their lines, and nothing else that acts."""
    result = await vm.run("import sys; sys.stderr.write('one\\n\\x1b[2Jtwo\\a'); sys.exit(3)")
    assert result.stderr == b"one\n\x1b[2Jtwo\a"
    with pytest.raises(ExecutionFailed) as caught:
        result.check()
    assert str(caught.value) == "exited with 3; its last words:\none\n\\x1b[2Jtwo\\x07"


async def test_refusals_of_odd_names(vm: VM) -> None:
    """A path that a terminal would obey is shown escaped; the number's words are the host's."""
    with pytest.raises(GuestFileError, match="No such file or directory") as caught:
        await vm.files.stat(ODD)
    assert str(caught.value).isprintable()
    assert caught.value.filename == ODD
    await vm.exec(["mkfifo", "pipe"])
    with pytest.raises(GuestFileError, match=r"Invalid argument \(it is a fifo, not a regular file\)"):
        await vm.files.read("pipe")
