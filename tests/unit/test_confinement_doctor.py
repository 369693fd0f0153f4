"""What the doctor says of a host's settings, on trees that look like the kernel's."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sandbox.cli.doctor_host import directories, exposure
from sandbox.config import HostConfig

BAD = {
    "swap": ("proc/swaps", "Filename Type Size Used Priority\n/dev/vdb partition 1000 0 -2\n"),
    "mitigations": ("sys/devices/system/cpu/vulnerabilities/mds", "Vulnerable: Clear CPU buffers attempted\n"),
    "core dumps": ("proc/sys/kernel/core_pattern", "|/usr/share/apport/apport %p\n"),
}
GOOD = {
    "ksm": ("sys/kernel/mm/ksm/run", "0\n"),
    "swap": ("proc/swaps", "Filename Type Size Used Priority\n"),
    "mitigations": ("sys/devices/system/cpu/vulnerabilities/mds", "Mitigation: Clear CPU buffers\n"),
    "core dumps": ("proc/sys/kernel/core_pattern", "core\n"),
}


def _kernel(root: Path, files: dict[str, tuple[str, str]]) -> None:
    for name, text in files.values():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize("name", BAD)
def test_each_bad_setting_is_a_warning_with_its_remedy(tmp_path: Path, name: str) -> None:
    """Among good settings the bad one is named, alone, with a line that mends it."""
    _kernel(tmp_path, GOOD | {name: BAD[name]})
    warnings = [check for check in exposure(HostConfig(), root=tmp_path) if check.status == "warn"]
    assert [check.name for check in warnings] == [name]
    assert all(check.remedy for check in warnings)


def test_good_settings_are_no_warning(tmp_path: Path) -> None:
    """The control: a host that is well set up hears nothing."""
    _kernel(tmp_path, GOOD)
    assert [check for check in exposure(HostConfig(), root=tmp_path) if check.status != "ok"] == []


def test_page_merging_is_told_but_does_not_touch_vms(tmp_path: Path) -> None:
    """The host may merge its own pages: VMs keep theirs out, and a VM that does not is a fault of its confinement."""
    _kernel(tmp_path, GOOD | {"ksm": ("sys/kernel/mm/ksm/run", "1\n")})
    (said,) = [check for check in exposure(HostConfig(), root=tmp_path) if check.name == "ksm"]
    assert said.status == "ok"


def test_data_that_others_can_read_or_write_is_a_warning() -> None:
    """Who can write images controls guests, who can read templates sees their memory; a closed directory is fine."""
    with TemporaryDirectory() as name:
        runtime = Path(name)
        runtime.chmod(0o755)  # unlike pytest's directories, others can get this far
        data = runtime / "data"
        (data / "images").mkdir(parents=True)
        config = HostConfig(data_dir=data, runtime_dir=runtime)

        def warned() -> list[str]:
            return [check.found for check in directories(config) if check.name == "data" and check.status == "warn"]

        (data / "images").chmod(0o777)
        data.chmod(0o755)
        said = " ".join(warned())
        assert "can write" in said
        assert "can read" in said
        (data / "images").chmod(0o755)
        data.chmod(0o750)
        assert warned() == []
