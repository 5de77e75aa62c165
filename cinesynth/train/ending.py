"""How a driver ends a training that it no longer wants: the workers end after the step that they are in.

They would go on beside it otherwise: what waits on Ray Train cannot be called off, and a group whose driver died holds
its placement group until somebody removes it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from cinesynth.storage import Storage

log = logging.getLogger("cinesynth.train")

FILE = "end.json"
"""In the run's folder: the workers are to end. The next start of the training removes it."""
PATIENCE_S = 120.0
_LOOK_S = 2.0


class Ending:
    """The driver's side: what went wrong beside the training ends the workers first, and is raised then.

    Args:
        run: the run's folder.
        patience_s: how long workers may take. A group that never started does not answer.
    """

    def __init__(self, run: Storage, patience_s: float = PATIENCE_S) -> None:
        self.run, self.patience_s = run, patience_s
        self.error: Exception | None = None
        self._asked = 0.0
        run.delete(FILE)

    def watch(self, look: Callable[[], None]) -> None:
        """Call `look`; what it raises asks the workers to end. Raises it where they do not."""
        if self.error is not None:
            if time.monotonic() - self._asked > self.patience_s:
                raise self.error
            return
        try:
            look()
        except Exception as e:
            self.error, self._asked = e, time.monotonic()
            self.run.write_json(FILE, {"reason": str(e)[:500]})

    def raise_any(self) -> None:
        """Raise what asked the workers to end, if anything did."""
        if self.error is not None:
            raise self.error


class EndRequest:
    """A worker's side: whether the driver asked to end. Asked at every step, it does not wait.

    Args:
        run: the run's folder.
        looks: this worker looks for the request; the others learn of it with the step's figures.
    """

    def __init__(self, run: Storage, looks: bool) -> None:
        self.run = run
        self._asked = False
        if looks:
            threading.Thread(target=self._keep_looking, name="looks-for-end", daemon=True).start()

    def __call__(self) -> bool:
        return self._asked

    def _keep_looking(self) -> None:
        while not self._asked:
            try:
                self._asked = self.run.exists(FILE)
            except Exception as e:  # a storage that is away for a moment: training goes on
                log.warning("whether the training is to end cannot be seen: %s", e)
            time.sleep(_LOOK_S)
