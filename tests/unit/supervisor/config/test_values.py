from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from atlas_supervisor.config import Sticky
from atlas_supervisor.errors import SettingsError
from atlas_supervisor.model.deploy import Mode
from atlas_supervisor.model.socket_passing import SocketPassing
from tests.unit.supervisor.config.support import Faults, Load

BAD = {
    "DEPLOY_MODE": ["blue-green", "true", ""],
    "ACTIVE_PORT": ["0", "65536", "-1", "1.5", "http", "", "0x10", "9" * 5000],
    "STAGING_PORT": ["0"],
    "PUBLIC_PORT": ["65536", "off", ""],
    "AUTO_SWITCH_ON_HEALTH": ["maybe", "2", ""],
    "PUBLIC_HOST": ["example.org", "256.0.0.1", "127.0.0.1:80", "", "[::1]"],
    "CONTROL_HOST": ["*", ""],
    "STATE_DIR": ["", "a\tb", "/dev/null", "atlas.env", "x" * 300],
    "CONTROL_TOKEN_FILE": ["/tmp"],
    "CONTROL_VIEW_TOKEN_FILE": ["/tmp", "state/control.token", "state/../state/control.token"],
    "WORKER_COMMAND": ["", "'open", "serve {fd} {port}", "serve {prot}", "serve {FD}"],
    "WORKER_DIRECTORY": ["gone", "atlas.env", ""],
    "WORKER_ENV_FILE": ["gone", "/tmp"],
    "RELEASES_DIR": ["gone", "atlas.env"],
    "CHANNEL": ["", "a\tb", "x" * 201],
    "READY_TIMEOUT_SECONDS": ["0", "-1", "nan", "inf", "1e400", "30s", "", "86401"],
    "HEALTH_PATH": ["health", "/he alth", "/h#x", "/ü", ""],
    "HEALTH_PROBES": ["0", "1.5", "", "1001"],
    "HEALTH_TIMEOUT_SECONDS": ["0"],
    "HEALTH_HOST": [
        *("a b", "http://a", "a/", "a..b", ".a", "ü.org", "a:0", "a:65536", "a:", "a:b", "::1"),
        *("[::1", "[a]", "[fe80::1%lo]", "x" * 64, "a." * 130, "a\tb", "a,b", "user@a"),
    ],
    "HEALTH_HEADERS": [
        *("no colon", "X-A: 1; no colon", ": 1", "X A: 1", "X-A : 1", "X-A: 1; x-a: 2"),
        *("Host: a", "X-A: 1; hOST: a", "X-A: a\tb", "Content-Length: 3", "Transfer-Encoding: x"),
        *("Connection: close", "X-Atlas-Probe: 0", "Ü: 1"),
    ],
    "HEALTH_SCHEME": ["h2", "https://", ""],
    "LIVENESS_PATH": ["livez", "/a b"],
    "KEEP_WARM_SECONDS": ["-1", "nan", "inf", ""],
    "GUARD_SECONDS": ["-0.1", "nan"],
    "GUARD_ALPHA": ["0", "1"],
    "GUARD_MARGIN": ["-0.1", "1", "2 %"],
    "GUARD_HOLDBACK": ["-0.1", "0.51", "nan"],
    "TRAFFIC_RAMP": [
        *("", "0,1", "0.5,0.5", "0.5,0.2", "0.5,2", "a", "0.5,,1", "nan"),
        *("0.5", "0.05,0.25", "1,1", "-0.1,1", "5,25,100", "5%,1"),
    ],
    "TRAFFIC_STEP_SECONDS": ["-1", "nan", ""],
    "TRAFFIC_MIN_REQUESTS": ["-1", "1.5", ""],
    "TRAFFIC_TESTERS": [
        *("10.1.0.0/33", "10.1.2.3/16", "office", "10.0.0.1,,10.0.0.2", "10.0.0.1,10.0.0.1/32"),
        *("::ffff:10.0.0.1", ",".join(f"10.0.0.{each}" for each in range(33)), "1", "fe80::1%lo"),
    ],
    "TRAFFIC_STICKY": ["cookie", ""],
    "CANARY_ENABLED": ["x"],
    "CANARY_PERCENTAGE": ["20", "-0.1", "nan", ""],
    "CANARY_FEATURES": [
        "Vision",
        "a,a",
        "requests",
        "a-b",
        "1a",
        "a,,b",
        ",",
        "x" * 65,
        ",".join(f"f{number}" for number in range(1001)),
    ],
    "CANARY_ERROR_THRESHOLD": ["15", "inf"],
    "CANARY_MIN_CALLS": ["0", "x"],
    "CANARY_RAMP": ["1,0.5", "0"],
    "CANARY_ALPHA": ["0", "1", "nan"],
    "CANARY_RETENTION_DAYS": ["0", "forever"],
    "LLM_URL": ["localhost:8080", "ftp://host/", "http://", "http://host:99999/"],
    "LLM_API_KEY_FILE": ["gone"],
    "FLEET_ETCD_ENDPOINTS": [
        *("localhost:2379", "ftp://a:1", "http://a:1,http://a:1/", "http://a:1,https://b:1", ","),
        *("http://a:1/v3", ",".join(f"http://a:{each}" for each in range(1, 18))),
    ],
    "FLEET_NAME": ["", "a/b", "-a", "x" * 64, "a b"],
    "FLEET_HOST": ["a/b", ".a", "ü"],
    "FLEET_ETCD_CA": ["gone", "atlas.env"],
    "FLEETLOCK_PORT": ["65536", "9000", ""],
    "FLEET_AGENT_PORT": ["-1"],
    "LOG_LEVEL": ["loud", ""],
}


@pytest.mark.parametrize(("key", "value"), [(key, v) for key, vs in BAD.items() for v in vs])
def test_a_bad_value_is_refused_with_what_is_accepted(faults: Faults, key: str, value: str) -> None:
    (fault,) = faults(f'{key}="{value}"')
    assert fault.startswith(f"{key}=")
    assert "accepted: " in fault
    if value and len(value) < 50:
        assert value.replace("\t", r"\t") in fault


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("DEPLOY_MODE=BlueGreen", "deploy_mode", Mode.BLUEGREEN),
        ("AUTO_SWITCH_ON_HEALTH=off", "auto_switch_on_health", False),
        ("PUBLIC_PORT=0", "public_port", 0),
        ("PUBLIC_HOST=localhost", "public_host", IPv4Address("127.0.0.1")),
        ("PUBLIC_HOST=0.0.0.0", "public_host", IPv4Address("0.0.0.0")),
        ("CONTROL_HOST=::1", "control_host", IPv6Address("::1")),
        ("GUARD_SECONDS=0", "guard_seconds", 0),
        ("HEALTH_INTERVAL_SECONDS=.25", "health_interval_seconds", 0.25),
        ("HEALTH_PATH=/h?a=1", "health_path", "/h?a=1"),
        ("HEALTH_HOST=", "health_host", ""),
        ("HEALTH_HOST=app.example.org:8443", "health_host", "app.example.org:8443"),
        ("HEALTH_HOST=my_app.", "health_host", "my_app."),
        ("HEALTH_HOST=[::1]:80", "health_host", "[::1]:80"),
        ("HEALTH_HEADERS=", "health_headers", ()),
        (
            'HEALTH_HEADERS=" X-Forwarded-Proto: https;X-Real-IP:10.0.0.1 ; X-Empty:;"',
            "health_headers",
            (("X-Forwarded-Proto", "https"), ("X-Real-IP", "10.0.0.1"), ("X-Empty", "")),
        ),
        ("HEALTH_SCHEME=HTTPS", "health_scheme", "https"),
        ("LIVENESS_PATH=", "liveness_path", ""),
        ("LIVENESS_PATH=/livez", "liveness_path", "/livez"),
        ("TRAFFIC_STICKY=Address", "traffic_sticky", Sticky.ADDRESS),
        (
            "TRAFFIC_TESTERS=10.1.0.0/16, 192.0.2.7,2001:db8::/48",
            "traffic_testers",
            (
                IPv4Network("10.1.0.0/16"),
                IPv4Network("192.0.2.7/32"),
                IPv6Network("2001:db8::/48"),
            ),
        ),
        ("FLEET_ETCD_ENDPOINTS=", "fleet_etcd_endpoints", ()),
        (
            "FLEET_HOST=a\nFLEET_ETCD_ENDPOINTS=https://a.example:2379/, https://[::1]:2379",
            "fleet_etcd_endpoints",
            ("https://a.example:2379", "https://[::1]:2379"),
        ),
        ("FLEET_HOST=", "fleet_host", ""),
        ("FLEET_AGENT_PORT=9000", "fleet_agent_port", 9000),
        ("LOG_LEVEL=DEBUG", "log_level", "debug"),
        ("LLM_URL=http://127.0.0.1:8080/v1", "llm_url", "http://127.0.0.1:8080/v1"),
        (
            "CANARY_FEATURES=vision, web , optimizer",
            "canary_features",
            ("vision", "web", "optimizer"),
        ),
        (f"CANARY_FEATURES={'x' * 64}", "canary_features", ("x" * 64,)),
        ("SMOKE_FILE=", "smoke_file", None),
        ("WORKER_ENV_FILE=", "worker_env_file", None),
        ("WORKER_COMMAND=awk '{print}' \"a b\"", "worker_command", ("awk", "{print}", "a b")),
    ],
)
def test_a_good_value_is_taken(load: Load, text: str, field: str, value: object) -> None:
    assert getattr(load(text), field) == value


@pytest.mark.parametrize(
    ("command", "socket_passing", "argv"),
    [
        ("serve {slot}", SocketPassing.ACTIVATION, ["serve", "green"]),
        ("serve --fd={fd}", SocketPassing.FD, ["serve", "--fd=7"]),
        ("serve :{port} {slot}", SocketPassing.PORT, ["serve", ":8792", "green"]),
    ],
)
def test_the_placeholders_say_how_a_worker_gets_its_socket(
    load: Load, command: str, socket_passing: SocketPassing, argv: list[str]
) -> None:
    settings = load(f"WORKER_COMMAND={command}")
    assert settings.socket_passing is socket_passing
    assert settings.worker_argv(slot="green", port=8792, fd=7) == argv


def test_a_command_that_takes_a_descriptor_must_get_one(load: Load) -> None:
    with pytest.raises(ValueError, match="no descriptor"):
        load("WORKER_COMMAND=serve {fd}").worker_argv(slot="blue", port=1)


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r", "\0"])
def test_a_host_or_header_of_two_lines_is_refused(load: Load, end: str) -> None:
    for key, value in (("HEALTH_HOST", f"a{end}"), ("HEALTH_HEADERS", f"X-A: 1{end}X-B: 2")):
        with pytest.raises(SettingsError, match=f"{key}=.*accepted: ") as refused:
            load("", {key: value})
        assert all(fault.isprintable() for fault in refused.value.faults)


@pytest.mark.parametrize(
    ("text", "alpha"),
    [("", 0.01), ("GUARD_HOLDBACK=0.1", 0.005), ("TRAFFIC_RAMP=0.1,1", 0.005)],
)
def test_two_tests_of_a_deploy_share_its_alpha(load: Load, text: str, alpha: float) -> None:
    assert load(text).alpha_of_a_test == alpha
