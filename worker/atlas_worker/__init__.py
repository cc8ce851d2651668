"""The worker kit: what an application imports to be deployed without losing a request.

The canary is loaded at the first use of one of its names, so that an application without canaries
does not pay for its import.
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
    import atlas_worker.canary as module  # noqa: PLC0415  # see above

    value: object = module if name == "canary" else getattr(module, name)
    return globals().setdefault(name, value)
