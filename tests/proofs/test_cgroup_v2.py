"""Control groups of version 2, with our own modules on a real kernel that has them: a guest's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

from sandbox.hypervisor import cgroup, cgroup_place
from sandbox.template.template import Template

PROGRAM = Path(__file__).parents[1] / "programs" / "cgroup_guest.py"
ROOT = "/sys/fs/cgroup"


@pytest.fixture
async def seen(template: Template) -> AsyncIterator[dict[str, Any]]:
    """What the program in the guest has seen, by section."""
    async with template.lease() as vm:
        for module in (cgroup, cgroup_place):
            path = Path(module.__file__ or "")
            await vm.write_file(f"/tmp/{path.name}", await to_thread.run_sync(path.read_bytes))
        await vm.write_file("/tmp/program.py", await to_thread.run_sync(PROGRAM.read_bytes))
        result = await vm.exec(["python3", "-B", "/tmp/program.py", "/tmp"], user="root", timeout=120)
        assert result.ok, result.stderr.decode()
        yield json.loads(result.text)


async def test_groups_are_made_only_where_they_were_delegated(seen: dict[str, Any]) -> None:
    """A delegated group is divided, as root and as its owner; one of a service manager or of another is left alone."""
    assert seen["delegated"]["parents"] == [f"{ROOT}/delegated"]
    assert seen["unprivileged"]["parents"] == [f"{ROOT}/users"]
    assert seen["unprivileged"]["refused"] == {}
    for name, path in (("undelegated", "service"), ("stranger", "roots")):
        assert seen[name]["parents"] == []
        assert f"{ROOT}/{path}, which this process is in, was not delegated" in seen[name]["refused"]["memory"]


async def test_the_process_makes_way_for_groups_if_it_is_alone(seen: dict[str, Any]) -> None:
    """A group with processes cannot be divided: ours goes aside; if others are there, it stays, and says so."""
    assert seen["delegated"]["own"] == "0::/delegated/sandbox-main"
    assert seen["crowded"]["own"] == "0::/crowded"
    assert "other processes are in this group" in seen["crowded"]["refused"]["memory"]


async def test_bounds_hold(seen: dict[str, Any]) -> None:
    """Who takes more memory is killed, and the kernel's count tells; within the bound, or without it, nobody is."""
    found = seen["delegated"]
    assert found["bounds"] == [str(32 * 1024 * 1024), "4", "50000 100000"]
    assert (found["signal"], found["before"], found["after"]) == (9, 0, 1)
    assert (found["without"], found["within"]) == (0, 0), "the controls"
    assert (seen["unprivileged"]["signal"], seen["unprivileged"]["kills"]) == (9, 1)
    assert seen["children"] == 3, "four processes, the first included"


async def test_a_group_is_removed_when_nobody_lives_in_it(seen: dict[str, Any]) -> None:
    """The kernel keeps it as long as somebody does."""
    found = seen["delegated"]
    assert (found["removed while it lives"], found["removed"], found["exists"]) == (False, True, False)
    assert seen["unprivileged"]["removed"]
