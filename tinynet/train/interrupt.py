"""Handles Ctrl-C and SIGTERM after a training step instead of in the middle of it."""

import signal
from types import FrameType

from tinynet.signals import Handled


class Interrupt(Handled):
    """A context manager in which Ctrl-C and SIGTERM only set `signal`; a Ctrl-C after that raises KeyboardInterrupt.

    Interrupting a step would leave partly updated weights. A loop that checks `signal` after each step instead stops in
    a state from which training can be resumed.

    Attributes:
        signal: the first signal received, or None.
    """

    def __init__(self) -> None:
        super().__init__(self._request)
        self.signal: signal.Signals | None = None

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
        elif number == signal.SIGINT:  # schedulers repeat SIGTERM, but a second Ctrl-C is deliberate
            self.restore()
            signal.raise_signal(signal.SIGINT)
