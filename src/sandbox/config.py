"""Configuration: frozen models, checked once at the edge, unknown keys refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema

from sandbox.errors import ConfigError
from sandbox.paths import Paths
from sandbox.settings import load_settings

VARIABLES = {
    "uri": "SANDBOX_LIBVIRT_URI",
    "accelerator": "SANDBOX_ACCELERATOR",
    "require_isolation": "SANDBOX_REQUIRE_ISOLATION",
    "data_dir": "SANDBOX_DATA_DIR",
    "runtime_dir": "SANDBOX_RUNTIME_DIR",
    "admission_dir": "SANDBOX_ADMISSION_DIR",
    "cgroup": "SANDBOX_CGROUP",
    "nice": "SANDBOX_NICE",
}
"""Where fields of `HostConfig` come from that are not given."""


def _origin(field: str) -> str:
    return f" from {VARIABLES[field]}" if VARIABLES.get(field, "") in os.environ else ""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        from sandbox.described import described  # noqa: PLC0415 - costs time, needed seldom

        return described(cls, core_schema, handler)

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            if (
                isinstance(value, bool)
                and (field := type(self).model_fields.get(name))
                and field.annotation is not bool
            ):
                raise ConfigError(f"{type(self).__name__}: {name}: a truth value cannot be meant (got {value})")
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or type(self).__name__
            origin = "" if where in values else _origin(where)
            raise ConfigError(
                f"{type(self).__name__}: {where}: {first['msg']} (got {first['input']!r}{origin})"
            ) from error


_OF_EACH_USER = {"memory_reserve_mib", "require_isolation"}
"""What a host's users may set each for themselves."""


class HostConfig(_Frozen):
    """How this process reaches a hypervisor, and where it keeps its files."""

    uri: str = Field(default_factory=lambda: os.environ.get("SANDBOX_LIBVIRT_URI", "qemu:///embed"))
    """A libvirt connection. The default is libvirt's QEMU driver inside this process: no daemon is needed."""

    accelerator: Literal["auto", "kvm", "tcg"] = Field(
        default_factory=lambda: os.environ.get("SANDBOX_ACCELERATOR", "auto"), validate_default=True
    )
    """`auto` takes KVM where a test VM was seen to run under it, else software emulation (TCG)."""

    require_isolation: Literal["kvm"] | None = Field(
        default_factory=lambda: os.environ.get("SANDBOX_REQUIRE_ISOLATION") or None, validate_default=True
    )
    """`kvm`: raise `ConfigError`, with what was seen of KVM, where VMs would be emulated in software instead."""

    data_dir: Path = Field(default_factory=lambda: Paths.default().data)
    """Images and templates."""

    runtime_dir: Path = Field(default_factory=lambda: Paths.default().runtime)
    """Sockets and libvirt's state of living processes; keep it short."""

    memory_reserve_mib: int = Field(default=256, ge=0)
    """No VM is started when, with its memory full, less than this would stay available on the host."""

    memory_overcommit: float = Field(default=5.0, gt=0, le=1000)
    """So many times the host's memory, less the reserve, may be promised to guests by all processes together.

    A guest is promised its whole memory and most use a tenth of it; the rest of a clone is shared. 1.0 promises nothing
    that is not there.
    """

    memory_pressure_max: float = Field(default=20.0, ge=0, le=100)
    """No VM is started when tasks have waited for memory more than this percentage of the last 10 seconds. 100: never.

    The kernel's pressure stall information, `some avg10`; where the kernel has none, nothing is refused for it.
    """

    admission_dir: Path | None = Field(
        default_factory=lambda: Path(named) if (named := os.environ.get("SANDBOX_ADMISSION_DIR")) else None
    )
    """Where processes tell each other what they have promised. None: `/run/lock`, where each user has a directory."""

    cgroup: str = Field(default_factory=lambda: os.environ.get("SANDBOX_CGROUP", "auto"), min_length=1)
    """Where VMs get control groups: `auto` (what is delegated to this process), `off`, or a group's path.

    A path such as `/sandbox` lies below the mount point of the hierarchies and is made if it can be. Each VM's QEMU is
    then bounded in memory (the guest's and a stated overhead), in threads, and by `cpu_limit`. With `auto`, memory and
    threads are bounded where that is possible, and `sandbox doctor` says where; with a path they are, or opening the
    hypervisor raises `ConfigError`.
    """

    cpu_limit: float | None = Field(default=None, ge=0.01)
    """Processors' worth of time that one VM's QEMU gets, such as 0.5.

    It needs a control group. Where none can be had, opening the hypervisor raises `ConfigError`.
    """

    nice: int = Field(default_factory=lambda: os.environ.get("SANDBOX_NICE", "10"), ge=0, le=19, validate_default=True)
    """By how much each VM's QEMU yields to this process, as `nice` counts: 0 is not at all, 19 the most.

    It costs a VM nothing while a processor is free. A daemon's QEMU is left as it is; between control groups that have
    shares of processors, the groups' shares decide instead. A value that was given holds, or the VM does not start; the
    default is tried only.
    """

    def differs_in(self, other: HostConfig) -> list[str]:
        """Return the settings in which two differ and that all users of one connection share."""
        mine, others = self.model_dump(exclude=_OF_EACH_USER), other.model_dump(exclude=_OF_EACH_USER)
        return [name for name, value in mine.items() if others[name] != value]

    @property
    def limits_asked(self) -> list[str]:
        """The limits of VMs that somebody has asked for, and not the defaults: they hold, or nothing starts."""
        asked = {
            "cpu_limit": self.cpu_limit is not None,
            "cgroup": self.cgroup not in ("auto", "off"),
            "nice": self.nice > 0 and ("nice" in self.model_fields_set or "SANDBOX_NICE" in os.environ),
        }
        return [name for name, is_so in asked.items() if is_so]

    @property
    def paths(self) -> Paths:
        return Paths(self.data_dir, self.runtime_dir)


class TemplateConfig(_Frozen):
    """Which golden snapshot: what is in it and how large its machine is."""

    image: str = "default"
    """Name of a recipe, or the digest (or its beginning) of a built image."""

    memory_mib: int = Field(default=256, ge=128, le=1024 * 1024)
    """Guest memory in MiB."""

    vcpus: int = Field(default=1, ge=1, le=64)
    """Virtual processors."""

    @classmethod
    def of_profile(cls, name: str, directory: Path | None = None) -> TemplateConfig:
        """Return the configuration that `[profiles.NAME]` of a `sandbox.toml` describes; see `sandbox.settings`.

        The files are those that count in `directory`, by default the working directory. Raises `ConfigError` if there
        is no such profile, or if a file cannot be understood. Blocks while it reads them.
        """
        said = load_settings(directory).with_profile(name)
        fields = {"image": "image", "memory_mib": "memory", "vcpus": "cpus"}
        return cls(**{field: said[key].value for field, key in fields.items() if key in said})


class Limits(_Frozen):
    """What one execution may take, beside what the VM has. None leaves it to the VM's own bounds."""

    memory_bytes: int | None = Field(default=None, ge=1024 * 1024, le=2**63 - 1)
    """Memory of the whole process tree, files in memory included. Beyond it the tree's largest process is killed."""

    processes: int | None = Field(default=None, ge=1, le=4 * 1024 * 1024)
    """Processes and threads of the whole tree."""

    open_files: int | None = Field(default=None, ge=3, le=65536)
    """Open file descriptors of each process."""

    file_bytes: int | None = Field(default=None, ge=0, le=2**63 - 1)
    """Size of each file that is written. The disk as a whole is bounded by the VM's memory."""

    cpus: float | None = Field(default=None, gt=0, le=1024, allow_inf_nan=False)
    """Processors' worth of time that the tree gets, such as 0.5."""

    cpu_seconds: float | None = Field(default=None, gt=0, le=1e9, allow_inf_nan=False)
    """Processor time of each process; rounded up to whole seconds."""

    output_bytes: int | None = Field(default=None, ge=0)
    """Output of both streams together. Beyond it the tree is killed and the outcome is `OUTPUT_LIMIT`."""


class TemplateTarget(_Frozen):
    """Another template of a pool."""

    template: TemplateConfig
    """The golden snapshot."""

    min_size: int = Field(default=1, ge=0, le=10_000)
    """So many VMs of it are kept ready."""


class PoolConfig(_Frozen):
    """A pool's template, its bounds and its ages. Times are seconds."""

    template: TemplateConfig = TemplateConfig()
    """The golden snapshot that the pool's VMs are cloned from."""

    host: HostConfig = Field(default_factory=HostConfig)
    """The hypervisor and the directories."""

    min_size: int = Field(default=2, ge=0, le=10_000)
    """So many VMs are kept ready, beside those that are leased, as far as `max_size` allows."""

    max_size: int = Field(default=16, ge=1, le=10_000)
    """Never more VMs than this exist, whatever their state; and one more while a next template is baked and tried."""

    ttl: float = Field(default=600.0, gt=0)
    """A ready VM older than this is destroyed and replaced; it is never handed out."""

    more: dict[str, TemplateTarget] = Field(default_factory=dict)
    """Further templates by the name that `acquire(template=…)` takes; `max_size` is for all of them together."""

    running_ready: int = Field(default=4, ge=0, le=10_000)
    """So many ready VMs of a template run; further ones are paused, which costs memory but no processor time."""

    max_ready: int | None = Field(default=None, ge=0, le=10_000)
    """If larger than `min_size`, more VMs are kept ready, up to so many, while many are claimed."""

    max_waiting: int = Field(default=10_000, ge=0)
    """So many callers may wait for a VM of a template; further ones get `PoolBusy`."""

    priority_seconds: float = Field(default=10.0, ge=0)
    """One step of a caller's priority is worth so many seconds of waiting."""

    lease_ttl: float | None = Field(default=None, gt=0)
    """A lease ends by itself after so many seconds, unless its holder renews it."""

    idle_lease_timeout: float | None = Field(default=None, gt=0)
    """A lease ends by itself when nothing was asked of its VM, and nothing ran in it, for this many seconds."""

    exec_timeout: float | None = Field(default=None, gt=0, le=1e9)
    """Time-out of each program and each cell in this pool's VMs whose call names none. A call's own None is none."""

    exec_idle_timeout: float | None = Field(default=None, gt=0, le=1e9)
    """The same for the time without output, of programs only: a context may be silent between its cells."""

    limits: Limits | None = None
    """Limits of each program and each context in this pool's VMs whose call names none. A call's own None is none."""

    kill_patience: float = Field(default=2.0, gt=0, le=3600)
    """After a kill the guest has this long to report the end, else its VM is destroyed. On a busy host, give more.

    Time in which the event loop was held up, or in which the guest was still heard, does not count, up to three times
    as long in all.
    """

    concurrent_starts: int = Field(default_factory=lambda: max(2, os.cpu_count() or 2), ge=1, le=256)
    """So many VMs are restored at the same time."""

    template_check_interval: float | None = Field(default=30.0, gt=0)
    """So often the pool looks whether its templates should be succeeded: some calls of `stat`. None: never."""

    template_max_age: float | None = Field(default=None, gt=0)
    """A template older than this is succeeded by one that is baked anew, though nothing else has changed."""

    canary_slowdown: float = Field(default=2.0, ge=1)
    """A next template whose clones take more than so many times as long to start as the live one's is not used."""

    warm_up: bool = True
    """Run one throw-away command in each VM before it is ready, so that no caller pays for cold caches."""

    @model_validator(mode="after")
    def _check_sizes(self) -> PoolConfig:
        wanted = self.min_size + sum(target.min_size for target in self.more.values())
        if wanted > self.max_size:
            said = f"min_size {self.min_size}" if not self.more else f"the sum of all min_size, {wanted},"
            raise ValueError(f"{said} is larger than max_size {self.max_size}")
        if "default" in self.more:
            raise ValueError("`more` names the template 'default', which is the pool's own")
        return self
