"""Whether the host can carry one more machine: by what was promised, what is there, and how hard it is pressed."""

from __future__ import annotations

from pathlib import Path

from sandbox.config import HostConfig
from sandbox.errors import HostResources, HypervisorError
from sandbox.hypervisor import resources
from sandbox.hypervisor.ledger import Ledger
from sandbox.hypervisor.resources import HostMemory
from sandbox.log import log

SHARED = Path("/run/lock")
"""All users may make a directory in it, none can remove another's, and it goes with the boot."""


class Admission:
    """Admits a VM or refuses it with `HostResources`, the same way for every pool, process and user of the host."""

    def __init__(self, config: HostConfig, name: str, *, pressure: Path = resources.PRESSURE) -> None:
        """Take part in the host's ledger. Without a directory for all users, that of this user's processes is used."""
        self._config = config
        self._pressure = pressure
        self._memory = HostMemory()
        self.refused: str | None = None
        """Why only this user's processes are counted; None if all users' are."""
        if config.admission_dir is not None:
            self.ledger = Ledger(config.admission_dir, name)
            return
        try:
            self.ledger = Ledger(SHARED, name)
        except HypervisorError as error:
            self.refused = str(error)
            log.info("admission_not_shared", reason=self.refused)
            self.ledger = Ledger(config.runtime_dir / ".admission", name)

    def __repr__(self) -> str:
        return f"<Admission {self.ledger} of {self.budget_mib} MiB>"

    @property
    def budget_mib(self) -> int:
        """How much guest memory all processes of the host may promise together, by this process's configuration."""
        return self._budget_mib(self._config.memory_reserve_mib)

    def _budget_mib(self, reserve_mib: int) -> int:
        spare = self._memory.total_mib - reserve_mib
        return max(0, int(spare * self._config.memory_overcommit))

    def admit(self, vm: str, memory_mib: int, reserve_mib: int) -> None:
        """Promise a VM its memory, or raise `HostResources` and say what is lacking.

        It is refused when tasks on the host wait for memory already; when, with the guest's memory full, less than
        `reserve_mib` would stay available; or when all guests' memory together would exceed the budget.
        """
        waiting = resources.pressure(self._pressure) if self._config.memory_pressure_max < 100 else None
        if waiting is not None and waiting > self._config.memory_pressure_max:
            raise HostResources(
                f"tasks on this host waited for memory in {waiting:g} % of the last 10 s, and no VM is started above "
                f"{self._config.memory_pressure_max:g} %; end something, or raise `memory_pressure_max`"
            )
        available = self._memory.available_mib()
        if available < memory_mib + reserve_mib:
            raise HostResources(
                f"{available} MiB of memory are available, one more VM may need {memory_mib} MiB and {reserve_mib} MiB "
                "stay in reserve; end something, use smaller VMs, or lower `memory_reserve_mib`"
            )
        self.ledger.promise(vm, memory_mib, self._budget_mib(reserve_mib))

    def release(self, vm: str) -> None:
        """Take the promise back: the VM's QEMU is dead, or never was."""
        self.ledger.release(vm)

    def close(self) -> None:
        """Take all promises of this process back."""
        self.ledger.close()
