"""The measuring program of `canary.py`: runs in an environment that may have the flag SDKs."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from supervisor.features.rings import Positions, Ring, ring_files
from worker import canary, record_canary_call, use_canary_version

THREADS = (1, 4, 16)
CALLS = 8_000  # of all threads in one round: what they tell fits the smaller ring
POLICY = {
    "schema_version": 1,
    "canary_disabled_fallback": False,
    "canary": {
        "enabled": True,
        "salt": "5a" * 16,
        "features": {"vision": {"share": 0.2, "epoch": 17}},
    },
}
KEY = "user-1234567"
Step = Callable[[], object]


def with_call() -> None:
    with canary.call("vision"):
        pass


def with_keyed_call() -> None:
    with canary.call("vision", key=KEY):
        pass


OURS: dict[str, Step] = {
    "decision": lambda: use_canary_version("vision"),
    "decision with a key": lambda: use_canary_version("vision", key=KEY),
    "record": lambda: record_canary_call("vision", False, True, 12.5),
    "decision and record": lambda: record_canary_call(
        "vision", use_canary_version("vision"), True, 12.5
    ),
    "canary.call, all of it": with_call,
    "canary.call with a key": with_keyed_call,
}


def answering(step: Step, *expected: bool) -> Step:
    """Return the step if it answers as it was set up; else something else would be measured."""
    answer = step()
    if answer not in expected:
        raise RuntimeError(f"the flag is {answer!r}")
    return step


def openfeature() -> Step:
    api = importlib.import_module("openfeature.api")
    memory = importlib.import_module("openfeature.provider.in_memory_provider")
    context = importlib.import_module("openfeature.evaluation_context").EvaluationContext(KEY)
    flag = memory.InMemoryFlag("on", {"on": True, "off": False})
    api.set_provider(memory.InMemoryProvider({"vision": flag}))
    client = api.get_client()
    return answering(lambda: client.get_boolean_value("vision", False, context), True)


def growthbook() -> Step:
    rule = {"force": True, "coverage": 0.2, "hashAttribute": "id"}
    features = {"vision": {"defaultValue": False, "rules": [rule]}}
    client = importlib.import_module("growthbook").GrowthBook(
        attributes={"id": KEY}, features=features
    )
    return answering(lambda: client.is_on("vision"), True, False)


def launchdarkly() -> Step:
    client_module = importlib.import_module("ldclient")
    data = importlib.import_module("ldclient.integrations.test_data").TestData.data_source()
    data.update(data.flag("vision").variation_for_all(True))
    config = importlib.import_module("ldclient.config").Config(
        "sdk-key", update_processor_class=data, send_events=False
    )
    client = client_module.LDClient(config=config)
    context = client_module.Context.create(KEY)
    return answering(lambda: client.variation("vision", context, False), True)


OTHERS: dict[str, Callable[[], Step]] = {
    "OpenFeature, in memory: decision": openfeature,
    "GrowthBook: decision with a key": growthbook,
    "LaunchDarkly, test data: decision": launchdarkly,
}


class Reader:
    """Reads our ring between the rounds, as the daemon does four times a second."""

    def __init__(self, folder: Path) -> None:
        [path] = ring_files(folder)
        self.ring = Ring.open(path)
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


def nanoseconds(step: Step, threads: int) -> float:
    """Return the CPU time of one call, over all threads at once."""
    each = CALLS // threads
    spent = [0.0] * threads
    start = threading.Barrier(threads)

    def work(number: int) -> None:
        start.wait()
        began = time.thread_time()
        for _ in range(each):
            step()
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
    for done in range(0, calls + 40_000, 40_000):
        if done == 40_000:
            before = resident_kib()  # once everything was used
        for _ in range(40_000):
            with_call()
        reader.drain()
    return {
        "calls": calls,
        "before_kib": before,
        "after_kib": resident_kib(),
        "dropped": reader.ring.dropped + reader.ring.keyed_dropped,
    }


def main(folder: Path, rounds: int, calls: int) -> dict[str, Any]:
    (folder / "canary").mkdir(mode=0o700)
    (folder / "deploy_state.json").write_text(json.dumps(POLICY))
    os.environ["ATLAS_STATE_DIR"] = str(folder)
    use_canary_version("vision")
    reader = Reader(folder / "canary")
    steps = dict(OURS)
    for name, make in OTHERS.items():
        try:
            steps[name] = make()
        except ImportError:
            continue
    best: dict[str, dict[int, float]] = {name: {} for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            for threads in THREADS:
                spent = nanoseconds(step, threads)
                best[name][threads] = min(spent, best[name].get(threads, spent))
                reader.drain()
    rows = [{"name": name, "cpu_ns": found} for name, found in best.items()]
    grown = memory(reader, calls)
    return {"rows": rows, "memory": grown, "reader_ns": reader.seconds / reader.events * 1e9}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))), flush=True)
    os._exit(0)  # an SDK's own threads must not keep it
