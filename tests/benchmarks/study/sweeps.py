"""The paper's own experiment: within one method, hyperparameters varied one at a time.

Tables in the form of those of LiDAR (Thilak et al., ICLR 2024) and RankMe (Garrido et al., ICML
2023): a row a metric, a column a hyperparameter; the accuracy of the selected checkpoint, and rank
correlations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from study.analysis import Agreement, Candidate, Group, agreements, group_of
from study.records import Results

EVERY = "all"  # the column of all runs of the method's sweeps together
LEVEL = 0.95


@dataclass(frozen=True)
class Sweep:
    """The runs in which one hyperparameter of a method varies, the others in the middle."""

    hyperparameter: str
    group: Group
    by_candidate: dict[Candidate, Agreement]

    @property
    def best(self) -> float:
        """The highest accuracy of the runs: what labels would select."""
        return float(self.group.accuracies.max())


def sweeps(results: Results, layer: str, q: int, among: Sequence[Candidate]) -> list[Sweep]:
    """Every sweep at a layer and q, method by method; then all runs of the method together.

    The centre, where no hyperparameter varies, belongs to each sweep of its method.
    """
    runs = [c for c in results.checkpoints if c.kind == "sweep" and (c.layer, c.q) == (layer, q)]
    swept = []
    for data, method in dict.fromkeys((c.data, c.method) for c in runs):
        of_method = [c for c in runs if (c.data, c.method) == (data, method)]
        names = [c.varied for c in of_method if c.varied is not None]
        for name in (*dict.fromkeys(names), EVERY):
            these = [c for c in of_method if name == EVERY or c.varied in (name, None)]
            group = group_of(data, layer, q, method, these, results.directions)
            rows = {a.candidate: a for a in agreements(group, among, LEVEL)}
            swept.append(Sweep(name, group, rows))
    return swept
