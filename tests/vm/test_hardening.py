"""What an unprivileged program in a guest is kept from."""

from __future__ import annotations

import pytest

from sandbox.vm import VM


async def test_an_unprivileged_program_gains_no_rights_by_executing_files(vm: VM) -> None:
    """Neither set-uid programs nor file capabilities count, for commands, scripts and contexts alike."""
    show = "grep -h -E 'NoNewPrivs|CapEff|CapPrm|CapBnd' /proc/self/status"
    told = (await vm.exec(show)).text
    assert "NoNewPrivs:\t1" in told
    assert "CapEff:\t0000000000000000" in told
    assert "CapPrm:\t0000000000000000" in told
    script = await vm.run("print(open('/proc/self/status').read())")
    assert "NoNewPrivs:\t1" in script.text
    await vm.exec("cp /usr/bin/id /usr/local/bin/my-id && chmod 4755 /usr/local/bin/my-id", user="root")
    assert (await vm.exec(["/usr/local/bin/my-id", "-u"])).text == "1000\n"


MOUNT = "import ctypes; assert ctypes.CDLL(None).mount(b'tmpfs', b'/mnt', b'tmpfs', 0, b'mode=755') == 0"


async def test_each_of_the_two_is_enough_by_itself(vm: VM) -> None:
    """Where set-uid is honoured, `no_new_privs` keeps a program from root; on the root file system it is not."""
    (await vm.run(MOUNT, user="root")).check()
    (await vm.exec("cp /usr/bin/id /mnt/my-id && chmod 4755 /mnt/my-id", user="root")).check()
    assert (await vm.exec(["/mnt/my-id", "-u"])).text == "1000\n"
    mounts = (await vm.exec("grep ' / / ' /proc/self/mountinfo")).text
    assert "nosuid" in mounts
    assert "nodev" in mounts


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fs.protected_symlinks", "1"),
        ("fs.protected_hardlinks", "1"),
        ("fs.protected_fifos", "1"),
        ("fs.protected_regular", "2"),
        ("kernel.kptr_restrict", "2"),
        ("kernel.sysrq", "0"),
    ],
)
async def test_kernel_settings(vm: VM, name: str, value: str) -> None:
    """The kernel's own protections are on, as in a Debian that systemd has started."""
    path = f"/proc/sys/{name.replace('.', '/')}"
    assert (await vm.exec(["cat", path], user="root")).text.strip() == value
