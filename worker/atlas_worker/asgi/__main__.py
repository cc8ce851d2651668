"""`python -m atlas_worker.asgi module:app`: serves an ASGI application, in place of uvicorn."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from atlas_worker.instance import BadEnvironmentError, Instance
from atlas_worker.notify import Notifier
from atlas_worker.sockets import find_listeners

PROGRAM = "python -m atlas_worker.asgi"
DEFAULT_PORT = 8000


def main(argv: Sequence[str] | None = None) -> int:
    """Serve; returns the process's exit code: 0, 1 (can't start), 2 (wrong usage)."""
    try:
        import click  # noqa: PLC0415 - comes with uvicorn, which may be missing

        from atlas_worker.asgi import command  # noqa: PLC0415 - the same
        from atlas_worker.asgi.runner import StartupError, run  # noqa: PLC0415 - the same
    except ImportError as error:
        install = f"{sys.executable} -m pip install 'uvicorn[standard]'"
        return _complain(f"uvicorn can't be imported ({error}): {install}", 1)
    try:
        settings = command.parse(PROGRAM, sys.argv[1:] if argv is None else argv)
        instance = Instance.from_environment(os.environ)
        listeners = find_listeners(
            os.environ,
            host=settings["host"],
            port=settings["port"],
            fd=settings["fd"],
            own_port=instance.port or DEFAULT_PORT,
        )
        notifier = Notifier.from_environment(os.environ)
        app = command.load_app(settings["app"], settings["app_dir"])
        config = command.make_config(app, settings)
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as loop:
            loop.run(run(config, listeners, instance, notifier))
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        return _complain(error.format_message(), 2)
    except BadEnvironmentError as error:
        return _complain(str(error), 2)
    except (OSError, ImportError, StartupError) as error:
        return _complain(f"can't start: {error}", 1)
    return 0


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"{PROGRAM}: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
