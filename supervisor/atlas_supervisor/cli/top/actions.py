"""The actions of `atlasctl top`: each is a verb of `atlasctl`, run as it is, its output kept."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import click

from atlas_supervisor.cli.deploy import deploy
from atlas_supervisor.cli.errors import FailedError
from atlas_supervisor.cli.hold import hold
from atlas_supervisor.cli.ramp import ramp
from atlas_supervisor.cli.rollback import objections, rollback, takes_over
from atlas_supervisor.cli.session import Session
from atlas_supervisor.cli.steer import abort, mode, switch
from atlas_supervisor.cli.top.pane import Pane
from atlas_supervisor.cli.words import Record, mapping, objects

_VERBS = {str(each.name): each for each in (deploy, switch, abort, rollback, hold, ramp, mode)}
_PHASES_TO_SWITCH = ("awaiting_switch", "ramp")
_HOLDS = (30, 10, 60, 300)
"""Seconds; the first one is the verb's own default."""


class Choice(NamedTuple):
    """One thing that can be done: the arguments of `atlasctl`, and what it means."""

    arguments: tuple[str, ...]
    name: str
    meaning: str = ""

    @property
    def command(self) -> str:
        """Return the command that does the same; without one, the name."""
        return f"$ {shlex.join(('atlasctl', *self.arguments))}" if self.arguments else self.name


class Question(NamedTuple):
    """What is asked before an action, and what there is to choose."""

    sentence: str
    choices: tuple[Choice, ...]


Asking = Callable[[Session, Record], Awaitable[Question]]


class Action(NamedTuple):
    """An action by its key: when it is possible, and what it asks."""

    key: str
    words: Callable[[Record], str]
    """Its words in the line of keys, by the status; empty while it is not possible."""
    ask: Asking
    help: str


def _last(status: Record) -> Record:
    return mapping(status.get("last_deploy"))


def _phase(status: Record) -> str:
    return str(_last(status).get("phase")) if status.get("deploy_in_progress") else ""


def _held(status: Record) -> Record:
    return mapping(mapping(status.get("traffic")).get("held"))


def _releases(*options: str) -> Asking:
    """Return the question for the release to deploy."""

    async def ask(session: Session, status: Record) -> Question:
        answer = await session.daemon.get("/deploy/releases")
        found = objects(session.expect(answer, "releases")["releases"])
        choices = [
            Choice(("deploy", name := str(each.get("name")), *options), name, _about(each))
            for each in sorted(found, key=_newness, reverse=True)
        ]
        if not choices:
            choices = [Choice(("deploy", *options), "the worker directory")]
        active = f"{status.get('version')} serves now."
        what = "Runs the gates only; no switch." if options else "Deploys a release."
        return Question(f"{what} {active}", tuple(choices))

    return ask


def _newness(release: Record) -> tuple[bool, str, str]:
    """Return the key for sorting, newest last: by the last deploy, then those without one."""
    last = mapping(release.get("last_deploy")).get("started_ts")
    return last is None, str(last), str(release.get("name"))


def _about(release: Record) -> str:
    slots = ", ".join(map(str, release.get("slots") or []))
    version = release.get("version")
    last = mapping(release.get("last_deploy")).get("result")
    parts = [
        f"version {version}" if version and version != release.get("name") else "",
        f"runs on {slots}" if slots else "",
        f"last: {last}".replace("_", " ") if last else "never deployed",
    ]
    return ", ".join(part for part in parts if part)


async def _switch(_session: Session, status: Record) -> Question:
    last = _last(status)
    sentence = f"Gives {last.get('version')} all new connections, in place of "
    return Question(f"{sentence}{status.get('version')}.", (Choice(("switch",), "switch now"),))


async def _abort(_session: Session, status: Record) -> Question:
    last = _last(status)
    sentence = f"Stops deploy {last.get('deploy_id')}; {status.get('version')} goes on serving."
    return Question(sentence, (Choice(("abort",), "abort the deploy"),))


async def _rollback(session: Session, status: Record) -> Question:
    answer = await session.daemon.get("/deploy/rollback")
    found = objects(session.expect(answer, "versions")["versions"])
    choices = [choice for each in found if not each.get("gone") for choice in _ways_back(each)]
    if not choices:
        raise FailedError("There is no earlier version to go back to.")
    return Question(f"Goes back from {status.get('version')}.", tuple(choices))


def _ways_back(each: Record) -> Iterator[Choice]:
    """Yield how to go back to a version, and what is against it."""
    version = str(each.get("version"))
    arguments = ("rollback", *(() if each.get("next") else (version,)))
    against = objections(each)
    # The question is asked here; the verb has no terminal to ask on.
    soon = f"{takes_over(each)}{f'; {against}' if against else ''}"
    yield Choice((*arguments, "--yes"), version, soon.replace(" (--fast)", ""))
    if each.get("fast") and not each.get("warm"):
        yield Choice((*arguments, "--fast", "--yes"), version, "once launched, without its gates")


async def _hold(_session: Session, status: Record) -> Question:
    if held := _held(status):
        sentence = f"Hands on the connections that wait since {held.get('by')} held them."
        return Question(sentence, (Choice(("hold", "--release"), "release now"),))
    choices = (Choice(("hold", "--max", f"{n}"), f"for {n} s at most") for n in _HOLDS)
    return Question("Lets new connections wait; none is refused.", tuple(choices))


async def _pause(_session: Session, status: Record) -> Question:
    paused = mapping(_last(status).get("ramp")).get("paused")
    action = "resume" if paused else "pause"
    sentence = "The ramp's clock goes on." if paused else "The ramp's clock stops."
    return Question(sentence, (Choice(("ramp", action), f"{action} the ramp"),))


async def _advance(_session: Session, _status: Record) -> Question:
    return Question("Takes the ramp's next step now.", (Choice(("ramp", "advance"), "advance"),))


async def _mode(_session: Session, status: Record) -> Question:
    if status.get("mode") == "single":
        return Question("Enables deploys.", (Choice(("mode", "bluegreen"), "enable deploys"),))
    return Question("Disables deploys.", (Choice(("mode", "single"), "disable deploys"),))


def _if(condition: Callable[[Record], object], words: str) -> Callable[[Record], str]:
    return lambda status: words if condition(status) else ""


def _ramps(status: Record) -> bool:
    return _phase(status) == "ramp"


def _is_paused(status: Record) -> bool:
    return bool(mapping(_last(status).get("ramp")).get("paused"))


ACTIONS = (
    Action("d", _if(lambda s: not _phase(s), "deploy"), _releases(), "deploy a release"),
    Action(
        "n",
        _if(lambda s: not _phase(s), "dry run"),
        _releases("--dry-run"),
        "run a release's gates, without a switch",
    ),
    Action(
        "s",
        _if(lambda s: _phase(s) in _PHASES_TO_SWITCH, "switch"),
        _switch,
        "switch to the version that waits or ramps",
    ),
    Action("a", _if(_phase, "abort"), _abort, "abort the deploy in progress"),
    Action("r", lambda _: "roll back", _rollback, "go back to an earlier version"),
    Action(
        "p",
        lambda s: ("resume" if _is_paused(s) else "pause") if _ramps(s) else "",
        _pause,
        "pause the ramp, or resume it",
    ),
    Action("v", _if(_ramps, "advance"), _advance, "take the ramp's next step now"),
    Action(
        "h",
        lambda s: "release" if _held(s) else "hold",
        _hold,
        "let new connections wait, or release them",
    ),
    Action("m", lambda _: "mode", _mode, "enable or disable deploys"),
)


@dataclass
class Run:
    """An action that was chosen: what the verb printed so far, and how it went."""

    choice: Choice
    session: Session
    pane: Pane
    succeeded: bool | None = None
    """None while it runs."""


def begin(choice: Choice, session: Session, width: int) -> Run:
    """Return the run of a verb, with output and parting words of its own."""
    pane = Pane(width)
    return Run(choice, Session(session.daemon, pane, json=False), pane)


async def conduct(run: Run) -> None:
    """Run the verb to its end, as `atlasctl` does; its failure is printed into the pane."""
    name, *arguments = run.choice.arguments
    verb = _VERBS[name]
    body = verb.callback.__wrapped__  # type: ignore[union-attr]  # the function below @verb
    try:
        await body(run.session, **verb.make_context(name, arguments).params)
        run.succeeded = True
    except click.exceptions.Exit as ended:
        run.succeeded = not ended.exit_code
    except click.ClickException as error:
        run.pane.failure(error.message, getattr(error, "hint", None))
        run.succeeded = False
