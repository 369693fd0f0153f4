"""Settings from files: which of them counts, what it may say, and how a mistake in it is told."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox import settings
from sandbox.cli.defaults import Chosen, chosen
from sandbox.cli.given import Given
from sandbox.config import HostConfig, Limits, PoolConfig, TemplateConfig, TemplateTarget
from sandbox.described import meanings
from sandbox.errors import ConfigError
from sandbox.settings import load_settings
from sandbox.settings_table import Defaults, Profile
from sandbox.stored import read_stored

NOTHING = Given(image=None, memory=None, cpus=None, profile=None)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory below a project, with a user's and a system's directory of its own."""
    for name in ("etc", "config/sandbox", "project/deep"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(settings, "SYSTEM_FILE", tmp_path / "etc/sandbox.toml")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path / "project/deep")
    return tmp_path


def options(**given: object) -> Chosen:
    return chosen(Given(**{**NOTHING.__dict__, **given}))


def test_without_files_all_is_built_in() -> None:
    """The values that the documents name."""
    assert options() == Chosen(TemplateConfig(), None, None, None, None, "1G", 600.0, None)


def test_a_later_place_counts(place: Path) -> None:
    """System, user, project, profile, command line; the project's file may lie above."""
    (place / "etc/sandbox.toml").write_text("memory = 128\ntimeout = 1\nuser = 'root'\ncwd = '/a'\n")
    (place / "config/sandbox/sandbox.toml").write_text("memory = '256M'\ntimeout = 2\n[profiles.p]\nmemory = '1G'\n")
    assert options().template.memory_mib == 256
    (place / "project/sandbox.toml").write_text("memory = '512 MiB'\nexclude = ['a']\n[profiles.q]\ncpus = 3\n")
    found = options()
    assert (found.template.memory_mib, found.timeout, found.user, found.exclude) == (512, 2, "root", ("a",))
    assert options(profile="p").template == TemplateConfig(memory_mib=1024)
    assert options(profile="q").template == TemplateConfig(memory_mib=512, vcpus=3)
    assert options(profile="q", cpus=2, memory="2g", timeout=9.0).template == TemplateConfig(memory_mib=2048, vcpus=2)
    assert TemplateConfig.of_profile("q") == TemplateConfig(memory_mib=512, vcpus=3)
    assert TemplateConfig.of_profile("p", place) == TemplateConfig(memory_mib=1024)


def test_the_nearest_project_counts(place: Path) -> None:
    """`[tool.sandbox]` of a pyproject.toml counts as a file; one without that table, or a broken one, does not."""
    (place / "project/pyproject.toml").write_text(
        "[tool.sandbox]\nprofile = 'x'\n[tool.sandbox.profiles.x]\ncpus = 2\n"
    )
    assert options().template.vcpus == 2
    (place / "project/deep/pyproject.toml").write_text("[tool.other]\n")
    assert options().template.vcpus == 2
    (place / "project/deep/pyproject.toml").write_text("[tool.sandbox")
    assert options().template.vcpus == 2
    (place / "project/deep/sandbox.toml").write_text("cpus = 4\n")
    assert options().template.vcpus == 4
    assert load_settings(Path.cwd()).files == (place / "project/deep/sandbox.toml",)


def test_a_recipe_lies_beside_the_file_that_names_it(place: Path) -> None:
    """Wherever in the project the command runs."""
    (place / "project/sandbox.toml").write_text("image = 'images/a.toml'\n[profiles.b]\nimage = '/c.toml'\n")
    assert options().template.image == str(place / "project/images/a.toml")
    assert options(profile="b").template.image == "/c.toml"
    assert options(image="d.toml").template.image == "d.toml"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("memory = ", "cannot be read: Invalid value"),
        ("memory = 'much'", "memory: 'much' is not a size; write for example 512"),
        ("memory = 1", "memory: Input should be greater than or equal to 128"),
        ("memory = true", "memory: True is not a size"),
        ("memori = 1", "memori: there is no such setting; is 'memory' meant?"),
        ("xyz = 1", "xyz: there is no such setting; there are "),
        ("timeout = 0", "timeout: Input should be greater than 0"),
        ("timeout = nan", "timeout: "),
        ("get_limit = 'many'", "get_limit: String should match pattern"),
        ("cpus = 65", "cpus: Input should be less than or equal to 64"),
        ("profiles = 1", "profiles: Input should be a valid dictionary"),
        ("[profiles.a]\ntimeout = 1", "profiles.a.timeout: there is no such setting"),
        ("uri = 'qemu:///system'", "uri: there is no such setting"),
        ("data_dir = '/tmp'", "data_dir: there is no such setting"),
        ("a = " + "[" * 5000, "cannot be read"),
    ],
)
def test_a_mistake_names_file_and_setting(place: Path, text: str, said: str) -> None:
    """And what belongs there; nothing of the host's is taken from a file."""
    file = place / "project/sandbox.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        options()
    assert str(refused.value).startswith(f"{file}")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_no_file_of_settings(place: Path) -> None:
    """Bytes that are no text, and a directory or a pipe in its place."""
    file = place / "project/sandbox.toml"
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        options()
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ConfigError, match="cannot be read: Not a file"):
        options()


def test_a_user_without_a_home_and_a_directory_that_is_gone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no file of theirs; what the system says counts."""
    (place / "etc/sandbox.toml").write_text("cpus = 3\n")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with pytest.raises(RuntimeError):
        Path("~").expanduser()
    (place / "project/deep").rmdir()
    with pytest.raises(FileNotFoundError):
        Path.cwd()
    assert options().template.vcpus == 3


def test_a_file_that_may_not_be_read(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told, and not left out: it may say a time-out. One in a directory that we may not enter is not ours."""
    file = place / "project/sandbox.toml"
    file.write_text("cpus = 2\n")

    def refuse(path: Path) -> bytes:
        if path.parent.name == "project":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read_stored(path)

    monkeypatch.setattr(settings, "read_stored", refuse)
    with pytest.raises(ConfigError, match=rf"{file} cannot be read: Permission denied"):
        options()
    monkeypatch.setattr("os.path.lexists", lambda _: False)
    assert options().template.vcpus == 1


def test_profiles_that_are_not_there(place: Path) -> None:
    """The known ones are named, or how to make one."""
    with pytest.raises(ConfigError, match=r"no profile 'x'; there is none; write \[profiles.x\] into sandbox.toml"):
        options(profile="x")
    (place / "project/sandbox.toml").write_text("[profiles.b]\n[profiles.a]\n")
    with pytest.raises(ConfigError, match=r"there is a, b$"):
        TemplateConfig.of_profile("x")


def show(*arguments: str, **variables: str) -> str:
    command = [sys.executable, "-m", "sandbox", "config", "show", *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout


def test_all_is_shown_with_its_origin(place: Path) -> None:
    """What is printed is a file that says the same."""
    file = place / "project/sandbox.toml"
    file.write_text("memory = '1G'\ncwd = '/tmp'\n[profiles.big]\ncpus = 8\n")
    shown = show("--origin", SANDBOX_NICE="3")
    assert f"memory = 1024  # {file}\n" in shown
    assert 'image = "default"  # built in\n' in shown
    assert f"[profiles.big]\n# Virtual processors.\ncpus = 8  # {file} [profiles.big]\n" in shown
    assert "# SANDBOX_NICE = 3  # SANDBOX_NICE\n" in shown
    document = {line["name"]: line for line in json.loads(show("--json", "--profile", "big"))}
    assert (document["cpus"]["value"], document["cwd"]["value"], document["user"]["value"]) == (8, "/tmp", None)
    before = options(profile="big")
    file.write_text(show())
    assert options(profile="big") == before


def test_every_field_says_what_it_is() -> None:
    """To callers, in a JSON schema and in `config show`, with the same words."""
    for model in (HostConfig, TemplateConfig, Limits, TemplateTarget, PoolConfig, Profile, Defaults):
        assert list(meanings(model)) == list(model.model_fields), model
        schema = model.model_json_schema()["properties"]
        for name, meaning in meanings(model).items():
            assert schema[name]["description"] == meaning
