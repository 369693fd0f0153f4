"""Recipes: what is in an image."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.errors import ConfigError
from sandbox.image.recipe import known_recipes, load_recipe


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


def test_another_kernel_makes_another_recipe() -> None:
    """Its name and its record tell; a recipe with Debian's kernel has the record that it always had."""
    debian = load_recipe("default")
    minimal = debian.with_kernel("minimal")
    assert (minimal.name, minimal.kernel, minimal.packages) == ("default-minimal-kernel", "minimal", debian.packages)
    assert minimal.with_kernel("minimal") is minimal
    assert minimal.model_dump()["kernel"] == "minimal"
    assert "kernel" not in debian.model_dump()
