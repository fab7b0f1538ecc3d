"""The demo's server and its API, as gradio_client sees it; the page itself is for tests/test_demo_browser.py."""

import inspect
import json
import os
import re
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the demo needs the extra: pip install 'dcr-lite[demo]'")

import gradio
import httpx
from demo_load import PageClient
from gradio_client import Client
from tiny_models import load_tiny

from dcr_lite.data.rows import Pair
from dcr_lite.demo import blocks, page, scoring
from dcr_lite.demo.scoring import OpenRun
from dcr_lite.demo.slider import Asked, DialSlider
from dcr_lite.demo.tabs import ListTab, OnePromptTab, PairTab
from dcr_lite.errors import UserError
from dcr_lite.model.streaming import GrowingTogether

pytestmark = pytest.mark.usefixtures("short_answers")

ROOT = Path(__file__).parent.parent
PROMPT = "Can I burn a man with a clock in 9 days?"


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, verbose=False)


def test_a_score_is_that_of_the_package(client: Client, opened: OpenRun) -> None:
    """/score gives what OpenRun.score gives, for every model."""
    for name in opened.names:
        found = client.predict(PROMPT, name, api_name="/score")
        expected = json.loads(json.dumps(opened.score(name, PROMPT).for_json()))
        assert found["answer"] == expected["answer"]
        assert found["refused"] == expected["refused"]
        assert found["refusal_log_odds"] == pytest.approx(expected["refusal_log_odds"], abs=1e-3)
        assert [w["text"] for w in found["words"]] == [w["text"] for w in expected["words"]]
        assert found["similarity"].keys() == expected["similarity"].keys()


def test_a_press_of_ask_is_sent_as_the_page_sends_it(url: str, opened: OpenRun) -> None:
    """What benchmarks/demo_load.py --ask measures: the answers of all models, each whole at the end, the best model's
    at the strength that is sent and the first to speak, also after a press that was left in the middle."""
    port = httpx.URL(url).port
    assert port
    page = PageClient(port)
    asked = page.asked()
    assert {strength for _, _, strength in asked} == {0.5, 0.0}
    next(page.answers(*asked[0]))
    prompt, model, strength = asked[1]
    parts = list(page.answers(prompt, model, strength))
    first = next(part for part in parts if any(part.values()))
    assert [name for (_, name, _), text in first.items() if text] == ["dcr"]
    assert parts[-1] == {
        (prompt, name, at): opened.score(name, prompt, words=False, strength=at).answer
        for name, at in (("dcr", strength), ("safety_sft", None), ("base", None))
    }


def test_each_request_has_its_own_strength(client: Client, opened: OpenRun) -> None:
    """All three take a strength of DCR's dial for themselves alone: the next request has the run's own again."""
    for strength in (-2.0, 3.0, None):
        expected = opened.score("dcr", PROMPT, words=False, strength=strength)
        found = [
            client.predict(PROMPT, "dcr", strength, api_name="/score"),
            *client.predict([PROMPT], "dcr", strength, api_name="/score_list"),
        ]
        for one in found:
            assert one["strength"] == (0.5 if strength is None else strength)
            assert one["refusal_log_odds"] == pytest.approx(expected.refusal_log_odds, abs=1e-3)
        assert client.predict(PROMPT, "dcr", strength, api_name="/answer") == expected.answer
    for name, prompt in (("/score", PROMPT), ("/answer", PROMPT), ("/score_list", [PROMPT])):
        for strength, says in ((9, "from -2.00 to 3.00"), ("a", "from -2.00 to 3.00"), ({}, "from -2.00 to 3.00")):
            with pytest.raises(Exception, match=says):
                client.predict(prompt, "dcr", strength, api_name=name)


def test_an_answer_is_streamed(client: Client, opened: OpenRun) -> None:
    """/answer sends the answer as it grows; the last one is complete."""
    parts = list(client.submit(PROMPT, "base", api_name="/answer"))
    assert len(parts) > 3
    assert len(parts[len(parts) // 2]) < len(parts[-1])
    assert parts[-1] == opened.score("base", PROMPT).answer


def test_clients_at_once_get_their_own_answers(
    client: Client, opened: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of many clients, for every model and several strengths, are decoded together and never mixed up."""
    together: list[int] = []
    step = GrowingTogether.step
    monkeypatch.setattr(GrowingTogether, "step", lambda self: (together.append(len(self.answers)), step(self)))
    models = [("dcr", None), ("dcr", -2.0), ("safety_sft", None), ("base", None)]
    asked = [(prompt, *model) for model in models for prompt in (PROMPT, "Name three cats.")]
    jobs = [client.submit(*one, api_name="/answer") for one in asked]
    found = [job.result() for job in jobs]
    assert max(together) > 1
    assert found == [opened.score(name, prompt, words=False, strength=s).answer for prompt, name, s in asked]


def test_a_client_that_goes_away_is_served_no_more(url: str, opened: OpenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is left as soon as the server sees that nobody listens, and nothing of it is kept."""
    steps: list[int] = []
    step = GrowingTogether.step
    monkeypatch.setattr(GrowingTogether, "step", lambda self: (steps.append(0), time.sleep(0.02), step(self)))
    stream, tokens = opened.stream, 300
    monkeypatch.setattr(opened, "stream", lambda *given, **more: stream(*given, **more, tokens=tokens))
    body = {"data": [PROMPT, "base", None]}
    with httpx.Client(base_url=url) as leaving:
        event = leaving.post("gradio_api/call/answer", json=body).json()["event_id"]
        with leaving.stream("GET", f"gradio_api/call/answer/{event}") as lines:
            for line in lines.iter_lines():
                if line.startswith("data") and len(steps) > 3:
                    break
    give_up = time.monotonic() + 20
    while opened._batching._running and time.monotonic() < give_up:
        time.sleep(0.02)
    assert 3 < len(steps) < tokens
    assert not opened._batching._running


def test_a_list_is_scored(client: Client, opened: OpenRun) -> None:
    """/score_list gives one score per prompt, in order; markup, emoji and control characters go through as text."""
    prompts = ["Hello", PROMPT, "<script>alert(1)</script>", "Как дела? \N{GRINNING FACE}", "a\0b"]
    found = client.predict(prompts, "safety_sft", api_name="/score_list")
    assert [row["prompt"] for row in found] == [prompt.replace("\0", "") for prompt in prompts]
    assert [row["answer"] for row in found] == [s.answer for s in opened.score_list("safety_sft", prompts)]


def test_the_api_is_these_four(client: Client) -> None:
    """The page's own events are not offered to programs."""
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/score", "/answer", "/chat", "/score_list"}


def test_the_documented_snippet_runs(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What the docs show of the API is code that works."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "running.md").read_text(encoding="utf-8"), re.S)
    (snippet,) = [block for block in blocks if "gradio_client" in block]
    assert "http://127.0.0.1:7860" in snippet
    exec(snippet.replace("http://127.0.0.1:7860", url), {})
    assert "refused" in snippet
    assert len(capsys.readouterr().out.splitlines()) >= 3


@pytest.mark.parametrize(
    ("prompt", "model", "says"),
    [
        ("", "dcr", "The prompt is empty"),
        ("a" * 100_000, "dcr", "100,000 characters"),
        ("<b>word</b> " * 300, "dcr", "&lt;b&gt;word"),
        (PROMPT, "another", "No model"),
        (None, "dcr", "not a text"),
        (3, "dcr", "not a text"),
        (["a"], "dcr", "not a text"),
        (PROMPT, {}, "No model"),
    ],
)
def test_after_bad_input_the_next_request_works(
    prompt: Any, model: Any, says: str, client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    """The message has no traceback, and is escaped, since the page shows messages as HTML."""
    for name, value in (("/score", prompt), ("/answer", prompt), ("/score_list", [prompt])):
        with pytest.raises(Exception, match=f"(?i){says}") as caught:
            client.predict(value, model, api_name=name)
        assert "Traceback" not in str(caught.value)
    assert client.predict("Hello", "dcr", api_name="/score")["refused"] is not None
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("prompts", [None, "text", 3, {}])
def test_a_list_that_is_none_is_an_error(prompts: Any, client: Client) -> None:
    """What is no list is refused in a sentence, not read character by character."""
    with pytest.raises(Exception, match="not a list"):
        client.predict(prompts, "dcr", api_name="/score_list")


def test_the_stock_model_alone_has_a_page(tiny: Path) -> None:
    """Without a run the page has a note and one column, and without a file of marks nothing to mark or mend by."""
    alone = blocks.build(OpenRun(load_tiny(tiny), ("base",), None, None, "stock", "no run was found"))
    ids = {part["props"].get("elem_id") for part in alone.config["components"]}
    assert {"note", "answer-base"} <= ids
    assert not {"answer-dcr", "dial-one", "marked-base", "mend"} & ids


def test_what_is_computed_for_another_position_ends(opened: OpenRun) -> None:
    """A slider that moves on, or a new prompt, ends the answer for what it was; else it comes whole."""
    with gradio.Blocks():
        slider = DialSlider(opened, "here")
    asked = Asked(position=2.0)
    whole = list(slider.stream(PROMPT, True, asked, 2.0))
    assert whole[-1] == opened.score("dcr", PROMPT, strength=2.0)
    for change in ({"position": 1.0}, {"prompts": ("Hello",)}):
        asked.position, parts = 2.0, []
        for part in slider.stream(PROMPT, True, asked, 2.0):
            parts.append(part)
            for name, value in change.items():
                setattr(asked, name, value)
        assert parts == whole[:1]


def test_what_is_typed_beside_the_slider_is_a_position(opened: OpenRun) -> None:
    """A number beyond the ends is the end, and nothing is the run's own strength."""
    with gradio.Blocks():
        (slider,) = DialSlider(opened, "here").positions
    for typed, position in ((None, 0.5), (5, 3.0), (-99, -2.0), (1.25, 1.25)):
        assert slider.preprocess(typed) == position


@pytest.mark.parametrize("kind", [OnePromptTab, PairTab])
def test_a_prompt_that_has_waited_is_asked_where_the_slider_stands_now(
    kind: Any, opened: OpenRun, tmp_path: Path
) -> None:
    """The slider is noted at once, and a prompt that was sent before it moved may begin after that."""
    with gradio.Blocks():
        tab = kind(opened, [Pair(PROMPT, PROMPT)], tmp_path / "marks.jsonl")
    asked, boxes = Asked(), ("first", "second") if kind is PairTab else ("dcr",)
    for noted, strength in ((None, 2.0), (1.0, 1.0)):
        asked.position, asked.whole = noted, {}
        list(tab.results(*[PROMPT] * len(boxes), asked, 2.0))
        assert {asked.whole[box].strength for box in boxes} == {strength}


@pytest.mark.parametrize("kind", [OnePromptTab, PairTab])
@pytest.mark.parametrize("bad", ["", "a" * 9_000, "word " * 1_500])
def test_a_prompt_that_cannot_be_asked_changes_nothing(kind: Any, bad: str, opened: OpenRun, tmp_path: Path) -> None:
    """A sentence; the answer that the page still shows can be marked, and its dial turned."""
    with gradio.Blocks():
        tab = kind(opened, [Pair(PROMPT, PROMPT)], tmp_path / "marks.jsonl")
    asked, pair = Asked(), kind is PairTab
    list(tab.results(*[PROMPT] * (1 + pair), asked, 2.0))
    marks = tab.marks[0] if pair else tab.marks["dcr"]
    with pytest.raises(gradio.Error):
        list(tab.results(*[PROMPT] * pair, bad, asked, 2.0))
    assert "Marked" in marks.mark("answer", asked, PROMPT)
    asked.position = 1.0
    assert list(tab.turned(asked, 1.0))


def test_of_two_lists_none_is_taken(opened: OpenRun, tmp_path: Path) -> None:
    """A text beside a file is an error: nobody could see which of them the scores are of. Blanks are no text."""
    file = tmp_path / "list.txt"
    file.write_text("Hello")
    with gradio.Blocks():
        tab = ListTab(opened)
    with pytest.raises(gradio.Error, match="a text and a file: remove one"):
        list(tab.results(PROMPT, str(file), "base"))
    *_, (rows, _) = tab.results(" ", str(file), "base")
    assert [row[0] for row in rows] == ["Hello"]


def test_the_server_is_private(url: str, opened: OpenRun) -> None:
    """The address is local, no public link opens by default, and nothing is sent to Gradio's analytics server."""
    assert url.startswith("http://127.0.0.1:")
    assert inspect.signature(page.main).parameters["share"].default is False
    assert blocks.build(opened).analytics_enabled is False


def test_the_page_is_served_behind_a_proxy(opened: OpenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that reaches other servers does not stand between the demo and its own; what the user has excepted from
    it stays so."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "intra.net")
    served = blocks.build(opened)
    _, address, _ = blocks.launch(served, prevent_thread_lock=True, quiet=True)
    try:
        assert "<gradio-app" in httpx.get(address).text
        assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "intra.net,127.0.0.1,localhost"
    finally:
        served.close()


@pytest.mark.parametrize("port", ["in use", 99_999])
def test_a_port_that_cannot_be_had_is_named(
    port: str | int, url: str, opened: OpenRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port in use and a number that is no port are errors with that number."""
    number = int(re.findall(r"\d+", url)[-1]) if port == "in use" else port
    monkeypatch.setattr(scoring, "open_run", lambda *given: opened)
    with pytest.raises(UserError, match=f"port {number} is in use"):
        page.main(port=int(number))


def test_without_gradio_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is named, before a model is loaded."""
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape("pip install 'dcr-lite[demo]'")):
        page.main()


def test_app_py_ends_with_one_line_on_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """python app.py --run NAME on a damaged run, or with it for a model, ends with exit status 1 and a message, not a
    traceback."""
    (tmp_path / "settings.json").write_text("{")
    monkeypatch.setattr(sys, "argv", ["app.py", "--run", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
    assert re.fullmatch(r"error: .* settings.json cannot be read.*\n", capsys.readouterr().err)
    monkeypatch.setattr(sys, "argv", ["app.py", "--model", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(ROOT / "app.py"), run_name="__main__")
    assert capsys.readouterr().err == f"error: --model {tmp_path}: a run folder. Give it with --run.\n"
