"""What all verbs share: the common options, the connection, and how a call ends.

A verb is an async function below `@verb`, named in `verbs`.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import click
from click.core import ParameterSource
from rich.console import RenderableType

from atlas_supervisor.cli.client import ApiResponse, DaemonClient
from atlas_supervisor.cli.endpoint import (
    ENV_CACERT,
    ENV_ENV_FILE,
    ENV_TOKEN,
    ConnectionOptions,
    find_endpoint,
)
from atlas_supervisor.cli.errors import FailedError, InterruptedByUserError, NoDaemonError
from atlas_supervisor.cli.terminal import Screen, write_json
from atlas_supervisor.cli.words import Record

P = ParamSpec("P")

View = Callable[[Record], RenderableType]


@dataclass
class Session:
    """One call of the client: its connection, and how it shows answers."""

    daemon: DaemonClient
    screen: Screen
    json: bool
    parting: str = "Interrupted."
    """Printed on Ctrl-C; a verb that starts something says what continues."""

    def expect(self, answer: ApiResponse, *fields: str) -> Record:
        """Return the answer's object if the daemon did what was asked; else raise its error.

        Raises `NoDaemonError` if `fields` are missing: then something else answers there.
        """
        if not answer.ok:
            raise refusal(answer)
        if missing := [name for name in fields if name not in answer.data]:
            raise NoDaemonError(
                f"No daemon at {self.daemon.endpoint}: something else answers there (its answer "
                f"has no {missing[0]!r})."
            )
        return answer.data

    def report(self, answer: ApiResponse, view: View, *fields: str) -> None:
        """Show the answer by `view`, or as JSON; an error ends the call with exit 1."""
        if self.json:
            self.report_json(answer, *fields)
        else:
            self.screen.conclude(view(self.expect(answer, *fields)))

    def report_json(self, answer: ApiResponse, *fields: str) -> None:
        """Write the answer unchanged; an error ends the call with exit 1, without a message."""
        if answer.ok:
            self.expect(answer, *fields)
        write_json(answer.body)
        if not answer.ok:
            raise click.exceptions.Exit(FailedError.exit_code)


def refusal(answer: ApiResponse) -> FailedError:
    """Return the error of the daemon's answer, with its hint."""
    error = answer.data.get("error")
    if not isinstance(error, dict):
        error = {}
    message = error.get("message") or f"The daemon answered HTTP {answer.status} without a reason."
    hint = error.get("hint")
    return FailedError(str(message), str(hint) if hint else None)


def verb(body: Callable[Concatenate[Session, P], Awaitable[None]]) -> click.Command:
    """Make a command with the common options of an async function; its docstring is the help."""

    @functools.wraps(body)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        given = click.get_current_context().ensure_object(ConnectionOptions)
        session = Session(DaemonClient(find_endpoint(given)), Screen(), given.json)

        async def conduct() -> None:
            async with session.daemon:
                await body(session, *args, **kwargs)

        try:
            asyncio.run(conduct())
        except KeyboardInterrupt:
            raise InterruptedByUserError(session.parting) from None

    made = click.command()(command)
    made.params += common_options()
    return made


class Verbs(click.Group):
    """A group of verbs. The common options can be given before the verb as well.

    `elsewhere` has verbs of other programs, with what does their work here: the most similar name
    would lead astray.
    """

    def __init__(
        self,
        *,
        verbs: Sequence[click.Command],
        elsewhere: Mapping[str, str] | None = None,
        **attributes: Any,
    ) -> None:
        named = {name: each for each in verbs if (name := each.name)}
        self._elsewhere = elsewhere or {}
        attributes["params"] = [*attributes.get("params", ()), *common_options()]
        super().__init__(commands=named, **attributes)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of use, not sorted."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or say what has another name here."""
        if instead := self._elsewhere.get(args[0]):
            ctx.fail(f"No such command {args[0]!r}: {instead}")
        return super().resolve_command(ctx, args)


_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


def local_options() -> list[click.Parameter]:
    """Return the options of a verb that looks at this machine, and at no daemon elsewhere."""
    return [each for each in common_options() if each.name in {"env_file", "json"}]


def common_options() -> list[click.Parameter]:
    """Return the options that every verb and every group takes."""
    return [
        _option(
            "--env-file",
            type=_FILE,
            help="The daemon's env file; its STATE_DIR has the Unix socket. Default: "
            f"${ENV_ENV_FILE}, ./atlas.env, or that of the checkout.",
        ),
        _option(
            "--url",
            metavar="URL",
            help="The API at http[s]://HOST:PORT, instead of the Unix socket.",
        ),
        _option(
            "--token-file",
            type=_FILE,
            help=f"File with the token that changes by --url need. Default: ${ENV_TOKEN}.",
        ),
        _option(
            "--cacert",
            type=_FILE,
            help="File with the certificate to trust at an https:// URL, for example a self-signed "
            f"one. Default: ${ENV_CACERT}, or the system's.",
        ),
        _option("--json", is_flag=True, help="Print the API's answer as JSON, and nothing else."),
    ]


def _option(name: str, **attributes: Any) -> click.Option:
    return click.Option([name], expose_value=False, callback=_remember, **attributes)


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Store an option; group and verb share one object, and the later one wins."""
    given = context.ensure_object(ConnectionOptions)
    if parameter.name and context.get_parameter_source(parameter.name) != ParameterSource.DEFAULT:
        setattr(given, parameter.name, value)
