"""Settings of every test."""

from __future__ import annotations

import os

# Before torch is imported, and inherited by every process a test starts: the models here are tiny, and
# test workers that each take all cores only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
