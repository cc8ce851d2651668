"""Random framing of requests, beside h11 as a second opinion on where a request ends.

Each case has a body that looks like a request. The daemon may see one there only if h11, which is
strict, does so too: else a proxy and the daemon could disagree about what a client has sent.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import h11
import pytest
from structlog.testing import capture_logs

from atlas_supervisor.model.deploy import DeployRecord
from tests.harness import FUZZ_SECONDS, fuzzed
from tests.unit.supervisor.api.support import MemoryControl, Server, read_all, running

CASES = 240
AT_ONCE = 60
SECONDS = 0.5  # that the daemon waits for what a case leaves out
STATUSES = {200, 400, 401, 403, 404, 405, 408, 413, 415, 417, 421}
ENDS = ("\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "\r\r\n")
SEPARATORS = (": ", ": ", ": ", ":", " : ", ":\t", ":\x0b", ":\x00")
SIZES = ("0", "+0", "-1", "0x10", "1_0", "00", " 4", "4 ", "4,4", "", "99999999999999999999", "٤")
CODINGS = (
    *("chunked", "Chunked", "xchunked", "identity", "chunked, identity", "identity, chunked"),
    *("chunked\x0b", "\x00chunked", "gzip, chunked", "chunked;q=1", '"chunked"', ""),
)
CHUNK_ENDS = (
    "0\r\n\r\n",
    "0\r\n\r\n",
    "0;x=y\r\n\r\n",
    "0\r\nX: y\r\n\r\n",
    "00\r\n\r\n",
    "0\n\n",
    "-0\r\n\r\n",
)
ANSWER = re.compile(rb"HTTP/\d\.\d (\d{3}) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")


@dataclass
class Looked(MemoryControl):
    """Records which deploys were asked for."""

    asked_for: set[str] = field(default_factory=set)

    async def find(self, deploy_id: str) -> DeployRecord | None:
        self.asked_for.add(deploy_id)
        return None


def body_with_request(name: str, authority: str) -> str:
    return f"GET /deploy/hidden-{name} HTTP/1.1\r\nHost: {authority}\r\n\r\n"


def framed(random: Random, body: str) -> tuple[list[str], str]:
    """Return fields that frame a body, well or badly, and the body as it is sent."""
    size = len(body.encode())
    chunk = f"{size:x}\r\n{body}\r\n"
    lengths = (f"{size}", f"{size}", f"{size - 1}", f"{size + 1}", random.choice(SIZES))
    fields: list[str] = []
    sent = body
    if random.random() < 0.7:
        fields.append(f"Content-Length{random.choice(SEPARATORS)}{random.choice(lengths)}")
    if random.random() < 0.5:
        coding = random.choice(CODINGS)
        fields.append(f"Transfer-Encoding{random.choice(SEPARATORS)}{coding}")
        sent = chunk + random.choice(CHUNK_ENDS)
        if random.random() < 0.3:
            bad = random.choice((f"{size + 1:x}", f"0x{size:x}", f"+{size:x}", f"{size:x} ", ""))
            sent = sent.replace(f"{size:x}", bad, 1)
    if random.random() < 0.2:
        fields.append(random.choice((*fields, "Content-Length: 0", "Transfer-Encoding: chunked")))
    random.shuffle(fields)
    return fields, sent


def request(random: Random, name: str, authority: str) -> str:
    """Return a request that hides another one in its body."""
    fields, body = framed(random, body_with_request(name, authority))
    method = random.choice(("GET", "GET", "POST", "PUT", "HEAD", "OPTIONS", "get", "G\x00T"))
    version = random.choice(("1.1", "1.1", "1.1", "1.1", "1.0", "0.9", "2.0", "1.10"))
    folded = [" folded", "\tfolded"] if random.random() < 0.05 else []
    lines = [f"{method} /deploy/open-{name} HTTP/{version}", f"Host: {authority}", *fields, *folded]
    end = random.choice(ENDS)
    head = "".join(line + (end if random.random() < 0.3 else "\r\n") for line in lines)
    return f"{head}\r\n{body}"


def mutated(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((0, 0, 1, 1, 3))):
        place = random.randrange(len(changed))
        if random.random() < 0.5:
            changed[place] = random.choice(b"\x00\t\n\r :,;0x\xff")
        elif random.random() < 0.5:
            del changed[place : place + random.randrange(1, 4)]
        else:
            changed[place:place] = bytes(random.choice(b"\r\n :,;\x000") for _ in range(2))
    return bytes(changed)


def seen_by_h11(data: bytes) -> set[str]:
    """Return the deploys that are asked for, as h11 understands it."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    found: set[str] = set()
    try:
        while True:
            event = connection.next_event()
            if event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
                return found
            if isinstance(event, h11.Request):
                found.add(event.target.decode("latin-1").rpartition("/")[2])
            if isinstance(event, h11.EndOfMessage):
                connection.send(h11.Response(status_code=204, headers=[]))
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
    except h11.ProtocolError:
        return found


def answers(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each answer, which must be complete and in the common shape."""
    while data:
        head = ANSWER.match(data)
        assert head, data
        fields = dict(line.split(b": ", 1) for line in head[2].splitlines())
        length = int(fields[b"Content-Length"])
        body = data[head.end() : head.end() + length]
        assert len(body) == length, data
        yield int(head[1]), body
        data = data[head.end() + length :]


async def one_case(server: Server, random: Random, name: str) -> bytes:
    """Send a case in some pieces, and return the bytes of all of them."""
    wire = "".join(request(random, name, server.authority) for _ in range(random.randint(1, 2)))
    data = mutated(random, wire.encode("utf-8"))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.options.port)
    try:
        left = data
        while left:
            size = random.choice((len(left), random.randrange(1, len(left) + 1)))
            writer.write(left[:size])
            left = left[size:]
            await asyncio.sleep(0)
        received = await read_all(reader)
    finally:
        writer.close()
    if b" HEAD" not in b" " + data:  # its answers have no body, so they are not parsed here
        for status, body in answers(received):
            assert status in STATUSES, (status, data)
            assert status == 200 or set(json.loads(body)["error"]) >= {"code", "message", "hint"}
    return data


@pytest.mark.timeout(30 + 2 * FUZZ_SECONDS)
async def test_no_framing_hides_a_request_from_a_strict_parser(tmp_path: Path) -> None:
    control = Looked()
    async with running(tmp_path, control, receive_seconds=SECONDS) as server:
        with capture_logs() as lines:
            for randoms in fuzzed(CASES, AT_ONCE):
                names = {str(number): random for number, random in randoms.items()}
                sent = await asyncio.gather(
                    *(one_case(server, random, name) for name, random in names.items())
                )
                for name, data in zip(names, sent, strict=True):
                    hidden = f"hidden-{name}"
                    assert hidden not in control.asked_for or hidden in seen_by_h11(data), data
                control.asked_for.clear()
        assert (await server.tcp("GET", "/livez")).status == 200
    assert control.asked == []  # without the token nothing is changed
    failures = [line for line in lines if line["log_level"] == "error"]
    assert failures == [], failures[0].get("exc_info")
