"""Answers to many clients at once, in batches that prompts join and leave while they run (continuous batching; Yu et
al., Orca, OSDI 2022).

Prompts of all models, at all strengths of a dial, share a batch; those of very different lengths have batches of their
own, which take turns of a few tokens. Of the clients that wait for a token, one asks the worker for turns, for all. So
where nobody waits nothing is computed, and a client that reads slowly, or goes away, holds nobody up.
"""

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dcr_lite.errors import UserError, out_of_memory
from dcr_lite.model.chat import decode_answers
from dcr_lite.model.loading import OUT_OF_MEMORY, Model
from dcr_lite.model.streaming import Growing, GrowingTogether, SetRows

TURN = 4  # tokens that a batch's answers grow by before the next batch's
# Turns between those in which prompts join a running batch. To begin takes as long as some ten tokens, for one prompt
# hardly less than for several.
JOIN_EVERY = 4
# Turns without an error of memory, after which twice as much is decoded at once, up to what was planned. Where that is
# too early, a turn is taken twice.
CLEAN_TURNS = 1000
# Tokens of a short prompt with its answer. The shorter rows of a batch are padded to the longest, so longer ones share
# a batch only with others of at most twice their length.
SHORT = 256


@dataclass(eq=False)
class Request(Growing):
    """An answer that a client waits for. longest: the tokens that no row of its batch exceeds. note: what was read of
    its prompt. error: why there is no answer."""

    longest: int = SHORT
    note: Any = None
    error: Exception | None = None


@dataclass
class Batch:
    """groups: of answers that are decoded together; one, where all goes well and caches can be joined. since: turns
    since prompts joined."""

    groups: list[GrowingTogether] = field(default_factory=list)
    since: int = 0

    @property
    def answers(self) -> list[Growing]:
        return [answer for group in self.groups for answer in group.answers]


class Batching:
    """Answers prompts of many threads together.

    model: the network. worker: the one thread that computes. set_rows: as of ``GrowingTogether``. read: requests that
    begin together -> a note on the prompt of each.
    most: tokens of prompts and answers, padding included, that are decoded at once; a longer one is decoded alone.
    """

    def __init__(
        self,
        model: Model,
        worker: Executor,
        set_rows: SetRows,
        read: Callable[[Sequence[Growing]], Sequence[Any]],
        most: int,
    ):
        self._model, self._worker, self._set_rows, self._read, self._most = model, worker, set_rows, read, most
        self._planned, self._clean = most, 0  # turns since memory ran out, or since ``_most`` grew
        self._changed = threading.Condition()  # guards what follows
        self._led = False  # whether a client is asking for turns
        self._waiting: list[Request] = []  # in the order in which they came
        self._running: dict[int, Batch] = {}  # by ``longest``, in the order of their turns

    # --- what clients call --------------------------------------------------------------------------------------------

    @contextmanager
    def answering(
        self, which: Hashable, rows: list[list[int]], most: int, stop: Callable[[str], bool] | None = None
    ) -> Iterator[list[Request]]:
        """Requests for greedy answers of the model ``which`` to prompts given as token ids, of at most ``most`` tokens
        each; ``stop`` as in ``generation.answer``. After the block nobody wants them any more."""
        requests = [Request(row, most, stop, which, longest=_longest(len(row) + most)) for row in rows]
        with self._changed:
            self._waiting += requests
            for request in requests:
                self._running.setdefault(request.longest, Batch())
        try:
            yield requests
        finally:
            with self._changed:
                for request in requests:
                    request.ended = True
                if not self._led:
                    self._forget()

    def begin(self, request: Request) -> float:
        """Its refusal log-odds, once they and its note are known. Raises the error that stands in their way."""
        self._wait(request, -1)
        assert request.refusal_log_odds is not None
        return request.refusal_log_odds

    def growing(self, request: Request) -> Iterator[str]:
        """The text as it grows, by several tokens at a time where many are asked for; the last one is complete."""
        seen, ended = 0, False
        while not ended:
            self._wait(request, seen)
            ended, seen = request.ended, len(request.ids)  # in this order: what has ended is complete
            yield self.text(request)

    def whole(self, request: Request) -> str:
        """The text once it is complete. Raises the error that stands in its way."""
        self._wait(request, request.most)
        return self.text(request)

    def text(self, request: Request) -> str:
        """The answer so far, as ``decode_answers`` gives it."""
        return decode_answers(self._model.tokenizer, [request.row], [list(request.ids)])[0]

    # --- turns --------------------------------------------------------------------------------------------------------

    def _wait(self, request: Request, seen: int) -> None:
        """Wait until it has begun and has more than ``seen`` tokens, or has ended; ask for turns while nobody does."""

        def ready() -> bool:
            return request.ended or (request.refusal_log_odds is not None and len(request.ids) > seen)

        while True:
            with self._changed:
                self._changed.wait_for(lambda: ready() or not self._led)
                if ready():
                    break
                self._led = True
            try:
                self._worker.submit(self._turn).result()
            finally:
                with self._changed:
                    self._led = False
                    self._changed.notify_all()
        if request.error:
            raise request.error

    def _turn(self) -> None:
        """Serve the batch whose turn it is: prompts join it, then each of its answers grows by a few tokens."""
        with self._changed:
            self._forget()
            longest, new = self._next()
            groups = self._running[longest].groups
            steps = min(TURN, len(new) + sum(len(batch.answers) for batch in self._running.values()))
        begun = self._begun(new)
        with self._changed:
            self._changed.notify_all()
        for group in begun:
            groups = self._joined(groups, group)
        groups = [left for group in groups for left in self._tried([group], partial(_grow, group, steps))]
        self._clean += 1
        with self._changed:
            self._running[longest].groups = groups
            if self._clean >= CLEAN_TURNS:
                self._most, self._clean = min(2 * self._most, self._planned), 0

    def _forget(self) -> None:
        """Let go of answers that have ended, or that nobody wants any more."""
        self._waiting = [request for request in self._waiting if not request.ended]
        wanted = {request.longest for request in self._waiting}
        for batch in self._running.values():
            batch.groups = [group for group in batch.groups if not all(answer.ended for answer in group.answers)]
        self._running = {key: batch for key, batch in self._running.items() if batch.groups or key in wanted}

    def _next(self) -> tuple[int, list[Request]]:
        """The batch whose turn it is, and who joins it now. In the next round it comes last."""
        fitting = self._fitting()
        for longest in list(self._running):
            batch = self._running[longest] = self._running.pop(longest)
            batch.since += 1
            new = [request for request in fitting if request.longest == longest]
            if batch.groups and batch.since < JOIN_EVERY:
                new = []
            if new or batch.groups:
                batch.since = 0 if new else batch.since
                self._waiting = [request for request in self._waiting if request not in new]
                return longest, new
        raise AssertionError("a turn without work")

    def _fitting(self) -> list[Request]:
        """Those who wait for whom there is room, in the order in which they came: nobody is overtaken for ever."""
        lengths = {
            key: [len(answer.row) + answer.most for answer in batch.answers] for key, batch in self._running.items()
        }
        fitting: list[Request] = []
        for request in self._waiting:
            lengths[request.longest].append(len(request.row) + request.most)
            padded = sum(len(of) * max(of) for of in lengths.values() if of)
            if padded > self._most and sum(map(len, lengths.values())) > 1:
                break
            fitting.append(request)
        return fitting

    # --- the groups of a batch: one, where all goes well and caches can be joined -------------------------------------

    def _begun(self, answers: Sequence[Growing]) -> list[GrowingTogether]:
        """The answers as groups that have begun, or that go on from the tokens that the answers have. One that cannot
        be begun gets the error, and no other does."""
        answers = [answer for answer in answers if not answer.ended]
        if not answers:
            return []
        if self._model.packs or len(answers) == 1:  # else prompts that begin together have to be of one length
            try:
                return [self._begun_together(answers)]
            except Exception as error:
                if len(answers) == 1:
                    _fail(answers[0], error)
                    return []
        return self._begun_in_halves(answers)

    def _begun_in_halves(self, answers: Sequence[Growing]) -> list[GrowingTogether]:
        half = len(answers) // 2
        return self._begun(answers[:half]) + self._begun(answers[half:])

    def _begun_together(self, answers: list[Growing]) -> GrowingTogether:
        new = [answer for answer in answers if isinstance(answer, Request) and answer.refusal_log_odds is None]
        for request, note in zip(new, self._read(new) if new else (), strict=True):
            request.note = note
        return GrowingTogether(self._model, answers, self._set_rows)

    def _joined(self, groups: list[GrowingTogether], new: GrowingTogether) -> list[GrowingTogether]:
        """The groups with a new one: as part of the first, where it can join."""
        if not (groups and groups[0].joins and new.joins):
            return [*groups, new]
        first, *others = groups
        return [*self._tried([first, new], partial(first.join, new)), *others]

    def _tried(self, groups: list[GrowingTogether], work: Callable[[], None]) -> list[GrowingTogether]:
        """The first of the groups after ``work``. Where that fails, all their answers go on from the tokens that they
        have, in halves, so that only one that fails alone gets the error."""
        answers = [answer for group in groups for answer in group.answers]
        try:
            work()
            return groups[:1]
        except Exception as error:
            if len(answers) == 1:
                _fail(answers[0], error)
                return []
            if out_of_memory(error):
                self._most, self._clean = max(1, self._most // 2), 0
        return self._begun_in_halves(answers)


def _longest(tokens: int) -> int:
    """The next of few lengths of rows."""
    return max(SHORT, 1 << (tokens - 1).bit_length())


def _grow(group: GrowingTogether, steps: int) -> None:
    for _ in range(steps):
        group.step()


def _fail(answer: Growing, error: Exception) -> None:
    assert isinstance(answer, Request)
    answer.error = UserError(OUT_OF_MEMORY) if out_of_memory(error) else error
    answer.ended = True
