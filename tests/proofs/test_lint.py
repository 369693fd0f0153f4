"""What is planted in a guest is found before it is frozen, and a template with it is not published."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from anyio.to_thread import run_sync

from sandbox.errors import TemplateError
from sandbox.guest.events import Output
from sandbox.template import bake as bake_module
from sandbox.template.bake import bake
from sandbox.template.lint import RULES, LintReport, lint
from sandbox.template.manifest import TemplateManifest
from sandbox.template.template import Template
from sandbox.vm import VM

_KEY = "-----BEGIN RSA PRIVATE KEY-----\\nAAAA"
_WRITE = "mkdir -p $(dirname {0}); printf -- '{1}' >{0}"
_UP = "import fcntl, socket, struct, time; s = socket.socket(); "
_UP += "fcntl.ioctl(s, 0x8914, struct.pack('16sh', b'lo', 0x49)); "
_LISTEN = "a = socket.create_server(('127.0.0.1', 80)); "
FILES = {
    "private_key": _WRITE.format("/root/deploy", _KEY),
    "secret_file": _WRITE.format("/home/user/.netrc", "machine example login me password it"),
    "random_seed": _WRITE.format("/var/lib/systemd/random-seed", "0123456789"),
    "machine_identity": _WRITE.format("/var/lib/dbus/machine-id", "0123456789abcdef0123456789abcdef"),
    "ssh_host_key": _WRITE.format("/etc/ssh/ssh_host_ed25519_key", _KEY),
    "shell_history": _WRITE.format("/root/.bash_history", "mysql -psecret"),
    "pid_file": _WRITE.format("/run/daemon.pid", "17"),
    "temporary_file": _WRITE.format("/var/tmp/session.x", ""),
    "log_file": _WRITE.format("/var/log/boot.log", "host example"),
    "socket_file": "python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"/run/left\")'",
    "ipc_object": "python3 -c 'import ctypes; assert ctypes.CDLL(None).shmget(7, 4096, 0o1600) >= 0'",
    "inspection_cut": "cd /srv && seq 20001 | xargs touch",
}
PROGRAMS = {
    "leftover_process": "print(1, flush=True); import time; time.sleep(600)",
    "secret_environment": "print(1, flush=True); import time; time.sleep(600)",
    "network_listener": f"{_UP}{_LISTEN}print(1, flush=True); time.sleep(600)",
    "network_connection": (
        f"{_UP}{_LISTEN}b = socket.create_connection(('127.0.0.1', 80)); print(1, flush=True); time.sleep(600)"
    ),
    "unix_listener": (
        "import socket, time; s = socket.socket(socket.AF_UNIX); s.bind('\\0left'); s.listen(); "
        "print(1, flush=True); time.sleep(600)"
    ),
}


def _rules(report: LintReport) -> set[str]:
    return {finding.rule for finding in report.findings}


def test_every_rule_has_a_test() -> None:
    """What is planted below is what is looked for."""
    assert set(FILES) | set(PROGRAMS) == set(RULES)


async def test_the_default_image_is_clean(vm: VM) -> None:
    """The control: a clone in which nothing was planted has no finding, also when it has run something."""
    await vm.run("import tempfile; tempfile.TemporaryFile().write(b'1')")
    report = await lint(vm)
    assert (report.verdict, report.findings) == ("clean", ())
    assert report.check().rules == tuple(RULES)


@pytest.mark.parametrize("rule", sorted(FILES))
async def test_what_is_left_in_files_is_found(vm: VM, rule: str) -> None:
    """A file or an object that is planted gives the finding of that rule, and no other."""
    (await vm.exec(FILES[rule], user="root", timeout=60)).check()
    report = await lint(vm)
    assert _rules(report) == {rule}
    assert report.verdict == {"fail": "failed", "warn": "warned"}[RULES[rule].severity]


@pytest.mark.parametrize("rule", sorted(PROGRAMS))
async def test_what_is_left_running_is_found(vm: VM, rule: str) -> None:
    """A program that still runs is found, with the sockets that it has open and the secrets that it was given."""
    environment = {"GITHUB_TOKEN": "planted"} if rule == "secret_environment" else {}
    program = await vm.spawn(["python3", "-c", PROGRAMS[rule]], user="root", env=environment)
    async for event in program.events():
        if isinstance(event, Output):
            break
    report = await lint(vm)
    assert rule in _rules(report)
    assert "leftover_process" in _rules(report)
    assert "planted" not in json.dumps(report.model_dump())
    assert ("secret_environment" in _rules(report)) == (rule == "secret_environment")


async def test_overwritten_machine_id_is_found(vm: VM) -> None:
    """The name that the host has given must be the one that programs read."""
    (await vm.exec("printf 0123456789abcdef0123456789abcdef >/etc/machine-id", user="root")).check()
    assert _rules(await lint(vm)) == {"machine_identity"}


@pytest.fixture
def shared_directory(tmp_path: Path) -> Path:
    """A directory that QEMU's user gets into."""
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o711)
    return tmp_path


async def test_a_template_with_findings_is_not_published(
    template: Template, shared_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real bake whose guest wrote a key is refused with rule, place and remedy; without the key it is published."""
    target = shared_directory / "template"
    innocent = bake_module._WARM_SCRIPT
    planted = "open('/workspace/id_rsa', 'w').write('-----BEGIN OPENSSH PRIVATE KEY-----')\n"
    monkeypatch.setattr(bake_module, "_WARM_SCRIPT", innocent + planted)
    with pytest.raises(TemplateError, match=r'not published.*private_key: "/workspace/id_rsa": .*take it out'):
        await bake(template.host, template.spec, template.manifest.requirement, target)
    assert await run_sync(os.listdir, shared_directory) == []

    monkeypatch.setattr(bake_module, "_WARM_SCRIPT", innocent)
    await bake(template.host, template.spec, template.manifest.requirement, target)
    manifest = await run_sync(TemplateManifest.load, target)
    assert manifest is not None
    assert manifest.lint.verdict == "clean"


@pytest.mark.parametrize("said", [b"", b"[", b"{}", b'[["unknown","/x"]]', b'[["pid_file"]]', b'[["pid_file",1]]'])
def test_other_words_of_the_guest_are_refused(said: bytes) -> None:
    """What the inspection prints is checked before anything is made of it."""
    with pytest.raises(TemplateError, match="said something else"):
        LintReport.of(said)
