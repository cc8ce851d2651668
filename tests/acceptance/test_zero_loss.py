"""The promise of the project: through any number of deploys, clients notice nothing.

Real daemon, real workers, real load by the strict client: exactly no request may be lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.acceptance.support import APPS, WORKERS, deploys_and_rollbacks
from tests.harness import DaemonProcess, Setting, eventually, missing, write_release
from tests.loadclient import Load, Report, Traffic, echo, echoes_token

FOREIGN_DEPLOYS = 3
# `./scripts/bench acceptance` takes all of them through 50 and 20, with busier clients; the suite
# keeps to its time.
DEPLOYS_AND_ROLLBACKS = {"bundled": (6, 3), "asgi": (4, 2), "aiohttp": (4, 2)}
THINK_SECONDS = 0.2

ONE_SHOT = (
    Traffic("one GET per connection", 4, echoes_token, keep_alive=False, think=(0.0, 0.1)),
    echo("one POST per connection", 4, body_size=2048, keep_alive=False, think=(0.0, 0.1)),
)
KEEP_ALIVE = (
    Traffic("keep-alive GET", 3, echoes_token, think=(0.0, 0.1)),
    Traffic("keep-alive GET, mostly idle", 3, echoes_token, think=(0.2, 0.5)),
)


async def deploy_under_load(daemon: DaemonProcess, mix: Sequence[Traffic], deploys: int) -> Report:
    """Deploy that many versions in a row while the load runs; every one must be switched to."""
    async with Load("127.0.0.1", daemon.public_port, mix) as load:
        for number in range(2, deploys + 2):
            write_release(daemon.worker_directory, f"v{number}")
            answer = await daemon.deploy()
            assert answer.json["result"] == "switched", answer
            assert answer.json["version"] == f"v{number}"
        last = f"v{deploys + 1}"
        await eventually(
            lambda: last in load.report.total().answered_by, what=f"an answer by {last}"
        )
        report = await load.stop()
    print(report.describe())  # noqa: T201 - what was measured stands in the test's output
    answered = set(report.total().answered_by)
    assert answered == {f"v{number}" for number in range(1, deploys + 2)}
    return report


async def deploy_foreign(folder: Path, command: str, app: str, mix: Sequence[Traffic]) -> Report:
    """Run a worker that knows nothing of the supervisor through some deploys under load."""
    settings: dict[str, Setting] = {"WORKER_COMMAND": command, "HEALTH_PROBES": 1}
    files = {app: (APPS / app).read_text()}
    async with DaemonProcess.running(folder, settings, files=files) as daemon:
        return await deploy_under_load(daemon, mix, FOREIGN_DEPLOYS)


def lost(report: Report, kinds: Sequence[Traffic]) -> list[str]:
    return [str(loss) for kind in kinds for loss in report.kinds[kind.name].losses]


@pytest.mark.timeout(240)  # about 30 s alone on two cores, more with other tests beside it
@pytest.mark.parametrize("worker", WORKERS)
async def test_deploys_and_rollbacks_lose_nothing_and_cut_no_stream(
    tmp_path: Path, worker: str
) -> None:
    deploys, rollbacks = DEPLOYS_AND_ROLLBACKS[worker]
    run = await deploys_and_rollbacks(
        tmp_path, worker, deploys=deploys, rollbacks=rollbacks, think=THINK_SECONDS
    )
    print(run.describe())  # noqa: T201 - what was measured stands in the test's output
    assert run.faults() == []
    kinds = run.report.kinds
    assert all(tally.answered > deploys for tally in kinds.values())
    assert kinds["keep-alive GET, mostly idle"].announced_closes > 0


@pytest.mark.timeout(90)
async def test_uvicorn_on_one_descriptor_loses_no_request(tmp_path: Path) -> None:
    command = "uvicorn --fd {fd} --no-access-log --lifespan off asgi_app:app"
    report = await deploy_foreign(tmp_path, command, "asgi_app.py", [*ONE_SHOT, *KEEP_ALIVE])
    # What becomes of keep-alive clients is uvicorn's own way of closing idle connections: the
    # report above shows it, docs/worker-contract.md tells it, and nothing is promised.
    assert lost(report, ONE_SHOT) == []
    assert all(report.kinds[kind.name].answered > 100 for kind in ONE_SHOT)


async def test_gunicorn_by_socket_activation_loses_no_request(tmp_path: Path) -> None:
    command = "gunicorn --workers 2 --log-level warning wsgi_app:app"
    report = await deploy_foreign(tmp_path, command, "wsgi_app.py", ONE_SHOT)
    assert lost(report, ONE_SHOT) == []


@pytest.mark.skipif(bool(missing("node")), reason="Node.js is not installed")
async def test_node_by_socket_activation_loses_no_request(tmp_path: Path) -> None:
    report = await deploy_foreign(tmp_path, "node server.js", "server.js", ONE_SHOT)
    assert lost(report, ONE_SHOT) == []


async def test_a_worker_that_binds_its_own_port_loses_no_request_on_the_relay(
    tmp_path: Path,
) -> None:
    command = "uvicorn --port {port} --no-access-log --lifespan off asgi_app:app"
    report = await deploy_foreign(tmp_path, command, "asgi_app.py", ONE_SHOT)
    assert lost(report, ONE_SHOT) == []
