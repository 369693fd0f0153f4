"""Ways in which a stored file can be damaged."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path


def _flip(path: Path, source: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    path.write_bytes(bytes(data))


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


def _nest(path: Path, _: random.Random) -> None:
    path.write_bytes(b"[" * 100_000)


DAMAGE: dict[str, Callable[[Path, random.Random], object]] = {
    "truncated": lambda path, source: os.truncate(path, source.randrange(1, path.stat().st_size)),
    "empty": lambda path, _: os.truncate(path, 0),
    "flipped": _flip,
    "random": lambda path, source: path.write_bytes(source.randbytes(path.stat().st_size)),
    "no text": lambda path, _: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
    "nested": _nest,
    "another version": lambda path, _: path.write_bytes(b'{"format": 99, "version": [1, 2]}\n'),
    "a directory": lambda path, _: _replace(path, Path.mkdir),
    "a pipe": lambda path, _: _replace(path, os.mkfifo),
    "unreadable": lambda path, _: _replace(path, lambda loop: loop.symlink_to(loop.name)),  # root reads all but this
}


def damage(path: Path, kind: str, seed: int = 0) -> None:
    """Damage a file in one of the ways of `DAMAGE`."""
    path.parent.chmod(0o755)
    DAMAGE[kind](path, random.Random(f"{kind} {path.name} {seed}"))


def repair(path: Path, content: bytes) -> None:
    """Put back what was there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.write_bytes(content)
