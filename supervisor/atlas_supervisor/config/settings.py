"""The settings themselves: every key of `atlas.env`, its type and its default, in its order."""

from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from ipaddress import IPv4Address
from pathlib import Path
from signal import Signals
from socket import gethostname
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from atlas_supervisor.config.fields import (
    AgeOrZero,
    Calls,
    Command,
    Count,
    CountOrZero,
    Days,
    Endpoints,
    Features,
    FileOrNone,
    FileToBe,
    FileToBeOrNone,
    FleetHost,
    FleetName,
    FolderToBe,
    Holdback,
    Host,
    LatencyMargin,
    Lower,
    MebibytesOrZero,
    Networks,
    OptionalText,
    OptionalUrl,
    PlaceOrNone,
    Port,
    PortOrOff,
    Probability,
    Ramp,
    ReleaseFolder,
    ReleaseFolderOrNone,
    Seconds,
    SecondsOrZero,
    Share,
    StopSignal,
    Switch,
    Text,
    WholeRamp,
)
from atlas_supervisor.config.http_fields import HttpHeaders, HttpHost, HttpPath, HttpPathOrNone
from atlas_supervisor.model.deploy import AfterFailure, Mode
from atlas_supervisor.model.slot import SlotName
from atlas_supervisor.model.socket_passing import SocketPassing
from atlas_supervisor.system.account import Account

DEFAULT_TOKEN_FILE = "control.token"  # noqa: S105 - the name of a file
DEFAULT_SMOKE_FILE = Path("smoke.toml")


class Sticky(StrEnum):
    """What a traffic split assigns to a version."""

    CONNECTION = "connection"
    ADDRESS = "address"


class Settings(BaseModel):
    """Every setting, checked and with its final type; times are seconds, paths absolute.

    Made by `load_settings`, which also checks keys against each other. A field has its key's name
    in lower case.
    """

    # Defaults are validated too, which makes the paths among them absolute.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    base_dir: Path
    """The env file's folder; relative paths start there. The only field that is not a key."""

    deploy_mode: Annotated[Mode, Lower, Field(description="single or bluegreen")] = Mode.SINGLE
    active_port: Port = 8791
    staging_port: Port = 8792
    auto_switch_on_health: Switch = True
    public_host: Host = IPv4Address("127.0.0.1")
    public_port: PortOrOff = 8790
    control_host: Host = IPv4Address("127.0.0.1")
    control_port: PortOrOff = 8793
    control_token_file: FileToBe = Path(DEFAULT_TOKEN_FILE)
    control_view_token_file: FileToBeOrNone = None
    control_tls_cert: FileOrNone = None
    control_tls_key: FileOrNone = None
    state_dir: FolderToBe = Path("state")
    worker_command: Command = ("python", "-m", "atlas_worker")
    worker_directory: ReleaseFolder = Path()
    worker_env_file: FileOrNone = None
    worker_user: OptionalText = ""
    worker_max_rss_mb: MebibytesOrZero = 0
    worker_max_age_seconds: AgeOrZero = 0
    releases_dir: ReleaseFolderOrNone = None
    channel: Text = "stable"
    ready_timeout_seconds: Seconds = 30
    drain_timeout_seconds: Seconds = 30
    stop_timeout_seconds: Seconds = 10
    health_path: HttpPath = "/health"
    health_probes: Count = 3
    health_interval_seconds: Seconds = 0.5
    health_timeout_seconds: Seconds = 2
    health_host: HttpHost = ""
    # A header may be a secret: only `describe_settings` shows it, masked.
    health_headers: Annotated[HttpHeaders, Field(repr=False)] = ()
    health_scheme: Annotated[
        Literal["http", "https"], Lower, Field(description="http or https")
    ] = "http"
    liveness_path: HttpPathOrNone = ""
    liveness_interval_seconds: Seconds = 5
    liveness_failures: Count = 3
    stop_signal: StopSignal = "TERM"
    drain_quiet_seconds: Seconds = 1
    relay_proxy_protocol: Switch = False
    relay_count_requests: Switch = True
    after_failure: Annotated[AfterFailure, Lower, Field(description="single or stay")] = (
        AfterFailure.SINGLE
    )
    smoke_file: PlaceOrNone = DEFAULT_SMOKE_FILE
    keep_warm_seconds: SecondsOrZero = 300
    keep_warm_foreign: Switch = False
    guard_seconds: SecondsOrZero = 60
    guard_alpha: Probability = 0.01
    guard_margin: Probability = 0.02
    guard_holdback: Holdback = 0
    traffic_ramp: WholeRamp = (1.0,)
    traffic_step_seconds: SecondsOrZero = 60
    traffic_min_requests: CountOrZero = 50
    traffic_testers: Networks = ()
    traffic_sticky: Annotated[Sticky, Lower, Field(description="connection or address")] = (
        Sticky.CONNECTION
    )
    canary_enabled: Switch = False
    canary_percentage: Share = 0.2
    canary_features: Features = ("vision", "web", "optimizer")
    canary_error_threshold: Share = 0.15
    canary_min_calls: Calls = 20
    canary_ramp: Ramp = ()
    canary_step_seconds: Seconds = 300
    canary_alpha: Probability = 0.01
    canary_promote_alpha: Probability = 0.05
    canary_margin: Probability = 0.02
    canary_latency_margin: LatencyMargin = 0.1
    canary_retention_days: Days = 30
    # A URL may have a password: only `describe_settings` shows it, masked.
    llm_url: Annotated[OptionalUrl, Field(repr=False)] = ""
    llm_model: OptionalText = ""
    llm_api_key_file: FileOrNone = None
    scheduler_enabled: Switch = True
    memory_enabled: Switch = True
    fleet_etcd_endpoints: Endpoints = ()
    fleet_name: FleetName = "default"
    fleet_host: FleetHost = ""
    fleet_etcd_ca: FileOrNone = None
    fleet_etcd_cert: FileOrNone = None
    fleet_etcd_key: FileOrNone = None
    fleet_etcd_user: OptionalText = ""
    fleet_etcd_password_file: FileOrNone = None
    fleetlock_port: PortOrOff = 0
    fleet_agent_port: PortOrOff = 0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Lower,
        Field(description="debug, info, warning or error"),
    ] = "info"

    @model_validator(mode="before")
    @classmethod
    def _keep_the_token_with_the_state(cls, data: dict[str, Any]) -> dict[str, Any]:
        if data.get("control_token_file"):
            return data
        state_dir = Path(data.get("state_dir", "state"))
        return {**data, "control_token_file": state_dir / DEFAULT_TOKEN_FILE}

    @property
    def ramp(self) -> tuple[float, ...]:
        """The shares of a deploy's ramp; empty if it gets all the traffic at once."""
        return self.traffic_ramp if self.public_port and len(self.traffic_ramp) > 1 else ()

    @property
    def alpha_of_a_test(self) -> float:
        """GUARD_ALPHA's part for the guard's record, and for a comparison of both versions."""
        return self.guard_alpha / 2 if self.ramp or self.guard_holdback else self.guard_alpha

    @property
    def host_in_fleet(self) -> str:
        """This machine's name in the fleet."""
        return self.fleet_host or gethostname()

    @property
    def slot_ports(self) -> dict[SlotName, int]:
        """Each slot's own port."""
        return {SlotName.BLUE: self.active_port, SlotName.GREEN: self.staging_port}

    def slot_of_port(self, port: int) -> SlotName:
        """Return the slot that owns the port; green for any port but blue's."""
        return SlotName.BLUE if port == self.active_port else SlotName.GREEN

    @cached_property
    def worker_account(self) -> Account | None:
        """The user that workers run as; None: the daemon's. Raises ValueError if it can't be."""
        return Account.named(self.worker_user) if self.worker_user else None

    @property
    def stop_signal_number(self) -> Signals:
        """The signal that asks a worker to end."""
        return Signals[f"SIG{self.stop_signal}"]

    @property
    def socket_passing(self) -> SocketPassing:
        """How workers get their socket, as the placeholders in their command say."""
        command = " ".join(self.worker_command)
        if "{port}" in command:
            return SocketPassing.PORT
        return SocketPassing.FD if "{fd}" in command else SocketPassing.ACTIVATION

    def worker_argv(self, *, slot: str, port: int, fd: int | None = None) -> list[str]:
        """Return the worker's command with `{slot}`, `{port}` and `{fd}` filled in.

        Raises ValueError if the command asks for a descriptor and `fd` is None.
        """
        if fd is None and self.socket_passing is SocketPassing.FD:
            raise ValueError("WORKER_COMMAND has {fd} in it, and no descriptor was given")
        values = {"{slot}": slot, "{port}": str(port), "{fd}": str(fd)}
        argv = list(self.worker_command)
        for placeholder, value in values.items():
            argv = [argument.replace(placeholder, value) for argument in argv]
        return argv


FIELD_OF_KEY = {name.upper(): name for name in Settings.model_fields if name != "base_dir"}
"""Every key, in the order of `atlas.env`, and its field."""
