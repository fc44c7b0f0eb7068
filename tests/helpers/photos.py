"""Real photographs for tests."""

from __future__ import annotations

from make import crop

PHOTO = crop(3, 20, 30)
