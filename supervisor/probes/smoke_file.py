"""The way to `smoke.toml` for those who run it; it is read and checked with the settings."""

from supervisor.config.smoke_file import (
    CommandCheck,
    Expectation,
    HttpCheck,
    SmokePlan,
    load_smoke_file,
)

__all__ = ["CommandCheck", "Expectation", "HttpCheck", "SmokePlan", "load_smoke_file"]
