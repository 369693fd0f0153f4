"""What an image is made from, as digests: found out once for as long as none of the files has changed."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sandbox import wire
from sandbox.errors import ImageError
from sandbox.image.kernel_build import kernel_key
from sandbox.image.layer import layer_key
from sandbox.image.manifest import digest_of
from sandbox.image.recipe import Recipe
from sandbox.paths import resource
from sandbox.setup.sources import Release

FORMAT = 1
SHARED = ("wire.py", "message.py")  # by host and guest
_BUSYBOX = (Path("/bin/busybox"), Path("/usr/bin/busybox"))
_Stamp = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True)
class Inputs:
    """The digests of all that an image of one recipe is made from, now and here."""

    digest: str
    """Of everything together: two images of equal inputs differ in nothing but the state of the mirror."""
    layer: str
    """The key of the cached layer with the root file system."""
    kernel_layer: str | None
    """The key of the cached layer with the kernel, if it is not Debian's."""
    agent: str


def inputs_of(recipe: Recipe, release: Release) -> Inputs:
    """Return the inputs of a recipe's image. Blocks: for some calls of `stat` where no file has changed."""
    return _inputs_of(recipe, release, _stamp())


@lru_cache(maxsize=64)
def _inputs_of(recipe: Recipe, release: Release, _: _Stamp) -> Inputs:
    layer, agent = layer_key(recipe, release), digest_of_agent(agent_sources())
    kernel_layer = kernel_key(release) if recipe.kernel == "minimal" else None
    digest = digest_of(
        {
            "format": FORMAT,
            "recipe": recipe.model_dump(mode="json"),
            "layer": layer,
            "agent": agent,
            "bytecode": 1,
            "init": hashlib.sha256(init_program()).hexdigest(),
            "busybox": hashlib.sha256(busybox()).hexdigest(),
            **({"kernel": kernel_layer} if kernel_layer is not None else {}),
        }
    )
    return Inputs(digest, layer, kernel_layer, agent)


def agent_sources() -> dict[str, bytes]:
    """Return the agent's files by name, the shared protocol among them."""
    return {path.name: path.read_bytes() for path in _agent_files()}


def digest_of_agent(sources: dict[str, bytes]) -> str:
    return digest_of({name: hashlib.sha256(data).hexdigest() for name, data in sorted(sources.items())})


def init_program() -> bytes:
    """Return what runs first in a guest's initramfs."""
    return (resource("images") / "init").read_bytes()


def busybox() -> bytes:
    """Return the static busybox of this host. Raises `ImageError`."""
    for path in _BUSYBOX:
        if path.is_file():
            data = path.read_bytes()
            if b"/ld-linux" in data[:4096]:
                raise ImageError(f"{path} is not static, expected Debian's busybox-static: install that package")
            return data
    raise ImageError("busybox is missing: run `python3 -m sandbox.setup.packages`")


def _agent_files() -> list[Path]:
    ours = Path(wire.__file__).parent
    agent = Path(os.environ.get("SANDBOX_GUEST_AGENT") or resource("guest_agent"))  # another one for development only
    return [*sorted(agent.glob("*.py")), *(ours / name for name in SHARED)]


def _stamp() -> _Stamp:
    """Return what changes when one of the files does that an image is made from."""
    images = resource("images")
    files = [*_agent_files(), *(path for path in sorted(images.iterdir()) if path.suffix != ".toml"), *_BUSYBOX]
    return tuple(found for path in files if (found := _identity(path)) is not None)


def _identity(path: Path) -> tuple[str, int, int, int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        return None
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
