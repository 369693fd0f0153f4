"""The control groups of this process's VMs, and what dead processes have left of theirs. Everything blocks.

A run directory lists, in a file and before they are made, the groups that its process divides among its VMs. Whoever
clears the directory removes them too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from sandbox.errors import ConfigError, HostResources
from sandbox.hypervisor.cgroup import Caps, Group, remove_group
from sandbox.hypervisor.cgroup_place import CONTROLLERS, Places, enable, find_places, hierarchies
from sandbox.hypervisor.rundir import GROUPS_FILE, group_name
from sandbox.hypervisor.spec import TRANSLATION_MIB, MachineSpec, Platform
from sandbox.log import log

BASE = "sandbox"
OVERHEAD_MIB = 96
"""What QEMU may take beside its guest's memory, page tables, and under TCG its translated code: heap, stacks, files."""
_PAGE_TABLES = {"kvm": 256, "tcg": 512}
"""One part in so many of the guest's memory: the host's tables of it, and under KVM the processor's own as well."""
_USUAL = ("memory", "pids")
PIDS = 96
"""QEMU's threads beside its virtual processors; it keeps up to 64 for its disk."""
_EMPTY_SECONDS = 0.5
_HOW = (
    "run in a delegated group (`systemd-run --scope -p Delegate=yes …`, or Delegate=yes in the service's unit), or as "
    "root name one with SANDBOX_CGROUP=/sandbox"
)


def caps(spec: MachineSpec, platform: Platform, cpus: float | None) -> Caps:
    """Return the most that a VM gets: memory and overhead, threads, and processor time where that is limited."""
    overhead = OVERHEAD_MIB + spec.memory_mib // _PAGE_TABLES[platform.accelerator]
    overhead += TRANSLATION_MIB if platform.accelerator == "tcg" else 0
    return Caps(spec.memory_bytes + (overhead << 20), PIDS + spec.vcpus, cpus)


class Groups:
    """Makes a group for each VM wherever the host allows; where it does not, `places.refused` says why.

    With `must_hold`, a VM that gets no group does not start.
    """

    def __init__(self, run_directory: Path, places: Places, *, must_hold: bool = False) -> None:
        self.places = places
        self.must_hold = must_hold
        self._groups: dict[str, Group] = {}
        name = group_name(run_directory)
        self._parents = {controller: base / BASE / name for controller, base in places.parents.items()}
        if self._parents:
            (run_directory / GROUPS_FILE).write_text(
                "".join(f"{path}\n" for path in sorted(set(self._parents.values())))
            )
        for controller, path in list(self._parents.items()):
            try:
                self._divide(controller, path)
            except OSError as error:
                self._refuse(controller, f"{path}: {error.strerror}")

    def _divide(self, controller: str, path: Path) -> None:
        """Make the group that is divided among our VMs."""
        path.mkdir(parents=True, exist_ok=True)
        if self.places.versions[controller] == 2:
            enable(path.parent, controller)
            enable(path, controller)

    @classmethod
    def open(cls, run_directory: Path, wanted: str, cpus: float | None) -> Groups:
        """Find out what the host allows and make what all VMs of this process have in common.

        Processor time is divided by groups only if it is limited: in groups, all VMs together weigh as much as one
        process outside of them. Raises `ConfigError` when a limit that was asked for cannot be enforced: `cpus`, and
        memory and threads in a group that was named. With `auto` the latter two are limited where that is possible.
        """
        is_named = wanted not in ("auto", "off")
        places = find_places(wanted, CONTROLLERS if cpus is not None else _USUAL)
        groups = cls(run_directory, places, must_hold=cpus is not None or is_named)
        asked = (*(_USUAL if is_named else ()), *(("cpu",) if cpus is not None else ()))
        if lacking := [f"{name}: {places.refused[name]}" for name in asked if name in places.refused]:
            groups.close()
            wish = f"the control group {wanted}" if is_named else f"cpu_limit={cpus:g}"
            raise ConfigError(f"{wish} was asked for but cannot limit {'; '.join(lacking)}; {_HOW}")
        return groups

    def make(self, name: str, caps: Caps) -> Group | None:
        """Make the group of one VM; None where there can be none.

        Raises `HostResources` if a limit was asked for; else a VM without a group is a VM.
        """
        if not self._parents:
            return None
        try:
            try:
                group = Group.make(name, self._parents, self.places.versions, caps)
            except FileNotFoundError:  # somebody who tidies up has removed the group of all, while no VM lived in it
                for controller, path in self._parents.items():
                    self._divide(controller, path)
                group = Group.make(name, self._parents, self.places.versions, caps)
        except OSError as error:
            if self.must_hold:
                raise HostResources(
                    f"{name} gets no control group, and so not the limits that were asked for: {error}"
                ) from error
            log.warning("no_control_group", vm=name, error=str(error))
            return None
        self._groups[name] = group
        return group

    def oom_kills(self, name: str) -> int | None:
        """Return how often the kernel has killed this VM's QEMU for want of memory; None if it cannot tell."""
        group = self._groups.get(name)
        return group.oom_kills() if group is not None else None

    def remove(self, name: str) -> None:
        """Remove the group of a VM whose QEMU is dead."""
        group = self._groups.pop(name, None)
        if group is not None and not group.remove(_EMPTY_SECONDS):
            log.warning("control_group_not_removed", vm=name, remedy="`sandbox reap`, when this process has ended")

    def close(self) -> None:
        """Remove every group that is left."""
        for name in list(self._groups):
            self.remove(name)
        for path in set(self._parents.values()):
            remove_group(path)

    def _refuse(self, controller: str, why: str) -> None:
        del self._parents[controller], self.places.parents[controller]
        self.places.refused[controller] = why


def left_over(runtime: Path, bases: Iterable[Path] | None = None) -> list[Path]:
    """Return the groups of this runtime directory whose run directory does not exist any more; change nothing.

    They are looked for below `bases`, by default everywhere.
    """
    suffix = group_name(runtime / "0").removeprefix("0")
    found = {path for base in (_bases() if bases is None else bases) for path in (base / BASE).glob(f"*{suffix}")}
    return sorted(path for path in found if not (runtime / path.name.removesuffix(suffix)).exists())


def reap_left_over(runtime: Path, bases: Iterable[Path] | None = None) -> int:
    """Remove such groups if nothing lives in them; return how many went."""
    gone = 0
    for path in left_over(runtime, bases):
        with suppress(FileNotFoundError):  # another process that starts removes the same
            children = [child for child in path.iterdir() if child.is_dir()]
            gone += min(remove_group(group) for group in (*children, path))
    return gone


def _bases() -> set[Path]:
    """Return every group that somebody has divided among VMs."""
    mounts = {tree.mount for tree in hierarchies().values()}
    return {Path(where) for mount in mounts for where, names, _ in os.walk(mount) if BASE in names}
