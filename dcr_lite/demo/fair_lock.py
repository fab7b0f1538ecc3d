"""A lock for threads that is given to those who wait in the order in which they came."""

import threading
from collections import deque
from types import TracebackType


class FairLock:
    """Used as a context manager. threading.Lock may be given again and again to who has just left it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._queue: deque[threading.Event] = deque()  # of who holds it, then of those who wait

    def __enter__(self) -> None:
        turn = threading.Event()
        with self._guard:
            self._queue.append(turn)
            if self._queue[0] is turn:
                return
        try:
            turn.wait()
        except BaseException:  # Ctrl-C
            with self._guard:
                held = self._queue[0] is turn
                if not held:
                    self._queue.remove(turn)
            if held:
                self.__exit__(None, None, None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._guard:
            self._queue.popleft()
            if self._queue:
                self._queue[0].set()
