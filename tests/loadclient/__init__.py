"""A strict HTTP load client: every request has its full, right answer, or it is lost.

On raw connections and with no HTTP library, because pools, retries and lenient parsers hide the
very faults that a deploy could cause. It obeys the protocol as a good client does: after
`Connection: close` it opens a new connection, and where the server closed an idle keep-alive
connection before the next request was sent, it reconnects and nothing is lost. A close that
meets a request already on its way is a loss.

Shared by the acceptance tests, the benchmarks and the demo.
"""

from tests.loadclient.eventstream import EventTraffic
from tests.loadclient.load import Kind, Load
from tests.loadclient.report import Loss, Report, Tally
from tests.loadclient.traffic import (
    Check,
    Request,
    Traffic,
    bundled_worker_home,
    bundled_worker_mix,
    echo,
    echoes_body,
    echoes_token,
    streams,
)
from tests.loadclient.websocket import WebSocketTraffic
from tests.loadclient.wire import LostError, Reason, Response, Wire

__all__ = [
    "Check",
    "EventTraffic",
    "Kind",
    "Load",
    "Loss",
    "LostError",
    "Reason",
    "Report",
    "Request",
    "Response",
    "Tally",
    "Traffic",
    "WebSocketTraffic",
    "Wire",
    "bundled_worker_home",
    "bundled_worker_mix",
    "echo",
    "echoes_body",
    "echoes_token",
    "streams",
]
