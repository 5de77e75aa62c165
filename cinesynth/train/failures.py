"""How often a run may fail: failures count until there is a newer checkpoint."""

from __future__ import annotations

from cinesynth.storage import Storage
from cinesynth.train.checkpoint import StoredCheckpoints


class Failures:
    """Those of one run since its newest checkpoint.

    Args:
        run: the run's folder.
        most: failures without a newer checkpoint between them, after which it is not tried again.
    """

    def __init__(self, run: Storage, most: int) -> None:
        self.checkpoints, self.most = StoredCheckpoints(run.child("checkpoints")), most
        self.count, self.step = 0, self._newest()

    def another(self) -> bool:
        """Count one, look up the `step` of the newest checkpoint, and say whether the run may be tried again."""
        newest = self._newest()
        # A lower one is new, too: it was trained again in the place of damaged ones.
        self.count = 1 if newest != self.step else self.count + 1
        self.step = newest
        return self.count <= self.most

    def __str__(self) -> str:
        return f"failure {self.count} of at most {self.most} without progress"

    def _newest(self) -> int:
        return max(self.checkpoints.steps(), default=0)
