"""A worker that behaves as `behaviour.json` in its folder says: the releases that go wrong.

Standard library only and by socket activation, so it is also the smallest foreign worker. Keys:
`exit` (at start, with this status), `say` (a line to print first), `health` (status to answer),
`health_delay` (seconds), `ignore_sigterm`, `die_on` (a path that ends the process without an
answer), `die_after_health` (so many health answers, then the process ends itself),
`stop_after_health` (likewise, but it only stops answering), `exit_when_active` (so many
milliseconds after the state file names its slot as the active one), `health_body` (what it tells
there: text as it is, else JSON). `/slow` takes its time, and every other answer tells how often its
health was asked for. While a file `hang` is in its folder, its health is not answered. It knows
nothing of SIGTERM, so that cuts off whatever it is doing.

With `kit` it plays a worker with the kit: at SIGTERM it accepts nothing more, says so, and ends
once `/held` has been answered, which it is when the file `let_go` is in the worker's folder.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BEHAVIOUR: dict[str, Any] = {}
SEEN = {"health": 0, "held": 0}
SERVERS: "list[Server]" = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == BEHAVIOUR.get("die_on"):
            os._exit(9)
        if self.path == "/held":
            SEEN["held"] += 1
            while not Path("let_go").exists():
                time.sleep(0.02)
            self._answer(200, {"version": os.environ["ATLAS_VERSION"]})
            SEEN["held"] -= 1
            return
        if self.path == "/slow":
            time.sleep(1.5)
        if self.path.startswith("/health"):
            self._health()
        else:
            told = {"version": os.environ["ATLAS_VERSION"], "pid": os.getpid()}
            self._answer(200, {**told, "health_asked": SEEN["health"]})

    def _health(self) -> None:
        SEEN["health"] += 1
        time.sleep(BEHAVIOUR.get("health_delay", 0))
        if SEEN["health"] > BEHAVIOUR.get("stop_after_health", 1 << 30):
            time.sleep(3600)
        while Path("hang").exists():
            time.sleep(0.02)
        told = BEHAVIOUR.get("health_body", {"status": "whatever"})
        self._answer(BEHAVIOUR.get("health", 200), told)
        if SEEN["health"] >= BEHAVIOUR.get("die_after_health", 1 << 30):
            self.wfile.flush()
            os._exit(7)

    def _answer(self, status: int, body: Any) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(listener.getsockname()[:2], Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener


def notify(*lines: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto("\n".join(lines).encode(), "\0" + os.environ["NOTIFY_SOCKET"][1:])


def exit_when_active(milliseconds: float) -> None:
    state = Path(os.environ["ATLAS_STATE_DIR"]) / "deploy_state.json"
    while json.loads(state.read_text())["active_port"] != int(os.environ["ATLAS_PORT"]):
        time.sleep(0.0002)
    time.sleep(milliseconds / 1000)
    os._exit(3)


def drain() -> None:
    for server in SERVERS:
        server.shutdown()
    left = {"requests": SEEN["held"], "websockets": 0, "event_streams": 0, "idle": 0}
    notify("X_ATLAS_ACCEPTING=0", f"X_ATLAS_LEFT={json.dumps(left)}")
    while SEEN["held"]:
        time.sleep(0.02)
    os._exit(0)


def main() -> None:
    path = Path("behaviour.json")
    BEHAVIOUR.update(json.loads(path.read_text()) if path.exists() else {})
    if "say" in BEHAVIOUR:
        sys.stdout.write(f"{BEHAVIOUR['say']}\n")
        sys.stdout.flush()
    if "exit" in BEHAVIOUR:
        sys.exit(BEHAVIOUR["exit"])
    if BEHAVIOUR.get("ignore_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for descriptor in range(3, 3 + int(os.environ["LISTEN_FDS"])):
        server = Server(socket.socket(fileno=descriptor))
        SERVERS.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
    if "exit_when_active" in BEHAVIOUR:
        after = BEHAVIOUR["exit_when_active"]
        threading.Thread(target=exit_when_active, args=(after,), daemon=True).start()
    if BEHAVIOUR.get("kit"):
        once = threading.Thread(target=drain)
        signal.signal(signal.SIGTERM, lambda *_: None if once.ident else once.start())
        notify("READY=1", "X_ATLAS_KIT=1")
        once.join() if once.ident else threading.Event().wait()


if __name__ == "__main__":
    main()
