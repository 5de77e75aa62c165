"""A process that is told to stop does: by Ctrl-C, or by SIGTERM as `ray job stop` and schedulers send it."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType

_AGAIN_S = 0.05


class _Stops:
    """Raises for signals, and counts how often it has."""

    def __init__(self) -> None:
        self.raised = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.raised += 1
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(number)


def raise_on_signals() -> None:
    """Have SIGINT raise KeyboardInterrupt, and SIGTERM SystemExit with the signal's number, in the main thread.

    A signal's exception is raised wherever that thread is. In a destructor, or in a callback of a weak reference (each
    import runs some), Python drops it, and the process would go on: there the signal is sent once more.
    """
    former, stops = sys.unraisablehook, _Stops()

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if (number := _signal_of(dropped.exc_type, dropped.exc_value)) is None:
            former(dropped)
            return
        # Not here: it would be dropped again.
        sending = threading.Thread(target=_send, args=(number, stops, stops.raised), name="signals-again", daemon=True)
        sending.start()

    sys.unraisablehook = hook
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stops)


def _send(number: int, stops: _Stops, before: int) -> None:
    """Send a signal to the main thread until it has raised there: one that comes just before a wait does not end it."""
    main = threading.main_thread().ident
    assert main is not None
    time.sleep(_AGAIN_S)
    while stops.raised == before:
        signal.pthread_kill(main, number)
        time.sleep(_AGAIN_S)


def _signal_of(kind: type[BaseException], error: BaseException | None) -> int | None:
    """The signal whose exception this is, if it is one's."""
    if issubclass(kind, KeyboardInterrupt):
        return signal.SIGINT
    return signal.SIGTERM if isinstance(error, SystemExit) and error.code == signal.SIGTERM else None
