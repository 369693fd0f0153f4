"""Recipes are known by their content: what bears their name is another matter."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox.errors import ImageError
from sandbox.image import inputs as inputs_module
from sandbox.image.build import current_image, image_of
from sandbox.image.choice import Choice, newest_image
from sandbox.image.inputs import inputs_of
from sandbox.image.recipe import load_recipe
from sandbox.image.store import Image, ImageStore
from sandbox.paths import resource
from sandbox.setup.sources import host_release
from tests.stored import publish_image


class Project:
    """A recipe's file, and images that are built from it into a store that others use, too."""

    def __init__(self, store: ImageStore, file: Path, text: str) -> None:
        self.store = store
        self.file = file
        self.edit(text)

    def edit(self, text: str) -> None:
        self.file.parent.mkdir(exist_ok=True)
        self.file.write_text(text)

    def build(self, content: bytes = b"") -> Image:
        recipe = load_recipe(str(self.file))
        inputs = inputs_of(recipe, host_release()).digest
        content = content or inputs.encode()
        return publish_image(
            self.store, recipe.name, content, recipe=recipe, inputs=inputs, origin=str(self.file.absolute())
        )

    def choice(self) -> tuple[Choice, Image]:
        """Return what a pool that is opened with the recipe holds."""
        choice = Choice(str(self.file), self.store)
        return choice, choice.find(unexpected)

    def current(self) -> Image | None:
        return current_image(load_recipe(str(self.file)), self.store)


def unexpected(said: str) -> None:
    pytest.fail(f"nothing is to be built: {said}")


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


@pytest.fixture
def ours(store: ImageStore, tmp_path: Path) -> Project:
    return Project(store, tmp_path / "ours/web.toml", 'packages = ["python3", "git"]')


@pytest.fixture
def theirs(store: ImageStore, tmp_path: Path) -> Project:
    """Another project in the same data directory, whose recipe has the same name."""
    return Project(store, tmp_path / "theirs/web.toml", 'packages = ["python3", "curl"]')


@pytest.fixture
def edit_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    """Change the agent, of a copy."""
    copy = tmp_path / "data"
    for name in ("guest_agent", "images"):
        shutil.copytree(resource(name), copy / name)
    monkeypatch.setattr(inputs_module, "resource", lambda name: copy / name)
    return lambda: (copy / "guest_agent/agent.py").write_text("changed")


def test_another_recipe_of_the_same_name_changes_nothing(ours: Project, theirs: Project) -> None:
    """Neither project's pool follows the other's image, and neither has to build again."""
    our_image = ours.build()
    choice, image = ours.choice()
    assert image == our_image
    their_image = theirs.build()
    assert ours.store.find("web") == their_image, "the control: it bears the name now"
    their_choice, _ = theirs.choice()
    for _ in range(2):
        assert choice.look(image) == our_image
        assert their_choice.look(their_image) == their_image
        assert (ours.current(), theirs.current()) == (our_image, their_image)
        assert image_of(str(ours.file), ours.store, unexpected) == our_image
        ours.build()


def test_a_pool_follows_its_own_recipe(ours: Project, edit_agent: Callable[[], object]) -> None:
    """A rebuild, an edit of the recipe's file and another agent are followed as soon as such an image is built."""
    ours.build()
    choice, image = ours.choice()
    rebuilt = ours.build(b"newer packages")
    assert choice.look(image) == rebuilt != image
    ours.edit('packages = ["python3", "git", "jq"]')
    assert choice.look(rebuilt) == rebuilt, "a look does not build"
    edited = ours.build()
    assert choice.look(rebuilt) == edited
    edit_agent()
    assert choice.look(edited) == edited
    other_agent = ours.build()
    assert choice.look(edited) == other_agent != edited
    ours.edit('packages = ["python3", "git"]')
    assert choice.look(other_agent) == other_agent


@pytest.mark.parametrize("text", [None, "packages = [", "packages = []\nsize = 1", "\xff"])
def test_a_recipe_that_cannot_be_read_any_more_leaves_all_as_it_is(
    ours: Project, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be in the middle of an edit, or its project be gone; that is said once."""
    ours.build()
    choice, image = ours.choice()
    if text is None:
        ours.file.unlink()
    else:
        ours.file.write_bytes(text.encode("latin-1"))
    for _ in range(3):
        assert choice.look(image) == image
    assert caplog.text.count("recipe_not_followed") == 1
    ours.edit('packages = ["python3", "jq"]')
    mended = ours.build()
    assert choice.look(image) == mended


def test_a_name_is_followed_within_its_recipe(ours: Project, theirs: Project, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever asks for a built image by name gets rebuilds of it, but no other recipe's image."""
    ours.build()
    choice = Choice("web", ours.store)
    image = choice.find(unexpected)
    rebuilt = ours.build(b"newer packages")
    assert choice.look(image) == rebuilt
    theirs.build()
    assert choice.look(rebuilt) == rebuilt
    assert "image_not_followed" in caplog.text
    again = ours.build(b"still newer")
    assert choice.look(rebuilt) == again
    (ours.store.directory / "names/web").write_bytes(b"\xff\xfe")
    with pytest.raises(ImageError, match="names/web is damaged"):
        choice.look(again)


def test_a_digest_is_followed_by_nothing(ours: Project) -> None:
    """It names one image."""
    image = ours.build()
    for name in (image.digest, image.digest[:12]):
        choice = Choice(name, ours.store)
        assert choice.find(unexpected) == image
        ours.build(name.encode())
        assert choice.look(image) == image


def test_a_recipe_of_ones_own_does_not_take_the_name_of_one_of_ours(store: ImageStore, tmp_path: Path) -> None:
    """`default` stands for the recipe that comes along, whoever else calls one so."""
    ours = Project(store, resource("images") / "default.toml", (resource("images") / "default.toml").read_text())
    own = Project(store, tmp_path / "default.toml", 'packages = ["python3"]')
    assert (load_recipe(str(ours.file)).name, load_recipe(str(own.file)).name) == ("default", "user-default")
    image, other = ours.build(), own.build()
    assert newest_image("default", store) == image
    assert newest_image(str(own.file), store) == newest_image("user-default", store) == other
    own.edit('name = "node"\npackages = ["python3"]')
    assert load_recipe(str(own.file)).name == "user-node"


def test_recipes_of_one_name_and_other_content_have_other_keys(ours: Project, theirs: Project, tmp_path: Path) -> None:
    """A template's series bears the key; where the file lies, and what it says of itself, plays no part."""
    keys = {load_recipe(str(project.file)).key for project in (ours, theirs)}
    assert len(keys) == 2
    copy = Project(ours.store, tmp_path / "web.toml", 'description = "a copy"\n' + ours.file.read_text())
    assert load_recipe(str(copy.file)).key == load_recipe(str(ours.file)).key


def test_prune_keeps_the_last_image_of_each_recipes_file(ours: Project, theirs: Project) -> None:
    """Of an edited recipe the former image goes; of a project that is gone, all but what has the name."""
    former = ours.build()
    ours.edit('packages = ["python3", "jq"]')
    our_image = ours.build()
    their_image = theirs.build()
    assert ours.store.wanted() == {our_image.digest, their_image.digest}
    assert ours.store.prune().removed == (f"objects/{former.digest}",)
    assert (ours.current(), theirs.current()) == (our_image, their_image)
    ours.file.unlink()
    assert ours.store.prune().removed == (f"objects/{our_image.digest}",)
    theirs.file.unlink()
    assert ours.store.prune().removed == ()
    assert ours.store.find("web") == their_image


def test_what_an_image_is_made_from_is_hashed_once(ours: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred looks and lookups read no file of the agent again."""
    ours.build()
    choice, image = ours.choice()
    counted = []
    sources = inputs_module.agent_sources
    monkeypatch.setattr(inputs_module, "agent_sources", lambda: counted.append(1) or sources())  # type: ignore[func-returns-value]
    for _ in range(100):
        assert choice.look(image) == image
        assert ours.current() == image
    assert counted == []
    ours.edit('packages = ["python3", "counted-once"]')
    for _ in range(100):
        choice.look(image)
    assert counted == [1]
