"""How a job tells what it is doing; it never prints."""


class Watcher:
    """Receives progress and remarks from a job. This one ignores them; `cli` shows them."""

    def progress(self, task: str, done: int, total: int) -> None:
        """`done` of `total` steps of `task` are behind us."""

    def note(self, text: str) -> None:
        """One line that the user should read, such as a warning."""
