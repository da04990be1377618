"""Being told to stop: SIGTERM, which spot machines, job schedulers and launchers send some time before they kill."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

import torch
from accelerate import Accelerator


class StopRequests:
    """While it is entered, SIGTERM is remembered instead of ending the process.

    Signals of other kinds stay as they are, and all stay as they are in a thread other than the main one, where Python
    sets no handlers. Workers that are forked meanwhile inherit the handler, so a signal to all processes of the group
    leaves the loader its workers until the run has saved.

    Example:
        >>> with StopRequests(accelerator) as stop:  # doctest: +SKIP
        ...     for batch in loader:
        ...         ...
        ...         if stop.asked_anywhere():
        ...             break
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.asked = False
        """Whether this process was told to stop."""

    def __enter__(self) -> Self:
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        if self._in_main_thread:
            self._former = signal.signal(signal.SIGTERM, self._note)
            # Reads and writes that the signal falls into are begun again by the system, in libraries too that would
            # take an interrupted one for a failed one.
            signal.siginterrupt(signal.SIGTERM, False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._in_main_thread:
            # None stands for a handler that was not set from Python; it cannot be set again.
            signal.signal(signal.SIGTERM, self._former or signal.SIG_DFL)

    def asked_anywhere(self) -> bool:
        """Whether any process was told to stop, the same answer on all; every process calls it at the same step.

        With several processes it waits for the device; with one it costs nothing.
        """
        if self.accelerator.num_processes == 1:
            return self.asked
        asked = torch.full((), float(self.asked), device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked, reduction="sum").item() > 0)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Nothing else is safe here: logging from a handler can meet a lock that this thread holds.
        self.asked = True
