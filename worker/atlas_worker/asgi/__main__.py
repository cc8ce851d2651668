"""`python -m atlas_worker.asgi module:app`: uvicorn's place taken by ours."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from atlas_worker.asgi.loading import AppNameError, load_app
from atlas_worker.asgi.options import PROGRAM, parse
from atlas_worker.instance import BadEnvironmentError, Instance
from atlas_worker.notify import Notifier
from atlas_worker.sockets import find_listeners

DEFAULT_PORT = 8000


def main(argv: Sequence[str] | None = None) -> int:
    """Serve; returns the process's exit code: 0, 1 (can't start), 2 (misuse)."""
    options = parse(sys.argv[1:] if argv is None else argv)
    try:
        # Only now: whatever else is wrong should be said first where it can be.
        from atlas_worker.asgi.settings import make_config  # noqa: PLC0415 - needs uvicorn
    except ImportError as error:
        return _complain(
            f"{error.name} is missing in {sys.executable}: "
            f"{sys.executable} -m pip install 'uvicorn[standard]'",
            1,
        )
    try:
        instance = Instance.from_environment(os.environ)
        listeners = find_listeners(
            os.environ,
            host=options.host,
            port=options.port,
            fd=options.fd,
            own_port=instance.port or DEFAULT_PORT,
        )
        notifier = Notifier.from_environment(os.environ)
        app = load_app(options.app, options.app_dir)
        config = make_config(app, options)
        from atlas_worker.asgi.runner import StartupError, run  # noqa: PLC0415 - needs uvicorn
    except (BadEnvironmentError, AppNameError) as error:
        return _complain(str(error), 2)
    except (OSError, ImportError) as error:
        return _complain(f"can't start: {error}", 1)
    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as loop:
            loop.run(run(config, listeners, instance, notifier))
    except (OSError, ImportError, StartupError) as error:
        return _complain(f"can't start: {error}", 1)
    return 0


def _complain(message: str, code: int) -> int:
    sys.stderr.write(f"{PROGRAM}: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
