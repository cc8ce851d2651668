"""One run of wrk, its own figures taken over exactly."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

MARK = "figures: "
# wrk hands its summary to a script; its latencies are in microseconds.
SCRIPT = f"""
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{MARK}{{"requests": %d, "us": %d, "p50": %d, "p99": %d, "errors": %d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@dataclass(frozen=True)
class Figures:
    """What one run measured; latencies in milliseconds."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int


async def wrk(
    folder: Path, url: str, *, seconds: float, connections: int, keep_alive: bool
) -> Figures:
    """Put load on `url` for some seconds. Raises `RuntimeError` where wrk itself fails."""
    script = folder / "figures.lua"
    script.write_text(SCRIPT)
    header = ("-H", "Connection: keep-alive" if keep_alive else "Connection: close")
    duration = f"{max(1, round(seconds))}s"
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{connections}", f"-d{duration}", "--timeout", "5s"),
        *(*header, "-s", str(script), url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    _, _, tail = output.decode().partition(MARK)
    if process.returncode or not tail:
        raise RuntimeError(f"wrk {url} failed: {output.decode()}")
    found = json.loads(tail.splitlines()[0])
    rate = found["requests"] / (found["us"] / 1e6)
    return Figures(rate, found["p50"] / 1000, found["p99"] / 1000, found["errors"])
