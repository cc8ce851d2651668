"""The settings: read once, checked as a whole, frozen.

A daemon that starts with a misread setting fails later, under load and at night. So every error
that can be detected is reported at the start, all of them at once.
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
