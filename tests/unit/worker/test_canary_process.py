"""Real processes: threads, forks, kills, a full ring, and a policy that changes or breaks."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlas_supervisor.canary.ring_reader import Positions, RingReader
from atlas_supervisor.model.state import SCHEMA_VERSION
from atlas_worker import canary, is_canary_enabled, record_canary_call, use_canary_version
from atlas_worker.canary.policy import BadPolicyError, Rule, key_threshold, read_policy
from atlas_worker.canary.process import process
from atlas_worker.canary.ring import make_ring
from atlas_worker.contract import STATE_BYTES_LIMIT, STATE_SCHEMA_VERSION
from atlas_worker.contract import ring as layout
from atlas_worker.contract.ring import EventKind, decode
from tests.unit.worker.canary_support import SALT, Canaries, canaries, eventually, output, program

__all__ = ["canaries"]


# Threads.


def use_one_way_or_another(number: int) -> None:
    if number % 3 == 0:
        record_canary_call("vision", use_canary_version("vision"), True, 1.0)
    elif number % 3 == 1:
        with canary.call("vision"):
            pass
    elif number % 30 == 2:
        with canary.call("vision", key="me"):
            pass


def test_sixteen_threads_lose_no_event_over_many_laps(canaries: Canaries) -> None:
    canaries.decide({"vision": 0.5})
    each, threads = 8000, 16
    found: Counter[EventKind] = Counter()
    keyed = 0

    def hammer() -> None:
        for number in range(each):
            use_one_way_or_another(number)

    def drain() -> None:
        nonlocal keyed
        for _, batch in canaries.drain():
            for word, count in batch.events.items():
                found[EventKind(decode(word).kind)] += count
            keyed += len(batch.keyed)

    running = [threading.Thread(target=hammer) for _ in range(threads)]
    for thread in running:
        thread.start()
    while any(thread.is_alive() for thread in running):
        drain()
        running[0].join(0.01)
    drain()

    assert found[EventKind.ASKED] == found[EventKind.REPORTED]
    assert found[EventKind.STARTED] == found[EventKind.ENDED]
    calls = threads * (len(range(0, each, 3)) + len(range(1, each, 3)))
    # The threads may have starved the reader, so that the ring was full.
    assert found[EventKind.ASKED] + found[EventKind.STARTED] + canaries.dropped() == calls
    assert keyed == 2 * threads * len(range(2, each, 30))


# A full ring.


def test_a_full_ring_drops_whole_calls_and_recovers_when_it_is_read(canaries: Canaries) -> None:
    canaries.decide({"vision": 1})
    open_calls = [canary.call("vision") for _ in range(1000)]
    for call in open_calls:
        call.__enter__()
    for _ in range(layout.MAIN_WORDS):
        record_canary_call("vision", True, True, 1.0)
    with canary.call("vision"):
        pass
    use_canary_version("vision")
    record_canary_call("vision", True, True, 1.0)  # its decision was dropped, so it is dropped too

    for call in open_calls:
        call.__exit__(None, None, None)

    room = layout.MAIN_WORDS // 4 * 3
    assert canaries.dropped() == 1000 + layout.MAIN_WORDS - room + 2
    assert canaries.kinds() == {
        EventKind.STARTED: 1000,
        EventKind.RECORDED: room - 1000,
        EventKind.ENDED: 1000,
    }
    for _ in range(3):
        with canary.call("vision"):
            pass
    assert canaries.kinds() == {EventKind.STARTED: 3, EventKind.ENDED: 3}


def test_a_full_keyed_ring_drops_and_recovers(canaries: Canaries) -> None:
    canaries.decide({"vision": 1})
    room = layout.KEYED_ENTRIES // 4 * 3
    for number in range(room + 5):
        use_canary_version("vision", key=str(number))

    [(_, batch)] = canaries.drain()

    assert len({key for _, key, _ in batch.keyed}) == room
    assert batch.dropped == 5
    use_canary_version("vision", key="me")
    assert len(canaries.drain()[0][1].keyed) == 1


def test_recording_in_a_signal_handler_is_safe(canaries: Canaries) -> None:
    canaries.decide({"vision": 1})
    use_canary_version("vision")  # in a handler during the first use it is stable
    handled = 0

    def handle(*_: object) -> None:
        nonlocal handled
        handled += 1
        use_canary_version("vision")

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    seen, asked = 0, 1
    try:
        while handled < 100:
            use_canary_version("vision")
            asked += 1
            if asked % 20_000 == 0:
                seen += canaries.kinds()[EventKind.ASKED]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert seen + canaries.kinds()[EventKind.ASKED] + canaries.dropped() == asked + handled


# Deaths and forks.


def test_a_process_killed_during_a_call_has_written_all_its_events(canaries: Canaries) -> None:
    canaries.decide({"vision": 1})
    code = """
import sys
for _ in range(5000):
    with canary.call("vision"): pass
with canary.call("vision"):
    with canary.call("vision", key="me"):
        print("open", flush=True)
        sys.stdin.read()
"""
    with program(canaries.folder, code) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        child.kill()
        child.wait(10)

    [(path, batch)] = canaries.drain()
    kinds = {EventKind(decode(word).kind): 0 for word in batch.events}
    for word, count in batch.events.items():
        kinds[EventKind(decode(word).kind)] += count
    assert kinds == {EventKind.STARTED: 5001, EventKind.ENDED: 5000}
    assert [decode(word).kind for word, _, _ in batch.keyed] == [EventKind.STARTED]
    assert not batch.alive
    assert batch.skipped == 0
    assert path.name.startswith(f"{child.pid}-")


def test_a_forked_child_has_its_own_ring_and_none_of_the_parents_calls(
    canaries: Canaries,
) -> None:
    canaries.decide({"vision": 1})
    code = """
import os, random, time
random.seed(1)
call = canary.call("vision").__enter__()
use_canary_version("vision")
children = []
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        call.__exit__(None, None, None)
        record_canary_call("vision", True, True, 1.0)
        call = canary.call("vision").__enter__()
        call.__exit__(None, None, None)
        while is_canary_enabled(): time.sleep(0.005)
        os._exit(0)
    children.append(pid)
print("forked", flush=True)
assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
call.__exit__(None, None, None)
record_canary_call("vision", True, True, 1.0)
"""
    with program(canaries.folder, code) as child:
        eventually(lambda: len(canaries.rings) == 3)
        canaries.decide({"vision": 0}, epoch=18, latched=True)  # their helper threads see it
        assert child.wait(20) == 0

    found = {}
    for path in canaries.rings:
        ring = RingReader.open(path)
        words = ring.read(Positions()).events
        found[ring.owner.pid] = sorted(EventKind(decode(word).kind).name for word in words)
        ring.close()
    assert found.pop(child.pid) == ["ASKED", "ENDED", "REPORTED", "STARTED"]
    assert list(found.values()) == [["ENDED", "RECORDED", "STARTED"]] * 2


def test_forked_children_draw_independently(canaries: Canaries) -> None:
    canaries.decide({"vision": 0.5})
    code = """
import os
use_canary_version("vision")
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        os.write(1, bytes(48 + use_canary_version("vision") for _ in range(64)) + b"\\n")
        os._exit(0)
    os.waitpid(pid, 0)
"""
    first, second = output(canaries.folder, code).split()
    assert first != second


def test_the_helper_thread_does_not_keep_a_process_running(canaries: Canaries) -> None:
    canaries.decide({"vision": 1})
    assert output(canaries.folder, "print(use_canary_version('vision'))") == "True\n"


# The policy.


def test_a_fallback_and_its_reset_reach_the_process(canaries: Canaries) -> None:
    canaries.decide({"vision": 1})
    assert is_canary_enabled()

    canaries.decide({"vision": 0}, epoch=18, latched=True)
    eventually(lambda: not is_canary_enabled())
    assert not use_canary_version("vision")
    canaries.decide({"vision": 1}, epoch=19)
    eventually(is_canary_enabled)
    assert use_canary_version("vision")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\0" * 100,
        b"[" * 100_000,
        b'{"schema_version": 1, "canary_disabled_fallback": false}',
        b'{"schema_version": 1, "canary_disabled_fallback": false, "canary": {"enabled": true}}',
    ],
)
def test_a_broken_state_file_keeps_the_last_valid_policy(
    canaries: Canaries, content: bytes
) -> None:
    canaries.decide({"vision": 1, "web": 0})
    assert use_canary_version("vision")

    canaries.replace(content)
    process._try_refresh()
    assert use_canary_version("vision")
    canaries.state_file.unlink()
    process._try_refresh()
    assert use_canary_version("vision")
    assert is_canary_enabled()

    canaries.decide({"vision": 0, "web": 1}, epoch=18)
    eventually(lambda: use_canary_version("web"))
    assert not use_canary_version("vision")


def test_a_state_file_of_a_newer_schema_is_not_read(canaries: Canaries) -> None:
    assert STATE_SCHEMA_VERSION == SCHEMA_VERSION
    canaries.decide({"vision": 1})
    assert use_canary_version("vision")

    canaries.decide({"vision": 0}, schema=SCHEMA_VERSION + 1)
    process._try_refresh()

    assert use_canary_version("vision")


def test_a_fifo_in_place_of_the_state_file_does_not_block(canaries: Canaries) -> None:
    os.mkfifo(canaries.state_file)
    assert not use_canary_version("vision")


def test_a_share_in_a_disabled_policy_is_stable_and_not_recorded(
    canaries: Canaries,
) -> None:
    canaries.decide({"vision": 1, "web": 0}, enabled=False)

    assert not use_canary_version("vision")
    assert not use_canary_version("web")
    assert not is_canary_enabled()
    assert canaries.kinds() == {EventKind.ASKED: 1}


@pytest.mark.parametrize(
    "feature",
    [
        {"share": -0.1, "epoch": 1},
        {"share": 1.1, "epoch": 1},
        {"share": True, "epoch": 1},
        {"share": "1", "epoch": 1},
        {"share": 1},
        {"share": 1, "epoch": -1},
        {"share": 1, "epoch": layout.EPOCHS},
        {"share": 1, "epoch": 1.0},
        7,
    ],
)
def test_an_incomplete_policy_is_refused(feature: Any) -> None:
    import json

    document = {
        "schema_version": 1,
        "canary_disabled_fallback": False,
        "canary": {"enabled": True, "salt": SALT, "features": {"vision": feature}},
    }
    with pytest.raises(BadPolicyError):
        read_policy(json.dumps(document).encode(), {})


# Keys.


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.floats(0, 1), min_size=2, max_size=6),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_key_stays_in_the_canary_as_the_share_grows(key: str, shares: list[float]) -> None:
    from contextvars import ContextVar
    from hashlib import blake2b

    digest = blake2b(f"{SALT}\0vision\0{key}".encode(), digest_size=8).digest()
    inside = []
    for share in sorted(shares):
        rule = Rule("vision", share, 1, SALT, (ContextVar("stable"), ContextVar("canary")))
        hasher = rule.hasher.copy()
        hasher.update(key.encode())
        assert hasher.digest() == digest
        inside.append(digest < rule.threshold)
        assert inside[-1] == (int.from_bytes(digest) / 2**64 < share or share == 1)
    assert inside == sorted(inside)


@given(st.floats(0, 1, exclude_max=True))
def test_the_key_threshold_is_exact(share: float) -> None:
    turn = int.from_bytes(key_threshold(share))
    assert turn == 0 or (turn - 1) / 2**64 < share
    assert turn / 2**64 >= share


def test_the_same_key_gets_the_same_answer_in_every_process(canaries: Canaries) -> None:
    canaries.decide({"vision": 0.5})
    code = "print([use_canary_version('vision', key=f'user-{n}') for n in range(50)])"
    here = [use_canary_version("vision", key=f"user-{n}") for n in range(50)]

    assert output(canaries.folder, code) == f"{here}\n"
    assert 10 < sum(here) < 40
    hashes = [[key for _, key, _ in batch.keyed] for _, batch in canaries.drain()]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) == 50


# The file.


def test_on_a_full_disk_calls_are_decided_and_not_recorded(
    canaries: Canaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    canaries.decide({"vision": 1})

    assert use_canary_version("vision")
    assert process.main.dropped == 1
    assert list((canaries.folder / "canary").iterdir()) == []


def test_no_ring_is_added_to_a_folder_with_too_many_bytes(
    canaries: Canaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = canaries.folder / "canary"
    for number in range(300):  # empty files are few bytes
        (folder / f"{number}.ring").touch()
    canaries.decide({"vision": 1})
    assert use_canary_version("vision")
    assert process._ring.has_file

    (folder / "0.ring").write_bytes(bytes(100_000))
    monkeypatch.setattr(layout, "FOLDER_BYTES_LIMIT", 100_000)
    with pytest.raises(OSError, match="unread rings"):
        make_ring(folder, (0, 0), layout.LAYOUT_VERSION)


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_a_ring_of_few_calls_is_small_and_grows_before_it_is_full(canaries: Canaries) -> None:
    canaries.decide({"vision": 1})
    use_canary_version("vision")
    [path] = canaries.rings
    for _ in range(layout.MAIN_FIRST_WORDS // 2 - 10):
        use_canary_version("vision")
    process._try_refresh()
    assert allocated(path) <= 64 * 1024

    for _ in range(20):
        use_canary_version("vision")
    eventually(lambda: allocated(path) > layout.MAIN_WORDS * layout.WORD_BYTES)
    for _ in range(layout.KEYED_FIRST_ENTRIES // 2 + 1):
        use_canary_version("vision", key="me")
    eventually(lambda: allocated(path) >= layout.RING_BYTES)
    assert canaries.dropped() == 0


def test_a_burst_that_outruns_the_helper_thread_loses_no_call(canaries: Canaries) -> None:
    canaries.decide({"vision": 1})
    use_canary_version("vision")
    with process._lock:  # which stops the helper thread
        for number in range(2 * layout.MAIN_FIRST_WORDS):
            use_canary_version("vision")
            if number % 4 == 0:
                use_canary_version("vision", key="me")

    assert canaries.dropped() == 0
    [(_, batch)] = canaries.drain()
    assert batch.events.total() == 2 * layout.MAIN_FIRST_WORDS + 1
    assert len(batch.keyed) == layout.MAIN_FIRST_WORDS // 2


def test_on_a_disk_that_fills_up_a_ring_keeps_its_size_and_drops_are_counted(
    canaries: Canaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    canaries.decide({"vision": 1})
    use_canary_version("vision")
    tried = 0

    def full(*_: int) -> None:
        nonlocal tried
        tried += 1
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with process._lock:
        for _ in range(layout.MAIN_FIRST_WORDS + 100):
            use_canary_version("vision")
        assert tried == 1  # not for each call
    assert canaries.dropped() == 101
    assert canaries.kinds() == {EventKind.ASKED: layout.MAIN_FIRST_WORDS}

    monkeypatch.undo()
    eventually(lambda: process.main._blocks == layout.MAIN_WORDS)
    use_canary_version("vision")
    assert canaries.kinds() == {EventKind.ASKED: 1}


def test_a_process_killed_early_has_reserved_little(canaries: Canaries) -> None:
    canaries.decide({"vision": 1})
    output(canaries.folder, "for _ in range(5): use_canary_version('vision')")

    [path] = canaries.rings
    ring = RingReader.open(path)
    assert not ring.alive()
    assert ring._cells().reserved <= layout.MAIN_FIRST_WORDS // 2
    assert ring._cells().keyed_reserved == 0
    ring.close()
    assert canaries.kinds() == {EventKind.ASKED: 5}


def test_for_an_earlier_daemon_the_first_layout_is_written(canaries: Canaries) -> None:
    from hashlib import blake2b

    canaries.decide({"vision": 1}, ring_layout=layout.FIRST_LAYOUT)
    for _ in range(2):
        with canary.call("vision", key="me"):
            pass
    use_canary_version("vision", key="me")
    record_canary_call("vision", True, True, 1.0)

    [path] = canaries.rings
    content = path.read_bytes()
    assert layout.unpack_header(content)[1] == layout.FIRST_LAYOUT
    words = memoryview(content)[layout.KEYED_OFFSET :].cast("Q")
    digest = blake2b(f"{SALT}\0vision\0me".encode(), digest_size=8).digest()
    assert list(words[1:12:2]) == [int.from_bytes(digest) & layout.LAP - 1] * 6
    [(_, batch)] = canaries.drain()
    assert [serial for _, _, serial in batch.keyed] == [0] * 6


def test_a_daemon_that_reads_newer_layouts_gets_the_newest_known(canaries: Canaries) -> None:
    canaries.decide({"vision": 1}, ring_layout=layout.LAYOUT_VERSION + 5)
    use_canary_version("vision", key="me")
    [(_, batch)] = canaries.drain()
    assert [serial > 0 for _, _, serial in batch.keyed] == [True]


# Processes without a ring.


def refused_calls(folder: Path) -> int:
    return int.from_bytes((folder / "canary" / layout.REFUSED_CALLS_FILE).read_bytes(), "little")


REFUSED = """
from atlas_worker.contract import ring
ring.FOLDER_BYTES_LIMIT = -1
import os, sys
for number in range(5):
    with canary.call("vision", key=str(number) if number % 2 else None):
        pass
"""


def test_calls_of_processes_that_get_no_ring_are_counted_where_they_survive(
    canaries: Canaries,
) -> None:
    canaries.decide({"vision": 1})
    (canaries.folder / "canary" / layout.REFUSED_CALLS_FILE).write_bytes(bytes(8))
    for _ in range(2):
        output(canaries.folder, REFUSED)
    assert refused_calls(canaries.folder) == 10

    with program(canaries.folder, REFUSED + "sys.stdin.read()") as child:  # the helper thread
        eventually(lambda: refused_calls(canaries.folder) == 15)
        child.kill()


def test_a_count_that_another_process_holds_is_written_later(canaries: Canaries) -> None:
    import fcntl

    canaries.decide({"vision": 1})
    counts = canaries.folder / "canary" / layout.REFUSED_CALLS_FILE
    counts.write_bytes(bytes(8))
    with counts.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with program(
            canaries.folder, REFUSED + "print('done', flush=True)\nsys.stdin.read()"
        ) as it:
            assert it.stdout is not None
            assert it.stdout.readline() == "done\n"
            assert refused_calls(canaries.folder) == 0
            fcntl.flock(file, fcntl.LOCK_UN)
            eventually(lambda: refused_calls(canaries.folder) == 5)


def test_calls_counted_as_refused_are_not_counted_again_in_a_ring(
    canaries: Canaries, monkeypatch: pytest.MonkeyPatch
) -> None:
    canaries.decide({"vision": 1})
    (canaries.folder / "canary" / layout.REFUSED_CALLS_FILE).write_bytes(bytes(8))
    with monkeypatch.context() as patch:
        patch.setattr(layout, "FOLDER_BYTES_LIMIT", -1)
        for _ in range(3):
            use_canary_version("vision")
        eventually(lambda: refused_calls(canaries.folder) == 3)
    eventually(lambda: canaries.rings)

    assert canaries.dropped() + refused_calls(canaries.folder) == 3


# What is logged.


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "atlas_worker.canary"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b" " * (STATE_BYTES_LIMIT + 1), "more than 1048576 bytes"),
        (b"{", "no policy"),
        (b'{"schema_version": 99, "canary": {}}', "a newer supervisor"),
    ],
    ids=["too large", "broken", "newer"],
)
def test_a_policy_that_can_not_be_read_is_logged_once(
    canaries: Canaries, caplog: pytest.LogCaptureFixture, content: bytes, words: str
) -> None:
    canaries.replace(content)
    for _ in range(3):
        assert not use_canary_version("vision")
        process._try_refresh()
        process._log_problems()
    [message] = logged(caplog)
    assert words in message

    canaries.decide({"vision": 1})
    eventually(lambda: use_canary_version("vision"))
    canaries.replace(content)
    eventually(lambda: len(logged(caplog)) == 2)  # it is a new problem
    assert use_canary_version("vision")


def test_a_ring_that_can_not_be_created_is_logged_once(
    canaries: Canaries, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "FOLDER_BYTES_LIMIT", -1)
    canaries.decide({"vision": 1})
    use_canary_version("vision")
    process._try_refresh()
    process._log_problems()
    [message] = logged(caplog)
    assert "not recorded" in message


@pytest.mark.parametrize("left", ["nothing", "a folder", "a state file without canaries"])
def test_without_a_supervisor_nothing_is_logged(
    canaries: Canaries, caplog: pytest.LogCaptureFixture, left: str
) -> None:
    if left == "nothing":
        (canaries.folder / "canary").rmdir()
    if left.startswith("a state"):
        canaries.replace(b'{"schema_version": 1, "canary": null}')
    use_canary_version("vision")
    process._try_refresh()
    process._log_problems()
    assert logged(caplog) == []


def test_a_log_handler_may_use_canaries_and_raise(canaries: Canaries) -> None:
    import logging

    used: list[bool] = []

    class Handler(logging.Handler):
        def emit(self, _record: logging.LogRecord) -> None:
            thread = threading.Thread(target=lambda: used.append(use_canary_version("vision")))
            thread.start()
            thread.join(10)
            raise RuntimeError("a handler's own")

    handler = Handler()
    logging.getLogger("atlas_worker.canary").addHandler(handler)
    try:
        canaries.replace(b"{")
        assert not use_canary_version("vision")
    finally:
        logging.getLogger("atlas_worker.canary").removeHandler(handler)
    assert used == [False]
