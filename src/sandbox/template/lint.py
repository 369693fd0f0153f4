"""Look for what must not be frozen into every clone, inside the golden guest, right before the freeze."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from anyio.to_thread import run_sync
from pydantic import BaseModel, ConfigDict, FailFast, TypeAdapter, ValidationError

from sandbox.errors import TemplateError
from sandbox.printable import printable
from sandbox.vm import READY_SECONDS, VM

Severity = Literal["fail", "warn"]
Verdict = Literal["clean", "warned", "failed"]
_PROGRAM = Path(__file__).with_name("inspection.py")
_SHOWN = 5


_MOST_BYTES = 2 * 1024 * 1024
_PAIRS = TypeAdapter(Annotated[list[tuple[str, str]], FailFast()])


class Rule(NamedTuple):
    """One thing that is looked for."""

    severity: Severity
    harm: str
    remedy: str


RULES = {
    "private_key": Rule("fail", "every clone would hold this private key", "take it out of the image"),
    "secret_file": Rule("fail", "every clone could read these credentials", "give them to a VM at its lease"),
    "secret_environment": Rule("fail", "every clone would have this secret in memory", "give it to an execution"),
    "random_seed": Rule("fail", "clones would draw equal numbers from it", "remove the seed from the image"),
    "machine_identity": Rule("fail", "every clone would bear this name", "empty the file in the image"),
    "ssh_host_key": Rule("fail", "every clone would be the same host", "remove the key; make one at first use"),
    "shell_history": Rule("fail", "somebody's commands would be in every clone", "remove the file from the image"),
    "network_listener": Rule("fail", "every clone would answer on this socket", "do not start the service at boot"),
    "network_connection": Rule("fail", "the other end knows nothing of clones", "close it before the freeze"),
    "unix_listener": Rule("fail", "every clone would answer on this socket", "do not start the service at boot"),
    "socket_file": Rule("fail", "nobody answers on it", "remove the file"),
    "pid_file": Rule("fail", "it names a process of another machine", "remove the file"),
    "leftover_process": Rule("fail", "it would run in every clone with equal state", "end it before the freeze"),
    "temporary_file": Rule("fail", "its name was drawn before the freeze", "remove it at the end of the build"),
    "ipc_object": Rule("fail", "its maker is gone", "remove it before the freeze"),
    "log_file": Rule("warn", "it tells of another machine", "empty /var/log at the end of the build"),
    "inspection_cut": Rule("warn", "not every file was looked at", "put fewer files where things are written"),
}


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Finding(_Frozen):
    """One thing that was found; its content is never kept."""

    rule: str
    severity: Severity
    where: str


class LintReport(_Frozen):
    """What was looked for in a template, and what was found."""

    rules: tuple[str, ...]
    findings: tuple[Finding, ...] = ()

    @classmethod
    def of(cls, said: bytes) -> LintReport:
        """Parse what the guest has printed. Raises `TemplateError` when it is not what the program prints."""
        if len(said) > _MOST_BYTES:
            raise TemplateError(
                f"the inspection of the golden guest said more than {_MOST_BYTES} bytes; clear the image up"
            )
        try:
            pairs = _PAIRS.validate_json(said, strict=True)
            findings = tuple(Finding(rule=name, severity=RULES[name].severity, where=where) for name, where in pairs)
        except (ValidationError, KeyError) as error:
            raise TemplateError(f"the inspection of the golden guest said something else: {said[:200]!r}") from error
        return cls(rules=tuple(RULES), findings=findings)

    @property
    def verdict(self) -> Verdict:
        """`failed` is never published."""
        if any(finding.severity == "fail" for finding in self.findings):
            return "failed"
        return "warned" if self.findings else "clean"

    def check(self) -> LintReport:
        """Return the report itself; raise `TemplateError`, which tells rules and remedies, if the verdict is failed."""
        failed = [finding for finding in self.findings if finding.severity == "fail"]
        if not failed:
            return self
        said = [
            f"{finding.rule}: {printable(json.dumps(finding.where), 400)}: {RULES[finding.rule].harm}; "
            f"{RULES[finding.rule].remedy}"
            for finding in failed[:_SHOWN]
        ]
        more = f"; and {len(failed) - _SHOWN} more" if len(failed) > _SHOWN else ""
        raise TemplateError(
            f"the template is not published, its guest holds what no clone may: {'; '.join(said)}{more}"
        )


async def lint(vm: VM) -> LintReport:
    """Inspect a guest as root and return what was found; nothing is written in it.

    Raises `TemplateError` when the inspection itself fails, and `GuestLost` when the guest is lost meanwhile.
    """
    code = await run_sync(_PROGRAM.read_text)
    machine_id = vm.receipt.machine_id if vm.receipt is not None else ""
    arguments = [machine_id, socket.gethostname()]
    result = await vm.run(code, args=arguments, name=_PROGRAM.name, user="root", timeout=READY_SECONDS)
    if not result.ok:
        raise TemplateError(f"the golden guest cannot be inspected: {result.describe()}: {result.stderr[-500:]!r}")
    return LintReport.of(result.stdout)
