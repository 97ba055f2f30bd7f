"""Whose turn it is to write: a lock whose waiters are served in the order they came."""

from __future__ import annotations

import threading
from collections import defaultdict, deque


class Turns:
    """``take`` and ``give`` may be called by different threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._taken = False

    def take(self, timeout_s: float) -> bool:
        """Wait for the turn; False when it did not come in time."""
        with self._mutex:
            if not self._taken:
                self._taken = True
                return True
            mine = threading.Event()
            self._waiting.append(mine)
        if mine.wait(timeout_s):
            return True
        with self._mutex:
            if mine.is_set():  # it came at the last moment
                return True
            self._waiting.remove(mine)
            return False

    def give(self) -> None:
        """To who has waited longest."""
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._taken = False


_by_url: defaultdict[str, Turns] = defaultdict(Turns)
_mutex = threading.Lock()


def turns_of(url: str) -> Turns:
    """The one queue of this process for a database, however many engines it has."""
    with _mutex:
        return _by_url[url]
