"""`release.toml` in a release's folder, optional: what a release says of itself.

It is read when the release is looked up for a deploy; a fault in it fails the preflight. What it
says is recorded with the version, and holds when the folder is gone.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atlas_supervisor.system.files import read_regular

RELEASE_FILE = "release.toml"
_LIMIT_BYTES = 64 * 1024
_SHOWN_CHARACTERS = 60


class ReleaseFileError(Exception):
    """The file can't be used; the text says what is wrong, and what is accepted."""


class ReleaseFile(BaseModel):
    """The content of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    irreversible: bool = False
    """It changes data so that earlier versions may not suit them: nothing reverts it by itself."""
    prepare: list[Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")]] = Field(
        default_factory=list
    )
    """Checked and not run: reserved."""


def read_release_file(folder: Path) -> ReleaseFile:
    """Return the file of the release in this folder. Raises ReleaseFileError."""
    path = folder / RELEASE_FILE
    try:
        content = read_regular(path)
    except OSError as error:
        raise ReleaseFileError(f"{path}: {error.strerror}; a readable file is accepted") from error
    if len(content) > _LIMIT_BYTES:
        raise ReleaseFileError(f"{path} has more than {_LIMIT_BYTES // 1024} KiB")
    try:
        return ReleaseFile.model_validate(tomllib.loads(content.decode("utf-8-sig")))
    except ValidationError as error:
        raise ReleaseFileError(f"{path}: {_fault(error)}") from error
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, or nested without end
        why = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise ReleaseFileError(f"{path}: {why}; a TOML file is accepted") from error


def _fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    key, *place = fault["loc"]
    name = repr(str(key))[:_SHOWN_CHARACTERS]
    if fault["type"] == "extra_forbidden":
        return f"{name} is not an accepted key: these are {', '.join(ReleaseFile.model_fields)}"
    accepted = {"irreversible": "true or false", "prepare": "a list of texts"}[str(key)]
    given = "" if place else f" = {fault['input']!r}"[:_SHOWN_CHARACTERS]
    return f"{name}{given}: accepted is {accepted}"
