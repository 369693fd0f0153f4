"""Recipes: what is in an image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sandbox.errors import ConfigError
from sandbox.image.layer import layer_key
from sandbox.image.recipe import known_recipes, load_recipe
from sandbox.image.wheels import GUEST_PYTHON, pack_wheels
from sandbox.setup.sources import Release

SUITE = next(iter(GUEST_PYTHON))


def test_the_recipes_that_come_along() -> None:
    """Each loads, is called after its file, and brings the agent's Python."""
    assert known_recipes() == ["default", "minimal", "node"]
    for name in known_recipes():
        assert load_recipe(name).name == name
        assert "python3" in load_recipe(name).packages


def test_an_unknown_name_lists_the_known_ones() -> None:
    """The caller sees what there is."""
    with pytest.raises(ConfigError, match="default, minimal"):
        load_recipe("nope")


@pytest.mark.parametrize(
    "text",
    ["packages = [", 'packages = ["a b"]', 'packages = ["--option"]', 'packages = ["git-"]', "packages = []\nsize = 1"],
)
def test_a_bad_recipe_is_refused(tmp_path: Path, text: str) -> None:
    """Bad syntax, unknown keys, and names that apt would take for something else."""
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="mine"):
        load_recipe(str(path))


def test_extras_make_another_recipe(tmp_path: Path) -> None:
    """Additions change the name, in the same way whatever their order; nothing added changes nothing."""
    path = tmp_path / "mine.toml"
    path.write_text('packages = ["python3"]')
    recipe = load_recipe(str(path))
    assert recipe.with_extras() is recipe
    assert recipe.with_extras(["python3"]) is recipe
    one, other = recipe.with_extras(["git", "curl"]), recipe.with_extras(["curl", "git"])
    assert one == other
    assert one.name.startswith("mine-")
    assert recipe.with_extras(pip_requirements=["httpx>=0.27"], name="web").name == "web"
    with pytest.raises(ConfigError):
        recipe.with_extras(["Not/A-Package"])
    with pytest.raises(ConfigError):
        recipe.with_extras(pip_requirements=["--index-url=http://x.example"])


@pytest.mark.parametrize(
    "requirement",
    [
        "attrs",
        "attrs==24.2.0",
        "requests [socks,security] >= 2.8.1, == 2.8.* ; python_version < '3.13'",
        'zope.interface (>=5) ; (os_name != "nt" and python_version in "3.11 3.13") or extra == "x"',
        "attrs==24.2.0 --hash=sha256:00ff --hash=sha256:11ee",
        "https://user:word@x.example/attrs-24.2.0-py3-none-any.whl#sha256=00ff",
        "attrs @ file:///srv/attrs-24.2.0-py3-none-any.whl ; python_version > '3.10'",
        "attrs[x]@https://x.example/attrs-24.2.0+local.1-py3-none-any.whl?token=1",
    ],
)
def test_requirements_that_wheels_meet(requirement: str) -> None:
    """Names with all that may follow them, and URLs of wheels."""
    recipe = load_recipe("minimal").with_extras(pip_requirements=[requirement])
    assert recipe.pip == (requirement,)


@pytest.mark.parametrize(
    "requirement",
    [
        "",
        "demo @ git+https://x.example/demo",
        "git+https://x.example/demo-1.0-py3-none-any.whl",
        "https://x.example/demo-1.0.tar.gz",
        "demo@https://x.example/demo-1.0.tar.gz",
        "demo @ file:///srv/demo",
        "https://x.example/demo-1.0.tar.gz#.whl",
        "https://x.example/demo-1.0.tar.gz?x=.whl",
        "https://x.example/demo-1.0-py3-none-any.whl;x",
        "https://x.example/demo-1.0-py3-none-any.whl ;python_version>'3'",
        "https://x.example/${HOME}/demo-1.0-py3-none-any.whl",
        "attrs\n--extra-index-url http://x.example",
        "attrs\n-e git+https://x.example/demo",
        "attrs\x0b-e git+https://x.example/demo",
        "attrs\x85-e git+https://x.example/demo",
        "attrs\u2028-e git+https://x.example/demo",
        "attrs \\",
        "attrs -e git+https://x.example/demo",
        "attrs --config-settings=x=y",
        "attrs ; python_version > '3 -e demo'",
        "srv/demo",
        "demo-1.0.tar.gz",
        "demo-1.0-py3-none-any.whl",
        "demo.zip[x]",
        "demo.TGZ ; python_version > '3'",
        "demo>=1.zip",
    ],
)
def test_requirements_that_could_run_code_on_the_host(tmp_path: Path, requirement: str) -> None:
    """Source distributions by URL or path, further lines, and options, in a recipe and as an addition to one."""
    with pytest.raises(ConfigError, match="set-up code"):
        load_recipe("minimal").with_extras(pip_requirements=[requirement])
    path = tmp_path / "mine.toml"
    path.write_text(f'packages = ["python3"]\npip = [{json.dumps(requirement)}]\n')
    with pytest.raises(ConfigError, match="set-up code"):
        load_recipe(str(path))


def test_a_source_distribution_runs_nothing_on_the_host(tmp_path: Path) -> None:
    """pip would build one that is given by its URL, although it is told to take wheels only."""
    source, marker = tmp_path / "demo", tmp_path / "ran"
    source.mkdir()
    (source / "backend.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    (source / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "demo"\nversion = "1.0"\n'
    )
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(ConfigError, match="set-up code"):
        pack_wheels(load_recipe("minimal").with_extras(pip_requirements=[f"demo @ {source.as_uri()}"]).pip, SUITE, work)
    assert not marker.exists()


def test_another_kernel_makes_another_recipe() -> None:
    """Its name and its record tell; a recipe with Debian's kernel has the record that it always had."""
    debian = load_recipe("default")
    minimal = debian.with_kernel("minimal")
    assert (minimal.name, minimal.kernel, minimal.packages) == ("default-minimal-kernel", "minimal", debian.packages)
    assert minimal.with_kernel("minimal") is minimal
    assert minimal.model_dump()["kernel"] == "minimal"
    assert "kernel" not in debian.model_dump()


def test_sudo_is_another_layer(tmp_path: Path) -> None:
    """An image whose user may become root shares nothing by name with one whose user may not."""
    path = tmp_path / "mine.toml"
    keys = []
    for line in ("", "sudo = false", "sudo = true"):
        path.write_text(f'packages = ["bash"]\n{line}\n')
        recipe = load_recipe(str(path))
        keys.append((recipe.key, layer_key(recipe, Release("bookworm", 12))))
    assert keys[0] == keys[1]
    assert keys[1][0] != keys[2][0]
    assert keys[1][1] != keys[2][1]
