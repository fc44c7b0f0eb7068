"""What long work reports while it runs: progress and remarks. Nothing here prints."""


class Progress:
    """Receives progress and remarks. This one ignores them; `report.text.Terminal` shows them."""

    def update(self, task: str, done: int, total: int) -> None:
        """`done` of `total` steps of `task` are complete."""

    def note(self, text: str) -> None:
        """One line that the user should read, such as a warning."""
