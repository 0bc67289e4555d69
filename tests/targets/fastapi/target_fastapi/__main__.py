"""`python -m target_fastapi decorator|middleware [flags]`."""

from __future__ import annotations

import sys

from target_fastapi.protect import DOORS
from target_fastapi.start import start

sys.exit(start(DOORS[sys.argv[1]], sys.argv[2:]))
