"""The contract of worker and supervisor: the only code that both sides import.

Standard library only, as it is installed into applications' own environments. `ring` is the layout
of the files that canary events are written to.
"""

from __future__ import annotations

import math

# Environment of an instance.
ENV_SLOT = "ATLAS_SLOT"
ENV_PORT = "ATLAS_PORT"
ENV_INSTANCE = "ATLAS_INSTANCE"
ENV_VERSION = "ATLAS_VERSION"
ENV_CHANNEL = "ATLAS_CHANNEL"
ENV_STATE_DIR = "ATLAS_STATE_DIR"
ENV_SUPERVISOR_SOCKET = "ATLAS_SUPERVISOR_SOCKET"
ENV_DRAIN_TIMEOUT = "ATLAS_DRAIN_TIMEOUT_SECONDS"
ENV_IDLE_GRACE = "ATLAS_IDLE_GRACE_SECONDS"  # how long a drain leaves idle connections open
ENV_TESTERS = "ATLAS_TRAFFIC_TESTERS"  # networks, separated by commas
ENV_ADDRESS_KEY = "ATLAS_ADDRESS_KEY"  # where addresses are drawn: what they are hashed with, hex
ENV_STAGING_URL = "ATLAS_STAGING_URL"  # smoke commands only
ENV_NOTIFY_SOCKET = "NOTIFY_SOCKET"

# Socket activation, as systemd defines it.
LISTEN_FDS_START = 3
LISTEN_FDNAMES = ("public", "private")

# Notifications (sd_notify lines). The kit adds the second to its READY=1, which says that this
# worker closes its keep-alive connections when it is no longer active.
NOTIFY_READY = "READY=1"
NOTIFY_KIT = "X_ATLAS_KIT=1"
NOTIFY_STOPPING = "STOPPING=1"
# During its drain a worker with the kit reports that it accepts no more connections (so the next
# instance may be launched in its slot), what is left, and at its hard deadline what it cut off.
# The last two are followed by a JSON object with the four counts of LEFT_KINDS.
NOTIFY_NOT_ACCEPTING = "X_ATLAS_ACCEPTING=0"
NOTIFY_LEFT = "X_ATLAS_LEFT="
NOTIFY_CUT = "X_ATLAS_CUT="
LEFT_KINDS = ("requests", "websockets", "event_streams", "idle")

# Files in STATE_DIR.
STATE_FILE = "deploy_state.json"
STATE_SCHEMA_VERSION = 1  # of the state file; a worker does not read one that is newer
STATE_BYTES_LIMIT = 1024 * 1024  # the daemon writes no larger state file, and a worker reads none
FEATURES_LIMIT = 1000  # of CANARY_FEATURES, with names of up to 64 characters: a quarter of that
FEATURE_NAME_LIMIT = 64
SUPERVISOR_SOCKET = "supervisor.sock"
RINGS_DIRECTORY = "canary"  # made by the daemon, mode 0700; one ring for each process of a worker
BUNDLED_WORKER_DIRECTORY = "worker"  # what the bundled worker keeps

# HTTP headers. A request with PROBE_HEADER is the supervisor's own: the kit answers it with
# INSTANCE_HEADER, so that an answer from the wrong instance is noticed. SMOKE_HEADER marks a smoke
# test, whose writes must be undone.
PROBE_HEADER = "X-Atlas-Probe"
INSTANCE_HEADER = "X-Atlas-Instance"
SMOKE_HEADER = "X-Atlas-Smoke"

# Latencies are counted in buckets that grow by this ratio, from a microsecond on, so a value is
# accurate within 1 %. Everything slower than 60 s, which is when a call times out, counts as that.
LATENCY_RATIO = 1.02
LATENCY_BUCKETS = 2048  # those above 60 s are in counts of earlier versions
_FIRST_MILLISECONDS = 0.001
_BUCKETS_PER_E = 1 / math.log(LATENCY_RATIO)
_OFFSET = 1 - math.log(_FIRST_MILLISECONDS) * _BUCKETS_PER_E
_LAST_MILLISECONDS = 60_000.0
SLOWEST_BUCKET = int(math.log(_LAST_MILLISECONDS) * _BUCKETS_PER_E + _OFFSET)


def latency_bucket(milliseconds: float) -> int:
    """Return the bucket of a latency: 0 up to a microsecond, and for negatives and NaN."""
    if not milliseconds > _FIRST_MILLISECONDS:
        return 0
    if milliseconds >= _LAST_MILLISECONDS:
        return SLOWEST_BUCKET
    return int(math.log(milliseconds) * _BUCKETS_PER_E + _OFFSET)


def bucket_milliseconds(bucket: int) -> float:
    """Return the latency that stands for a bucket: the geometric middle of its bounds."""
    if bucket <= 0:
        return _FIRST_MILLISECONDS
    return float(_FIRST_MILLISECONDS * LATENCY_RATIO ** (bucket - 0.5))
