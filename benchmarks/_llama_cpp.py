"""llama.cpp's own server, which its wheel (xllamacpp) starts in this process: what it makes of a GGUF file."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

SECONDS = 600  # that one answer may take, on two busy cores


class Served:
    """A GGUF file, served at an address of this machine."""

    def __init__(self, address: str, key: str = ""):
        self.address = address
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        """The answer to a request, both JSON."""
        request = Request(self.address + path, json.dumps(body).encode(), self._headers)
        with urlopen(request, timeout=SECONDS) as answer:
            return json.load(answer)

    def greedy(self, row: list[int] | str, most: int) -> list[int]:
        """The most probable tokens behind a row of token ids, or behind a text as it makes tokens of it, at most so
        many, with the one that ends the answer."""
        body = {"prompt": row, "n_predict": most, "temperature": 0, "return_tokens": True, "cache_prompt": True}
        return [int(token) for token in self.ask("/completion", body)["tokens"]]

    def chat(self, prompt: str, most: int) -> str:
        """The greedy answer to one prompt in the file's own chat template, by the OpenAI interface."""
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": most, "temperature": 0}
        return str(self.ask("/v1/chat/completions", body)["choices"][0]["message"]["content"])


@contextmanager
def serve(file: Path, context: int, threads: int, key: str = "") -> Iterator[str]:
    """The address at which a file is served, one request at a time, with so many tokens of context; to those alone who
    know the key where there is one. Raises ImportError where the wheel is not installed."""
    xllamacpp = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx = context
    if key:
        params.api_keys = [key]
    params.n_parallel = 1
    params.cpuparams.n_threads = threads
    params.warmup = False
    params.verbosity = 0
    params.port = 0  # any free one
    server = xllamacpp.Server(params)
    try:
        # Its queue has to run before it is stopped: one that is stopped at once would wait for its end forever.
        Served(server.listening_address, key).ask("/completion", {"prompt": "a", "n_predict": 1})
        yield server.listening_address
    finally:
        del server  # an error would keep it
