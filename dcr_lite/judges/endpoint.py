"""A model behind an OpenAI-compatible endpoint as a judge: llama.cpp's server, vLLM, Ollama, or a provider's.

Requests go through httpx, which the kit needs anyway to ask whether the Hub answers; the openai package would bring a
dozen others for the two requests made here.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any
from urllib.parse import urldefrag, urlsplit

import httpx

from dcr_lite.data.hub import without_password
from dcr_lite.errors import UserError, first_line
from dcr_lite.judges.interface import Exchange
from dcr_lite.judges.question import Said, question, score_of

KEY_VARIABLE = "OPENAI_API_KEY"
THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
AT_ONCE = 4  # requests: as many as llama.cpp's server has slots by default, and few enough for a provider's limits
TRIES = 6  # of a request that fails for a while
FIRST_WAIT = 1.0  # seconds before the second try; twice as long before each further one
LONGEST_WAIT = 60.0  # seconds, whatever the endpoint asks for
SECONDS = httpx.Timeout(120.0, connect=5.0)  # a model on a CPU takes its time; a machine that is not there does not
SETTINGS: dict[str, Any] = {
    "temperature": 0,
    "max_tokens": 16,  # one word, which some models dress up
    "logprobs": True,
    "top_logprobs": 20,  # the most that OpenAI allows
    "chat_template_kwargs": {"enable_thinking": False},  # llama.cpp, vLLM and SGLang: the word and no thoughts
}


class EndpointJudge:
    """A model that is asked the fixed question of question.py about each answer."""

    def __init__(self, address: str, key_variable: str | None = None):
        """address: that of the API, as http://localhost:8080/v1, with #MODEL behind it; without it the only model that
        is served. key_variable: the environment variable that holds the key, by default OPENAI_API_KEY.

        Raises UserError where the endpoint does not answer, refuses the key, or serves several models and none is
        named.
        """
        try:
            plain, self.model = urldefrag(address)
            usable = bool(httpx.URL(plain).host)
        except (httpx.InvalidURL, ValueError):
            usable = False
        if not usable:  # which is not repeated: it may hold a password
            raise UserError("--judge: not an address. One looks like http://localhost:8080/v1#MODEL.")
        self.address = plain.rstrip("/")
        self.shown = without_password(self.address)
        self.key_variable = key_variable or KEY_VARIABLE
        headers = {"Authorization": f"Bearer {key}"} if (key := self._key(named=key_variable is not None)) else {}
        # A proxy of the environment stands between this machine and others, not before its own servers.
        others = urlsplit(self.address).hostname not in THIS_MACHINE
        self.client = httpx.Client(headers=headers, timeout=SECONDS, trust_env=others)
        self.settings = dict(SETTINGS)
        self.reached = False
        self.stop = Event()
        self.model = self.model or self._only_model()
        self.name = f"{self.shown}#{self.model}"

    def scores(self, rows: Sequence[Exchange]) -> list[float]:
        """As in Judge. Raises UserError where the endpoint fails for longer than half a minute or refuses a request."""
        self.stop.clear()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            asked = [pool.submit(self._score, row) for row in rows]
            try:
                return [one.result() for one in asked]
            except BaseException:  # Ctrl-C too: what has not been sent is not sent, and nobody waits to try again
                self.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _score(self, row: Exchange) -> float:
        return score_of(self.ask(question(row)))

    def ask(self, text: str) -> Said:
        """The model's reply to a text, at temperature 0. Raises UserError as ``scores``."""
        messages = [{"role": "user", "content": text}]
        while True:
            settings = self.settings
            answer = self._request("POST", "/chat/completions", {"model": self.model, "messages": messages} | settings)
            if answer.status_code not in (400, 422):
                break
            refused = [name for name in settings if name in answer.text]
            if not refused:
                raise UserError(f"--judge {self.name}: it refuses the request ({_reason(answer)})")
            # Endpoints differ in what they take: OpenAI's reasoning models neither temperature nor max_tokens.
            self.settings = {name: value for name, value in settings.items() if name not in refused}
        try:
            choice = answer.json()["choices"][0]
            tokens = (choice.get("logprobs") or {}).get("content") or []
            return Said(choice["message"].get("content") or "", tokens)
        except (ValueError, LookupError, TypeError, AttributeError):
            raise UserError(
                f"--judge {self.name}: it answers with something else than a chat completion. The address of an "
                "OpenAI-compatible API usually ends with /v1."
            ) from None

    def _only_model(self) -> str:
        answer = self._request("GET", "/models")
        try:
            models = [str(model["id"]) for model in answer.json()["data"]]
        except (ValueError, LookupError, TypeError):
            raise UserError(
                f"--judge {self.shown}: it does not list its models. Name one behind the address, as "
                f"{self.shown}#MODEL."
            ) from None
        if len(models) != 1:
            listed = ", ".join(models[:10]) or "none"
            raise UserError(
                f"--judge {self.shown}: it serves {len(models)} models ({listed}). Name one behind the address, as "
                f"{self.shown}#MODEL."
            )
        return models[0]

    def _key(self, named: bool) -> str | None:
        """The key, where there is one to send. The one of OPENAI_API_KEY was hardly meant for another machine that is
        asked without encryption, so it is sent there only by its name."""
        key = os.environ.get(self.key_variable)
        if named and not key:
            raise UserError(f"--judge-key {self.key_variable}: this environment variable is not set")
        parts = urlsplit(self.address)
        guarded = parts.scheme == "https" or parts.hostname in THIS_MACHINE
        return key if named or guarded else None

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """The answer to a request, which is tried again while the endpoint is busy or away. Raises UserError."""
        wait = FIRST_WAIT
        for left in reversed(range(TRIES)):
            try:
                answer = self.client.request(method, self.address + path, json=body)
            except httpx.HTTPError as error:
                # One that never answered is not there; one that did may be starting anew.
                if not left or (isinstance(error, httpx.ConnectError | httpx.ConnectTimeout) and not self.reached):
                    raise UserError(
                        f"--judge {self.shown}: it does not answer ({first_line(error)}). Start it, or check the "
                        "address; the same command goes on from here."
                    ) from None
                after = None
            else:
                self.reached = True
                if answer.status_code not in (408, 425, 429) and answer.status_code < 500:
                    self._require_allowed(answer)
                    return answer
                if not left:
                    raise UserError(
                        f"--judge {self.shown}: it answers {answer.status_code} again and again ({_reason(answer)}). "
                        "Run the same command later; it goes on from here."
                    )
                after = answer.headers.get("Retry-After")
            if self.stop.wait(min(float(after) if after and after.isdigit() else wait, LONGEST_WAIT)):
                break
            wait *= 2
        raise UserError(f"--judge {self.shown}: stopped")

    def _require_allowed(self, answer: httpx.Response) -> None:
        """Raises UserError for a key or a path that the endpoint refuses. 400 and 422 are for the caller to read."""
        status = answer.status_code
        if status in (401, 403):
            sent = "Authorization" in answer.request.headers
            cure = f"it refuses the key in ${self.key_variable}. Set it anew" if sent else (
                f"it wants a key. Set ${self.key_variable}"
            )  # fmt: skip
            raise UserError(f"--judge {self.shown}: {cure}, or name another variable with --judge-key ({status}).")
        if status == 404:
            raise UserError(
                f"--judge {self.shown}: nothing there ({_reason(answer)}). Check the address, which usually ends with "
                "/v1, and the name of the model."
            )
        if status >= 300 and status not in (400, 422):
            raise UserError(f"--judge {self.shown}: it refuses the request ({_reason(answer)})")


def _reason(answer: httpx.Response) -> str:
    """The status and what an endpoint says of it. Providers repeat a key in part, and starred, at most; keys that they
    should repeat whole are taken out."""
    try:
        said = answer.json()["error"]
        text = str(said["message"] if isinstance(said, dict) else said)
    except (ValueError, LookupError, TypeError):
        text = answer.text
    key = answer.request.headers.get("Authorization", "").removeprefix("Bearer ")
    text = text.replace(key, "(key)") if key else text
    return f"{answer.status_code}: {text[:200].strip() or 'no reason given'}"
