"""What goes into an image: a recipe is a small TOML file."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from sandbox.errors import ConfigError
from sandbox.paths import resource
from sandbox.stored import read_stored

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]{0,62}$")]
# A leading letter or digit, so that no package is ever taken for an option or removed by a trailing `-`.
Package = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]*[a-z0-9.+]$")]
Kernel = Literal["debian", "minimal"]

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_EXTRAS = rf"(?: *\[ *(?:{_NAME}(?: *, *{_NAME})*)? *\])?"
_VERSION = r"(?:===|==|~=|!=|<=|>=|<|>) *[A-Za-z0-9][A-Za-z0-9.*+!_-]*"
_VERSIONS = rf"{_VERSION}(?: *, *{_VERSION})*"
_MARKER = r"""(?:(?! -)[A-Za-z0-9_.,*+!<>=~()'" -])+"""  # after a space, a dash begins an option
_HASHES = r"(?: +--hash=[a-z0-9]+:[0-9a-f]+)*"
_URL = r"[A-Za-z0-9._~:/@!&()*+,=%-]"
_OF_INDEX = re.compile(
    rf"(?P<what>{_NAME}{_EXTRAS}(?: *{_VERSIONS}| *\( *{_VERSIONS} *\))?)(?: *; *{_MARKER})?{_HASHES}"
)
# pip tells by the end of a URL's path whether it is a wheel, and builds what is none.
_OF_WHEEL = re.compile(
    rf"(?:{_NAME}{_EXTRAS} *@ *)?(?:https?|file)://{_URL}+\.whl(?:\?{_URL}*)?(?:#{_URL}*)?(?: +; {_MARKER})?{_HASHES}"
)
# pip takes these for files, whatever else they could be, and builds them.
_ARCHIVE = re.compile(r"\.(?:zip|whl|tbz|tgz|txz|tlz|tar(?:\.(?:gz|bz2|xz|lz|lzma))?) *(?:\[|$)", re.IGNORECASE)


def _met_by_a_wheel(text: str) -> str:
    """Return a requirement that is one line for pip, and that pip does not meet by building something."""
    of_index = _OF_INDEX.fullmatch(text)
    if _OF_WHEEL.fullmatch(text) or (of_index and not _ARCHIVE.search(of_index["what"])):
        return text
    raise ValueError(
        f"{text!r} could run set-up code on the host: expected name, extras, versions and marker on one line, "
        "or the URL of a .whl file"
    )


Requirement = Annotated[str, StringConstraints(strip_whitespace=True), AfterValidator(_met_by_a_wheel)]


class Recipe(BaseModel):
    """The contents of one image, whatever Debian release it is built from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    """What users call the image."""
    description: str = ""
    packages: tuple[Package, ...]
    """Debian packages; the essential ones are always there."""
    languages: tuple[str, ...] = ("python", "bash")
    """The languages that programs for this image may be written in."""
    pip: tuple[Requirement, ...] = ()
    """Requirements that are installed from wheels, as pip writes them."""
    kernel: Kernel = Field(default="debian", exclude_if=lambda kernel: kernel == "debian")
    """Debian's own for clouds, or one that is compiled from Debian's source with what a guest needs only."""
    sudo: bool = Field(default=False, exclude_if=lambda sudo: not sudo)
    """Whether the unprivileged user may become root without a password, which is impossible otherwise."""

    @property
    def key(self) -> str:
        """Names the recipe by its content, its name included: eight characters."""
        content = self.model_dump(mode="json", exclude={"description"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    def with_kernel(self, kernel: Kernel) -> Recipe:
        """Return this recipe with another kernel, and a name that says so."""
        if kernel == self.kernel:
            return self
        return _validated(
            f"{self.name} with a kernel", {**dict(self), "name": f"{self.name}-{kernel}-kernel", "kernel": kernel}
        )

    def with_extras(self, packages: Iterable[str] = (), pip_requirements: Iterable[str] = (), name: str = "") -> Recipe:
        """Return this recipe with more packages.

        Without `name`, it is called after the original and its additions, so that it never takes the original's place.
        """
        debian = tuple(sorted({*self.packages, *packages}))
        pip = tuple(sorted({*self.pip, *(requirement.strip() for requirement in pip_requirements)}))
        if set(debian) == set(self.packages) and set(pip) == set(self.pip) and not name:
            return self
        if not name:
            name = f"{self.name}-{hashlib.sha256(repr((debian, pip)).encode()).hexdigest()[:8]}"
        return _validated(f"additions to {self.name}", {**dict(self), "name": name, "packages": debian, "pip": pip})


def known_recipes() -> list[str]:
    """Return the names of the recipes that come with this library."""
    return sorted(path.stem for path in resource("images").glob("*.toml"))


def is_recipe(name: str) -> bool:
    """Return whether this names a recipe, be it one of ours or a path, and not an image that was built."""
    return name.endswith(".toml") or name in known_recipes()


def recipe_file(name: str) -> Path:
    """Return the file of the recipe with that name, or the one whose path, which ends in `.toml`, is given."""
    return Path(name).absolute() if name.endswith(".toml") else resource("images") / f"{name}.toml"


def load_recipe(name: str) -> Recipe:
    """Load the recipe with that name, or from a path that ends in `.toml`. Raises `ConfigError`.

    A recipe of the user's own that has the name of one of ours is called `user-NAME`: the name stands for ours.
    """
    path = recipe_file(name)
    if not is_recipe(name):
        known = ", ".join(known_recipes())
        raise ConfigError(f"there is no image recipe {name!r}: expected one of {known}, or the path of a .toml file")
    try:
        fields = {"name": path.stem, **tomllib.loads(read_stored(path).decode())}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"the image recipe {path} cannot be read: {error}") from error
    if name.endswith(".toml") and fields["name"] in known_recipes() and not _is_ours(path):
        fields["name"] = f"user-{fields['name']}"
    return _validated(str(path), fields)


def _is_ours(path: Path) -> bool:
    return path.resolve().parent == resource("images").resolve()


def _validated(origin: str, fields: dict[str, object]) -> Recipe:
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"the image recipe in {origin} is not valid: {problems}") from error
