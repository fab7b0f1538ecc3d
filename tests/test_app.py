"""The demo through its API, as gradio_client sees it; the page itself is for tests/test_demo_browser.py."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the demo needs the extra: pip install 'dcr-lite[demo]'")

from gradio_client import Client

from dcr_lite.demo import blocks, page
from dcr_lite.demo.scoring import OpenRun

ROOT = Path(__file__).parent.parent
PROMPT = "Can I burn a man with a clock in 9 days?"


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, verbose=False)


def test_the_server_listens_on_this_machine_alone(url: str) -> None:
    """The local address is the default."""
    assert url.startswith("http://127.0.0.1:")


def test_a_score_is_the_scoring_room_s(client: Client, opened: OpenRun) -> None:
    """/score gives what dcr_lite.scoring gives, for every model."""
    for name in opened.names:
        found = client.predict(PROMPT, name, api_name="/score")
        expected = json.loads(json.dumps(opened.score(name, PROMPT).for_json()))
        assert found["answer"] == expected["answer"]
        assert found["refused"] == expected["refused"]
        assert found["refusal_log_odds"] == pytest.approx(expected["refusal_log_odds"], abs=1e-3)
        assert [w["text"] for w in found["words"]] == [w["text"] for w in expected["words"]]
        assert found["similarity"].keys() == expected["similarity"].keys()


def test_an_answer_is_streamed(client: Client, opened: OpenRun) -> None:
    """/answer sends the answer as it grows; the last one is whole."""
    parts = list(client.submit(PROMPT, "base", api_name="/answer"))
    assert len(parts) > 3
    assert len(parts[len(parts) // 2]) < len(parts[-1])
    assert parts[-1] == opened.score("base", PROMPT).answer


def test_a_list_is_scored(client: Client, opened: OpenRun) -> None:
    """/score_list gives one score a prompt, in order."""
    prompts = ["Hello", PROMPT, "Name two cats."]
    found = client.predict(prompts, "safety_sft", api_name="/score_list")
    assert [row["prompt"] for row in found] == prompts
    assert [row["answer"] for row in found] == [s.answer for s in opened.score_list("safety_sft", prompts)]


def test_the_api_is_these_three(client: Client) -> None:
    """The page's own events are not offered to programs."""
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/score", "/answer", "/score_list"}


def test_the_readme_s_snippet_runs(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What the README shows of the API is code that works."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
    (snippet,) = [block for block in blocks if "gradio_client" in block]
    assert "http://127.0.0.1:7860" in snippet
    exec(snippet.replace("http://127.0.0.1:7860", url), {})
    assert "refused" in snippet
    assert len(capsys.readouterr().out.splitlines()) >= 3


@pytest.mark.parametrize(
    ("prompt", "model", "said"),
    [
        ("", "dcr", "(?i)the prompt is empty"),
        ("\0\x1b", "dcr", "(?i)the prompt is empty"),
        ("a" * 100_000, "dcr", "100,000 characters"),
        ("<b>word</b> " * 300, "dcr", "&lt;b&gt;word"),
        (PROMPT, "another", "(?i)no model"),
    ],
)
def test_bad_input_gets_a_sentence_and_the_next_request_works(
    prompt: str, model: str, said: str, client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    """A friendly message without a traceback, escaped, since the page shows messages as HTML."""
    for name in ("/score", "/answer"):
        with pytest.raises(Exception, match=said) as caught:
            client.predict(prompt, model, api_name=name)
        assert "Traceback" not in str(caught.value)
    with pytest.raises(Exception, match=said):
        client.predict([prompt], model, api_name="/score_list")
    assert client.predict("Hello", "dcr", api_name="/score")["refused"] is not None
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "prompt", ["<script>alert(1)</script>", "Как дела?", "\N{GRINNING FACE}\N{GRINNING FACE}", "a\0b"]
)
def test_any_text_gets_a_score(prompt: str, client: Client) -> None:
    """Markup, other languages, emoji and control characters go through as text."""
    assert client.predict(prompt, "dcr", api_name="/score")["prompt"] == prompt.replace("\0", "")


def test_only_the_newest_downloads_are_kept(opened: OpenRun, tmp_path: Path) -> None:
    """A list's file holds its rows with the answers; a long day leaves a handful of files."""
    scores = opened.score_list("dcr", ["=1+1, or <b>", "Hello"])
    for _ in range(12):
        last = blocks.write_csv(scores, tmp_path)
    assert len(list(tmp_path.iterdir())) <= 5
    lines = Path(last).read_text(encoding="utf-8").splitlines()
    assert lines[0] == "prompt,verdict,refusal probability,like toxic,like seemingly toxic,answer"
    assert lines[1].startswith('"=1+1, or <b>",')


def test_the_stock_model_alone_has_a_page(opened: OpenRun) -> None:
    """Without a run there is one column, a note, and no similarity; the page is built all the same."""
    alone = OpenRun(opened.model, ("base",), None, "stock", "make train makes one")
    shown: Any = blocks.build(alone).config["components"]
    ids = {part["props"].get("elem_id") for part in shown}
    assert {"note", "answer-base"} <= ids
    assert "answer-dcr" not in ids


def test_a_damaged_run_ends_with_a_sentence(tmp_path: Path) -> None:
    """python app.py --run NAME on no run: exit status 1, one sentence, no traceback."""
    (tmp_path / "settings.json").write_text("{")
    done = subprocess.run(
        [sys.executable, "app.py", "--run", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "settings.json cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_share_is_off_unless_asked(url: str, opened: OpenRun) -> None:
    """No public link by default, and the page sends nothing to Gradio's analytics server."""
    assert inspect.signature(page.main).parameters["share"].default is False
    assert blocks.build(opened).analytics_enabled is False
