"""A reload in place: the same process with new code and settings, and nothing lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Answer, DaemonProcess, eventually, free_ports, write_release
from tests.integration.test_events import Listener, listening
from tests.loadclient import Load, Traffic, echoes_token

CLIENTS = (
    Traffic("one GET per connection", 4, echoes_token, keep_alive=False, think=(0.0, 0.05)),
    Traffic("keep-alive GET", 3, echoes_token, think=(0.0, 0.05)),
)
