"""Which Debian archive this host uses: read from its own apt configuration, so no mirror is ever written down here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sandbox.errors import ConfigError

POCKETS = ("", "-updates", "-security", "-backports")
_OPTION = re.compile(r"([\w-]+)\+?=(\S+)")
_OFF = {"no", "false", "without", "off", "disable"}
# Of the options that an entry may have, those that decide whether apt trusts and accepts the archive.
_KEPT_OPTIONS = ("signed-by", "trusted", "check-valid-until", "check-date")


@dataclass(frozen=True)
class Release:
    """The host's Debian release; `version` is its number, 12 for bookworm."""

    codename: str
    version: int


@dataclass(frozen=True)
class Source:
    """One binary package source; `options` are those which decide about trust."""

    uri: str
    suite: str
    components: tuple[str, ...] = ("main",)
    options: tuple[tuple[str, str], ...] = ()

    @property
    def signed_by(self) -> str | None:
        return dict(self.options).get("signed-by")

    def line(self) -> str:
        """Render as one line of a sources.list, restricted to `main`."""
        options = " ".join(f"{key}={value}" for key, value in self.options)
        return f"deb [{options}] {self.uri} {self.suite} main" if options else f"deb {self.uri} {self.suite} main"

    def stanza(self) -> str:
        """Render as one paragraph of a `.sources` file, restricted to `main`."""
        options = "".join(f"{key.title()}: {value}\n" for key, value in self.options)
        return f"Types: deb\nURIs: {self.uri}\nSuites: {self.suite}\nComponents: main\n{options}"


def parse_list(text: str) -> Iterator[Source]:
    """Parse the one-line format (`/etc/apt/sources.list`)."""
    for raw in text.splitlines():
        entry = raw.partition("#")[0].strip()
        match = re.match(r"deb\s+(?:\[(.*?)\]\s*)?(\S+)\s+(\S+)(.*)", entry)
        if match:
            options, uri, suite, components = match.groups()
            yield Source(uri, suite, tuple(components.split()), _kept(dict(_OPTION.findall(options or ""))))


def parse_deb822(text: str) -> Iterator[Source]:
    """Parse the paragraph format (`/etc/apt/sources.list.d/*.sources`)."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        fields: dict[str, str] = {}
        key = ""
        for line in paragraph.splitlines():
            if line[:1].isspace():
                fields[key] = f"{fields.get(key, '')} {line.strip()}".strip()
            elif ":" in line:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if fields.get("enabled", "yes").lower() in _OFF or "deb" not in fields.get("types", "").split():
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Source(uri, suite, tuple(fields.get("components", "").split()), _kept(fields))


def _kept(options: dict[str, str]) -> tuple[tuple[str, str], ...]:
    lowered = {key.lower(): value for key, value in options.items()}
    # An inlined key or a fingerprint fits no path; apt then falls back to the keys that the whole host trusts.
    if not lowered.get("signed-by", "/").startswith("/"):
        del lowered["signed-by"]
    return tuple((key, lowered[key]) for key in _KEPT_OPTIONS if key in lowered)


def host_release(root: Path = Path("/")) -> Release:
    """Read the host's release. Raises `ConfigError` when it is not Debian 12 or newer."""
    try:
        text = (root / "etc/os-release").read_text()
    except FileNotFoundError:
        text = ""
    fields = {key: value.strip("\"'") for key, _, value in (line.partition("=") for line in text.splitlines())}
    version = fields.get("VERSION_ID", "")
    if fields.get("ID") != "debian" or not version.isdigit() or int(version) < 12 or "VERSION_CODENAME" not in fields:
        found = fields.get("PRETTY_NAME") or "an unknown system"
        raise ConfigError(f"this host is {found}, expected Debian 12 or newer: use such a host, or a container of it")
    return Release(fields["VERSION_CODENAME"], int(version))


def debian_sources(release: Release, root: Path = Path("/")) -> tuple[Source, ...]:
    """Return the host's entries for Debian itself, the release first. Raises `ConfigError` when there is none."""
    order = {release.codename + pocket: place for place, pocket in enumerate(POCKETS)}
    found: dict[str, Source] = {}
    for source in _configured(root):
        if source.suite in order and "main" in source.components and _is_debian(source, root):
            found.setdefault(source.suite, source)
    if release.codename not in found:
        raise ConfigError(
            f"apt on this host has no source for Debian {release.codename}, component main: "
            "add it below /etc/apt/sources.list.d, because guest images are built from the host's own sources"
        )
    return tuple(sorted(found.values(), key=lambda source: order[source.suite]))


def with_backports(sources: tuple[Source, ...], release: Release) -> tuple[Source, ...]:
    """Return the sources with backports among them, derived from the release's own entry when absent."""
    suite = f"{release.codename}-backports"
    if any(source.suite == suite for source in sources):
        return sources
    main = next(source for source in sources if source.suite == release.codename)
    return (*sources, replace(main, suite=suite))


def _configured(root: Path) -> Iterator[Source]:
    apt = root / "etc/apt"
    for path in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if path.suffix == ".list" and path.is_file():
            yield from parse_list(path.read_text(errors="replace"))
        elif path.suffix == ".sources" and path.is_file():
            yield from parse_deb822(path.read_text(errors="replace"))


def _is_debian(source: Source, root: Path) -> bool:
    """Tell Debian from other vendors, some of whom also name their suite after the release and a component `main`.

    What apt downloaded last says it with authority. Before the first download, the key does: vendors bring their own.
    """
    address = re.sub(r"^[\w+]+://", "", source.uri).rpartition("@")[2].rstrip("/").replace("_", "%5f").replace("/", "_")
    lists = root / "var/lib/apt/lists"
    for kind in ("InRelease", "Release"):
        try:
            head = (lists / f"{address}_dists_{source.suite}_{kind}").read_text(errors="replace")[:4096]
        except OSError:
            continue
        origin = re.search(r"^Origin: (.*)$", head, re.MULTILINE)
        return origin is not None and origin[1].startswith("Debian")
    return source.signed_by is None or Path(source.signed_by).name.startswith("debian-archive")
