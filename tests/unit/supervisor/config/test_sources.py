from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from atlas_supervisor.config import load_settings
from atlas_supervisor.errors import SettingsError
from atlas_supervisor.model.deploy import Mode
from tests.unit.supervisor.config.support import Faults, Load, write


def test_an_empty_file_gives_the_defaults(load: Load, tmp_path: Path) -> None:
    settings = load()
    assert settings.deploy_mode is Mode.SINGLE
    assert settings.active_port == 8791
    assert settings.canary_features == ("vision", "web", "optimizer")
    assert settings.state_dir == tmp_path / "state"
    assert settings.control_token_file == tmp_path / "state" / "control.token"
    assert settings.smoke_file is None
    assert settings.worker_directory == settings.base_dir == tmp_path


@pytest.mark.parametrize("text", ["", "CONTROL_TOKEN_FILE="])
def test_a_default_that_can_not_be_used_is_a_fault_too(
    faults: Faults, tmp_path: Path, text: str
) -> None:
    (tmp_path / "state" / "control.token").mkdir(parents=True)
    (fault,) = faults(text)
    assert fault.startswith("CONTROL_TOKEN_FILE=state/control.token (the default): ")
    assert fault.endswith("control.token is a folder")


def test_the_process_environment_wins_over_the_file(load: Load) -> None:
    settings = load("ACTIVE_PORT=1000\nCHANNEL=file", {"ACTIVE_PORT": "2000", "PATH": "/bin"})
    assert (settings.active_port, settings.channel) == (2000, "file")


def test_a_bad_value_in_the_file_does_not_matter_if_the_environment_has_a_good_one(
    load: Load,
) -> None:
    assert load("ACTIVE_PORT=x", {"ACTIVE_PORT": "2000"}).active_port == 2000


def test_a_bad_value_names_the_environment_as_its_source(faults: Faults) -> None:
    assert faults("", {"ACTIVE_PORT": "x"}) == [
        "ACTIVE_PORT=x (environment): accepted: a port from 1 to 65535"
    ]


def test_the_real_process_environment_is_not_read(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACTIVE_PORT", "2000")
    assert load().active_port == 8791


def test_quotes_export_comments_and_spaces_are_as_in_dotenv_files(load: Load) -> None:
    settings = load(
        "\ufeff# a comment\r\n\n  export ACTIVE_PORT = 1000  # blue\nSTAGING_PORT='1001'\n"
        'CHANNEL="a # b"\nLLM_MODEL=a#b\nLLM_URL=  # nothing\n'
    )
    assert (settings.active_port, settings.staging_port) == (1000, 1001)
    assert (settings.channel, settings.llm_model, settings.llm_url) == ("a # b", "a#b", "")


def test_variables_are_not_filled_in(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X", "filled")
    settings = load("CHANNEL=${X}\nWORKER_COMMAND=sh -c 'exec serve ${X}'")
    assert settings.channel == "${X}"
    assert settings.worker_command == ("sh", "-c", "exec serve ${X}")


@pytest.mark.parametrize("value", ["${HOME}/state", "~/state"])
def test_a_path_to_be_expanded_is_refused(faults: Faults, value: str) -> None:
    (fault,) = faults(f"STATE_DIR={value}")
    assert "write the full path" in fault


def test_relative_paths_start_at_the_folder_of_the_env_file(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    settings = load("STATE_DIR=var\nWORKER_DIRECTORY=./app\nCONTROL_TOKEN_FILE=/run/t")
    assert settings.state_dir == tmp_path / "var"
    assert settings.worker_directory == tmp_path / "app"
    assert settings.control_token_file == Path("/run/t")


def test_a_relative_name_of_the_env_file_gives_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "")
    monkeypatch.chdir(tmp_path)
    assert load_settings(Path("atlas.env"), {}).state_dir == tmp_path / "state"


def test_the_token_moves_with_the_state(load: Load, tmp_path: Path) -> None:
    for text in ("STATE_DIR=var", "STATE_DIR=var\nCONTROL_TOKEN_FILE="):
        assert load(text).control_token_file == tmp_path / "var" / "control.token"


def test_settings_are_frozen(load: Load) -> None:
    with pytest.raises(ValidationError):
        load().active_port = 1  # type: ignore[misc] # that it is refused is what is tested


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_a_file_that_can_not_be_read_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "atlas.env"
    if kind == "folder":
        path.mkdir()
    if kind == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError) as refused:
        load_settings(path, {})
    (fault,) = refused.value.faults
    assert str(path) in fault
    assert "accepted" in fault


@pytest.mark.parametrize("line", ["ACTIVE_PORT", "ACTIVE_PORT: 1", "MY PORT=1", "=1"])
def test_a_line_that_is_no_assignment_is_refused_with_its_number(faults: Faults, line: str) -> None:
    (fault,) = faults(f"# one\n\n   \n{line}\nLOG_LEVEL=debug\n")
    assert fault == "atlas.env line 4: not KEY=value, which is accepted"


@pytest.mark.parametrize(
    "line", ['CHANNEL="a', "CHANNEL='a\" b", 'CHANNEL = "my app" --x', 'export CHANNEL="a" b']
)
def test_a_line_whose_quotes_do_not_end_it_is_refused_with_what_to_write(
    faults: Faults, load: Load, line: str
) -> None:
    (fault,) = faults(f"# one\n{line}\n")
    assert fault.startswith("atlas.env line 2: its value begins with ")
    assert "my app" not in fault  # it may be a secret
    (written,) = re.findall(r"KEY=.*", fault)
    assert len(load(written.replace("KEY", "CHANNEL")).channel) == len("'a b' c")


def test_a_key_given_twice_is_refused_with_both_lines(faults: Faults) -> None:
    (fault,) = faults("ACTIVE_PORT=1\n\n# again\nACTIVE_PORT=2\n")
    assert fault.startswith("ACTIVE_PORT=2 (line 4)")
    assert "line 1 as 1" in fault


def test_an_equal_second_value_is_refused_as_well(faults: Faults) -> None:
    assert len(faults("CHANNEL=a\nCHANNEL=a\nCHANNEL=a")) == 2


@pytest.mark.parametrize(
    ("typo", "nearest"),
    [
        ("ACTIVE_PROT", "ACTIVE_PORT"),
        ("active_port", "ACTIVE_PORT"),
        ("CANARY_PERCENT", "CANARY_PERCENTAGE"),
        ("BASE_DIR", "STATE_DIR"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    faults: Faults, typo: str, nearest: str
) -> None:
    (fault,) = faults(f"{typo}=1")
    assert fault == f"{typo}=*** (line 1): no such key; the nearest accepted: {nearest}"


SECRET = "hunter2/Zm9vYmFy"


@pytest.mark.parametrize(
    "text",
    [
        f"DB_DSN=postgres://app:{SECRET}@db/app",
        f"DB_DSN={SECRET}",
        f"STRIPE={SECRET}\nSTRIPE={SECRET}2",
        f"control_token_file={SECRET}",
        SECRET,
        f"{SECRET}==",
        f"{SECRET.replace('/', '')}==",
        f"export {SECRET}",
        f"API_KEY: {SECRET}",
        f"MY KEY={SECRET}",
        f"PASSWORD='{SECRET}",
    ],
)
def test_no_value_of_an_unknown_key_is_printed(faults: Faults, text: str) -> None:
    found = faults(text)
    assert found
    assert not [fault for fault in found if "hunter2" in fault or "Zm9v" in fault]


def test_the_workers_variables_are_refused_without_their_values(
    faults: Faults, tmp_path: Path
) -> None:
    (tmp_path / "worker.env").write_text(f"{SECRET}=1\n{SECRET}\nA={SECRET}\nA={SECRET}\n")
    (first, second, third) = faults("WORKER_ENV_FILE=worker.env")
    assert "hunter2" not in first + second + third
    assert "A is given twice" in first + second + third


def test_unknown_keys_in_the_process_environment_are_ignored(load: Load) -> None:
    assert load("", {"ACTIVE_PROT": "1", "active_port": "1"}).active_port == 8791


def test_all_faults_are_reported_at_once(faults: Faults) -> None:
    found = faults(
        "nonsense\nACTIVE_PORT=a\nSTAGING_PORT=8790\nTYPO=1\nCHANNEL=x\nCHANNEL=y\n"
        "CONTROL_HOST=0.0.0.0\nTRAFFIC_RAMP=0.5\nSMOKE_FILE=gone.toml\nGUARD_SECONDS=-1",
        {"HEALTH_PATH": "health"},
    )
    for part in (
        "line 1: not KEY=value",
        "ACTIVE_PORT=a",
        "STAGING_PORT=8790 and PUBLIC_PORT=8790",
        "TYPO=***",
        "CHANNEL=y",
        "CONTROL_HOST=0.0.0.0",
        "TRAFFIC_RAMP=0.5",
        "SMOKE_FILE=",
        "GUARD_SECONDS=-1",
        "HEALTH_PATH=health",
    ):
        assert sum(part in fault for fault in found) == 1, part
    assert len(found) == 10
    assert all("accepted" in fault for fault in found)


def test_a_long_value_is_shortened_and_made_printable(faults: Faults) -> None:
    (fault,) = faults('ACTIVE_PORT="\x1b[2J' + "9" * 5000 + '"')
    assert len(fault) < 200
    assert fault.isprintable()


def test_a_secret_under_a_mistyped_key_is_not_shown(faults: Faults) -> None:
    found = faults(
        "CONTROL_TOKEN=hunter2\nLLM_API_KEY=hunter2\nLLM_API_KEY=hunter2\n"
        "LLM_URL=ftp://me:hunter2@host/?key=hunter2"
    )
    assert len(found) == 4
    assert "hunter2" not in "".join(found)


@pytest.mark.parametrize(
    "key", ["SMOKE_FILE", "WORKER_ENV_FILE", "LLM_API_KEY_FILE", "CONTROL_TLS_CERT"]
)
def test_a_setting_that_names_a_fifo_is_refused_at_once(
    faults: Faults, tmp_path: Path, key: str
) -> None:
    os.mkfifo(tmp_path / "fifo")
    fault = faults(f"{key}=fifo")[0]
    assert fault.startswith(f"{key}=")
    assert "it is not a regular file" in fault


def test_an_env_file_that_is_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SettingsError, match="it is not a regular file"):
        load_settings(tmp_path / "fifo", {})
