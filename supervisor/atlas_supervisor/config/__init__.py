"""The settings: read once, checked whole, frozen.

A daemon that starts with half-understood settings fails later, under load and at night. So
everything that can be known to be wrong is refused at the start, all of it at once.
"""

from atlas_supervisor.config.describe import describe_settings, warnings
from atlas_supervisor.config.envfile import load_worker_env
from atlas_supervisor.config.load import load_settings
from atlas_supervisor.config.settings import Settings, Sticky

__all__ = [
    "Settings",
    "Sticky",
    "describe_settings",
    "load_settings",
    "load_worker_env",
    "warnings",
]
