"""`python -m atlas_worker` is the bundled worker."""

from __future__ import annotations

import sys

from atlas_worker.app.server import main

sys.exit(main())
