"""Where templates are kept: a directory for each generation, named by what it was made for and its number.

<key>.<generation>/       memory, state, manifest.json; whole or not there
.bake-<key>.<generation>/ being made, or tried before it is published, by the holder of <key>.lock
pins/<series>             the name of the generation that was chosen by hand
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sandbox.errors import TemplateError
from sandbox.log import log
from sandbox.paths import make_directory
from sandbox.stored import read_stored, refused, write_stored
from sandbox.template.hold import Hold, removing
from sandbox.template.manifest import Requirement, TemplateManifest

KEPT = 2
"""So many generations of a series are kept for which nobody has asked: the newest, and the one to return to."""
_NAME = re.compile(r"[0-9a-f]{32}\.[0-9]{1,9}")


@dataclass(frozen=True)
class Stored:
    """One generation on this host's disk."""

    directory: Path
    manifest: TemplateManifest

    @property
    def name(self) -> str:
        return self.directory.name


class TemplateStore:
    """The templates below one directory. Every method blocks, and may be called by many processes at once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._pins = directory / "pins"
        self._ignored: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"TemplateStore({str(self.directory)!r})"

    def lock(self, requirement: Requirement) -> Path:
        """Return the file that those lock who bake for this requirement."""
        return self.directory / f"{requirement.key}.lock"

    def place(self, requirement: Requirement, generation: int) -> Path:
        """Return where the template with this number belongs."""
        return self.directory / f"{requirement.key}.{generation}"

    def ls(self, series: str | None = None) -> list[Stored]:
        """Return all templates, or those of a series, the oldest generation first. Damaged ones are left out."""
        found = []
        for directory in self._directories():
            with suppress(TemplateError):
                if (one := self._load(directory)) is not None:
                    found.append(one)
        wanted = [stored for stored in found if series in (None, stored.manifest.series)]
        return sorted(wanted, key=lambda stored: (stored.manifest.series, stored.manifest.generation, stored.name))

    def faults(self) -> list[str]:
        """Return what is damaged, and why, a line each."""
        found = list(self.unreadable().values())
        for path in self._listed(self._pins):
            try:
                self._chosen_name(path.name)
            except TemplateError as error:
                found.append(str(error))
        return found

    def unreadable(self) -> dict[Path, str]:
        """Return the templates that nobody can read any more, and why."""
        found = {}
        for directory in self._directories():
            try:
                if self._load(directory) is None:
                    found[directory] = f"{directory} has no manifest; `sandbox template prune` removes it"
            except TemplateError as error:
                found[directory] = str(error)
        return found

    def find(self, name: str) -> Stored:
        """Return the template whose name starts so, or the newest one of a series. Raises `TemplateError`.

        A series' name may be given without the recipe's key, if no other recipe has one of that name.
        """
        stored = self.ls()
        found = [one for one in stored if one.name.startswith(name)]
        series = {one.manifest.series for one in stored if name in (one.manifest.series, plain(one.manifest.series))}
        if len(series) > 1:
            several = ", ".join(sorted(series))
            raise TemplateError(f"{len(series)} recipes have a series {name!r}; give one of {several}")
        if series:
            found = [one for one in stored if one.manifest.series in series][-1:]
        if len(found) != 1:
            many = f"{len(found)} templates start with" if found else "there is no template"
            known = ", ".join(sorted({one.manifest.series for one in stored})) or "none"
            raise TemplateError(f"{many} {name!r}; the series here are {known}")
        return found[0]

    def candidates(self, requirement: Requirement) -> list[Stored]:
        """Return what was baked for exactly this requirement, the newest generation first."""
        matching = [stored for stored in self.ls() if stored.manifest.requirement == requirement]
        return sorted(matching, key=lambda stored: -stored.manifest.generation)

    def next_generation(self, series: str) -> int:
        """Return the number for the next template of the series. Numbers of removed templates may come again.

        A template that nobody can read keeps its number: a process may still use it.
        """
        unreadable = [int(directory.suffix.removeprefix(".")) for directory in self.unreadable()]
        return max([*unreadable, *(stored.manifest.generation for stored in self.ls(series))], default=0) + 1

    def former(self, series: str, generation: int) -> Stored | None:
        """Return the last generation before this one that is still there."""
        return max(
            (stored for stored in self.ls(series) if stored.manifest.generation < generation),
            key=lambda stored: stored.manifest.generation,
            default=None,
        )

    def pin(self, series: str, stored: Stored | None) -> None:
        """Choose a generation by hand: every process uses it while it can. None lets the newest be used again.

        Raises `TemplateError`.
        """
        path = self._pins / series
        try:
            if stored is None:
                path.unlink(missing_ok=True)
                return
            make_directory(self._pins)
            write_stored(path, f"{stored.name}\n".encode())
        except OSError as error:
            raise TemplateError(f"the choice cannot be changed: {refused(error, path)}") from error

    def pinned(self, series: str) -> Stored | None:
        """Return the generation that was chosen by hand, if there is one and it is there."""
        try:
            name = self._chosen_name(series)
        except TemplateError as error:
            self._ignore_pin(series, str(error))
            return None
        if name is None:
            return None
        for stored in self.ls(series):
            if stored.name == name:
                return stored
        self._ignore_pin(series, f"{name} is not there any more; `sandbox template rollback --undo` forgets it")
        return None

    def _ignore_pin(self, series: str, reason: str) -> None:
        """Say once why a choice is not followed: a pool looks again and again."""
        if self._ignored.get(series) != reason:
            self._ignored[series] = reason
            log.warning("template_pin_ignored", series=series, reason=reason)

    def chosen(self) -> list[Stored]:
        """Return the generations of all series that were chosen by hand and are there."""
        series = sorted({stored.manifest.series for stored in self.ls()})
        return [stored for name in series if (stored := self.pinned(name)) is not None]

    def discard(self, directory: Path) -> bool:
        """Remove one template unless a process holds it; return whether it is gone. Clones keep what they map."""
        with removing(directory) as is_free:
            if not is_free:
                return False
            grave = directory.with_name(f".old-{directory.name}-{os.getpid()}")
            try:
                directory.rename(grave)
            except FileNotFoundError:
                return True
        shutil.rmtree(grave, ignore_errors=True)
        return True

    def prune(self, keep: Callable[[Stored], bool] = lambda _: True) -> list[str]:
        """Remove all but the newest generations of each series, `pin` aside, and what is not kept; return the names.

        What a process holds stays.
        """
        stored = [one for one in self.ls() if keep(one)]
        wanted = set()
        for series in {one.manifest.series for one in stored}:
            of_series = [one for one in stored if one.manifest.series == series]
            wanted |= {one.name for one in of_series[-KEPT:]}
            if (pinned := self.pinned(series)) is not None:
                wanted.add(pinned.name)
        unwanted = [path for path in self._directories() if path.name not in wanted]
        return [path.name for path in unwanted if self.discard(path)]

    def _load(self, directory: Path) -> Stored | None:
        """Return the template in a directory; None if there is none. Raises `TemplateError` if it is damaged."""
        manifest = TemplateManifest.load(directory)
        if manifest is None:
            return None
        if directory.name != self.place(manifest.requirement, manifest.generation).name:
            raise TemplateError(f"{directory} holds another template than its name says; `sandbox template prune`")
        return Stored(directory, manifest)

    def _chosen_name(self, series: str) -> str | None:
        """Return the name of the generation that was chosen by hand. Raises `TemplateError` if that cannot be read."""
        path = self._pins / series
        remedy = "choose again with `sandbox template rollback`, or remove the file"
        try:
            name = os.fsdecode(read_stored(path)).strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TemplateError(f"{path} cannot be read: {error.strerror}; {remedy}") from error
        if not _NAME.fullmatch(name):
            raise TemplateError(f"{path} is damaged: it names no template; {remedy}")
        return name

    def _directories(self) -> list[Path]:
        return [path for path in self._listed(self.directory) if _NAME.fullmatch(path.name) and path.is_dir()]

    @staticmethod
    def _listed(directory: Path) -> list[Path]:
        try:
            return sorted(path for path in directory.iterdir() if not path.name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise TemplateError(f"templates cannot be listed: {refused(error, directory)}") from error


def plain(series: str) -> str:
    """Return the name of a series without the key of its recipe."""
    return series.partition("@")[0]


def hold_verified(stored: Stored, requirement: Requirement) -> Hold | None:
    """Verify every byte of a template and hold it; None, with a warning, if it may not be used. Blocks."""
    hold = Hold.take(stored.directory)
    if hold is None:
        return None
    try:
        stored.manifest.verify(stored.directory, requirement)
    except TemplateError as error:
        hold.release()
        log.warning("template_refused", reason=str(error), remedy="it is baked anew")
        return None
    return hold
