"""Words for a fleet, for every client: who serves, how far the rollout is, what is killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from atlas_supervisor.cli.units import age, amount, percent
from atlas_supervisor.cli.words import Record, mapping, objects

FEW_HOSTS = 20
"""So many hosts are listed whole; of more, those that differ from the others."""
ENDED = frozenset({"passed", "aborted"})
"""States of a rollout in which no host begins any more."""
_MOST_VERSIONS = 4
_UNREADABLE = "can't be read"


class Headline(NamedTuple):
    """Whether the fleet serves. `tone` is `good`, `watch`, `bad` or `unknown`."""

    tone: str
    sentence: str
    detail: str


def headline(fleet: Record) -> Headline:
    """Return whether the fleet serves, and which versions."""
    hosts, engine = objects(fleet.get("hosts")), mapping(fleet.get("engine"))
    if engine and not engine.get("connected"):
        since = f"etcd does not answer for {age(engine.get('since_ts'))}"
        return Headline("watch", "Nothing is known of the other hosts", since)
    if not hosts:
        return Headline("unknown", "No host has joined yet", "")
    serving = [host for host in hosts if host.get("serves")]
    if len(serving) == len(hosts):
        whole = f"All {amount(len(hosts))} hosts serve" if hosts[1:] else "The only host serves"
        return Headline("good", f"{whole} {versions(hosts)}", "")
    lost = [host for host in hosts if not host.get("serves")]
    sentence = f"{amount(len(serving))} of {amount(len(hosts))} hosts serve {versions(serving)}"
    return Headline("bad", sentence.rstrip(), "; ".join(_grouped(lost)))


def versions(hosts: Sequence[Record]) -> str:
    """Return which versions hosts have: `1.4.0`, or `1.4.0 (2) and 1.3.2 (1)`."""
    counts = Counter(str(host.get("version") or "no version") for host in hosts)
    if len(counts) < 2:
        return next(iter(counts), "")
    most = counts.most_common(_MOST_VERSIONS)
    parts = [f"{version} ({amount(count)})" for version, count in most]
    if rest := len(counts) - len(most):
        parts.append(f"{rest} more versions")
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _grouped(hosts: Sequence[Record]) -> Iterator[str]:
    """Yield why hosts do not serve, those with one reason together."""
    by_reason: dict[str, list[str]] = {}
    for host in hosts:
        by_reason.setdefault(life(host), []).append(str(host.get("name")))
    for reason, names in by_reason.items():
        yield f"{some(names)}: {reason}"


def life(host: Record) -> str:
    """Return whether a host is alive, and healthy."""
    if host.get("fresh") is None:
        return "not known"
    if not host.get("fresh"):
        seen = host.get("seen_ts")
        return f"no sign of life for {age(seen)}" if seen else "no sign of life"
    if host.get("serves"):
        return "alive"
    return "unhealthy" if host.get("version") else "no version serves"


def some(names: Sequence[str], most: int = 5) -> str:
    """Return names, but not hundreds of them."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {amount(rest)} more" if rest > 0 else "")


def rollout_in_words(rollout: Record) -> str:
    """Return the release of a rollout, its state, and how far it is."""
    by_state = mapping(rollout.get("hosts"))
    counts = {state: len(names) for state, names in by_state.items() if isinstance(names, list)}
    back = "back from " if rollout.get("direction") == "back" else ""
    far = f"{amount(counts.get('passed', 0))} of {amount(sum(counts.values()))} hosts passed"
    failed = f", {amount(counts['failed'])} failed" if counts.get("failed") else ""
    return f"{back}{rollout.get('release')}: {rollout.get('state')}, {far}{failed}"


def waves_in_words(rollout: Record) -> Iterator[tuple[str, str]]:
    """Yield the hosts of each wave, and how far they are."""
    for wave in objects(rollout.get("waves")):
        hosts = [str(host) for host in wave.get("hosts") or []]
        counts = [f"{amount(wave[state])} {state}" for state in _STATES if wave.get(state)]
        far = "all passed" if wave.get("passed") == len(hosts) else ", ".join(counts)
        yield some(hosts, most=3), far


_STATES = ("passed", "deploying", "failed", "waiting")


def part_of(host: Record, rollout: Record | None) -> str:
    """Return how far a host is with the rollout: `passed`, or `wave 2` before it begins."""
    if state := mapping(host.get("part")).get("state"):
        return str(state)
    for number, wave in enumerate(objects(mapping(rollout).get("waves")), 1):
        if host.get("name") in (wave.get("hosts") or []):
            return f"wave {number}"
    return ""


def _is_unreadable(fleet: Record, key: str) -> bool:
    """Return whether the document of this key can't be read: nothing is known of it then."""
    return any(str(each).startswith(f"{key} ") for each in fleet.get("unreadable") or [])


def no_rollout_in_words(fleet: Record) -> str:
    """Return why no rollout is shown."""
    return _UNREADABLE if _is_unreadable(fleet, "turns/rollout") else "none yet"


def slots_in_words(fleet: Record) -> str:
    """Return how many slots are held, by which hosts, and for how long."""
    if _is_unreadable(fleet, "turns/semaphore"):
        return _UNREADABLE
    semaphore = mapping(fleet.get("semaphore"))
    holders = objects(semaphore.get("holders"))
    total = f"{amount(semaphore.get('slots'))}"
    if not holders:
        return f"none of {total} held"
    held = [
        f"{each.get('host')} for {age(each.get('since_ts'))} ({each.get('purpose')}, generation "
        f"{each.get('generation')})"
        for each in holders
    ]
    return f"{len(holders)} of {total} held: {some(held)}"


def kills_in_words(kills: Record) -> str:
    """Return the features that are off, by whom, and how many hosts have acknowledged it."""
    if not kills.get("epoch"):
        return "none yet"
    known = f"{amount(kills.get('acknowledged'))} of {amount(kills.get('hosts'))} hosts know it"
    off = killed(kills)
    if not off:
        return f"nothing is killed, {known}"
    return f"{off} off for {age(kills.get('set_ts'))}, by {kills.get('set_by')}; {known}"


def killed(kills: Record) -> str:
    """Return the features that are off; empty if none is."""
    return "every feature" if kills.get("every_feature") else ", ".join(kills.get("features") or [])


def evidence_in_words(fleet: Record) -> Iterator[tuple[str, str]]:
    """Yield each feature with its calls over all hosts."""
    for feature, each in mapping(fleet.get("evidence")).items():
        yield feature, arms_in_words(mapping(each))


def arms_in_words(evidence: Record) -> str:
    """Return both arms' calls over all hosts."""
    arms = [_arm(mapping(evidence.get(arm)), arm) for arm in ("canary", "stable")]
    return f"{', '.join(arms)}, on {amount(evidence.get('hosts'))} hosts"


def _arm(counts: Record, arm: str) -> str:
    calls, errors = counts.get("calls") or 0, counts.get("errors") or 0
    if not calls:
        return f"no {arm} calls"
    return f"{percent(errors / calls)} of {amount(calls)} {arm} calls fail"


def listed(fleet: Record, *, everything: bool = False) -> tuple[list[Record], int]:
    """Return the hosts to list, and how many more there are, which are like each other.

    Of many hosts these are the ones in trouble, with a slot, or next; then the others by name.
    """
    hosts = objects(fleet.get("hosts"))
    if everything or len(hosts) <= FEW_HOSTS:
        return hosts, 0
    chosen = sorted(hosts, key=_rank)[:FEW_HOSTS]
    return sorted(chosen, key=lambda host: str(host.get("name"))), len(hosts) - len(chosen)


def _rank(host: Record) -> tuple[int, str]:
    part = mapping(host.get("part")).get("state")
    troubled = host.get("serves") is False or part == "failed" or bool(host.get("slot"))
    rank = 0 if troubled else 1 if host.get("waits_for") else 2
    return rank, str(host.get("name"))


def why(host: Record) -> str:
    """Return why a host has failed, or why it has not begun."""
    return str(mapping(host.get("part")).get("reason") or host.get("waits_for") or "")


def now_of(rollout: Record) -> str:
    """Return the rollout's doings; empty if the suggestions say it already: no host deploys."""
    deploys = rollout.get("state") == "running" or mapping(rollout.get("hosts")).get("deploying")
    return str(rollout.get("now") or "") if deploys else ""


def change_in_words(fleet: Record, path: str) -> str:
    """Return the part of the fleet that a request of this path has changed."""
    if path.startswith("/fleet/rollout"):
        return rollout_in_words(mapping(fleet.get("rollout")))
    if path in ("/fleet/kill", "/fleet/reset"):
        return kills_in_words(mapping(fleet.get("kills")))
    return f"slots: {slots_in_words(fleet)}"
