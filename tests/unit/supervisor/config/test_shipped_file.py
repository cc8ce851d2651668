from __future__ import annotations

import re
from pathlib import Path

from atlas_supervisor.config import Settings, load_settings, warnings
from atlas_supervisor.config.settings import FIELD_OF_KEY
from atlas_supervisor.model.deploy import Mode
from tests.unit.supervisor.config.support import KEYS_IN_ORDER, write

ROOT = Path(__file__).parents[4]


def test_the_shipped_file_has_every_key_in_the_order_of_the_contract() -> None:
    keys = re.findall(r"^([A-Z_]+)=", (ROOT / "atlas.env").read_text(), re.MULTILINE)
    assert keys == KEYS_IN_ORDER
    assert list(FIELD_OF_KEY) == KEYS_IN_ORDER


def test_the_shipped_file_has_every_default_but_for_the_mode(tmp_path: Path) -> None:
    (tmp_path / "smoke.toml").touch()
    shipped = load_settings(write(tmp_path, (ROOT / "atlas.env").read_text()), {})
    assert shipped.deploy_mode is Mode.BLUEGREEN
    assert shipped.model_copy(update={"deploy_mode": Mode.SINGLE}) == Settings(base_dir=tmp_path)


def test_the_shipped_file_warns_about_nothing(tmp_path: Path) -> None:
    (tmp_path / "smoke.toml").touch()
    assert warnings(load_settings(write(tmp_path, (ROOT / "atlas.env").read_text()), {})) == []
