"""Bad input: whatever is sent, the answer is 4xx and names the field at fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.supervisor.api.harness import BEARER, MemoryControl, running
