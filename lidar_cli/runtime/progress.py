"""The callback through which long computations report progress. Nothing here prints."""

from collections.abc import Sequence


class Progress:
    """Receives progress and remarks. This class ignores them; `report.progress` shows them."""

    def begin(self, names: Sequence[str], to_embed: int, by: str = "") -> None:
        """Checkpoints of these names come next, in any order, and `to_embed` are not stored.

        by: the metric of the values that `finished` receives.
        """

    def checkpoint(self, name: str) -> None:
        """This process starts to work on a checkpoint."""

    def finished(self, name: str, value: float | None, seconds: float, cached: bool) -> None:
        """A checkpoint is complete. value: None if nothing was scored, or there is no value."""

    def failed(self, name: str) -> None:
        """A checkpoint cannot be scored; the reason is reported in another way."""

    def embedded_elsewhere(self) -> None:
        """Another process has embedded, or is embedding, one of the checkpoints."""

    def update(self, task: str, done: int, total: int) -> None:
        """`done` of `total` steps of `task` are complete."""

    def note(self, text: str) -> None:
        """One line that the user should read, such as a warning."""
