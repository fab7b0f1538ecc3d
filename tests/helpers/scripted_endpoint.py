"""An OpenAI-compatible endpoint on this machine that answers as a test says."""

import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from dcr_lite.judges import endpoint


class Scripted:
    """An endpoint that answers with what ``reply(path, body, headers)`` gives: (status, JSON, headers)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any, dict[str, str]]] = []
        self.reply: Any = lambda path, body, headers: (200, said("ANSWERED"), {})
        script = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body, headers = json.loads(raw) if raw else None, dict(self.headers)
                script.asked.append((self.path, body, headers))
                status, value, more = script.reply(self.path, body, headers)
                data = json.dumps(value).encode()
                self.send_response(status)
                for name, text in {"Content-Length": str(len(data)), **more}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = answer  # noqa: N815 - the names that http.server looks for

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


def said(text: str, top: list[tuple[str, float]] | None = None) -> dict[str, Any]:
    """A chat completion; top: the tokens at its first place, with their probabilities."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
    if top:
        likely = [{"token": token, "logprob": math.log(p)} for token, p in top]
        choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": likely}]}
    return {"choices": [choice]}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.001)
    served = Scripted()
    yield served
    served.server.shutdown()
    served.server.server_close()
