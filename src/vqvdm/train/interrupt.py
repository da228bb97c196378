"""Ctrl-C, SIGTERM and SIGUSR1, by which clusters warn of their end: finish the update, save, then stop."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

# Slurm sends what `--signal` names some time before the limit; others send SIGTERM.
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
_REPEATED = 1.0  # seconds within which launchers pass on what a terminal or a job queue has sent to all processes


class Interrupt:
    """Within this block the first of `SIGNALS` only sets `requested`.

    A Ctrl-C after more than a second acts at once, as usual. Further signals of other kinds change nothing: whoever is
    in a hurry sends SIGKILL. Signals can be caught in the main thread only; in any other the block does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._request) for number in SIGNALS}
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested, self._since = True, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > _REPEATED:
            raise KeyboardInterrupt

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
