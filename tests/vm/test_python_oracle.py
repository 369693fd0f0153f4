"""A script in `vm.run` against the real `python3 -u FILE`, in the same VM, over a table of small programs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sandbox.result import Result
from sandbox.template.template import Template
from sandbox.vm import VM

TABLE = Path(__file__).parents[1] / "programs" / "python_table.txt"
PLACE = "/workspace/t"
NAME = "program.py"
# What differs from one process to the next, whoever starts it.
_ADDRESS = re.compile(
    rb"0x[0-9a-f]{6,}|pid=\d+|Thread-\d+|\b\d{3,5}:|object at \S+|tmp[a-z0-9_]{8}|refcount : \d+|in \d+\.\d+s"
)


@dataclass
class Program:
    """One entry of the table."""

    kind: str
    name: str
    code: str = ""
    args: list[str] = field(default_factory=list)
    stdin: bytes = b""
    env: dict[str, str] = field(default_factory=dict)
    put: dict[str, bytes] = field(default_factory=dict)


def _unescaped(text: str) -> bytes:
    return text.encode().decode("unicode_escape").encode("latin-1")


def programs() -> Iterator[Program]:
    """Read the table."""
    for entry in re.split(r"^=== ", TABLE.read_text(), flags=re.MULTILINE)[1:]:
        title, _, body = entry.partition("\n")
        program = Program(*title.split())
        lines = body.rstrip("\n").split("\n")
        while lines and lines[0].startswith("#: "):
            key, value = lines.pop(0)[3:].split(" ", 1)
            if key == "args":
                program.args = [value.split()[0], " ".join(value.split()[1:])]
            elif key == "stdin":
                program.stdin = _unescaped(value)
            elif key == "env":
                program.env |= dict([value.split("=", 1)])
            else:
                name, _, content = value.partition(" ")
                program.put[name] = _unescaped(content)
        program.code = "\n".join(lines) + "\n"
        yield program


PROGRAMS = list(programs())
KINDS = sorted({program.kind for program in PROGRAMS})


async def _fresh(vm: VM, program: Program) -> None:
    await vm.exec(f"rm -rf {PLACE} && mkdir -p {PLACE}/lib")
    for name, content in program.put.items():
        await vm.files.write(f"{PLACE}/{name}", content, parents=True)


async def _left(vm: VM) -> bytes:
    """Return the names and contents of what a program has left, without its own file and byte code."""
    listing = await vm.exec(
        f"cd {PLACE}; rm -rf {NAME}; find . -name __pycache__ -prune -o -type f -printf '%p %m ' -exec cat {{}} ';'"
    )
    return listing.stdout


def _told(result: Result, left: bytes) -> dict[str, object]:
    return {
        "outcome": result.outcome.value,
        "exit_code": result.exit_code,
        "signal": result.signal,
        "stdout": _ADDRESS.sub(b"_", result.stdout),
        "stderr": _ADDRESS.sub(b"_", result.stderr),
        "combined": len(result.combined),
        "left": left,
    }


async def differences(vm: VM, program: Program) -> list[str]:
    """Run a program both ways and return what differs."""
    options = {"cwd": PLACE, "env": program.env, "stdin": program.stdin, "timeout": 60}
    await _fresh(vm, program)
    ours = await vm.run(program.code, name=NAME, args=program.args, **options)  # type: ignore[arg-type]
    found = _told(ours, await _left(vm))
    await _fresh(vm, program)
    await vm.files.write(f"{PLACE}/{NAME}", program.code.encode("utf-8", "surrogateescape"), mode=0o600)
    real = await vm.exec(["python3", "-u", f"{PLACE}/{NAME}", *program.args], **options)  # type: ignore[arg-type]
    wanted = _told(real, await _left(vm))
    return [
        f"{program.kind} {program.name}: {key} is {found[key]!r}, python3 gives {wanted[key]!r}"
        for key in wanted
        if found[key] != wanted[key]
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.timeout(600)
async def test_run_is_python3(template: Template, kind: str) -> None:
    """Output of each stream, status and signal, and files left behind are those of `python3 -u FILE`."""
    async with template.lease() as vm:
        found = [said for program in PROGRAMS if program.kind == kind for said in await differences(vm, program)]
    assert not found, "\n" + "\n".join(found)


def test_the_table_is_large_enough() -> None:
    """At least ten programs of each kind, and 120 in all."""
    assert len(PROGRAMS) >= 120
    assert all(sum(program.kind == kind for program in PROGRAMS) >= 10 for kind in KINDS)
    assert len({(program.kind, program.name) for program in PROGRAMS}) == len(PROGRAMS)
