"""Latency, memory and wrong answers of the demo, with one client and with many.

    python benchmarks/demo_load.py --run runs/NAME

Starts app.py in a process of its own and measures its start and the latency of one client. Then 30 clients send
requests for two minutes, each with its own prompts, models and strengths of the dial, and every answer is compared with
the one that a single client got.

Answers are decoded in batches, and a processor may round a product differently in a larger batch. So an answer that
leaves the single client's at some token, but has more of its beginning than of any other request's answer, counts as
rounded; one that has more of another's as mixed up. Every tenth client goes away in the middle of every other answer.

Clients read the server's events and nothing more, as browsers do on their own machines: gradio_client's threads would
take a third of two cores from the server that is measured.
"""

import json
import queue
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro
from _demo import Client, started

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


def one_client(client: Client) -> dict[str, float]:
    """Median seconds of a single client to the scores, to the first words of an answer and to its end; worst: of the
    first words."""
    scores, first, whole = [], [], []
    for prompt in PROMPTS * 2:
        begun = time.monotonic()
        # An empty part comes with the scores.
        parts = [(time.monotonic() - begun, part) for part in client.parts(prompt, "dcr", None)]
        scores.append(parts[0][0])
        first.append(next(seconds for seconds, part in parts if part))
        whole.append(parts[-1][0])
    medians = {"scores": scores, "first_token": first, "whole": whole}
    return {name: statistics.median(seconds) for name, seconds in medians.items()} | {"worst": max(first)}


Asked = tuple[str, str, float | None]  # prompt, model, strength


@dataclass(frozen=True)
class Request:
    """What became of a request. outcome: of ``judged``, "left" or an error. first_words, wait: seconds until them, and
    until the end. in_time: whether it ended while clients still asked."""

    outcome: str
    first_words: float
    wait: float
    in_time: bool


def judged(text: str, key: Asked, expected: dict[Asked, str]) -> str:
    """How an answer compares with those of a single client: "as alone", "rounded", or mixed up."""
    if text == expected[key]:
        return "as alone"
    shared = {
        other: next(
            (i for i, (a, b) in enumerate(zip(text, answer, strict=False)) if a != b), min(len(text), len(answer))
        )
        for other, answer in expected.items()
    }
    return "rounded" if shared[key] == max(shared.values()) else f"mixed up: {key}"


def one_request(client: Client, key: Asked, expected: dict[Asked, str], leaves: bool, stop: float) -> Request:
    """One request, read to its end or left after its first words."""
    begun, first, last, outcome = time.monotonic(), 0.0, "", ""
    try:
        for last in client.parts(*key):
            first = first or (time.monotonic() - begun if last else 0.0)
            if last and leaves:
                outcome = "left"
                break
        outcome = outcome or judged(last, key, expected)
    except Exception as error:
        outcome = f"error: {type(error).__name__}: {error}"
    return Request(outcome, first, time.monotonic() - begun, time.monotonic() < stop)


def load(
    port: int, clients: int, seconds: float, expected: dict[Asked, str], process: psutil.Process
) -> dict[str, object]:
    """Answers, what is wrong with them, waits and memory while all clients send requests."""
    results: queue.Queue[Request] = queue.Queue()
    stop = time.monotonic() + seconds

    def ask(number: int) -> None:
        client = Client(port)
        step = 0
        while time.monotonic() < stop:
            key = list(expected)[(number + 7 * step) % len(expected)]
            results.put(one_request(client, key, expected, number % 10 == 9 and step % 2 == 0, stop))
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
    answered = [one for one in done if one.outcome in ("as alone", "rounded")]
    third = max(1, len(memory) // 3)
    return {
        "requests": len(done),
        "answers": len(answered),
        "answers_in_time": sum(one.in_time for one in answered),
        "rounded": sum(one.outcome == "rounded" for one in answered),
        "left": sum(one.outcome == "left" for one in done),
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


def main(run: Path | None = None, clients: int = 30, seconds: float = 120, port: int = 7890) -> None:
    """Load on the demo.

    Args:
        run: The run folder that the demo opens; by default its own default.
        clients: Clients at once.
        seconds: How long they send requests.
        port: Of the demo under test.
    """
    flags = ["--run", str(run)] if run else []
    process, client, start = started(ROOT / "app.py", port, "--port", str(port), *flags)
    try:
        found: dict[str, object] = {"start_s": start, "one_client_s": one_client(client)}
        asked = [(prompt, *model) for prompt in PROMPTS for model in ASKED]
        expected = {one: list(client.parts(*one))[-1] for one in asked}
        found |= load(port, clients, seconds, expected, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    tyro.cli(main)
