"""The measuring program of `canary.py`: runs in an environment that may have the flag SDKs."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any

from atlas_supervisor.canary.ring_reader import Positions, RingReader, ring_files
from atlas_worker import canary, record_canary_call, use_canary_version
from atlas_worker.contract.ring import LAYOUT_VERSION

THREADS = (1, 4, 16)
CALLS = 8_000  # of all threads in one round; their events fit the smaller ring
POLICY = {
    "schema_version": 1,
    "canary_disabled_fallback": False,
    "canary": {
        "enabled": True,
        "salt": "5a" * 16,
        "features": {"vision": {"share": 0.2, "epoch": 17}},
        "ring_layout": LAYOUT_VERSION,
    },
}
KEY = "user-1234567"
NAMES: dict[str, Any] = {
    "canary": canary,
    "record_canary_call": record_canary_call,
    "use_canary_version": use_canary_version,
    "KEY": KEY,
    "run_in_new_context": lambda step: copy_context().run(step),
    "decide": lambda: use_canary_version("vision"),
    "nothing": lambda: None,
}
# Statements, as `timeit` takes them: no call around what is measured.
OURS = {
    "decision": 'use_canary_version("vision")',
    "decision with a key": 'use_canary_version("vision", key=KEY)',
    "record": 'record_canary_call("vision", False, True, 12.5)',
    "decision and record": (
        'record_canary_call("vision", use_canary_version("vision"), True, 12.5)'
    ),
    "canary.call, all of it": 'with canary.call("vision"): pass',
    "canary.call with a key": 'with canary.call("vision", key=KEY): pass',
    "decision in a context of its own": "run_in_new_context(decide)",
    "such a context alone": "run_in_new_context(nothing)",
}


def openfeature() -> dict[str, Any]:
    api = importlib.import_module("openfeature.api")
    memory = importlib.import_module("openfeature.provider.in_memory_provider")
    context = importlib.import_module("openfeature.evaluation_context").EvaluationContext(KEY)
    flag = memory.InMemoryFlag("on", {"on": True, "off": False})
    api.set_provider(memory.InMemoryProvider({"vision": flag}))
    return {"client": api.get_client(), "context": context}


def growthbook() -> dict[str, Any]:
    rule = {"force": True, "coverage": 0.2, "hashAttribute": "id"}
    features = {"vision": {"defaultValue": False, "rules": [rule]}}
    module = importlib.import_module("growthbook")
    return {"client": module.GrowthBook(attributes={"id": KEY}, features=features)}


def launchdarkly() -> dict[str, Any]:
    client_module = importlib.import_module("ldclient")
    data = importlib.import_module("ldclient.integrations.test_data").TestData.data_source()
    data.update(data.flag("vision").variation_for_all(True))
    config = importlib.import_module("ldclient.config").Config(
        "sdk-key", update_processor_class=data, send_events=False
    )
    client = client_module.LDClient(config=config)
    return {"client": client, "context": client_module.Context.create(KEY)}


OTHERS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "OpenFeature, in memory: decision": (
        'client.get_boolean_value("vision", False, context)',
        openfeature,
    ),
    "GrowthBook: decision with a key": ('client.is_on("vision")', growthbook),
    "LaunchDarkly, test data: decision": (
        'client.variation("vision", context, False)',
        launchdarkly,
    ),
}


def checked(name: str, statement: str, names: dict[str, Any]) -> Callable[[int], None]:
    """Return the loop if it answers as configured, so that the right path is measured."""
    answer = eval(statement, names)  # noqa: S307 - our own
    expected = (True, False) if name.startswith("GrowthBook") else (True,)
    if answer not in expected:
        raise RuntimeError(f"{name}: the flag is {answer!r}")
    return loop(statement, names)


class Reader:
    """Reads our ring between the rounds, as the daemon does four times a second."""

    def __init__(self, folder: Path) -> None:
        [path] = ring_files(folder)
        self.ring = RingReader.open(path)
        self.positions = Positions()
        self.events = 0
        self.seconds = 0.0

    def drain(self) -> None:
        began = time.thread_time()
        batch = self.ring.read(self.positions)
        self.ring.advance(batch.next)
        self.seconds += time.thread_time() - began
        self.events += batch.events.total() + len(batch.keyed)
        self.positions = batch.next


def loop(statement: str, names: dict[str, Any]) -> Callable[[int], None]:
    """Return a function that runs the statement this many times."""
    made: dict[str, Any] = dict(names)
    exec(f"def run(count):\n for _ in range(count):\n  {statement}", made)  # noqa: S102 - our own
    run: Callable[[int], None] = made["run"]
    return run


def nanoseconds(run: Callable[[int], None], threads: int) -> float:
    """Return the CPU time of one call, over all threads at once; each has a context of its own."""
    each = CALLS // threads
    spent = [0.0] * threads
    start = threading.Barrier(threads)

    def work(number: int) -> None:
        start.wait()
        began = time.thread_time()
        run(each)
        spent[number] = time.thread_time() - began

    running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return sum(spent) / (each * threads) * 1e9


def resident_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def memory(reader: Reader, calls: int) -> dict[str, int]:
    before = 0
    run = loop(OURS["canary.call, all of it"], NAMES)
    for done in range(0, calls + 40_000, 40_000):
        if done == 40_000:
            before = resident_kib()  # once everything was used
        run(40_000)
        reader.drain()
    return {
        "calls": calls,
        "before_kib": before,
        "after_kib": resident_kib(),
        "dropped": reader.ring.dropped,
    }


def main(folder: Path, rounds: int, calls: int) -> dict[str, Any]:
    (folder / "canary").mkdir(mode=0o700)
    (folder / "deploy_state.json").write_text(json.dumps(POLICY))
    os.environ["ATLAS_STATE_DIR"] = str(folder)
    use_canary_version("vision")
    reader = Reader(folder / "canary")
    loops = {name: loop(statement, NAMES) for name, statement in OURS.items()}
    for name, (statement, make) in OTHERS.items():
        try:
            loops[name] = checked(name, statement, make())
        except ImportError:
            continue
    best: dict[str, dict[int, float]] = {name: {} for name in loops}
    for _ in range(rounds):
        for name, run in loops.items():
            for threads in THREADS:
                spent = nanoseconds(run, threads)
                best[name][threads] = min(spent, best[name].get(threads, spent))
                reader.drain()
    rows = [{"name": name, "cpu_ns": found} for name, found in best.items()]
    grown = memory(reader, calls)
    return {"rows": rows, "memory": grown, "reader_ns": reader.seconds / reader.events * 1e9}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))), flush=True)
    os._exit(0)  # an SDK's own threads must not keep it
