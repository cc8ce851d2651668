"""A worker that behaves as `behaviour.json` in its folder says: the releases that go wrong.

Standard library only and by socket activation (or with `--port N` on a port that it binds), so it
is also the smallest foreign worker. Keys:
`exit` (at start, with this status), `say` (a line to print first), `health` (status to answer),
`health_delay` (seconds), `ignore_sigterm`, `die_on` (a path that ends the process without an
answer), `die_after_health` (so many health answers, then the process ends itself),
`stop_after_health` (likewise, but it only stops answering), `exit_when_active` (so many
milliseconds after the state file names its slot as the active one), `exit_with` (once this file is
there), `health_body` (what it tells there: text as it is, else JSON), `leak` (so many MiB are kept
with each other answer). `/slow` takes its time, and every other answer tells how often its health
was asked for. While a file `hang` is in its folder, its health is not answered. It knows nothing of
SIGTERM, so that cuts off what is in progress.

With `alone` a second process serves beside it, or in place of it if that is `instead`: forked
twice, in a session of its own, with another title and no environment. The file `alone` has its pid.

With `kit` it plays a worker with the kit: at SIGTERM it accepts nothing more, says so, and ends
once `/held` has been answered, which it is when the file `let_go` is in the worker's folder. The
file `held` says that one has begun.
"""

from __future__ import annotations

import _json
import _signal  # type: ignore[import-not-found]
import _socket
import _thread
import os
import select
import sys
import time

# Hundreds of these start in one run of the suite. So `python -S` runs it, and it imports what is
# below json, signal, socket and threading: those take longer than all the rest of its start.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BEHAVIOUR: dict[str, Any] = {}
SEEN = {"health": 0, "held": 0}
LEAKED: list[bytes] = []
SERVING: list[_thread.LockType] = []
"""A lock for each listener, held while it is served."""
STOPPED, STOP = os.pipe()
WOKEN, WAKE = os.pipe()


class Json:
    """What the scanner of JSON wants to know: how the standard library reads it."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_int, parse_float, parse_constant = int, float, float


def read_json(path: str) -> Any:
    with open(path) as file:  # noqa: PTH123  # pathlib is not imported, see above
        scan = _json.make_scanner(Json)  # type: ignore[arg-type]  # anything with these attributes
        return scan(file.read().strip(), 0)[0]


def as_json(value: Any) -> str:
    quoted = _json.encode_basestring_ascii
    encode = _json.make_encoder(None, repr, quoted, None, ": ", ", ", False, False, True)
    return "".join(encode(value, 0))


def serve(listener: _socket.socket, serving: _thread.LockType) -> None:
    """Accept until STOP is closed; each connection is answered in a thread of its own."""
    poll = select.poll()
    poll.register(STOPPED)
    poll.register(listener, select.POLLIN)
    while all(ready != STOPPED for ready, _ in poll.poll()):
        try:
            descriptor, _ = listener._accept()  # type: ignore[attr-defined]  # no other name
        except BlockingIOError:  # another process on this listener was first
            continue
        _thread.start_new_thread(converse, (_socket.socket(fileno=descriptor),))
    serving.release()


def converse(connection: _socket.socket) -> None:
    """Read one request and answer it: every answer ends its connection."""
    try:
        head = b""
        while b"\r\n\r\n" not in head:
            piece = connection.recv(65536)
            if not piece:
                return
            head += piece
        reply(connection, head.split(b" ", 2)[1].decode("latin-1"))
        connection.shutdown(_socket.SHUT_WR)
    except OSError:  # the client has gone
        return
    finally:
        connection.close()


def reply(connection: _socket.socket, path: str) -> None:
    if path == BEHAVIOUR.get("die_on"):
        os._exit(9)
    if path.startswith("/health"):
        reply_health(connection)
        return
    told = {"version": os.environ["ATLAS_VERSION"]}
    if path == "/held":
        SEEN["held"] += 1
        os.close(os.open("held", os.O_CREAT | os.O_WRONLY))
        while not os.path.exists("let_go"):  # noqa: PTH110 # see above
            time.sleep(0.02)
        send(connection, 200, told)
        SEEN["held"] -= 1
        return
    if "leak" in BEHAVIOUR:
        LEAKED.append(b"x" * (BEHAVIOUR["leak"] << 20))
    if path == "/slow":
        time.sleep(1.5)
    send(connection, 200, {**told, "pid": os.getpid(), "health_asked": SEEN["health"]})


def reply_health(connection: _socket.socket) -> None:
    SEEN["health"] += 1
    time.sleep(BEHAVIOUR.get("health_delay", 0))
    if SEEN["health"] > BEHAVIOUR.get("stop_after_health", 1 << 30):
        time.sleep(3600)
    while os.path.exists("hang"):  # noqa: PTH110 # see above
        time.sleep(0.02)
    shown = BEHAVIOUR.get("health_body", {"status": "whatever"})
    send(connection, BEHAVIOUR.get("health", 200), shown)
    if SEEN["health"] >= BEHAVIOUR.get("die_after_health", 1 << 30):
        os._exit(7)


def send(connection: _socket.socket, status: int, body: Any) -> None:
    data = (body if isinstance(body, str) else as_json(body)).encode()
    head = (
        f"HTTP/1.1 {status} Scripted\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    connection.sendall(head.encode() + data)


def notify(*lines: str) -> None:
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    sock.sendto("\n".join(lines).encode(), "\0" + os.environ["NOTIFY_SOCKET"][1:])
    sock.close()


def exit_when_active(milliseconds: float) -> None:
    state = f"{os.environ['ATLAS_STATE_DIR']}/deploy_state.json"
    port = int(os.environ["ATLAS_PORT"])
    while True:
        if read_json(state)["active_port"] == port:
            break
        time.sleep(0.0002)
    time.sleep(milliseconds / 1000)
    os._exit(3)


def exit_with(path: str) -> None:
    while not os.path.exists(path):  # noqa: PTH110 # see above
        time.sleep(0.001)
    os._exit(3)


def watch_for_ends() -> None:
    for key, end in (("exit_when_active", exit_when_active), ("exit_with", exit_with)):
        if key in BEHAVIOUR:
            _thread.start_new_thread(end, (BEHAVIOUR[key],))


def drain() -> None:
    os.close(STOP)
    for serving in SERVING:
        serving.acquire()
    left = {"requests": SEEN["held"], "websockets": 0, "event_streams": 0, "idle": 0}
    notify("X_ATLAS_ACCEPTING=0", f"X_ATLAS_LEFT={as_json(left)}")
    while SEEN["held"]:
        time.sleep(0.02)
    os._exit(0)


def serve_alone(*, instead: bool) -> None:
    """Start a process that says nothing of where it comes from."""
    if child := os.fork():
        os.waitpid(child, 0)  # its pid is written, before anything can be ended
        if instead:
            os._exit(0)
        return
    os.setsid()
    if grandchild := os.fork():
        with open("alone", "w") as file:  # noqa: PTH123 # see above
            file.write(str(grandchild))
        os._exit(0)
    known = [os.environ["LISTEN_FDS"], os.environ["ATLAS_VERSION"]]
    os.execve(sys.executable, ["nginx: master", "-S", __file__, "alone", *known], {})  # noqa: S606


def listeners() -> list[_socket.socket]:
    if sys.argv[1:2] == ["--port"]:
        listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", int(sys.argv[2])))
        listener.listen(128)
        return [listener]
    return [_socket.socket(fileno=3 + each) for each in range(int(os.environ["LISTEN_FDS"]))]


def main() -> None:
    if sys.argv[1:2] == ["alone"]:
        os.environ |= {"LISTEN_FDS": sys.argv[2], "ATLAS_VERSION": sys.argv[3]}
    if os.path.exists("behaviour.json"):  # noqa: PTH110 # see above
        BEHAVIOUR.update(read_json("behaviour.json"))
    if "say" in BEHAVIOUR:
        sys.stdout.write(f"{BEHAVIOUR['say']}\n")
        sys.stdout.flush()
    if "exit" in BEHAVIOUR:
        sys.exit(BEHAVIOUR["exit"])
    if "alone" in BEHAVIOUR and sys.argv[1:2] != ["alone"]:
        serve_alone(instead=BEHAVIOUR["alone"] == "instead")
    if BEHAVIOUR.get("ignore_sigterm"):
        _signal.signal(_signal.SIGTERM, _signal.SIG_IGN)
    for listener in listeners():
        SERVING.append(_thread.allocate_lock())
        SERVING[-1].acquire()
        _thread.start_new_thread(serve, (listener, SERVING[-1]))
    watch_for_ends()
    if BEHAVIOUR.get("kit"):
        once = _thread.allocate_lock()
        _signal.signal(
            _signal.SIGTERM, lambda *_: once.acquire(False) and _thread.start_new_thread(drain, ())
        )
        os.set_blocking(WAKE, False)
        _signal.set_wakeup_fd(WAKE)
        notify("READY=1", "X_ATLAS_KIT=1")
    while True:  # not `pause`: a signal that came just before it would be handled after it
        os.read(WOKEN, 64)


if __name__ == "__main__":
    main()
