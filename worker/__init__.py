"""What an application imports to be a good worker.

The names are loaded when they are asked for: to import any part of the worker costs nothing more.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in `typing`, whose import costs more than all else here
if TYPE_CHECKING:
    from worker.kit import canary
    from worker.kit.canary import is_canary_enabled, record_canary_call, use_canary_version

__all__ = ["canary", "is_canary_enabled", "record_canary_call", "use_canary_version"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from worker.kit import canary as kit  # noqa: PLC0415 - see above

    value: object = kit if name == "canary" else getattr(kit, name)
    globals()[name] = value  # asked once
    return value
