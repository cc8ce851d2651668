"""When a WebSocket can be closed: between two messages, with none of the client's unanswered.

While a handler waits for a message, one may have arrived that is still in the kernel. The loop
reads it before it runs the timers of the same turn; so a look comes after a pause, never at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

MESSAGE_SECONDS = 5.0
"""How long a handler may work on a message before the WebSocket is closed all the same."""
_POLL_SECONDS = 0.02


async def between_messages(
    is_receiving: Callable[[], bool], remaining: Callable[[], float]
) -> None:
    """Wait until the handler receives: then it has answered the last message.

    A handler that only sends never does, so the wait is bounded, also by half of the drain's
    `remaining` seconds.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    while loop.time() - started < min(MESSAGE_SECONDS, remaining() / 2):
        await asyncio.sleep(_POLL_SECONDS)
        if is_receiving():
            return
