"""Clones of one snapshot share nothing that should be random or unique; a control shows what they share undefended."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox.template.template import Template
from tests.conftest import PROGRAMS
from tests.proofs.frozen import FrozenDrawer, UndefendedClones

CLONES = int(os.environ.get("SANDBOX_CLONES", "8"))
NUMPY_EVERY = 1 if "SANDBOX_CLONES" in os.environ else 4
"""In a short run only one clone of so many imports numpy, which takes longer than all other draws together."""
DRAWS = 1000
FROZEN_DRAWS = 300
AT_ONCE = 2
MEDIAN_SECONDS, WORST_SECONDS = 0.05, 0.5


@pytest.fixture(scope="module")
async def clones(template: Template) -> list[Mapping[str, Any]]:
    """What each of many clones drew and said as its first act."""
    code = (PROGRAMS / "draws.py").read_text()
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def ask(number: int) -> Mapping[str, Any]:
        arguments = [str(DRAWS), "numpy"] if number % NUMPY_EVERY == 0 else [str(DRAWS)]
        async with limiter, template.lease() as vm:
            before = time.time()
            result = await vm.run(code, args=arguments, timeout=120, capture_bytes=4 << 20)
            after = time.time()
            assert vm.receipt is not None
            said: dict[str, Any] = json.loads(result.check().text)
            assert said["names"]["host name"] == vm.receipt.hostname
            return {**said, "offset": vm.receipt.clock_offset, "before": before, "after": after}

    return list(await asyncio.gather(*(ask(number) for number in range(CLONES))))


def _duplicates(values: Iterable[object]) -> int:
    drawn = list(values)
    return len(drawn) - len(set(drawn))


def _told(capsys: pytest.CaptureFixture[str], line: str) -> None:
    with capsys.disabled():
        print(f"\n{line}")  # noqa: T201 - a figure


@pytest.mark.timeout(900)
def test_no_draw_is_made_twice(clones: list[Mapping[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """No two of all clones' first draws are equal, from the kernel, from Python, for names of files, or from numpy."""
    counts = {}
    for name in clones[0]["draws"]:
        drawn = [value for clone in clones for value in clone["draws"].get(name, [])]
        counts[name] = len(drawn)
        assert _duplicates(drawn) == 0, name
    assert counts["os.urandom"] == CLONES * DRAWS
    assert counts["numpy.random"] >= 2 * DRAWS
    _told(capsys, f"clones: 0 duplicates in {CLONES} clones; N = {counts}")


def test_no_name_is_given_twice(clones: list[Mapping[str, Any]]) -> None:
    """Machine id, boot id and host name differ in all clones."""
    for name in clones[0]["names"]:
        assert _duplicates(clone["names"][name] for clone in clones) == 0, name


def test_a_fresh_interpreter_has_a_hash_seed_of_its_own(
    clones: list[Mapping[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """`python3` started as a program hashes differently in each clone; forks of the warm one do not."""
    assert _duplicates(clone["fresh hash"] for clone in clones) == 0
    seeds = len({clone["hash"] for clone in clones})
    _told(capsys, f"clones: {seeds} hash seed(s) in {CLONES} forks of the warm interpreter: a documented limit")


def test_every_clone_knows_the_time(clones: list[Mapping[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """The offsets in the receipts are small, and what the guest itself says of the time agrees with them."""
    offsets = sorted(abs(clone["offset"]) for clone in clones)
    median = statistics.median(offsets)
    _told(
        capsys, f"clones: clock off by {median * 1e3:.1f} ms median, {offsets[-1] * 1e3:.1f} ms at most, N = {CLONES}"
    )
    assert median <= MEDIAN_SECONDS
    assert offsets[-1] <= WORST_SECONDS
    for clone in clones:
        assert clone["before"] - WORST_SECONDS <= clone["clock"] <= clone["after"] + WORST_SECONDS


@pytest.fixture
async def drawer(template: Template) -> AsyncIterator[FrozenDrawer]:
    """A snapshot with a program frozen in it that draws when it is asked over the console."""
    async with FrozenDrawer.bake(template, FROZEN_DRAWS) as drawer:
        yield drawer


async def test_undefended_clones_draw_the_same(drawer: FrozenDrawer, capsys: pytest.CaptureFixture[str]) -> None:
    """The control: without renewal, clones draw the same of everything; the library's renew the kernel's at least.

    What a program keeps in its own memory no host can renew: that is why runs fork from an interpreter that seeds
    itself anew, and why nothing runs in a guest when the snapshot is taken.
    """
    defended = []
    with tempfile.TemporaryDirectory(prefix="sandbox-raw-") as path:
        async with drawer.template.lease() as vm:
            undefended = await asyncio.to_thread(UndefendedClones, vm.pid, drawer, Path(path))
            defended.append(await drawer.ask_defended(vm))
        async with drawer.template.lease() as vm:
            defended.append(await drawer.ask_defended(vm))
        clones = [await asyncio.to_thread(undefended.draw) for _ in range(2)]
    both = {name: clones[0][name] + clones[1][name] for name in clones[0]}
    same = {name: _duplicates(values) for name, values in both.items()}
    _told(capsys, f"control: equal draws in two clones without renewal, of {FROZEN_DRAWS} each: {same}")
    assert same["os.urandom"] > 0
    assert same["random"] == same["tempfile"] == FROZEN_DRAWS
    assert _duplicates(defended[0]["os.urandom"] + defended[1]["os.urandom"]) == 0
    assert _duplicates([*defended[0]["random"], *defended[1]["random"]]) == FROZEN_DRAWS, "no host can renew these"
