"""`python -m worker` is the bundled worker."""

from __future__ import annotations

import sys

from worker.app.server import main

sys.exit(main())
