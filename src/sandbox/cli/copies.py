"""All that one command copies: what goes in before its program starts, and what is fetched when that has ended."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sandbox.cli.defaults import Chosen
from sandbox.cli.run import complain
from sandbox.cli.transfer import Bounds, Transfer, check_room, get, parse_get, parse_put, project_put, put, size_bytes
from sandbox.errors import GuestFileError, SandboxError
from sandbox.trace.stage import stage
from sandbox.vm import VM

_NAMED = 5


@dataclass(frozen=True)
class Copies:
    """Checked before a VM is started. Paths of the guest start at `cwd`, and files are the `user`'s."""

    sent: tuple[Transfer, ...]
    fetched: tuple[Transfer, ...]
    bounds: Bounds
    cwd: str | None
    user: str | None

    async def send(self, vm: VM) -> None:
        """Copy in; the first failure is raised."""
        for transfer in self.sent:
            with stage("put a file or directory"):
                skipped = await put(vm, transfer, self.bounds, cwd=self.cwd, user=self.user)
            _tell_skipped("put", transfer, skipped)

    async def fetch(self, vm: VM) -> SandboxError | None:
        """Fetch all that can be fetched, also after a failed program; return the first failure."""
        failure: SandboxError | None = None
        for transfer in self.fetched:
            try:
                with stage("get a file or directory"):
                    report = await get(vm, transfer, self.bounds, cwd=self.cwd, user=self.user)
                if report is None:
                    continue
                _tell_skipped("get", transfer, report.skipped)
                if report.errors:
                    number = len(report.errors)
                    said = f"--get {transfer.source}: {number} could not be copied: {_some(report.errors)}"
                    raise GuestFileError(errno.EIO, said)
            except SandboxError as error:
                failure = failure or error
        return failure


def copies(
    options: Chosen, put: Sequence[str], get: Sequence[str], *, force: bool, project: Path | None = None
) -> Copies:
    """Return what is asked for; raise `ConfigError` for what cannot be done."""
    bounds = Bounds(size_bytes("--get-limit", options.get_limit), options.transfer_timeout, force)
    sent = (*project_put(project, options.exclude), *map(parse_put, put))
    check_room(sent, options.template.memory_mib)
    return Copies(sent, tuple(parse_get(text, force=force) for text in get), bounds, options.cwd, options.user)


def _tell_skipped(option: str, transfer: Transfer, skipped: Mapping[str, str]) -> None:
    if skipped:
        complain(f"--{option} {transfer.source}: left out {len(skipped)}: {_some(skipped)}")


def _some(reasons: Mapping[str, str]) -> str:
    some = [f"{name} ({why})" for name, why in islice(reasons.items(), _NAMED)]
    return ", ".join([*some, "…"] if len(reasons) > _NAMED else some)
