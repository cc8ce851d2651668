"""What can be gone back to, how fast and how safely; pure, from the record of what served.

A rollback without a version goes to the one before on the stack (docs/adr/0005). With one it goes
to any of the last that served: on the stack those after it are taken away; one that was taken away
before is put on top again. Its gates can be skipped if it ran without complaint not long ago: it
was replaced by a deploy, not by a revert or a rollback, and its worker never crashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from atlas_supervisor import errors
from atlas_supervisor.deploy.errors import nothing_to_roll_back
from atlas_supervisor.model.release import Release, Version

_LISTED = 5
_FAST_WITHIN = timedelta(hours=24)


@dataclass(frozen=True)
class Target:
    """A version to go back to."""

    version: Version
    past: tuple[str, ...]
    """The irreversible versions that began to serve after it: what they changed stays changed."""
    taken_away: bool
    """It is not on the stack any more."""
    is_next: bool
    """A rollback without a version goes to it."""
    same_name: int = 1
    """How many releases have its version; it is the newest."""

    @property
    def release(self) -> Release:
        """What to launch. Going back to it, what it calls irreversible was done long ago."""
        irreversible = self.taken_away and self.version.release.irreversible
        return self.version.release.model_copy(update={"irreversible": irreversible})

    @property
    def remark(self) -> str:
        """What the record is to say of it."""
        parts = [past_irreversible(self.past)] if self.past else []
        if self.same_name > 1:
            release = self.version.release
            where = f"release {release.name}" if release.name else str(release.path)
            parts.append(f"of {self.same_name} with this version the newest, {where}")
        return "; ".join(parts)

    def why_not_fast(self, now: datetime) -> str | None:
        """Return why it has to pass its gates; None if it ran without complaint not long ago."""
        version = self.version
        if version.complaint is not None or version.undone:
            return version.complaint or "a rollback went past it"
        if version.until is None:
            return "it is not known when it served last"
        if abs(now - version.until) > _FAST_WITHIN:  # a clock may have been set back
            return f"it served last at {version.until:%Y-%m-%d %H:%M} UTC, over 24 h ago"
        return None


def past_irreversible(versions: Sequence[str]) -> str:
    """Return in words that a rollback goes back past irreversible versions."""
    return f"past irreversible {', '.join(versions)}"


def targets(served: Sequence[Version]) -> list[Target]:
    """Return the last distinct versions that served, without the active one, the latest first.

    `served` is the record, the last one that got the traffic first.
    """
    stack = [version for version in served if not version.undone]
    if not stack:
        return []
    known, found = {_key(stack[0])}, list[Target]()
    before = stack[1] if len(stack) > 1 else None
    for position, version in enumerate(served):
        if _key(version) in known:
            continue
        known.add(_key(version))
        found.append(_target(version, served[:position], stack, before))
    return sorted(found, key=_latest_first)[:_LISTED]


def _target(
    version: Version, later: Sequence[Version], stack: Sequence[Version], before: Version | None
) -> Target:
    past = dict.fromkeys(each.release.version for each in later if each.release.irreversible)
    return Target(
        version,
        tuple(past),
        taken_away=all(_key(version) != _key(each) for each in stack),
        is_next=before is not None and _key(version) == _key(before),
    )


def _latest_first(target: Target) -> float:
    until = target.version.until
    return -until.timestamp() if until else 0.0


def _key(version: Version) -> tuple[str | None, Path, str]:
    release = version.release
    return release.name, release.path, release.version


def chosen(served: Sequence[Version], version: str | None) -> Target:
    """Return the version to go back to: the one that is named, or the one before.

    A name is a version, else the name of a release. Raises RefusedError.
    """
    if version is not None:
        return _named(served, version)
    stack = [each for each in served if not each.undone]
    if len(stack) < 2:
        raise nothing_to_roll_back()
    position = next(n for n, each in enumerate(served) if each is stack[1])
    return _target(stack[1], served[:position], stack, stack[1])


def _named(served: Sequence[Version], name: str) -> Target:
    active = next((each for each in served if not each.undone), None)
    refuse_active(active.release if active else None, name)
    found = targets(served)
    matching = [each for each in found if each.version.release.version == name]
    matching = matching or [each for each in found if each.version.release.name == name]
    if not matching:
        known = ", ".join(dict.fromkeys(each.version.release.version for each in found))
        raise errors.UNKNOWN_VERSION.error(version=name, known=known or "none")
    newest = min(matching, key=lambda each: _position(served, each))
    return Target(
        newest.version, newest.past, newest.taken_away, newest.is_next, same_name=len(matching)
    )


def _position(served: Sequence[Version], target: Target) -> int:
    return next(n for n, each in enumerate(served) if each is target.version)


def refuse_active(active: Release | None, name: str) -> None:
    """Raise RefusedError if the active release is meant."""
    if active is not None and is_named(active, name):
        raise errors.VERSION_IS_ACTIVE.error(version=name)


def is_named(release: Release, name: str) -> bool:
    """Return whether this is the release's version, or its name."""
    return name in (release.version, release.name)
