"""What holds for the whole suite."""

from __future__ import annotations

import os

# No test talks to a host that has a public certificate, and to load the machine's is a tenth of
# the start of every process that imports aiohttp: hundreds of them in one run.
os.environ["SSL_CERT_FILE"] = os.devnull
os.environ["SSL_CERT_DIR"] = os.devnull
