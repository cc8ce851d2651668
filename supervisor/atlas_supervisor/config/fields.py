"""The types of settings.

The `description` of each type completes "accepted: ..." in a fault line, so that the check and its
message stay together.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from difflib import get_close_matches
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_interface,
)
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from atlas_supervisor.system.files import open_regular
from atlas_worker.contract import FEATURE_NAME_LIMIT, FEATURES_LIMIT

PLACEHOLDERS = ("fd", "port", "slot")
"""Placeholders in a worker's command, in braces."""

NAME_IN_FLEET = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
"""The name of a fleet or a host: a part of keys in etcd, and of lines that people read."""
_NAME_IN_FLEET_IS = "a name of up to 63 letters, digits, dots, hyphens and underscores"

ENDPOINTS_LIMIT = 16
"""Far more members than an etcd cluster has."""

NETWORKS_LIMIT = 32
"""So that their program fits into what an older kernel allows for one."""


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _signal_name(value: object) -> object:
    return value.upper().removeprefix("SIG") if isinstance(value, str) else value


def _split(value: object) -> object:
    """Split `a, b` at its commas; pydantic-core would only take a real sequence."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(",")) if value.strip() else ()


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("it contains a control character")
    return value


def _address(value: object) -> object:
    # Names are not resolved: a resolver must not decide whether the API is on loopback.
    return ip_address("127.0.0.1" if value == "localhost" else str(value))


def _place(value: object, info: ValidationInfo) -> Path:
    text = str(value)
    if not text:
        raise ValueError("it is empty")
    if text.startswith("~") or "${" in text:
        raise ValueError("~ and ${...} are not expanded, write the full path")
    base_dir: Path = info.data["base_dir"]
    return base_dir / _printable(text)


def _place_or_none(value: object, info: ValidationInfo) -> Path | None:
    return None if value in ("", None) else _place(value, info)


def _existing_file(path: Path | None) -> Path | None:
    if path is None:
        return None
    try:
        os.close(open_regular(path, os.O_RDONLY, follow=True))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    return path


def _is_folder(path: Path) -> bool | None:
    """Return whether the path is a folder; None if it does not exist."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error


def existing_folder(path: Path | None) -> Path | None:
    """Return the path. Raises ValueError if there is no such folder."""
    if path is not None and not (there := _is_folder(path)):
        raise ValueError(f"{path} {'does not exist' if there is None else 'is not a folder'}")
    return path


def _no_folder(path: Path | None) -> Path | None:
    if path is not None and _is_folder(path):
        raise ValueError(f"{path} is a folder")
    return path


def _no_file(path: Path) -> Path:
    if _is_folder(path) is False:
        raise ValueError(f"{path} is not a folder")
    return path


def _command(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return tuple(shlex.split(value))
    except ValueError as error:
        raise ValueError(f"{str(error).lower()} in it") from error


def _placeholders(command: tuple[str, ...]) -> tuple[str, ...]:
    text = " ".join(command)
    for name in re.findall(r"\{(\w+)\}", text):
        # A mistyped placeholder would reach the worker unchanged.
        near = get_close_matches(name.lower(), PLACEHOLDERS, n=1, cutoff=0.75)
        if near and name not in PLACEHOLDERS:
            raise ValueError(f"{{{name}}} is not known; did you mean {{{near[0]}}}?")
    if "{fd}" in text and "{port}" in text:
        raise ValueError("it has both {fd} and {port}")
    return command


def _ascending(shares: tuple[float, ...]) -> tuple[float, ...]:
    if any(later <= earlier for earlier, later in pairwise(shares)):
        raise ValueError("they are not ascending")
    return shares


def _up_to_all(shares: tuple[float, ...]) -> tuple[float, ...]:
    if not shares or shares[-1] != 1:
        raise ValueError("the last one must be 1, all the traffic")
    return shares


def _network(text: object) -> IPv4Network | IPv6Network:
    given = ip_interface(str(text))
    if given.version == 6 and given.ip.ipv4_mapped is not None:
        raise ValueError(f"write {text} as an IPv4 network")
    if given.ip != given.network.network_address:
        raise ValueError(f"{text} has bits beyond its prefix; its network is {given.network}")
    return given.network


def _networks(value: object) -> object:
    parts = _split(value)
    if not isinstance(parts, tuple):
        return value
    if len(parts) > NETWORKS_LIMIT:
        raise ValueError(f"{len(parts)} networks are more than {NETWORKS_LIMIT}")
    networks = tuple(map(_network, parts))
    if twice := [each for each in networks if networks.count(each) > 1]:
        raise ValueError(f"{twice[0]} is given twice")
    return networks


def _features(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) > FEATURES_LIMIT:
        raise ValueError(f"{len(names)} names are more than {FEATURES_LIMIT}")
    for name in names:
        if len(name) > FEATURE_NAME_LIMIT:
            raise ValueError(f"{name!r} has more than {FEATURE_NAME_LIMIT} characters")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"{name!r} is not such a name")
        if name == "requests":
            raise ValueError("'requests' stands for all requests and is taken")
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is given twice")
        stem, _, part = name.rpartition("_")
        if stem in names and part in {"bucket", "count", "created", "sum"}:
            raise ValueError(f"{name!r} is a part of the metric canary_{stem}")
    return names


def _endpoints(urls: tuple[str, ...]) -> tuple[str, ...]:
    if len(urls) > ENDPOINTS_LIMIT:
        raise ValueError(f"{len(urls)} URLs are more than {ENDPOINTS_LIMIT}")
    for url in urls:
        parts = urlsplit(_url(url))
        if not url or parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError("each is a scheme, a host and a port alone")
        if parts.username is not None:
            raise ValueError("name the user in FLEET_ETCD_USER")
    plain = tuple(url.rstrip("/") for url in urls)
    if twice := [url for url in plain if plain.count(url) > 1]:
        raise ValueError(f"{twice[0]} is given twice")
    if len({urlsplit(url).scheme for url in plain}) > 1:
        raise ValueError("some are http:// and some https://")
    return plain


def _url(value: str) -> str:
    if value:
        parts = urlsplit(_printable(value))
        # `port` raises for a port out of range.
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
            raise ValueError("it is not such a URL")
    return value


Switch = Annotated[bool, Field(description="true or false")]
Port = Annotated[int, Field(ge=1, le=65535, description="a port from 1 to 65535")]
PortOrOff = Annotated[
    int, Field(ge=0, le=65535, description="a port from 1 to 65535, or 0 to turn it off")
]
Count = Annotated[int, Field(ge=1, le=1000, description="a whole number from 1 to 1000")]
CountOrZero = Annotated[int, Field(ge=0, le=10**9, description="a whole number from 0 on")]
Calls = Annotated[int, Field(ge=1, le=10**9, description="a whole number from 1 on")]
Days = Annotated[int, Field(ge=1, le=3650, description="a whole number of days from 1 to 3650")]
Seconds = Annotated[
    float,
    Field(
        gt=0, le=86400, allow_inf_nan=False, description="seconds, more than 0 and at most 86400"
    ),
]
SecondsOrZero = Annotated[
    float, Field(ge=0, le=604800, allow_inf_nan=False, description="seconds from 0 to 604800")
]
AgeOrZero = Annotated[
    float,
    Field(ge=0, le=31_536_000, allow_inf_nan=False, description="seconds from 0 to 31536000"),
]
MebibytesOrZero = Annotated[
    float,
    Field(ge=0, le=16_777_216, allow_inf_nan=False, description="MiB from 0 to 16777216"),
]
Share = Annotated[
    float, Field(ge=0, le=1, allow_inf_nan=False, description="a share from 0 to 1 (0.2 is 20 %)")
]
Holdback = Annotated[
    float, Field(ge=0, le=0.5, allow_inf_nan=False, description="a share from 0 to 0.5 (0.02: 2 %)")
]
Probability = Annotated[
    float,
    Field(gt=0, lt=1, allow_inf_nan=False, description="a probability between 0 and 1"),
]
LatencyMargin = Annotated[
    float,
    Field(ge=0, le=9, allow_inf_nan=False, description="a part from 0 to 9 (0.1 is 10 % slower)"),
]
_Step = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Ramp = Annotated[
    tuple[_Step, ...],
    BeforeValidator(_split),
    AfterValidator(_ascending),
    Field(description="ascending shares above 0 and up to 1, as 0.05,0.25,1"),
]
WholeRamp = Annotated[
    tuple[_Step, ...],
    BeforeValidator(_split),
    AfterValidator(_ascending),
    AfterValidator(_up_to_all),
    Field(description="ascending shares above 0, the last one 1, as 0.05,0.25,1"),
]
Features = Annotated[
    tuple[str, ...],
    BeforeValidator(_split),
    AfterValidator(_features),
    Field(description="up to 1000 names like a_name1 with commas between, each once"),
]
Networks = Annotated[
    tuple[IPv4Network | IPv6Network, ...],
    BeforeValidator(_networks),
    Field(
        description=f"up to {NETWORKS_LIMIT} IP networks or addresses with commas between, as "
        "10.1.0.0/16,192.0.2.7,2001:db8::/48"
    ),
]
Host = Annotated[
    IPv4Address | IPv6Address,
    BeforeValidator(_address),
    Field(description="an IPv4 or IPv6 address, or localhost (127.0.0.1)"),
]
Text = Annotated[
    str,
    AfterValidator(_printable),
    Field(min_length=1, max_length=200, description="a text of 1 to 200 printable characters"),
]
OptionalText = Annotated[
    str,
    AfterValidator(_printable),
    Field(max_length=200, description="a text of up to 200 printable characters, or empty"),
]
Endpoints = Annotated[
    tuple[str, ...],
    BeforeValidator(_split),
    AfterValidator(_endpoints),
    Field(
        description=f"up to {ENDPOINTS_LIMIT} URLs with commas between, as https://a.example:2379, "
        "all http:// or all https://; or empty for none"
    ),
]
FleetName = Annotated[
    str, Field(pattern=NAME_IN_FLEET, description=f"{_NAME_IN_FLEET_IS}, as default")
]
FleetHost = Annotated[
    str,
    Field(
        pattern=f"^$|{NAME_IN_FLEET}",
        description=f"{_NAME_IN_FLEET_IS}, as web-1; or empty for the machine's own name",
    ),
]
OptionalUrl = Annotated[
    str,
    AfterValidator(_url),
    Field(description="an http:// or https:// URL, or empty for none"),
]
ReleaseFolder = Annotated[Path, BeforeValidator(_place), Field(description="a folder that exists")]
ReleaseFolderOrNone = Annotated[
    Path | None,
    BeforeValidator(_place_or_none),
    Field(description="a folder that exists, or empty for none"),
]
"""Whether it exists is checked by `load_settings`: a start may do without it."""
FolderToBe = Annotated[
    Path,
    BeforeValidator(_place),
    AfterValidator(_no_file),
    Field(description="a folder, created if missing"),
]
FileToBe = Annotated[
    Path,
    BeforeValidator(_place),
    AfterValidator(_no_folder),
    Field(description="a file, created if missing, or empty for control.token in STATE_DIR"),
]
FileToBeOrNone = Annotated[
    Path | None,
    BeforeValidator(_place_or_none),
    AfterValidator(_no_folder),
    Field(description="a file, created if missing, or empty for none"),
]
FileOrNone = Annotated[
    Path | None,
    BeforeValidator(_place_or_none),
    AfterValidator(_existing_file),
    Field(description="a file that can be read, or empty for none"),
]
PlaceOrNone = Annotated[
    Path | None,
    BeforeValidator(_place_or_none),
    Field(description="a file that can be read, or empty for none"),
]
Command = Annotated[
    tuple[str, ...],
    BeforeValidator(_command),
    AfterValidator(_placeholders),
    Field(
        min_length=1,
        description="a command as a shell takes it, with at most one of {fd} and {port}",
    ),
]
StopSignal = Annotated[
    Literal["TERM", "QUIT", "INT", "WINCH", "USR1", "USR2"],
    BeforeValidator(_signal_name),
    Field(description="TERM, QUIT, INT, WINCH, USR1 or USR2"),
]
Lower = BeforeValidator(_lower)
"""Makes a choice case-insensitive."""
