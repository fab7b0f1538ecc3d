"""The demo, started in a process of its own and asked through its HTTP interface."""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

ANSWER = "/gradio_api/call/answer"


class Client:
    """A session of the demo's HTTP interface."""

    def __init__(self, port: int):
        # verify: there is no TLS to set up.
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300, trust_env=False, verify=False)
        self._session = uuid.uuid4().hex  # of which the server makes the state once, which takes it a while

    def parts(self, prompt: str, model: str, strength: float | None) -> Iterator[str]:
        """The answer so far, again and again. One who stops reading has gone away."""
        body = {"data": [prompt, model, strength], "session_hash": self._session}
        event = self._http.post(ANSWER, json=body).raise_for_status().json()["event_id"]
        with self._http.stream("GET", f"{ANSWER}/{event}") as reply:
            kind = ""
            for line in reply.iter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data" and kind == "error":
                    raise RuntimeError(value)
                elif name == "data" and kind in ("generating", "complete"):
                    yield json.loads(value)[0]
                    if kind == "complete":
                        return


def started(app: Path, port: int, *flags: str, **process: Any) -> tuple[subprocess.Popen[bytes], Client, float]:
    """The process of an app.py, a first client, and the seconds until it was up. process: arguments of Popen. Raises
    httpx.HTTPError where it ends, or is not up within three minutes."""
    begun = time.monotonic()
    running = subprocess.Popen([sys.executable, str(app.resolve()), *flags], **process)
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/config", trust_env=False).raise_for_status()
            return running, Client(port), time.monotonic() - begun
        except httpx.HTTPError:  # not up yet
            if running.poll() is not None or time.monotonic() - begun > 180:
                running.kill()
                raise
            time.sleep(0.1)
