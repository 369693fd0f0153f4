"""A limit that was asked for holds, or nothing starts; what is only the default is a warning."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.config import HostConfig
from sandbox.errors import ConfigError, HypervisorError
from sandbox.hypervisor import midwife
from sandbox.hypervisor.cgroup import Group
from sandbox.hypervisor.groups import Groups
from sandbox.hypervisor.midwife import Midwife


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    path = tmp_path / "0123abcd"
    path.mkdir()
    return path


def test_a_limit_of_processors_without_groups_is_refused(run_directory: Path) -> None:
    """It cannot be enforced, so it is not promised; without it, groups may be off."""
    with pytest.raises(
        ConfigError, match=r"cpu_limit=0\.2 was asked for but cannot limit cpu: switched off; .*Delegate"
    ):
        Groups.open(run_directory, "off", 0.2)
    assert Groups.open(run_directory, "off", None).places.parents == {}


def test_a_named_group_that_cannot_be_had_is_refused(run_directory: Path) -> None:
    """Who names a group wants its limits; `auto` takes what there is."""
    with pytest.raises(ConfigError, match=r"the control group /no\\ngroup was asked for but cannot limit memory: "):
        Groups.open(run_directory, "/no\ngroup", None)  # the kernel refuses such names


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Path]:
    """The pid file of a process that bears the name `vm-1`, as QEMU bears its VM's."""
    with subprocess.Popen(["sh", "-c", "read line", "vm-1"], stdin=subprocess.PIPE, start_new_session=True) as process:
        file = tmp_path / "pid"
        file.write_text(str(process.pid))
        yield file
        process.communicate(b"\n")


def test_a_vm_outside_of_its_group_runs_only_if_nobody_asked_for_it(
    child: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A group that cannot be entered is an error where its limits were asked for, and a warning elsewhere."""
    group = Group({"cpu": tmp_path / "gone"}, {"cpu": 1})
    with (
        Midwife(child, "vm-1", group, 0, must_confine=True).at_work() as strict,
        pytest.raises(HypervisorError, match=r"not in its control group, whose limits were asked for: .*gone"),
    ):
        strict.wait_confined()
    assert caplog.records == []
    with Midwife(child, "vm-1", group, 0).at_work() as lenient:
        lenient.wait_confined()
    assert "vm_not_confined" in caplog.records[0].getMessage()


def test_a_vm_that_is_not_found_does_not_run_without_its_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host so busy that its process is not found in time: its guest never runs outside of the group."""
    monkeypatch.setattr(midwife, "_ASKED_SECONDS", 0.05)
    group = Group({"cpu": tmp_path}, {"cpu": 1})
    with (
        Midwife(tmp_path / "none", "vm-1", group, 0, must_confine=True).at_work() as strict,
        pytest.raises(HypervisorError, match="not found in time"),
    ):
        strict.wait_confined()


def test_a_vm_that_does_not_yield_runs_only_if_nobody_asked_for_it(
    child: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As root without the capability, a `nice` that was given is an error, and the default is not."""

    def refuse(*_: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "setpriority", refuse)
    with (
        Midwife(child, "vm-1", None, 5, must_yield=True).at_work() as strict,
        pytest.raises(HypervisorError, match=r"does not yield, as `nice` asks: threads: .*CAP_SYS_NICE"),
    ):
        strict.wait_confined()
    with Midwife(child, "vm-1", None, 5).at_work() as lenient, caplog.at_level(logging.INFO, "sandbox"):
        lenient.wait_confined()


def test_only_what_somebody_gave_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults are tried; a value in code or in the environment is a wish."""
    monkeypatch.delenv("SANDBOX_NICE", raising=False)
    assert HostConfig(cgroup="auto").limits_asked == []
    assert HostConfig(cgroup="off", nice=0).limits_asked == []
    assert HostConfig(cgroup="/a", cpu_limit=0.5, nice=3).limits_asked == ["cpu_limit", "cgroup", "nice"]
    monkeypatch.setenv("SANDBOX_NICE", "10")
    assert HostConfig(cgroup="auto").limits_asked == ["nice"]
    with pytest.raises(ConfigError, match="cpu_limit"):
        HostConfig(cpu_limit=0.001)  # less than the kernel divides
    assert os.environ["SANDBOX_NICE"] == "10"


@pytest.mark.parametrize("setting", [{"cpu_limit": 0.5}, {"nice": 5}, {"cgroup": "/sandbox"}])
def test_a_daemons_vms_are_the_daemons_to_limit(setting: dict[str, object]) -> None:
    """What it would not do is refused, and not silently left undone."""
    assert HostConfig.model_validate({"uri": "qemu:///system", **setting}).limits_asked == list(setting)
