"""Whether a template is still what should be used: a pure decision about what was seen."""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.template.manifest import Requirement, TemplateManifest


@dataclass(frozen=True)
class Sight:
    """What a look at the host has shown."""

    wanted: Requirement
    """What a template would be baked for now."""
    pinned: str | None = None
    """The generation that was chosen by hand, if it can be used here."""
    age: float = 0.0
    """Seconds since the template was baked."""
    is_intact: bool = True
    """Whether the template's files are those that were verified, as far as `stat` tells."""
    is_loadable: bool = True
    """Whether QEMU has loaded its state, or was not asked to yet."""
    is_other_kernel: bool = False
    """Whether the wanted image has another kernel."""
    is_other_agent: bool = False
    """Whether the wanted image has another agent."""


@dataclass(frozen=True)
class Drift:
    """Why a template should be succeeded, and by what."""

    reasons: tuple[str, ...]
    """Parts of the requirement that differ, `kernel`, `agent`, `age`, `files`, `state`, or `pin`."""
    wanted: str
    """Names what should follow: equal for equal successors."""

    @property
    def is_urgent(self) -> bool:
        """Whether no further clone can come of the template, or none that is sound."""
        return not {"files", "state"}.isdisjoint(self.reasons)


def drift_of(name: str, manifest: TemplateManifest, sight: Sight, max_age: float | None) -> Drift | None:
    """Return why the template `name` should be succeeded, or None.

    A generation that was chosen by hand is wanted as it is, however old, unless its files were changed or QEMU cannot
    load its state.
    """
    if sight.pinned is not None and sight.pinned != name:
        return Drift(("pin",), sight.pinned)
    reasons: list[str] = []
    if sight.pinned is None:
        reasons += manifest.requirement.differences(sight.wanted)
        reasons += ["kernel"] * sight.is_other_kernel + ["agent"] * sight.is_other_agent
        if max_age is not None and sight.age > max_age:
            reasons.append("age")
    if not sight.is_intact:
        reasons.append("files")
    if not sight.is_loadable:
        reasons.append("state")
    return Drift(tuple(reasons), sight.wanted.key) if reasons else None
