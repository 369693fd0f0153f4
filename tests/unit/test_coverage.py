"""The tracer that measures the agent inside a guest: it notes what coverage.py notes, whatever becomes of a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.coverage.guest import ROOT, SOURCE, write_traced
from tests.coverage.measure import is_worse
from tests.coverage.tracer import SLOTS, decode, encode
from tests.untraced import UNTRACED

PROGRAM = """\
import asyncio, contextlib

def loop(values):
    for value in values:
        if value > 2: break
        elif value == 1: continue
        else: value += 1
    else:
        return None
    while value:
        value -= 1
    return [item for item in values if item]

def generator(count):
    for number in range(count):
        try:
            yield number
        finally:
            number = 0
    yield from range(2)

def fails(name):
    try:
        if name: raise KeyError(name)
    except KeyError as error:
        return [error, lambda: name]
    finally:
        name = None

async def awaits():
    await asyncio.sleep(0)
    async with contextlib.AsyncExitStack() as stack:
        return stack

class Thing:
    def __enter__(self): return self
    def __exit__(self, *_): return True

def suppressed():
    with Thing():
        raise ValueError
    with Thing() as thing:
        return thing

def unused():
    return 1

def main():
    loop([0, 1, 2, 3]); loop([]); list(generator(3)); fails(""); fails("x")[1](); suppressed()
    asyncio.run(awaits())
    match 3:
        case 1: pass
        case 3: return 7

main()
"""
OURS = """\
import os, sys
sys.path[:0] = sys.argv[1:3]
import tracer
tracer.TABLE = sys.argv[3]
tracer.begin(sys.argv[1])
import program
"""
THEIRS = """\
import json, sys, coverage
sys.path.insert(0, sys.argv[1])
measured = coverage.Coverage(data_file=None, config_file=False, branch=True, include=[sys.argv[1] + "/*"])
with measured.collect():
    import program
print(json.dumps(measured.get_data().arcs(sys.argv[1] + "/program.py")))
"""
TRACER = str(ROOT / "tests/coverage")


def _run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-B", "-c", *command], env=UNTRACED, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def _noted(table: Path) -> set[tuple[int, int]]:
    return {(line, following) for number, line, following in decode(table.read_bytes()) if number == 0}


def _place(tmp_path: Path, program: str) -> tuple[str, Path]:
    (tmp_path / "code").mkdir()
    (tmp_path / "code/program.py").write_text(program)
    return str(tmp_path / "code"), tmp_path / "table"


def test_it_notes_what_coverage_notes(tmp_path: Path) -> None:
    """Loops, generators, exceptions, contexts, coroutines: the same pairs of lines, calls and returns."""
    code, table = _place(tmp_path, PROGRAM)
    _run(OURS, code, TRACER, str(table))
    theirs = {(line, following) for line, following in json.loads(_run(THEIRS, code))}
    assert _noted(table) == theirs
    assert len(theirs) > 50


def test_nothing_is_lost_with_a_process(tmp_path: Path) -> None:
    """What a fork noted is there although it was killed and had no descriptor left."""
    program = """\
import os, signal
def child():
    os.closerange(0, 1024)
    os.kill(os.getpid(), signal.SIGKILL)
if (pid := os.fork()) == 0:
    child()
os.waitpid(pid, 0)
"""
    code, table = _place(tmp_path, program)
    _run(OURS, code, TRACER, str(table))
    assert {(5, 6), (-2, 3), (3, 4), (5, 7)} <= _noted(table)


@pytest.mark.parametrize("arc", [(0, -1, 1), (63, -1023, 1023), (63, 1023, -1023), (5, 1, 1)])
def test_an_arc_comes_back_from_its_slot(arc: tuple[int, int, int]) -> None:
    """An arc fits into four bytes, and an empty slot is none."""
    assert list(decode(encode(*arc).to_bytes(4, sys.byteorder) + bytes(4))) == [arc]


def test_the_agent_fits(tmp_path: Path) -> None:
    """Its files and lines have numbers, its arcs have slots, and what is put around it moves no line."""
    write_traced(tmp_path / "agent")
    files = sorted((tmp_path / "agent").glob("*.py"))
    lines = {path.name: path.read_text().splitlines() for path in files}
    assert len(files) < 60
    assert max(map(len, lines.values())) < 1000
    assert sum(map(len, lines.values())) < SLOTS / 2
    for path in SOURCE.glob("*.py"):
        assert lines[path.name][1 : len(path.read_text().splitlines())] == path.read_text().splitlines()[1:]
    for name, text in lines.items():
        compile("\n".join(text), name, "exec")


def test_a_fall_by_more_than_a_point_is_worse() -> None:
    """Less than that is the play of timing; to be better is never worse."""
    assert not is_worse(94.0, 95.0)
    assert not is_worse(99.0, 95.0)
    assert is_worse(93.9, 95.0)
