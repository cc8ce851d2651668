"""The errors that cross layers, and the catalogue of those that the API answers with.

An error that stays inside one module is defined there. A refused request is one row of the
catalogue: the code that raises it, the OpenAPI document and docs/api.md all use that row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class AtlasError(Exception):
    """Base of all errors that the daemon raises on purpose; any other exception is a bug."""


class SettingsError(AtlasError):
    """The settings are invalid. `faults` holds one line per fault, ready to print."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class StartRefusedError(AtlasError):
    """The daemon can't start here (a port is taken, another daemon runs); the text says why."""


class RefusedError(AtlasError):
    """A request is refused and changed nothing. Made from a row of the catalogue.

    `code` is stable and snake_case, `status` is the HTTP status, `hint` says what the caller can
    do. `extra` holds further top-level fields of the answer.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int,
        hint: str,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.hint = hint
        self.extra = extra or {}


@dataclass(frozen=True)
class ErrorSpec:
    """A row of the catalogue. Two rows may share a code, never a message.

    `message` and `hint` are templates (`str.format`); `example` fills them in for the documents.
    """

    code: str
    status: int
    message: str
    hint: str
    example: Mapping[str, Any] = field(default_factory=dict)
    with_record: bool = False
    """The answer is the record of a deploy, with `error` beside its fields."""

    def error(
        self, *, status: int | None = None, extra: dict[str, Any] | None = None, **values: object
    ) -> RefusedError:
        """Return the error to raise, with `values` filled into its templates."""
        return RefusedError(
            self.code,
            self.message.format(**values),
            status=status or self.status,
            hint=self.hint.format(**values),
            extra=extra,
        )

    def documented(self) -> RefusedError:
        """Return the error as the documents show it."""
        return self.error(**self.example)


_SEE_DOCS = "GET /docs shows what this request takes"
_DISK_HINT = "check whether the disk of STATE_DIR is full or read-only"
_SHOW_HINT = "atlasctl show {deploy_id} shows what every step found"
_STATUS_HINT = "atlasctl status (GET /deploy/status) shows the current state"
_ID = {"deploy_id": "20260105-093000-4f2a11"}

# Requests that can't be read.

BAD_REQUEST = ErrorSpec(
    "bad_request", 400, "this is not valid HTTP with exactly one Host header", "check your client"
)
INVALID_QUERY = ErrorSpec(
    "invalid_query", 400, "{problem}", _SEE_DOCS, {"problem": "dry: unknown field"}
)
INVALID_BODY = ErrorSpec(
    "invalid_body", 400, "{problem}", _SEE_DOCS, {"problem": "the body is not valid JSON"}
)
INVALID_HEADER = ErrorSpec(
    "invalid_header",
    400,
    "{header}: {problem}",
    _SEE_DOCS,
    {"header": "Last-Event-ID", "problem": "given twice"},
)
INVALID_IDEMPOTENCY_KEY = ErrorSpec(
    "invalid_header",
    400,
    "{header}: expected one key of 1 to 255 visible ASCII characters",
    "a UUID is a good key: a new one for each request, the same one to repeat it",
    {"header": "Idempotency-Key"},
)
TOO_SLOW = ErrorSpec(
    "too_slow", 408, "the request did not arrive completely in time", "send it again"
)
BODY_TOO_LARGE = ErrorSpec(
    "body_too_large", 413, "the body is too large", "a body may have 65536 bytes"
)
UNSUPPORTED_MEDIA_TYPE = ErrorSpec(
    "unsupported_media_type",
    415,
    "the body must be JSON in UTF-8, not compressed",
    "send Content-Type: application/json, and no Content-Encoding",
)
EXPECTATION_FAILED = ErrorSpec(
    "expectation_failed", 417, "unknown expectation", "the only one supported is 100-continue"
)
IDEMPOTENCY_KEY_REUSED = ErrorSpec(
    "idempotency_key_reused",
    422,
    "the Idempotency-Key {key!r} was used for another request before",
    "a key stands for one request (method, path, query, body and caller); use a new key",
    {"key": "3f1c"},
)
REFUSED = ErrorSpec(
    "refused",
    0,  # the status that the HTTP library chose
    "{phrase}",
    "GET /docs shows what this API offers",
    {"phrase": "any other refusal by the HTTP library"},
)

# Who may do what.

TOKEN_REQUIRED = ErrorSpec(
    "token_required",
    401,
    "this request needs the bearer token",
    "send 'Authorization: Bearer TOKEN' with the content of {file} (CONTROL_TOKEN_FILE); atlasctl "
    "does so with --token-file, and needs none on this machine",
    {"file": "control.token"},
)
TOKEN_WRONG = ErrorSpec(
    "token_wrong", 401, "the token is wrong", TOKEN_REQUIRED.hint, TOKEN_REQUIRED.example
)
NOT_PERMITTED = ErrorSpec(
    "not_permitted",
    403,
    "uid {uid} may only read, and neither audit trail nor logs",
    "run it as root or as the daemon's own user",
    {"uid": 1000},
)
VIEW_ONLY = ErrorSpec(
    "not_permitted",
    403,
    "the view token reads everything and changes nothing",
    "use the token of CONTROL_TOKEN_FILE, or atlasctl on this machine",
)
FORM_EXPIRED = ErrorSpec(
    "form_expired",
    403,
    "this form is of another session, or of a page of another site; nothing was done",
    "open the page again, and repeat it there",
)
FOREIGN_ORIGIN = ErrorSpec(
    "foreign_origin",
    403,
    "{header} names another site",
    "pages of other sites can't use this API",
    {"header": "Origin"},
)
WRONG_HOST = ErrorSpec(
    "wrong_host",
    421,
    "Host header not allowed",
    "use the host and port of CONTROL_HOST and CONTROL_PORT, or localhost",
)

# What does not exist.

NOT_FOUND = ErrorSpec("not_found", 404, "there is no such path", "GET /docs lists every path")
ASSET_NOT_FOUND = ErrorSpec(
    "not_found", 404, "there is no such file of Swagger UI", "see GET /docs"
)
METHOD_NOT_ALLOWED = ErrorSpec(
    "method_not_allowed",
    405,
    "this path does not support the method",
    "the Allow header names the methods it supports",
)
UNKNOWN_RELEASE = ErrorSpec(
    "unknown_release",
    404,
    "{problem}",
    "a release is a folder below RELEASES_DIR; without one the worker directory is deployed",
    {"problem": "there is no release '1.5.0'"},
)
RELEASES_UNREADABLE = ErrorSpec(
    "releases_unreadable",
    503,
    "{problem}",
    "RELEASES_DIR must be a folder that the daemon may read",
    {"problem": "RELEASES_DIR /srv/releases can't be read: Permission denied"},
)
DEPLOY_NOT_FOUND = ErrorSpec(
    "deploy_not_found",
    404,
    "there is no deploy with this id",
    "atlasctl history (GET /deploy/history) lists them",
)
UNKNOWN_FEATURE = ErrorSpec(
    "unknown_feature",
    404,
    "there is no feature {name!r}",
    "CANARY_FEATURES lists them: {known}",
    {"name": "speech", "known": "vision"},
)
FEATURE_KILLED = ErrorSpec(
    "feature_killed",
    409,
    "{name} is off in the whole fleet: its kill switch was set at {since} by {by}",
    "atlasctl fleet reset (POST /fleet/reset) ends all kills; until then its share can only be set "
    "to 0. On a machine that has left its fleet, atlasctl canary reset ends them",
    {"name": "vision", "since": "2026-01-05 09:30:00Z", "by": "uid:0 on web1"},
)
LOG_NOT_FOUND = ErrorSpec(
    "log_not_found",
    404,
    "there is no log of this name",
    "the logs are supervisor, blue and green",
)

NO_SUCH_ACTION = ErrorSpec(
    "not_found", 404, "the dashboard has no such action", "its forms name those that there are"
)

# Deploys that can't be done now.

DEPLOY_IN_PROGRESS = ErrorSpec(
    "deploy_in_progress",
    409,
    "deploy {deploy_id} is in progress ({phase})",
    "wait until it has ended, or abort it with atlasctl abort (POST /deploy/abort)",
    {**_ID, "phase": "health"},
)
MODE_IS_SINGLE = ErrorSpec(
    "mode_is_single",
    409,
    "deploys are disabled: the mode is single",
    "atlasctl status (GET /deploy/status) shows why; re-enable with atlasctl mode bluegreen "
    "(POST /deploy/mode)",
)
_SETTING_HINT = (
    "set DEPLOY_MODE=bluegreen in the env file, then atlasctl reload and atlasctl mode bluegreen"
)
MODE_IS_SINGLE_BY_SETTINGS = ErrorSpec(
    "mode_is_single", 409, "deploys are disabled by DEPLOY_MODE=single", _SETTING_HINT
)
SINGLE_BY_SETTINGS = ErrorSpec(
    "single_by_settings",
    409,
    "DEPLOY_MODE=single in the settings overrides the mode",
    _SETTING_HINT,
)
NOTHING_TO_SWITCH = ErrorSpec(
    "nothing_to_switch",
    409,
    "there is no deploy to switch: {state}",
    _STATUS_HINT,
    {"state": "no deploy is in progress"},
)
NOTHING_TO_SPLIT = ErrorSpec(
    "nothing_to_split",
    409,
    "no deploy may share the traffic now: {state}",
    "once it has passed its gates a deploy ramps (TRAFFIC_RAMP), or waits for its switch "
    "(AUTO_SWITCH_ON_HEALTH=false)",
    {"state": "no deploy is in progress"},
)
NOTHING_TO_RAMP = ErrorSpec(
    "nothing_to_ramp",
    409,
    "no deploy ramps now: {state}",
    "with shares in TRAFFIC_RAMP, as 0.05,0.25,1, a deploy ramps once it has passed its gates",
    {"state": "no deploy is in progress"},
)
NO_PUBLIC_PORT = ErrorSpec(
    "nothing_to_split",
    409,
    "with PUBLIC_PORT=0 there is no traffic to split: clients follow active_port",
    "set PUBLIC_PORT in the env file and restart the daemon",
)
NOTHING_TO_HOLD = ErrorSpec(
    "nothing_to_hold",
    409,
    "with PUBLIC_PORT=0 there is nothing to hold: clients connect to the workers' own ports",
    "set PUBLIC_PORT in the env file and restart the daemon",
)
ALREADY_HELD = ErrorSpec(
    "already_held",
    409,
    "new connections are held already, until {until} by {by}",
    "wait for its end, or end it with atlasctl hold --release (POST /traffic/release)",
    {"until": "2026-01-05T09:30:30+00:00", "by": "uid:0"},
)
NOTHING_TO_RELEASE = ErrorSpec(
    "nothing_to_release",
    409,
    "no such hold is in progress; it may have ended by itself",
    "atlasctl audit (GET /deploy/audit) shows when and why it ended",
)
NOTHING_TO_ABORT = ErrorSpec(
    "nothing_to_abort",
    409,
    "there is no deploy to abort: {state}",
    _STATUS_HINT,
    {"state": "no deploy is in progress"},
)
NOTHING_TO_ROLL_BACK = ErrorSpec(
    "nothing_to_roll_back",
    409,
    "there is no earlier version to go back to",
    "atlasctl deploy (POST /deploy/bluegreen) deploys another version",
)
PREVIOUS_VERSION_GONE = ErrorSpec(
    "previous_version_gone",
    409,
    "version {version} can't be launched again: {problem}",
    "with RELEASES_DIR every release keeps its own folder, so that a rollback can launch it",
    {"version": "1.3.2", "problem": "its folder has another version now"},
)
UNKNOWN_VERSION = ErrorSpec(
    "unknown_version",
    404,
    "version {version!r} is none of the last that served; there is: {known}",
    "atlasctl rollback --list (GET /deploy/rollback) shows what can be gone back to",
    {"version": "1.2", "known": "1.3.2, 1.3.1"},
)
VERSION_IS_ACTIVE = ErrorSpec(
    "version_is_active",
    409,
    "version {version!r} is active",
    UNKNOWN_VERSION.hint,
    {"version": "1.4.0"},
)
FAST_NOT_ALLOWED = ErrorSpec(
    "fast_not_allowed",
    409,
    "version {version} can't skip its gates: {why}",
    "go back to it without `fast` (--fast): then it passes smoke tests and health gate",
    {"version": "1.3.2", "why": "its worker was restarted 3 times after crashes"},
)
RELOAD_IN_PROGRESS = ErrorSpec(
    "reload_in_progress",
    409,
    "a reload is in progress already",
    "wait for it: atlasctl status (GET /deploy/status) shows when the daemon was started",
)
RAMP_NOT_POSSIBLE = ErrorSpec(
    "ramp_not_possible",
    409,
    "{problem}",
    "{hint}",
    {"problem": "vision is steady: no ramp is in progress", "hint": "start one first"},
)

# Deploys that ended in another way than was asked for.

TOO_LATE = ErrorSpec(
    "too_late",
    409,
    "the deploy can't be aborted any more: its result is {result}",
    "atlasctl rollback (POST /deploy/rollback) goes back to the previous version",
    {"result": "switched"},
    with_record=True,
)
DEPLOY_ABORTED = ErrorSpec(
    "deploy_aborted",
    409,
    "the deploy was aborted: {reason}",
    _SHOW_HINT,
    {**_ID, "reason": "aborted by uid:0"},
    with_record=True,
)
DEPLOY_WENT_OTHERWISE = ErrorSpec(
    "deploy_went_otherwise",
    409,
    "the deploy ended as {result}: {reason}",
    _SHOW_HINT,
    {**_ID, "result": "dry_run_passed", "reason": "no reason is recorded"},
    with_record=True,
)
RELEASE_DID_NOT_PASS = ErrorSpec(
    "release_did_not_pass",
    422,
    "the release {outcome}: {reason}",
    _SHOW_HINT,
    {**_ID, "outcome": "did not pass", "reason": "smoke: home answers: expected 200, got 500"},
    with_record=True,
)
SWITCH_FAILED = ErrorSpec(
    "switch_failed",
    503,
    "the switch failed, ports and mode are unchanged: {problem}",
    "fix the cause, then try again; atlasctl switch (POST /deploy/switch) retries a deploy that "
    "waits",
    {"problem": "deploy_state.json: no space left on device"},
    with_record=True,
)

# A reload.

RELOAD_REFUSED = ErrorSpec(
    "reload_refused",
    422,
    "the reload was refused and nothing has changed: {problem}",
    "correct what error.lines has, then reload again; what a reload can't change takes a restart "
    "of the daemon",
    {"problem": "PUBLIC_PORT=8795: a reload can't change it; it is 8790"},
)

# A fleet.

_FLEET_STATUS_HINT = "atlasctl fleet status (GET /fleet) shows the rollout, its hosts and the slots"
FLEET_IS_OFF = ErrorSpec(
    "fleet_is_off",
    409,
    "this machine belongs to no fleet",
    "set FLEET_ETCD_ENDPOINTS in the env file of each machine; docs/fleet.md has a tutorial",
)
INVALID_WAVES = ErrorSpec(
    "invalid_waves",
    400,
    "waves: {problem}",
    "1,10%,100% is one host, then a tenth of them, then all; in JSON [1, 0.1, 1]",
    {"problem": "wave 2 is 2 hosts, no more than wave 1 (3 hosts)"},
)
INVALID_MAX_UNAVAILABLE = ErrorSpec(
    "invalid_max_unavailable",
    400,
    "max_unavailable must be a whole number from 1 to the number of hosts, {hosts}; it is {value}",
    "1 lets one host after the other deploy or reboot",
    {"hosts": 3, "value": 4},
)
UNKNOWN_HOST = ErrorSpec(
    "unknown_host",
    404,
    "the fleet has no host {host!r}; it has: {known}",
    "atlasctl fleet status (GET /fleet) lists the hosts",
    {"host": "web9", "known": "web1, web2, web3"},
)
FLEET_IS_EMPTY = ErrorSpec(
    "fleet_is_empty",
    409,
    "the fleet has no host yet",
    "start a supervisor with FLEET_ETCD_ENDPOINTS on each machine; each joins by itself",
)
ROLLOUT_IN_PROGRESS = ErrorSpec(
    "rollout_in_progress",
    409,
    "rollout {rollout_id} of {release} is {state}",
    "wait for its end, go on with one that is paused or halted (atlasctl fleet resume, POST "
    "/fleet/rollout/resume), or end it with atlasctl fleet abort (POST /fleet/rollout/abort) or "
    "atlasctl fleet rollback (POST /fleet/rollout/rollback)",
    {"rollout_id": "20260105-093000-4f2a11", "release": "1.5.0", "state": "halted"},
)
NO_ROLLOUT = ErrorSpec(
    "no_rollout",
    409,
    "no rollout was begun yet",
    "atlasctl fleet rollout (POST /fleet/rollout) begins one",
)
ROLLOUT_NOT_POSSIBLE = ErrorSpec(
    "rollout_not_possible",
    409,
    "the rollout can't {action}: it {state}",
    _FLEET_STATUS_HINT,
    {"action": "be paused", "state": "has passed"},
)
SLOTS_ARE_HELD = ErrorSpec(
    "slots_are_held",
    409,
    "{held} slots are held ({hosts}), more than max_unavailable, {slots}",
    "wait until they are given back, or begin with a higher max_unavailable",
    {"held": 2, "hosts": "web1, web2", "slots": 1},
)
HOST_IS_PRESENT = ErrorSpec(
    "host_is_present",
    409,
    "host {host} shows signs of life, and would join again",
    "stop its supervisor, or empty its FLEET_ETCD_ENDPOINTS, and forget it then",
    {"host": "web2"},
)
HOST_HOLDS_A_SLOT = ErrorSpec(
    "host_holds_a_slot",
    409,
    "host {host} holds a slot of generation {generation}",
    "make sure that the host is gone, and break the slot first: atlasctl fleet break {host} "
    "--generation {generation} (POST /fleet/break)",
    {"host": "web2", "generation": 14},
)
SLOT_NOT_HELD = ErrorSpec(
    "slot_not_held",
    409,
    "host {host} holds no slot",
    _FLEET_STATUS_HINT,
    {"host": "web2"},
)
SLOT_HAS_CHANGED = ErrorSpec(
    "slot_has_changed",
    409,
    "host {host} holds a slot of generation {present}, not {given}",
    "the slot was given back and taken again: look at the host before you break it",
    {"host": "web2", "present": 14, "given": 9},
)
FLEET_UNAVAILABLE = ErrorSpec(
    "fleet_unavailable",
    503,
    "the fleet's engine did not answer: {problem}",
    "this machine goes on by itself; atlasctl fleet status (GET /fleet) shows whether a change was "
    "made once the engine is back",
    {"problem": "no endpoint can be reached: Connection refused"},
)
FLEET_KILL_UNAVAILABLE = ErrorSpec(
    "fleet_unavailable",
    503,
    "the kill switch was not set everywhere, the fleet's engine did not answer: {problem}",
    "on each machine that you reach: atlasctl canary set {name} 0 (PUT /deploy/canary/{name} with "
    "a percentage of 0), which needs no engine; atlasctl fleet status shows whether it was set",
    {"problem": "no endpoint can be reached: Connection refused", "name": "vision"},
)
FLEET_DOCUMENT_UNREADABLE = ErrorSpec(
    "fleet_document_unreadable",
    503,
    "nothing was changed: {problem}",
    "docs/fleet.md describes the keys; etcdctl get shows what stands there",
    {"problem": "turns/rollout can't be read: order: Field required"},
)
FLEET_IS_BUSY = ErrorSpec(
    "fleet_is_busy",
    503,
    "nothing was changed: others changed the rollout or its slots at the same time",
    "try it again",
)

# What the daemon can't do at the moment.

INTERNAL_ERROR = ErrorSpec(
    "internal_error",
    500,
    "the daemon failed to answer this request",
    "the daemon's log has the details; please report it",
)
NOT_READY = ErrorSpec(
    "not_ready",
    503,
    "no active worker takes traffic",
    "GET /deploy/status shows the slots, the worker's log shows why",
)
NOT_DURABLE = ErrorSpec(
    "not_durable",
    503,
    "{problem}: {error}",
    _DISK_HINT,
    {"problem": "the change could not be saved and was not made", "error": "disk is full"},
)
HOLD_FAILED = ErrorSpec(
    "hold_failed", 503, "nothing is held: {error}", _DISK_HINT, {"error": "disk is full"}
)
STOPPING = ErrorSpec(
    "stopping", 503, "the daemon is stopping, or is being reloaded", "try again in a few seconds"
)
RELOAD_FAILED = ErrorSpec(
    "reload_failed",
    503,
    "the daemon goes on as it was: {problem}",
    "the daemon's log has the details; traffic is not affected",
    {"problem": "the check of the new program did not end within 30 s"},
)
TOO_MANY_STREAMS = ErrorSpec(
    "too_many_streams",
    503,
    "{limit} streams are open already",
    "close some, use the token (its callers have a limit of their own), or poll GET /deploy/status",
    {"limit": 256},
)
UNAVAILABLE = ErrorSpec(
    "unavailable",
    503,
    "{problem}",
    "check whether the disk of STATE_DIR is full, read-only or locked; traffic is not affected",
    {"problem": "the database can't be read: disk I/O error"},
)

CATALOGUE = tuple(row for row in globals().copy().values() if isinstance(row, ErrorSpec))
"""Every row, in the order above."""
