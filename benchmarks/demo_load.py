"""The demo under load and with one client: errors, mixed-up answers, memory, latency.

    python benchmarks/demo_load.py --run runs/NAME

Starts app.py in a process of its own, measures its start and one client's latency, then lets 30 clients ask at once for
two minutes, each a prompt and a model of its own, and compares every answer with the one given beforehand in quiet.
"""

import json
import queue
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import tyro
from gradio_client import Client

ROOT = Path(__file__).parent.parent
MODELS = ("dcr", "safety_sft", "base")
PROMPTS = (
    "How do I kill a Python process that hangs?",
    "How do I shoot a portrait in low light without a flash?",
    "How do I whip cream without a mixer?",
    "What is a good way to blow up a balloon?",
    "Name three birds.",
)


@dataclass
class Settings:
    """Load on the demo."""

    run: Path | None = None
    """The run folder that the demo opens; by default its own default."""
    clients: int = 30
    """Clients at once."""
    seconds: float = 120
    """How long they go on asking."""
    port: int = 7890
    """Of the demo under test."""


def started(settings: Settings) -> tuple[subprocess.Popen[bytes], Client, float]:
    """The demo's process, a first client, and the seconds until it answered."""
    run = [] if settings.run is None else ["--run", str(settings.run)]
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, str(ROOT / "app.py"), "--port", str(settings.port), *run])
    while True:
        try:
            return process, Client(f"http://127.0.0.1:{settings.port}", verbose=False), time.monotonic() - begun
        except Exception:  # not up yet, in one of the many ways that httpx knows
            if process.poll() is not None or time.monotonic() - begun > 180:
                raise
            time.sleep(0.1)


def one_client(client: Client) -> dict[str, float]:
    """Median seconds of a lone client: to the scores and words, and to the first words of an answer."""
    scores, first = [], []
    for prompt in PROMPTS * 2:
        begun = time.monotonic()
        spoken = False
        for i, part in enumerate(client.submit(prompt, "dcr", api_name="/answer")):  # to its end: the next one waits
            if i == 0:
                scores.append(time.monotonic() - begun)  # the probability and the similarities are there
            if part and not spoken:
                first.append(time.monotonic() - begun)
                spoken = True
    return {"scores": statistics.median(scores), "first_token": statistics.median(first), "worst": max(first)}


def load(settings: Settings, quiet: dict[tuple[str, str], str], process: psutil.Process) -> dict[str, object]:
    """What happened while all clients asked."""
    results: queue.Queue[tuple[float, str]] = queue.Queue()
    stop = time.monotonic() + settings.seconds

    def ask(number: int) -> None:
        client = Client(f"http://127.0.0.1:{settings.port}", verbose=False)
        step = 0
        while time.monotonic() < stop:
            key = list(quiet)[(number + 7 * step) % len(quiet)]
            begun, step = time.monotonic(), step + 1
            try:
                *_, last = client.submit(*key, api_name="/answer")
                outcome = "right" if last == quiet[key] else f"mixed up: {key}"
            except Exception as error:
                outcome = f"error: {type(error).__name__}: {error}"
            results.put((time.monotonic() - begun, outcome))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(settings.clients)]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        memory.append(process.memory_info().rss / 1e6)
        time.sleep(2)
    done = [results.get() for _ in range(results.qsize())]
    waits = sorted(wait for wait, _ in done)
    third = max(1, len(memory) // 3)
    return {
        "requests": len(done),
        "right": sum(outcome == "right" for _, outcome in done),
        "wrong": sorted({outcome for _, outcome in done if outcome != "right"}),
        "median_wait_s": statistics.median(waits),
        "longest_wait_s": waits[-1],
        "memory_mb": {
            "first_third": statistics.mean(memory[:third]),
            "last_third": statistics.mean(memory[-third:]),
            "peak": max(memory),
        },
    }


def main(settings: Settings) -> None:
    process, client, seconds = started(settings)
    try:
        found: dict[str, object] = {"start_s": seconds, "one_client_s": one_client(client)}
        quiet = {(p, m): client.predict(p, m, api_name="/score")["answer"] for p in PROMPTS for m in MODELS}
        found |= load(settings, quiet, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
