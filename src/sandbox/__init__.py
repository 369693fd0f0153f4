"""Run code nobody trusts in fresh virtual machines, cloned from a golden snapshot.

    async with VMPool(PoolConfig(min_size=4)) as pool:
        async with pool.acquire() as vm:
            result = await vm.run("print(6 * 7)", timeout=10)

Names are imported when they are first used, so that `import sandbox` costs nothing and needs no libvirt.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.certificate import Cause as Cause
    from sandbox.certificate import DeathCertificate as DeathCertificate
    from sandbox.cold_boot import ColdBoot as ColdBoot
    from sandbox.config import HostConfig as HostConfig
    from sandbox.config import Limits as Limits
    from sandbox.config import PoolConfig as PoolConfig
    from sandbox.config import TemplateConfig as TemplateConfig
    from sandbox.config import TemplateTarget as TemplateTarget
    from sandbox.errors import ConfigError as ConfigError
    from sandbox.errors import ExecutionFailed as ExecutionFailed
    from sandbox.errors import GuestFileError as GuestFileError
    from sandbox.errors import GuestLost as GuestLost
    from sandbox.errors import GuestResources as GuestResources
    from sandbox.errors import HostFileError as HostFileError
    from sandbox.errors import HostResources as HostResources
    from sandbox.errors import HypervisorError as HypervisorError
    from sandbox.errors import ImageError as ImageError
    from sandbox.errors import PoolBusy as PoolBusy
    from sandbox.errors import PoolClosed as PoolClosed
    from sandbox.errors import PoolTimeout as PoolTimeout
    from sandbox.errors import ProtocolError as ProtocolError
    from sandbox.errors import SandboxError as SandboxError
    from sandbox.errors import StartError as StartError
    from sandbox.errors import StateError as StateError
    from sandbox.errors import TemplateError as TemplateError
    from sandbox.event import EventKind as EventKind
    from sandbox.event import LifeEvent as LifeEvent
    from sandbox.event import Observer as Observer
    from sandbox.guest.context import Context as Context
    from sandbox.guest.entry import Change as Change
    from sandbox.guest.entry import FileEntry as FileEntry
    from sandbox.guest.entry import FileStat as FileStat
    from sandbox.guest.events import Ended as Ended
    from sandbox.guest.events import Event as Event
    from sandbox.guest.events import Output as Output
    from sandbox.guest.events import Started as Started
    from sandbox.guest.execution import Execution as Execution
    from sandbox.guest.execution import Status as Status
    from sandbox.guest.files import Files as Files
    from sandbox.guest.identity import Receipt as Receipt
    from sandbox.guest.sandbox import Sandbox as Sandbox
    from sandbox.guest.tree import TreeReport as TreeReport
    from sandbox.observe.anomaly import Anomalies as Anomalies
    from sandbox.observe.audit_log import AuditLog as AuditLog
    from sandbox.observe.metrics import Metrics as Metrics
    from sandbox.observe.rules import Anomaly as Anomaly
    from sandbox.observe.rules import CpuStorm as CpuStorm
    from sandbox.observe.rules import DeathRate as DeathRate
    from sandbox.observe.rules import HitRate as HitRate
    from sandbox.observe.rules import RestoreDrift as RestoreDrift
    from sandbox.observe.rules import SpawnStorm as SpawnStorm
    from sandbox.observe.tracing import Tracing as Tracing
    from sandbox.oneshot import run as run
    from sandbox.pool.lease import Lease as Lease
    from sandbox.pool.pool import VMPool as VMPool
    from sandbox.pool.statistics import GenerationStatistics as GenerationStatistics
    from sandbox.pool.statistics import PoolStatistics as PoolStatistics
    from sandbox.result import CellError as CellError
    from sandbox.result import CellResult as CellResult
    from sandbox.result import Outcome as Outcome
    from sandbox.result import Result as Result
    from sandbox.template.drift import Drift as Drift
    from sandbox.template.lint import LintReport as LintReport
    from sandbox.template.template import Template as Template
    from sandbox.vm import VM as VM
    from sandbox.vm import VMSource as VMSource

_HOMES = {
    "sandbox.certificate": (
        "Cause",
        "DeathCertificate",
    ),
    "sandbox.cold_boot": ("ColdBoot",),
    "sandbox.config": (
        "HostConfig",
        "Limits",
        "PoolConfig",
        "TemplateConfig",
        "TemplateTarget",
    ),
    "sandbox.errors": (
        "ConfigError",
        "ExecutionFailed",
        "GuestFileError",
        "GuestLost",
        "GuestResources",
        "HostFileError",
        "HostResources",
        "HypervisorError",
        "ImageError",
        "PoolBusy",
        "PoolClosed",
        "PoolTimeout",
        "ProtocolError",
        "SandboxError",
        "StartError",
        "StateError",
        "TemplateError",
    ),
    "sandbox.event": ("EventKind", "LifeEvent", "Observer"),
    "sandbox.guest.context": ("Context",),
    "sandbox.guest.events": (
        "Ended",
        "Event",
        "Output",
        "Started",
    ),
    "sandbox.guest.execution": (
        "Execution",
        "Status",
    ),
    "sandbox.guest.entry": ("Change", "FileEntry", "FileStat"),
    "sandbox.guest.files": ("Files",),
    "sandbox.guest.identity": ("Receipt",),
    "sandbox.guest.sandbox": ("Sandbox",),
    "sandbox.guest.tree": ("TreeReport",),
    "sandbox.observe.anomaly": ("Anomalies",),
    "sandbox.observe.audit_log": ("AuditLog",),
    "sandbox.observe.metrics": ("Metrics",),
    "sandbox.observe.rules": ("Anomaly", "CpuStorm", "DeathRate", "HitRate", "RestoreDrift", "SpawnStorm"),
    "sandbox.observe.tracing": ("Tracing",),
    "sandbox.oneshot": ("run",),
    "sandbox.pool.lease": ("Lease",),
    "sandbox.pool.pool": ("VMPool",),
    "sandbox.pool.statistics": ("GenerationStatistics", "PoolStatistics"),
    "sandbox.result": (
        "CellError",
        "CellResult",
        "Outcome",
        "Result",
    ),
    "sandbox.template.drift": ("Drift",),
    "sandbox.template.lint": ("LintReport",),
    "sandbox.template.template": ("Template",),
    "sandbox.vm": (
        "VM",
        "VMSource",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)  # noqa: PLE0605 - computed, so that it cannot drift from what is offered


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - 10 ms that most callers need not pay

        return version("sandbox-vmpool")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'sandbox' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
