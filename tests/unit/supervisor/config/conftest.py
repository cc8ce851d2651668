from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from atlas_supervisor.config import Settings, load_settings
from atlas_supervisor.errors import SettingsError
from tests.unit.supervisor.config.support import write


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Settings]:
    def load(text: str = "", environ: Mapping[str, str] | None = None) -> Settings:
        return load_settings(write(tmp_path, text), environ or {})

    return load


@pytest.fixture
def faults(tmp_path: Path) -> Callable[..., list[str]]:
    def faults(text: str = "", environ: Mapping[str, str] | None = None) -> list[str]:
        with pytest.raises(SettingsError) as refused:
            load_settings(write(tmp_path, text), environ or {})
        assert all("\n" not in fault for fault in refused.value.faults)
        return refused.value.faults

    return faults


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate, and is not installed")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    options = ["-nodes", "-subj", "/CN=atlas", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*make, *options], check=True, capture_output=True)
    key.chmod(0o600)
    return cert, key
