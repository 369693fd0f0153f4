"""What one execution was given, no other one finds: not in its memory, in /proc, or beside it."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

import anyio

from sandbox.guest.execution import Status
from sandbox.template.template import Template
from sandbox.vm import VM

SEARCH = Path(__file__).parents[1] / "programs" / "find_others_secrets.py"
_ROUNDS = 3


def _secret() -> str:
    return f"CANARY-{secrets.token_hex(16)}"


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


async def _give_secrets_to_others(vm: VM) -> list[str]:
    """Give secrets in every way in which a caller can, to root and to the unprivileged user."""
    given = [_secret() for _ in range(8)]
    await vm.run("import sys; sys.stdin.read()", user="root", stdin=given[0].encode())
    await vm.run("pass", env={"TOKEN": given[1]})
    await vm.exec(["true"], env={"TOKEN": given[2]})
    await vm.files_of("root").write("/root/secret", given[3].encode(), mode=0o600)
    await vm.run(f"secret = {given[4]!r}", user="root")
    await vm.exec(["true", given[5]], user="root")
    await vm.run("import sys; sys.stdin.read()", stdin=given[6].encode())
    async with vm.context(user="root") as context:
        await context.run(f"secret = {given[7]!r}")
    return given


async def test_no_execution_finds_what_another_one_was_given(template: Template) -> None:
    """A search of its own memory, of /proc and of all readable files finds its caller's own secret and no other."""
    async with template.lease() as vm:
        given: list[str] = []
        for _ in range(_ROUNDS):
            given += await _give_secrets_to_others(vm)
            own = _secret()
            result = await vm.run(SEARCH.read_text(), env={"TOKEN": own}, timeout=120)
            found = set(result.check().text.split())
            assert _digest(own) in found, "the search finds nothing at all"
            assert not found & {_digest(secret) for secret in given}


async def test_a_running_script_is_its_users_own(vm: VM) -> None:
    """Root's script cannot be read by the unprivileged user while it runs, wherever it lies."""
    for directory in ("/workspace", "/root"):
        id_ = directory.strip("/")
        async with anyio.create_task_group() as group:

            async def run(directory: str = directory, id_: str = id_) -> None:
                await vm.run("import time\nprint(__file__)\ntime.sleep(60)", user="root", cwd=directory, id=id_)

            group.start_soon(run)
            with anyio.fail_after(30):
                while vm.status(id_) is Status.NEVER_STARTED:
                    await anyio.lowlevel.checkpoint()
                execution = vm.attach(id_)
                path = b""
                async for event in execution.events():
                    path += getattr(event, "data", b"")
                    if path.endswith(b"\n"):
                        break
            read = await vm.exec(["cat", path.decode().strip()])
            assert read.exit_code == 1
            assert b"Permission denied" in read.stderr
            execution.kill()
