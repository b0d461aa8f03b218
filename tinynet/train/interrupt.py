"""Ctrl-C and SIGTERM between two steps instead of inside one."""

import signal
from types import FrameType

from tinynet.signals import Handled


class Interrupt(Handled):
    """While entered, Ctrl-C and SIGTERM only set `signal`; only a second one that is a Ctrl-C interrupts at once.

    A step that is cut in the middle leaves weights that no uninterrupted run has; a loop that looks at `signal`
    after each step stops with a state that it can go on from.

    Attributes:
        signal: the first one that came, or None.
    """

    def __init__(self) -> None:
        super().__init__(self._request)
        self.signal: signal.Signals | None = None

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
        elif number == signal.SIGINT:  # a scheduler repeats SIGTERM and then kills; a second Ctrl-C is a person's wish
            self.restore()
            signal.raise_signal(signal.SIGINT)
