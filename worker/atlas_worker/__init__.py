"""What an application imports to be a good worker.

The names are loaded when they are asked for: to import any part of the worker costs nothing more.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in `typing`, whose import costs more than all else here
if TYPE_CHECKING:
    from atlas_worker import canary
    from atlas_worker.canary import is_canary_enabled, record_canary_call, use_canary_version

__all__ = ["canary", "is_canary_enabled", "record_canary_call", "use_canary_version"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  # see above

    module = import_module("atlas_worker.canary")
    value: object = module if name == "canary" else getattr(module, name)
    globals()[name] = value  # asked once
    return value
