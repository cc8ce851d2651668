from __future__ import annotations

from pathlib import Path

import pytest

from atlas_supervisor.config import describe_settings, warnings
from tests.unit.supervisor.config.support import KEYS_IN_ORDER, TLS, Faults, Load


def test_the_description_can_be_read_back(load: Load, tmp_path: Path) -> None:
    (tmp_path / "smoke.toml").touch()
    settings = load(
        "HEALTH_HEADERS=X-Forwarded-Proto: https;X-A: b #c\nHEALTH_SCHEME=https\n"
        "ACTIVE_PORT=1000\nHEALTH_INTERVAL_SECONDS=0.05\nPUBLIC_HOST=::1\nCHANNEL='a #b'\n"
        "LLM_MODEL=\"'it''s\"\nWORKER_COMMAND=sh -c \"exec 'a b' {fd}\"\nKEEP_WARM_SECONDS=123456.5"
    )
    assert load(describe_settings(settings)) == settings
    assert [line.split("=")[0] for line in describe_settings(settings).splitlines()] == (
        KEYS_IN_ORDER
    )


def test_no_secret_is_shown(load: Load) -> None:
    settings = load(
        "LLM_URL=https://me:hunter2@host:1/v1?key=hunter2\n"
        "HEALTH_HEADERS=X-A: b; Authorization: Bearer hunter2; X-Api-Key: hunter2\n"
    )
    assert "HEALTH_HEADERS=X-A: b; Authorization: ***; X-Api-Key: ***" in describe_settings(
        settings
    )
    assert "LLM_URL=https://***@host:1/v1?***" in describe_settings(settings)
    assert "hunter2" not in describe_settings(settings) + repr(settings)


def test_no_secret_is_in_a_fault(faults: Faults) -> None:
    for value in ("Cookie: hunter2; Host: a", "Authorization Bearer hunter2"):
        for key in ("HEALTH_HEADERS", "HEALTH_HEADER"):  # the second is a typo
            (fault,) = faults(f"{key}={value}")
            assert "hunter2" not in fault


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("KEEP_WARM_SECONDS=10", "GUARD_SECONDS=60 is longer than KEEP_WARM_SECONDS=10"),
        ("GUARD_HOLDBACK=0.02\nPUBLIC_PORT=0", "no effect: PUBLIC_PORT=0"),
        (
            "GUARD_HOLDBACK=0.02\nGUARD_SECONDS=0",
            "GUARD_HOLDBACK=0.02 has no effect: GUARD_SECONDS",
        ),
        ("GUARD_HOLDBACK=0.02\nWORKER_COMMAND=serve {fd}", "no effect: KEEP_WARM_FOREIGN=false"),
        ("READY_TIMEOUT_SECONDS=2", "HEALTH_TIMEOUT_SECONDS=2 is not below"),
        ("SMOKE_FILE=", "SMOKE_FILE"),
        ("PUBLIC_PORT=0\nCONTROL_PORT=0", "PUBLIC_PORT=0 and CONTROL_PORT=0"),
        ("PUBLIC_PORT=0\nWORKER_COMMAND=serve {fd}", "PUBLIC_PORT=0 there is none"),
        ("WORKER_COMMAND=serve {port}", "hides the client's address"),
        ("WORKER_COMMAND=cd app && python app.py", "has cd, which a shell would understand"),
        ("WORKER_COMMAND=python app.py > out.log", "has >, which a shell"),
        ("WORKER_COMMAND=~/bin/app", "has ~/, which a shell"),
        ("WORKER_COMMAND=serve --log=$HOME/a", "has $HOME, which a shell"),
        ("WORKER_COMMAND=TOKEN=hunter2 serve", "begins with TOKEN=…, which is taken for the"),
        ("RELAY_PROXY_PROTOCOL=true", "has no effect"),
        ("TRAFFIC_STICKY=address", "of no use behind a proxy"),
        ("TRAFFIC_TESTERS=10.0.0.0/8", "AUTO_SWITCH_ON_HEALTH=true"),
        ("TRAFFIC_TESTERS=10.0.0.0/8\nPUBLIC_PORT=0", "PUBLIC_PORT=0"),
        ("TRAFFIC_RAMP=0.5,1\nPUBLIC_PORT=0", "TRAFFIC_RAMP has no effect"),
        ("STOP_SIGNAL=quit", "STOP_SIGNAL=QUIT has no effect"),
        ("DRAIN_QUIET_SECONDS=30", "takes all its time"),
        ("RELAY_PROXY_PROTOCOL=true\nWORKER_COMMAND=serve {fd}", "has no effect"),
        (
            "RELAY_PROXY_PROTOCOL=true\nWORKER_COMMAND=serve {port}\nPUBLIC_PORT=0",
            "has no effect",
        ),
        ("CONTROL_PORT=0\n" + TLS, "CONTROL_PORT=0 turns TCP off"),
        ("LLM_URL=http://127.0.0.1/\nLLM_API_KEY_FILE=key.pem", "sent unencrypted"),
    ],
)
@pytest.mark.usefixtures("pair")
def test_valid_settings_that_are_probably_mistakes_are_warned_about(
    load: Load, tmp_path: Path, text: str, part: str
) -> None:
    (tmp_path / "smoke.toml").touch()
    assert warnings(load()) == []
    (warning,) = warnings(load(text))
    assert part in warning


@pytest.mark.parametrize(
    "command",
    [
        "sh -c 'cd app && exec serve --log $HOME/a'",
        "env TOKEN=a serve",
        "serve --token=a~/b --pattern a|b --price 5$",
        "node -e '`${1}`'",
    ],
)
def test_a_command_that_needs_no_shell_is_not_warned_about(
    load: Load, tmp_path: Path, command: str
) -> None:
    (tmp_path / "smoke.toml").touch()
    assert warnings(load(f'WORKER_COMMAND="{command}"')) == []


def test_a_key_readable_by_every_user_is_warned_about(
    load: Load, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "smoke.toml").touch()
    assert warnings(load(TLS)) == []
    pair[1].chmod(0o644)
    (warning,) = warnings(load(TLS))
    assert "chmod" in warning


def test_workers_that_get_the_client_s_address_are_not_warned_about(
    load: Load, tmp_path: Path
) -> None:
    (tmp_path / "smoke.toml").touch()
    assert warnings(load("RELAY_PROXY_PROTOCOL=true\nWORKER_COMMAND=serve {port}")) == []
