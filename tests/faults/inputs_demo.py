"""Attacks on the demo: prompts that are scored, its HTTP API, its uploads, its endpoint of files."""

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from hypothesis import strategies as st

from dcr_lite.model.chat import encode_prompts
from tests.faults.inputs import Attack, leaves_nothing, refused, require_readable
from tests.faults.inputs_ground import Ground
from tests.faults.inputs_texts import JSON, LISTS, NASTY, TEXT, WHOLE_TEXT

JSON_TYPE = {"content-type": "application/json"}
# Values in place of a prompt, a list of prompts, a model or a strength.
ARGUMENTS = st.one_of(TEXT, TEXT, st.lists(TEXT, max_size=3), JSON, st.sampled_from(["dcr", "base", "Hi"]))
MODELS = st.sampled_from(["dcr", "safety_sft", "base"])
STRENGTHS = st.none() | st.floats(-3, 4)
USUAL = st.builds(
    lambda *values: {"data": list(values)}, WHOLE_TEXT | st.lists(WHOLE_TEXT, max_size=2), MODELS, STRENGTHS
)
BODIES = st.one_of(
    USUAL,
    USUAL,
    st.builds(lambda *values: {"data": list(values)}, ARGUMENTS, MODELS | ARGUMENTS, STRENGTHS | ARGUMENTS),
    st.builds(lambda data: {"data": data}, JSON),
    JSON,
)
FILE_NAMES = st.builds(
    lambda name, end: (name.encode("utf-8", "replace").decode() or "a") + end,
    TEXT
    | st.sampled_from(["../../x", "/etc/passwd", "a/b\\c", "..", "CON", "~", "a\0b", "%2e%2e%2f", ".", "file:///x"]),
    st.sampled_from([".csv", ".csv", ".jsonl", ".txt", ".txt", "", ".html", ".svg"]),
)
PARTS = st.sampled_from([*NASTY, "..", "/", "etc", "passwd", "%2e", "file://", "C:", "~", "proc/self/environ", ".env"])


@contextmanager
def no_traceback_of_ours() -> Iterator[None]:
    """Fails where the server shows a traceback that leads through the kit. Gradio shows one of each of its own
    refusals, which is kept from the terminal."""
    shown = StringIO()
    with redirect_stderr(shown):
        yield
    assert "/dcr_lite/" not in shown.getvalue(), shown.getvalue()[-2_000:]


class Page:
    """The demo as programs see it over HTTP."""

    def __init__(self, ground: Ground):
        # No connection is used again: the server closes one after an error of its own.
        alone = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.Client(base_url=ground.url, timeout=30, limits=alone)
        config = self.client.get("config").json()
        (pasted,) = (c["id"] for c in config["components"] if c["props"].get("elem_id") == "pasted")
        (self.list_event,) = (d["id"] for d in config["dependencies"] if d["inputs"][:1] == [pasted])
        self.uploads = Path(config.get("upload_dir") or tempfile.gettempdir(), "gradio")
        self.alive()

    def alive(self) -> None:
        """Fails where the next request of another client is not served."""
        done = self.call("score", json.dumps({"data": ["Hi", "dcr", None]}).encode())
        assert done is not None, "the next request is not served"

    def call(self, name: str, body: bytes) -> Any:
        """What an endpoint gives; None where it refuses in a sentence. Fails where it ends in an error of its own."""
        begun = self.client.post(f"gradio_api/call/{name}", content=body, headers=JSON_TYPE)
        # FastAPI repeats what it refuses, fails where that is no JSON or no UTF-8, and then answers with 500.
        unspeakable = re.search(rb"Infinity|NaN|\\ud[89a-f]", body)
        if begun.status_code in (400, 422) or (begun.status_code == 500 and unspeakable):
            return None
        assert begun.status_code == 200, (begun.status_code, begun.text[:300])
        shown = self.client.get(f"gradio_api/call/{name}/{begun.json()['event_id']}").text
        event, data = (line.partition(": ")[2] for line in shown.strip().split("\n\n")[-1].split("\n"))
        if event == "complete":
            return json.loads(data)
        self.require_sentence(json.loads(data)["error"], body)
        return None

    @staticmethod
    def require_sentence(message: str | None, body: bytes) -> None:
        # Gradio itself says nothing of a request with fewer values than the endpoint takes.
        few = b'"data"' in body and len(json.loads(body)["data"]) < 3
        assert message is not None or few, f"an error without a sentence, of {body[:300]!r}"
        require_readable(message or "too few values")
        assert "<" not in (message or ""), message

    def score_file(self, path: str) -> str | None:
        """The path of the file of scores that the list's tab makes of an uploaded file; None where it is refused."""
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        data = {"data": ["", file, "dcr", 0.0], "fn_index": self.list_event, "session_hash": "s"}
        begun = self.client.post("gradio_api/queue/join", content=json.dumps(data), headers=JSON_TYPE)
        if begun.status_code in (400, 422):
            return None
        with self.client.stream("GET", "gradio_api/queue/data", params={"session_hash": "s"}) as lines:
            for line in lines.iter_lines():
                told = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if told.get("msg") == "process_completed":
                    output = told["output"]
                    if told["success"]:
                        return str(output["data"][1]["path"])
                    require_readable(output["error"] or "no sentence")
                    return None
        raise AssertionError("the list has no end")


def check_call(page: Page) -> Callable[[Any, Path], bool]:
    def check(given: tuple[str, Any, int], folder: Path) -> bool:
        name, value, cut = given
        body = json.dumps(value).encode()
        taken = page.call(name, body[: len(body) - cut] if cut < 3 else body) is not None
        if cut == 5:
            page.alive()
        return taken

    return check


def check_upload(page: Page) -> Callable[[Any, Path], bool]:
    """An uploaded file lies in the folder of uploads under a plain name, and is scored or refused in a sentence."""

    def check(given: tuple[str, tuple[str, bytes]], folder: Path) -> bool:
        name, (_, raw) = given
        sent = page.client.post("gradio_api/upload", files={"files": (name, raw)})
        if sent.status_code in (400, 413, 422):
            return False
        assert sent.status_code == 200, (sent.status_code, sent.text[:300])
        (path,) = sent.json()
        assert Path(path).parent.parent == page.uploads, path
        assert not set('/\\<>:"|?*') & set(Path(path).name), path
        return page.score_file(path) is not None

    return check


def check_served(page: Page, secrets: list[Path]) -> Callable[[Any, Path], bool]:
    """No path that a client asks for, or gives for an upload, leads to a file that was not uploaded."""
    contents = [secret.read_bytes()[:200] for secret in secrets]

    def check(given: tuple[str, bool], folder: Path) -> bool:
        path, as_upload = given
        if as_upload:
            assert page.score_file(path) is None, path
            return False
        try:
            answer = page.client.get(f"gradio_api/file={quote(path, safe='/:.~', errors='replace')}")
        except httpx.InvalidURL:
            return False
        assert answer.status_code in (400, 403, 404, 422), (path, answer.status_code)
        assert not any(content in answer.content for content in contents), path
        return False

    return check


def check_scored(ground: Ground) -> Callable[[Any, Path], bool]:
    """Every prompt gets complete scores, or a sentence; one alone or in a list."""

    def check(given: tuple[str, list[str]], folder: Path) -> bool:
        prompt, more = given
        with leaves_nothing(folder):
            taken = not refused(lambda: ground.opened.score("dcr", prompt, tokens=4).for_json())
            refused(lambda: ground.opened.score_list("base", [prompt, *more]))
        return taken

    return check


def check_turn(ground: Ground) -> Callable[[Any, Path], bool]:
    """A prompt is one turn: whatever it says, its row holds the special tokens of the template and no other."""
    tokenizer = ground.opened.model.tokenizer
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}

    def count(prompt: str) -> int:
        return sum(token in special for token in encode_prompts(tokenizer, [prompt], 512)[0])

    usual = count("Hi")

    def check(prompt: str, folder: Path) -> bool:
        return not refused(lambda: _require(count(prompt) == usual, prompt))

    return check


def _require(holds: bool, what: Any) -> None:
    assert holds, what


def demo_attacks(ground: Ground) -> list[Attack]:
    page = Page(ground)

    def quiet(check: Callable[[Any, Path], bool]) -> Callable[[Any, Path], bool]:
        return no_traceback_of_ours()(check)

    secrets = [ground.run / "settings.json", ground.run / "answers" / "dcr.jsonl", Path("/etc/passwd"), Path("app.py")]
    secrets = [secret for secret in secrets if secret.exists()]
    paths = st.sampled_from([*map(str, secrets), "/proc/self/environ", "/dev/zero", "settings.json", "~/.bashrc"])
    paths |= st.lists(PARTS, max_size=5).map("".join) | st.builds(lambda path: f"../..{path}", paths) | TEXT
    whole = TEXT.map(lambda text: text.encode("utf-8", "replace").decode())
    names = st.sampled_from(["score", "score", "answer", "score_list"])
    calls = st.tuples(names, BODIES, st.integers(0, 40))
    return [
        Attack("prompts as one turn", 3_000, whole, check_turn(ground)),
        Attack("prompts scored", 1_000, st.tuples(TEXT | whole, st.lists(TEXT, max_size=2)), check_scored(ground)),
        Attack("the demo's API over HTTP", 2_500, calls, quiet(check_call(page))),
        Attack("the demo's uploads", 800, st.tuples(FILE_NAMES, LISTS), quiet(check_upload(page))),
        Attack("the demo's files", 1_500, st.tuples(paths, st.booleans()), quiet(check_served(page, secrets))),
    ]
