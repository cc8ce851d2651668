"""The counter of requests: its cells, and what a fork, threads and a missing folder do to it."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from atlas_worker import request_counter
from atlas_worker.contract import (
    ENV_ADDRESS_KEY,
    ENV_INSTANCE,
    ENV_STATE_DIR,
    ENV_TESTERS,
    latency_bucket,
)
from atlas_worker.contract import request_file as layout
from atlas_worker.contract.addresses import address_key, key_id
from atlas_worker.request_counter import (
    CLIENT_LEFT,
    NOT_COUNTED,
    NOT_DRAWN,
    RequestCounter,
    counting,
)
from tests.unit.worker.support import counted, make_counts_folder


@pytest.fixture
def cells() -> memoryview[int]:
    return memoryview(bytearray(layout.ALL_CELLS * layout.WORD_BYTES)).cast("Q")


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENV_INSTANCE, "blue-1")
    monkeypatch.setenv(ENV_STATE_DIR, str(tmp_path / "state"))
    return make_counts_folder(tmp_path)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(101, 1), (200, 2), (304, 3), (499, 4), (500, 5), (999, 5), (42, 1), (-1, 5), (70_000, 5)],
)
def test_a_request_counts_in_the_second_of_its_beginning(
    cells: memoryview[int], status: int, outcome: int
) -> None:
    begin, end = counting(cells)

    began = begin()
    place = int(began) % layout.SECONDS * layout.RECORD_CELLS
    assert cells[place + layout.BEGUN] == 1
    assert sum(cells) == 1
    end(began, status)

    assert cells[place + outcome] == 1
    assert sum(cells[layout.LATENCIES :]) == 1
    assert sum(cells) == 3


def test_latency_is_counted_except_of_a_client_that_left(
    cells: memoryview[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(request_counter, "monotonic", lambda: now)
    begin, end = counting(cells)
    began = begin()
    now += 0.25

    end(began, CLIENT_LEFT)
    assert sum(cells[layout.LATENCIES :]) == 0
    end(began, 200)

    assert cells[layout.LATENCIES + latency_bucket(250.0)] == 1


def test_a_slow_request_ends_in_a_record_of_its_own(
    cells: memoryview[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(request_counter, "monotonic", lambda: now)
    begin, end = counting(cells)
    began = begin()
    now += layout.SLOW_SECONDS

    end(began, 200)

    assert cells[layout.SLOW_RECORD + 2] == 1


def test_an_uncounted_beginning_has_no_counted_end(cells: memoryview[int]) -> None:
    _, end = counting(cells)

    end(NOT_COUNTED, 500)

    assert sum(cells) == 0


def test_threads_lose_no_count(cells: memoryview[int]) -> None:
    begin, end = counting(cells)

    def work() -> None:
        for _ in range(20_000):
            end(begin(), 200)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)

    assert sum(cells[2 : layout.LATENCIES : layout.RECORD_CELLS]) == 80_000
    assert sum(cells) == 3 * 80_000


def test_a_forked_child_counts_in_a_file_of_its_own(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = RequestCounter()
    counter.open()
    began = counter.begin()
    pid = os.fork()
    if not pid:
        counter.reset()  # as the hook does for the module's one
        counter.end(began, 200)  # the parent's
        own = counter.begin()
        counter.end(own, 404)
        os._exit(0)
    os.waitpid(pid, 0)
    counter.end(began, 200)

    assert counted(state_dir) == {"begun": 2, "2xx": 1, "4xx": 1, "latencies": 2}
    owners = {
        layout.unpack_header(path.read_bytes()).pid
        for path in (state_dir / "canary").glob(f"*{layout.SUFFIX}")
    }
    assert owners == {os.getpid(), pid}


def test_the_first_request_of_a_connection_counts_once_more(
    cells: memoryview[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(request_counter, "monotonic", lambda: now)
    begin, end = counting(cells)
    record = layout.FIRSTS + int(now) % layout.SECONDS * layout.FIRST_CELLS
    firsts = cells[record : record + layout.FIRST_CELLS]

    began = [begin(now), begin(now - 0.9), begin(now - 0.9), begin(now - 1.1), begin()]
    assert firsts[layout.FIRST_BEGUN] == sum(firsts) == 3
    now += 0.25
    for each, status in zip(began, (200, 503, CLIENT_LEFT, 500, 500), strict=True):
        end(each, status)

    assert firsts[layout.FIRST_FAILED] == 1
    taken = layout.FIRST_LATENCIES + layout.latency_class(latency_bucket(250.0))
    assert firsts[taken] == 3
    assert sum(cells[layout.FIRSTS :]) == sum(firsts) == 7
    assert sum(cells[layout.BEGUN : layout.LATENCIES : layout.RECORD_CELLS]) == 5
    assert sum(cells[layout.CLASSES : layout.LATENCIES : layout.RECORD_CELLS]) == 3


def test_a_slow_first_request_gets_no_outcome(
    cells: memoryview[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(request_counter, "monotonic", lambda: now)
    begin, end = counting(cells)
    began = begin(now)
    now += layout.SLOW_SECONDS

    end(began, 500)

    assert sum(cells[layout.FIRSTS :]) == 1
    assert cells[layout.SLOW_RECORD + layout.CLASSES] == 1


@pytest.mark.parametrize(
    ("testers", "client", "drawn"),
    [
        ("", "10.1.2.3", True),
        ("", None, True),
        ("10.1.0.0/16,2001:db8::/32", "10.1.2.3", False),
        ("10.1.0.0/16,2001:db8::/32", "::ffff:10.1.2.3", False),
        ("10.1.0.0/16,2001:db8::/32", "2001:db8::1%eth0", False),
        ("10.1.0.0/16,2001:db8::/32", "10.2.2.3", True),
        ("10.1.0.0/16", "127.0.0.1", False),  # the relay may have carried it
        ("10.1.0.0/16", None, False),
        ("nonsense", "10.1.2.3", False),
    ],
)
def test_connections_of_testers_are_not_drawn(
    monkeypatch: pytest.MonkeyPatch, testers: str, client: str | None, drawn: bool
) -> None:
    request_counter._testers.cache_clear()
    monkeypatch.setenv(ENV_TESTERS, testers)

    since = RequestCounter().connected(client)

    assert since == pytest.approx(time.monotonic() if drawn else NOT_DRAWN, abs=5)
    request_counter._testers.cache_clear()


@pytest.mark.parametrize("supervised", [False, True])
def test_without_a_supervisor_nothing_is_counted_or_logged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    supervised: bool,
) -> None:
    monkeypatch.setenv(ENV_STATE_DIR, str(tmp_path))
    if supervised:
        monkeypatch.setenv(ENV_INSTANCE, "blue-1")
    counter = RequestCounter()

    counter.end(counter.begin(), 200)

    assert list(tmp_path.iterdir()) == []
    assert caplog.records == []


def test_a_file_that_can_not_be_created_is_logged_once(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(request_counter, "create", full)
    counter = RequestCounter()
    with caplog.at_level(logging.WARNING):
        counter.end(counter.begin(), 200)
        counter.open()

    (record,) = caplog.records
    assert "are not counted: no space left on device" in record.getMessage()
    assert counted(state_dir) == {}


# Where addresses are drawn.

SECRET = b"0123456789abcdef"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.7", "192.0.2.200", True),
        ("192.0.2.7", "192.0.3.7", False),
        ("192.0.2.7", "::ffff:192.0.2.9", True),
        ("2001:db8:1:2::7", "2001:db8:1:2ff::9", False),
        ("2001:db8:1:200::7", "2001:db8:1:2ff::9", True),
        ("fe80::1%eth0", "fe80::2", True),
    ],
)
def test_an_address_is_its_site(one: str, other: str, same: bool) -> None:
    key = address_key(one, SECRET)

    assert key
    assert (key == address_key(other, SECRET)) is same
    assert key != address_key(one, b"another secret")
    assert key < 2 ** (64 - layout.KEY_SHIFT)


@pytest.mark.parametrize("client", ["", "/run/app.sock", "a:b", "1.2.3.4.5", "127.0.0.1\0"])
def test_a_client_without_an_address_is_not_drawn(client: str) -> None:
    assert address_key(client, SECRET) == 0


def test_a_process_lists_addresses_if_they_are_drawn(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_ADDRESS_KEY, SECRET.hex())
    request_counter._secret.cache_clear()
    try:
        counter = RequestCounter()
        since = counter.connected("192.0.2.7")
        counter.end(counter.begin(since), 200)
        counter.end(counter.begin(since), 500)  # no address twice in a second
        counter.end(counter.begin(counter.connected(None)), 200)
        counter.end(counter.begin(), 200)
        (path,) = state_dir.glob("*/*.requests")
        data = path.read_bytes()
    finally:
        request_counter._secret.cache_clear()
    assert layout.layout_of(data) == layout.ADDRESS_LAYOUT
    assert layout.key_id_of(data) == key_id(SECRET)
    cells = memoryview(data)[layout.HEADER_BYTES :].cast("Q")[layout.FIRSTS :]
    entries = [each for each in cells if each]
    key = address_key("192.0.2.7", SECRET)
    assert {each >> layout.KEY_SHIFT for each in entries[1::2]} == {key}
    assert len(entries) in {2, 4}  # 4 if a second has begun meanwhile
    assert SECRET not in data
    assert counted(state_dir)["begun"] == 4
