"""`sandbox doctor`: what works, what does not, and the line that mends it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict

from sandbox.cli.check import Check
from sandbox.cli.doctor_confinement import confinement
from sandbox.cli.doctor_host import directories, exposure, memory, packages_
from sandbox.cli.doctor_template import hypervisor, image
from sandbox.cli.reporting import reporting
from sandbox.config import HostConfig
from sandbox.errors import SandboxError

_EXAMINATIONS = (packages_, directories, hypervisor, image, confinement, memory, exposure)


@reporting
def run_doctor(*, as_json: bool, clones: bool = False) -> int:
    """Print every finding; exit with 1 if something is broken. With `clones`, two VMs are started and compared."""
    config = HostConfig()
    examinations: list[Callable[[HostConfig], Iterator[Check]]] = list(_EXAMINATIONS)
    if clones:
        from sandbox.cli.clones import examine_clones

        examinations.append(examine_clones)
    checks = [check for examine in examinations for check in _guarded(examine, config)]
    if as_json:
        print(json.dumps({"ok": not _failed(checks), "checks": [asdict(check) for check in checks]}, indent=1))
    else:
        for check in checks:
            print(f"{check.status:<5}{check.name:<14}{check.found}")
            if check.remedy:
                print(f"{'':<19}→ {check.remedy}")
    return 1 if _failed(checks) else 0


def _failed(checks: list[Check]) -> bool:
    return any(check.status == "fail" for check in checks)


def _guarded(examine: Callable[[HostConfig], Iterator[Check]], config: HostConfig) -> Iterator[Check]:
    """A check that finds its subject broken says so and does not keep the others from being made."""
    try:
        yield from examine(config)
    except (SandboxError, OSError, ImportError) as error:
        yield Check(examine.__name__.strip("_"), "fail", str(error), "sandbox setup")
