"""Loads settings from a file and the process environment, or reports all faults at once.

It uses pydantic directly: pydantic-settings binds its sources to the class and reads the process
environment by itself, while here the caller passes both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from atlas_supervisor.config.checks import check_together
from atlas_supervisor.config.describe import release_folders, shown
from atlas_supervisor.config.envfile import Entry, EnvFile, read_env_file, why_garbled
from atlas_supervisor.config.fields import existing_folder
from atlas_supervisor.config.settings import FIELD_OF_KEY, Settings
from atlas_supervisor.config.smoke_file import load_smoke_file
from atlas_supervisor.errors import SettingsError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class _Given:
    """A given value and its source."""

    value: str
    where: str


def _always(_settings: Settings) -> bool:
    return True


def load_settings(
    env_file: Path,
    environ: Mapping[str, str],
    needs_folders: Callable[[Settings], bool] = _always,
) -> Settings:
    """Read `env_file`, let `environ` win over it, and return the settings.

    `needs_folders` is asked where a folder of releases is missing, which is a fault unless a
    release is recorded that can start. Raises SettingsError with every fault at once, one line
    each.
    """
    faults: list[str] = []
    try:
        found = read_env_file(env_file)
    except SettingsError as error:
        found, faults = EnvFile(), error.faults
    faults += _faults_of_file(found, env_file)
    given = _given(found, environ)
    settings, bad = _validate(env_file.absolute().parent.resolve(), given)
    faults += [bad[key] for key in given if key in bad]
    for keys, fault in check_together(settings):
        # A consequence of a replaced value, or of defaults alone, is not reported.
        if not bad.keys() & keys and given.keys() & keys:
            faults.append(fault)
    if not faults and (account := settings.worker_account) and account.may(2, env_file):
        faults.append(
            f"{env_file.name}: WORKER_USER={account.name} may write it, and so choose the user of "
            "its processes; accepted: a file that only root writes"
        )
    if "SMOKE_FILE" not in bad:
        settings, smoke_faults = _with_smoke_file(settings, given)
        faults += smoke_faults
    missing = _missing_folders(settings, given, bad)
    if faults or (missing and needs_folders(settings)):
        raise SettingsError([*faults, *missing])
    return settings


def _missing_folders(
    settings: Settings, given: Mapping[str, _Given], bad: Mapping[str, str]
) -> list[str]:
    faults = []
    for key, path in release_folders(settings).items():
        if key not in given or key in bad:
            continue
        try:
            existing_folder(path)
        except ValueError as error:
            accepted = Settings.model_fields[FIELD_OF_KEY[key]].description
            place = f"{key}={shown(key, given[key].value)} ({given[key].where})"
            faults.append(f"{place}: accepted: {accepted} ({error})")
    return faults


def _given(found: EnvFile, environ: Mapping[str, str]) -> dict[str, _Given]:
    given = {
        key: _Given(entry.value, f"line {entry.line}")
        for key, entry in found.entries.items()
        if key in FIELD_OF_KEY
    }
    given |= {key: _Given(environ[key], "environment") for key in FIELD_OF_KEY if key in environ}
    return given


def _faults_of_file(found: EnvFile, path: Path) -> list[str]:
    """Return the faults of its lines. What is no known key may be a secret: it is not shown."""
    faults = [f"{path.name} line {entry.line}: {why_garbled(entry)}" for entry in found.garbled]
    for entry in found.repeated:
        first = found.entries[entry.key]
        place = f"already given on line {first.line}"
        if entry.key in FIELD_OF_KEY:
            place += f" as {shown(first.key, first.value) or 'empty'}"
        faults.append(f"{_given_as(entry)} (line {entry.line}): {place}; a key is accepted once")
    for entry in found.entries.values():
        if entry.key not in FIELD_OF_KEY:
            near = get_close_matches(entry.key.upper(), FIELD_OF_KEY, n=1, cutoff=0.0)
            faults.append(
                f"{_given_as(entry)} (line {entry.line}): no such key; the nearest accepted: "
                f"{near[0]}"
            )
    return faults


def _given_as(entry: Entry) -> str:
    """Return a key and its value for a message; those of an unknown key as far as is safe.

    A secret that ends with `=`, alone on a line, reads like an empty key.
    """
    if entry.key in FIELD_OF_KEY:
        return f"{entry.key}={shown(entry.key, entry.value)}"
    named = entry.value.strip("=") or get_close_matches(entry.key.upper(), FIELD_OF_KEY, n=1)
    return f"{entry.key if named and _NAME.fullmatch(entry.key) else '***'}=***"


def _validate(base_dir: Path, given: Mapping[str, _Given]) -> tuple[Settings, dict[str, str]]:
    """Return settings with defaults in place of bad values, and a fault for each bad key.

    Raises SettingsError where a default itself is bad: the token's file follows from STATE_DIR.
    """
    bad: dict[str, str] = {}
    while True:
        values: dict[str, Any] = {
            FIELD_OF_KEY[key]: given[key].value for key in given if key not in bad
        }
        try:
            return Settings(base_dir=base_dir, **values), bad
        except ValidationError as error:
            found = {
                key: fault
                for details in reversed(error.errors())
                if (key := str(details["loc"][0]).upper()) in given and key not in bad
                for fault in [_fault(key, given[key], details)]
            }
            if not found:
                raise SettingsError(_faults_of_defaults(bad, error)) from error
            bad |= found


def _faults_of_defaults(bad: Mapping[str, str], error: ValidationError) -> list[str]:
    faults = dict(bad)
    for details in error.errors():
        key = str(details["loc"][0]).upper() if details["loc"] else "settings"
        reason = details["msg"].removeprefix("Value error, ")
        faults[key] = f"{key}={shown(key, str(details['input']))} (the default): {reason}"
    return list(faults.values())


def _fault(key: str, given: _Given, details: Mapping[str, Any]) -> str:
    """Return a value's fault; `details` is one of pydantic's errors."""
    accepted = Settings.model_fields[FIELD_OF_KEY[key]].description
    reason = f" ({details['ctx']['error']})" if details["type"] == "value_error" else ""
    value = shown(key, given.value)
    return f"{key}={value} ({given.where}): accepted: {accepted}{reason}"


def _with_smoke_file(settings: Settings, given: Mapping[str, _Given]) -> tuple[Settings, list[str]]:
    """Check the smoke file; it may be missing unless SMOKE_FILE is given."""
    path = settings.smoke_file
    if path is None:
        return settings, []
    if "SMOKE_FILE" not in given and not path.exists():
        return settings.model_copy(update={"smoke_file": None}), []
    try:
        load_smoke_file(path)
    except SettingsError as error:
        return settings, [f"SMOKE_FILE={fault}" for fault in error.faults]
    return settings, []
