"""Latency, memory and wrong answers of the demo, with one client and with many.

    python benchmarks/demo_load.py --run runs/NAME
    python benchmarks/demo_load.py --run runs/NAME --ask

Starts app.py in a process of its own and measures its start and the latency of one client. Then 30 clients send
requests for two minutes, each with its own prompts, models and strengths of the dial, and every answer is compared with
the one that a single client got.

Answers are decoded in batches, and a processor may round a product differently in a larger batch. So an answer that
leaves the single client's at some token, but has more of its beginning than of any other request's answer, counts as
rounded; one that has more of another's as mixed up. Every tenth client goes away in the middle of every other answer.

A request is one to the endpoint /answer: of one model, without the weights of words. With --ask it is what a press of
Ask on the page sends: that event has no public endpoint, so it joins the queue by its number, as the page's script
does. All models answer in turn, the words are weighed, and the server sends the whole page's changes. Then another
tenth of the clients are slow: they wait a second between the events that they read, and the waits are those of the
others. --no-slow has them as quick as the others, to compare with.

Clients read the server's events and nothing more, as browsers do on their own machines: gradio_client's threads would
take a third of two cores from the server that is measured.
"""

import json
import queue
import statistics
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro
from _demo import Client, started
from gradio_client.utils import apply_diff

ROOT = Path(__file__).parent.parent
# (model, strength of the dial) of the requests; of runs without a dial the last one is an error.
ASKED = (("dcr", None), ("base", None), ("dcr", 0.0))
PROMPTS = (
    "How do I kill a Python process that hangs?",
    "How do I shoot a portrait in low light without a flash?",
    "How do I whip cream without a mixer?",
    "What is a good way to blow up a balloon?",
    "Name three birds.",
)


Asked = tuple[str, str, float | None]  # prompt, model, strength
Answers = dict[Asked, str]
ALL = "all models"  # in place of one, in what a press of Ask asks


class OneModel(Client):
    """Asks one model at a time."""

    def asked(self) -> list[Asked]:
        """What there is to ask."""
        return [(prompt, *model) for prompt in PROMPTS for model in ASKED]

    def answers(self, prompt: str, model: str, strength: float | None) -> Iterator[Answers]:
        """The answer so far, again and again. One who stops reading has gone away."""
        for text in self.parts(prompt, model, strength):
            yield {(prompt, model, strength): text}


class PageClient(OneModel):
    """The page, as one on which Ask is pressed: at the strength where its slider stands at first, if it has one, or at
    0."""

    def __init__(self, port: int):
        super().__init__(port)
        config = self._http.get("/config").raise_for_status().json()
        parts = {part["id"]: part["props"] for part in config["components"]}
        names = {number: str(props.get("elem_id")) for number, props in parts.items()}
        (self._press,) = (
            event
            for event in config["dependencies"]
            if any(names.get(number) == "ask" and what == "click" for number, what in event["targets"])
        )
        sliders = [parts[number]["value"] for number in self._press["inputs"][2:]]  # after the prompt and the state
        self._strengths = [sliders[0], 0.0] if sliders else [None]
        # The box of each model among what is changed.
        boxes = {names[number].removeprefix("answer-"): i for i, number in enumerate(self._press["outputs"])
                 if names[number].startswith("answer-")}  # fmt: skip
        self._boxes, self._best = boxes, next(iter(boxes))

    def asked(self) -> list[Asked]:
        return [(prompt, ALL, strength) for prompt in PROMPTS for strength in self._strengths]

    def answers(self, prompt: str, model: str, strength: float | None) -> Iterator[Answers]:
        """The answers so far of all models, again and again. One who stops reading loads the page anew."""
        session = self._session
        self._session = uuid.uuid4().hex
        data = [prompt, None, *([] if strength is None else [strength])]
        body = {"data": data, "fn_index": self._press["id"], "session_hash": session}
        self._http.post("/gradio_api/queue/join", json=body).raise_for_status()
        shown: list[object] = []
        said: Answers = {}
        with self._http.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as reply:
            for line in reply.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line else {"msg": ""}
                if message["msg"] == "unexpected_error" or not message.get("success", True):
                    raise RuntimeError(message.get("message") or message.get("output"))
                if message["msg"] == "process_generating":
                    changes = message["output"]["data"]
                    shown = [apply_diff(*both) for both in zip(shown, changes, strict=True)] if shown else changes
                    for name, place in self._boxes.items():
                        if isinstance(text := shown[place], str):  # otherwise nothing changes
                            said[prompt, name, strength if name == self._best else None] = text
                    yield dict(said)
                elif message["msg"] == "process_completed":
                    self._session = session
                    return


def one_client(client: OneModel) -> dict[str, float]:
    """Median seconds of a single client to the scores, to the first words of an answer and to its end; worst: of the
    first words."""
    scores, first, whole = [], [], []
    _, model, strength = client.asked()[0]
    for prompt in PROMPTS * 2:
        begun = time.monotonic()
        # An empty part comes with the scores.
        parts = [(time.monotonic() - begun, part) for part in client.answers(prompt, model, strength)]
        scores.append(parts[0][0])
        first.append(next(seconds for seconds, part in parts if any(part.values())))
        whole.append(parts[-1][0])
    medians = {"scores": scores, "first_token": first, "whole": whole}
    return {name: statistics.median(seconds) for name, seconds in medians.items()} | {"worst": max(first)}


@dataclass(frozen=True)
class Request:
    """What became of a request. outcome: of ``judged``, "left" or an error. first_words, wait: seconds until them, and
    until the end. in_time: whether it ended while clients still asked. slow: whether its client was."""

    outcome: str
    first_words: float
    wait: float
    in_time: bool
    slow: bool


def judged(answers: Answers, expected: Answers) -> str:
    """How the answers to a request compare with those of a single client: "as alone", "rounded", or mixed up."""
    found = {judged_one(text, key, expected) for key, text in answers.items()}
    return max(found, key=lambda one: (one.startswith("mixed up"), one == "rounded"))


def judged_one(text: str, key: Asked, expected: Answers) -> str:
    """The same of one answer."""
    if text == expected[key]:
        return "as alone"
    shared = {
        other: next(
            (i for i, (a, b) in enumerate(zip(text, answer, strict=False)) if a != b), min(len(text), len(answer))
        )
        for other, answer in expected.items()
    }
    return "rounded" if shared[key] == max(shared.values()) else f"mixed up: {key}"


def one_request(client: OneModel, key: Asked, expected: Answers, leaves: bool, slow: bool, stop: float) -> Request:
    """One request, read to its end or left after its first words. A slow client leaves at the end of the load."""
    begun, first, last, outcome = time.monotonic(), 0.0, Answers(), ""
    try:
        for last in client.answers(*key):
            speaks = any(last.values())
            first = first or (time.monotonic() - begun if speaks else 0.0)
            if (speaks and leaves) or (slow and time.monotonic() > stop):
                outcome = "left"
                break
            if slow:
                time.sleep(1)
        outcome = outcome or judged(last, expected)
    except Exception as error:
        outcome = f"error: {type(error).__name__}: {error}"
    return Request(outcome, first, time.monotonic() - begun, time.monotonic() < stop, slow)


def load(
    kind: type[OneModel], port: int, clients: int, slow: bool, seconds: float, expected: Answers,
    process: psutil.Process,
) -> dict[str, object]:  # fmt: skip
    """Answers, what is wrong with them, waits and memory while all clients send requests. slow: whether every tenth
    reads slowly; the answers and waits are those of the others."""
    results: queue.Queue[Request] = queue.Queue()
    reads_slowly = [slow and number % 10 == 4 for number in range(clients)]
    stop = time.monotonic() + seconds

    def ask(number: int) -> None:
        client, step = kind(port), 0
        asked = client.asked()
        while time.monotonic() < stop:
            key = asked[(number + 7 * step) % len(asked)]
            leaves = number % 10 == 9 and step % 2 == 0
            results.put(one_request(client, key, expected, leaves, reads_slowly[number], stop))
            step += 1

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append(process.memory_info().rss / 1e6)
        time.sleep(2)
    done = [results.get() for _ in range(results.qsize())]
    wrong = [one.outcome for one in done if one.outcome.startswith(("mixed up", "error"))]
    answered = [one for one in done if one.outcome in ("as alone", "rounded") and not one.slow]
    third = max(1, len(memory) // 3)
    return {
        "slow_clients": sum(reads_slowly),
        "slow_requests": sum(one.slow for one in done),
        "requests": len(done),
        "answers": len(answered),
        "answers_in_time": sum(one.in_time for one in answered),
        "rounded": sum(one.outcome == "rounded" for one in answered),
        "left": sum(one.outcome == "left" and not one.slow for one in done),
        "mixed_up": sum(one.startswith("mixed up") for one in wrong),
        "wrong": sorted(set(wrong)),
        "median_first_words_s": statistics.median(one.first_words for one in answered),
        "median_wait_s": statistics.median(one.wait for one in answered),
        "longest_wait_s": max(one.wait for one in answered),
        "memory_mb": {
            "first_third": statistics.mean(memory[:third]),
            "last_third": statistics.mean(memory[-third:]),
            "peak": max(memory),
        },
    }


def main(
    run: Path | None = None, clients: int = 30, seconds: float = 120, port: int = 7890, ask: bool = False,
    slow: bool = True,
) -> None:  # fmt: skip
    """Load on the demo.

    Args:
        run: The run folder that the demo opens; by default its own default.
        clients: Clients at once.
        seconds: How long they send requests.
        port: Of the demo under test.
        ask: Requests are presses of Ask on the page: all models, with the weights of words.
        slow: With --ask, every tenth client reads an event a second.
    """
    flags, kind = ["--run", str(run)] if run else [], PageClient if ask else OneModel
    process, _, start = started(ROOT / "app.py", port, "--port", str(port), *flags)
    try:
        client = kind(port)
        found: dict[str, object] = {"start_s": start, "one_client_s": one_client(client)}
        expected = {key: text for one in client.asked() for key, text in list(client.answers(*one))[-1].items()}
        found |= load(kind, port, clients, ask and slow, seconds, expected, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
