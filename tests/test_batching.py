"""Claims about many clients at once: each gets its own answer, in time, whatever the others ask, do or break."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import ADAPTER, add_random_adapter, random_rows

from dcr_lite.demo import batching as module
from dcr_lite.demo.batching import JOIN_EVERY, TURN, Batching, Request
from dcr_lite.errors import UserError
from dcr_lite.model import adapters
from dcr_lite.model.generation import Answer, answer
from dcr_lite.model.loading import Model
from dcr_lite.model.mixed_adapters import MixedAdapters, factors
from dcr_lite.model.streaming import GrowingTogether

NEW = 12
ROWS = [*random_rows([5, 1, 30, 9], shared=6), *random_rows([3], seed=1)]
WHICH = (ADAPTER, None)  # the adapted and the stock model
ENDLESS = 10**6
OPENINGS = ("Sorry", "I can't")  # reading fewer takes less time


class Server:
    """A tiny model with two faces, and what each says to each of ROWS alone."""

    def __init__(self, model: Model):
        self.model, self.worker = model, ThreadPoolExecutor(1)
        self.alone: dict[tuple[Any, int], Answer] = {}
        for which in WHICH:
            adapters.switch(model, which)
            self.alone |= {(which, i): answer(model, [row], NEW)[0] for i, row in enumerate(ROWS)}
        assert len({one.ids for one in self.alone.values()}) == len(self.alone)
        self.mixed = MixedAdapters(model)
        self.mixed.add(ADAPTER, factors(model, ADAPTER))

    def set_rows(self, rows: Sequence[Any]) -> None:
        self.mixed.set_rows([{which: 1.0} if which else {} for which in rows])

    def notes(self, begun: Sequence[Any]) -> list[Any]:
        return [(one.which, tuple(one.row)) for one in begun]

    def batching(self, most: int = ENDLESS) -> Batching:
        return Batching(self.model, self.worker, self.set_rows, self.notes, most)

    def is_right(self, which: Any, i: int, request: Request, text: str) -> bool:
        alone = self.alone[which, i]
        return (
            request.note == (which, tuple(ROWS[i]))
            and request.refusal_log_odds == pytest.approx(alone.refusal_log_odds, abs=1e-4)
            and (tuple(request.ids), text) == (alone.ids, alone.text)
        )


@pytest.fixture(scope="module")
def server(tiny_model: Callable[..., Model]) -> Server:
    model = tiny_model()
    add_random_adapter(model)
    model.openings = OPENINGS
    return Server(model)


class Client:
    """A client that is advanced by hand, in the thread of the test."""

    def __init__(self, batching: Batching, which: Any, i: int, new: int = NEW):
        self.which, self.i, self.stack, self.text = which, i, ExitStack(), ""
        (self.request,) = self.stack.enter_context(batching.answering(which, [ROWS[i]], new))
        self.parts = batching.growing(self.request)

    def advance(self) -> None:
        """Wait for the next part of the text, if any is left."""
        self.text = next(self.parts, self.text)

    def finish(self) -> None:
        while not self.request.ended:
            self.advance()
        self.advance()

    def close(self) -> None:
        self.stack.close()


# What happens, step by step: a client comes, the client of a number gets its next part, or goes away.
COMES = st.tuples(st.sampled_from(WHICH), st.integers(0, len(ROWS) - 1))
EVENTS = st.lists(COMES | st.tuples(st.sampled_from(["advance", "advance", "leave"]), st.integers(0, 9)), max_size=20)

COMES_FIRST: list[tuple[Any, int]] = [(ADAPTER, 0), (None, 0)]


@settings(max_examples=8)
@given(EVENTS, st.sampled_from([60, 200, ENDLESS]))
def test_each_client_gets_what_it_gets_alone(server: Server, events: list[tuple[Any, int]], most: int) -> None:
    """Text, tokens, refusal log-odds and note are those of answer() on each prompt alone with its own model, in any
    order of coming, reading and going, and however little is decoded at once. At the end nothing is kept."""
    batching = server.batching(most)
    clients: list[Client] = []
    gone = set()
    for event, number in [*COMES_FIRST, *events]:
        if event in WHICH:
            clients.append(Client(batching, event, number))
        elif event == "advance":
            clients[number % len(clients)].advance()
        else:
            clients[number % len(clients)].close()
            gone.add(clients[number % len(clients)])
    for client in clients:
        if client not in gone:
            client.finish()
            assert server.is_right(client.which, client.i, client.request, client.text)
            client.close()
    assert not batching._running
    assert not batching._waiting


def test_threads_get_their_own(server: Server) -> None:
    """The same with clients in threads, of which some read slowly and some go away in the middle."""
    batching = server.batching()
    slow = threading.Event()

    def ask(number: int) -> bool:
        which, i = WHICH[number % 2], number % len(ROWS)
        with batching.answering(which, [ROWS[i]], NEW) as (request,):
            for part in batching.growing(request):
                text = part
                if number % 5 == 3:
                    return True
                if number % 7 == 6:
                    slow.wait(0.02)
        return server.is_right(which, i, request, text)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(30)))
    assert not batching._running


def steps_of(monkeypatch: pytest.MonkeyPatch) -> list[list[Request]]:
    """The answers of each step that is taken from now on."""
    taken: list[list[Request]] = []
    step = GrowingTogether.step

    def noted(self: GrowingTogether) -> None:
        taken.append([one for one in self.answers if isinstance(one, Request) and not one.ended])
        step(self)

    monkeypatch.setattr(GrowingTogether, "step", noted)
    return taken


def test_no_prompt_waits_behind_a_whole_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that comes while long answers run, of its model and of another, has its first tokens after a few turns;
    and while it alone is read, the others grow as well."""
    taken = steps_of(monkeypatch)
    batching = server.batching()
    running = [Client(batching, which, i, new=60) for which in WHICH for i in (0, 1)]
    for client in running:
        client.advance()
    before = [len(client.request.ids) for client in running]
    taken.clear()
    late = Client(batching, ADAPTER, 2)
    late.advance()
    assert late.request.ids
    assert len(taken) <= TURN * JOIN_EVERY
    late.finish()
    assert server.is_right(ADAPTER, 2, late.request, late.text)
    assert all(len(client.request.ids) >= n + NEW - 2 * TURN for client, n in zip(running, before, strict=True))
    assert not any(client.request.ended for client in running)
    assert max(map(len, taken)) == 5  # those of all models share their steps


def test_one_client_gets_every_token(server: Server) -> None:
    """Alone it reads the answer a token at a time."""
    client = Client(server.batching(), None, 0)
    lengths = []
    while not client.request.ended:
        client.advance()
        lengths.append(len(client.request.ids))
    assert lengths == list(range(1, NEW + 1))


def test_who_goes_away_is_computed_no_more(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the next step on; and without anybody left, what was computed is let go of at once."""
    taken = steps_of(monkeypatch)
    batching = server.batching()
    stays, goes = Client(batching, None, 0), Client(batching, None, 1)
    goes.advance()
    goes.close()
    taken.clear()
    stays.finish()
    assert stays.request in taken[0]
    assert not any(goes.request in answers for answers in taken)
    last = Client(batching, None, 2)
    last.advance()
    (group,) = (weakref.ref(group._decoding) for batch in batching._running.values() for group in batch.groups)
    assert group() is not None
    last.close()
    gc.collect()
    assert group() is None


def test_an_idle_server_does_nothing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is taken for an answer that nobody waits for."""
    taken = steps_of(monkeypatch)
    batching = server.batching()
    client = Client(batching, None, 0)
    assert not taken
    client.advance()
    assert len(taken) == 1
    time.sleep(0.05)
    assert len(taken) == 1
    client.close()


def test_no_more_is_decoded_than_there_is_room_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts wait until there is room for them with their answers and their padding, in the order in which they came,
    whatever model they ask; one that is longer than the whole room goes alone."""
    most = 100
    batching = server.batching(most)
    grown: list[int] = []
    step = GrowingTogether.step

    def noted(self: GrowingTogether) -> None:
        running = [batch.answers for batch in batching._running.values() if batch.answers]
        lengths = [[len(one.row) + one.most for one in answers] for answers in running]
        grown.append(sum(len(some) * max(some) for some in lengths))
        assert grown[-1] <= most or sum(map(len, lengths)) == 1
        step(self)

    monkeypatch.setattr(GrowingTogether, "step", noted)
    clients = [Client(batching, WHICH[k % 2], i) for k, i in enumerate([0, 1, 2, 3, 4, 0, 1, 3])]
    while any(not client.request.ended for client in clients):
        clients[-1].advance()
        begun = [client for client in clients if client.request.refusal_log_odds is not None]
        assert begun == clients[: len(begun)]
        for client in begun:
            client.advance()
    assert max(grown) > most // 2
    assert all(server.is_right(one.which, one.i, one.request, batching.text(one.request)) for one in clients)
    long = Client(server.batching(10), None, 2)
    long.finish()
    assert server.is_right(None, 2, long.request, long.text)


def test_a_long_prompt_pads_no_short_one(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of very different lengths are not decoded in one batch."""
    monkeypatch.setattr(module, "SHORT", 32)
    taken = steps_of(monkeypatch)
    batching = server.batching()
    clients = [Client(batching, None, i) for i in range(len(ROWS))]
    for client in clients:
        client.finish()
        assert server.is_right(None, client.i, client.request, client.text)
    for answers in filter(None, taken):
        lengths = [len(one.row) + one.most for one in answers]
        assert max(lengths) <= max(32, 2 * min(lengths))
    assert max(map(len, taken)) > 1


@pytest.mark.parametrize("where", ["read", "begin", "join", "step"])
def test_an_error_of_one_touches_no_other(server: Server, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails with one prompt, its own client gets the error and the others their answers; so does who comes
    after it."""
    bad = tuple(ROWS[3])

    def failing(work: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
        def tried(*given: Any) -> Any:
            if when(*given):
                raise UserError("not finite")
            return work(*given)

        return tried

    def holds_bad(answers: list[Any]) -> bool:
        return any(tuple(one.row) == bad for one in answers)

    batching = server.batching()
    if where == "read":
        batching._read = failing(batching._read, lambda begun: bad in (tuple(one.row) for one in begun))
    elif where == "begin":
        monkeypatch.setattr(
            GrowingTogether, "__init__", failing(GrowingTogether.__init__, lambda s, m, a, *more: holds_bad(a))
        )
    elif where == "join":
        monkeypatch.setattr(GrowingTogether, "join", failing(GrowingTogether.join, lambda s, other: True))
    else:
        monkeypatch.setattr(
            GrowingTogether,
            "step",
            failing(GrowingTogether.step, lambda s: holds_bad(s.answers) and len(s.answers[0].ids) > 2),
        )
    first = Client(batching, None, 0)
    first.advance()
    others = [Client(batching, None, i) for i in (1, 2, 4)]
    hurt = Client(batching, None, 3)
    if where == "join":
        hurt.finish()
    else:
        with pytest.raises(UserError, match="not finite"):
            hurt.finish()
    for client in (first, *others, Client(batching, None, 1)):
        client.finish()
        assert server.is_right(None, client.i, client.request, client.text)


def test_where_memory_runs_out_fewer_are_decoded_at_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """All still get their answers, and the room is smaller from then on. Where one alone does not fit, its client is
    told so."""
    step, most = GrowingTogether.step, 2

    def scarce(self: GrowingTogether) -> None:
        if len(self.answers) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        step(self)

    monkeypatch.setattr(GrowingTogether, "step", scarce)
    batching = server.batching(400)
    clients = [Client(batching, None, i % len(ROWS)) for i in range(8)]
    for client in clients:
        client.finish()
        assert server.is_right(None, client.i, client.request, client.text)
    assert batching._most < 400
    most = 0
    alone = Client(batching, None, 0)
    with pytest.raises(UserError, match="memory runs out even with one row"):
        alone.finish()


def test_what_is_decoded_at_once_grows_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program takes the memory for a while: afterwards there is as much room as was planned, and no more."""
    step, scarce = GrowingTogether.step, True

    def fail_together(self: GrowingTogether) -> None:
        if scarce and len(self.answers) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        step(self)

    monkeypatch.setattr(GrowingTogether, "step", fail_together)
    monkeypatch.setattr(module, "CLEAN_TURNS", 5)
    batching = server.batching(400)

    def answer_all() -> None:
        clients = [Client(batching, None, i) for i in range(len(ROWS))]
        for client in clients:
            client.advance()
        for client in clients:
            client.finish()
            assert server.is_right(None, client.i, client.request, client.text)

    answer_all()
    lowered = batching._most
    scarce = False
    answer_all()
    answer_all()
    assert lowered < batching._most == 400


def test_models_that_cannot_be_padded_are_answered_in_turns(tiny_model: Callable[..., Model]) -> None:
    """Without caches that can be joined, each prompt is decoded for itself, and still none waits for another's end."""
    model = tiny_model("lfm2")
    alone = [answer(model, [row], NEW)[0] for row in ROWS]
    batching = Batching(model, ThreadPoolExecutor(1), lambda rows: None, lambda begun: begun, ENDLESS)
    clients = [Client(batching, "", i) for i in range(len(ROWS))]
    clients[-1].advance()
    assert all(client.request.ids for client in clients)
    for client, expected in zip(clients, alone, strict=True):
        client.finish()
        assert (tuple(client.request.ids), client.text) == (expected.ids, expected.text)
