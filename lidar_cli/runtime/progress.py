"""The callback through which long computations report progress. Nothing here prints."""


class Progress:
    """Receives progress and remarks. This class ignores them; `report.terminal` shows them."""

    def update(self, task: str, done: int, total: int) -> None:
        """`done` of `total` steps of `task` are complete."""

    def note(self, text: str) -> None:
        """One line that the user should read, such as a warning."""
