"""What names and shapes tell about a backbone, without torch."""

from __future__ import annotations


def title(name: str, notes: list[str]) -> str:
    """'name', or 'name (note, note)'."""
    return f"{name} ({', '.join(notes)})" if notes else name
