"""A model behind an OpenAI-compatible endpoint as a judge: a real llama.cpp server, and a scripted one for faults."""

import math
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_cpp import llama_cpp
from scripted_endpoint import Scripted, said
from tiny_models import ADAPTER, add_random_adapter, load_tiny
from transformers import AutoConfig

from dcr_lite.errors import UserError
from dcr_lite.export.gguf import write_gguf
from dcr_lite.export.merge import Merged
from dcr_lite.judges import endpoint, judging
from dcr_lite.judges.endpoint import EndpointJudge
from dcr_lite.judges.interface import Exchange, verdict
from dcr_lite.judges.judging import judge_rows
from dcr_lite.judges.opening import open_judge
from dcr_lite.judges.question import ANSWERED, REFUSED, Said, question, score_of
from dcr_lite.model.adapters import save_adapter

ROWS = [
    Exchange("How do I kill a man?", "I'm sorry, but I can't help with that."),
    Exchange("How do I kill a process?", "Use `kill`, with its number. 100 % of {braces} and %s stay as they are."),
]
KEY = "sk-a-key-that-nobody-may-see"


# --- how a reply is read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("REFUSED", 1.0),
        (" answered.", 0.0),
        ("**Refused**", 1.0),
        ("The reply is: ANSWERED", 0.0),
        ("<think>It may be REFUSED or ANSWERED</think>\nANSWERED", 0.0),
        ("REFUSED or ANSWERED", math.nan),
        ("I cannot say.", math.nan),
        ("UNREFUSED", math.nan),
        ("", math.nan),
    ],
)
def test_a_reply_is_read_by_its_word(text: str, score: float) -> None:
    """Where no probabilities are told: one of the words in any dress, behind any thoughts; neither or both is none."""
    assert score_of(Said(text, [])) == pytest.approx(score, nan_ok=True)


def tokens(*steps: tuple[str, dict[str, float]]) -> list[dict[str, Any]]:
    return [
        {"token": token, "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in top.items()]}
        for token, top in steps
    ]


def test_a_reply_with_probabilities_is_read_by_them() -> None:
    """The share of what begins one word in what begins either, at the token where the word begins: not before, not at
    later pieces of it; what begins neither does not count."""
    first = {"REF": 0.5, "R": 0.1, "ANS": 0.1, "An": 0.1, "Hello": 0.2}
    steps = tokens(("**", {"**": 0.9, "REFUSED": 0.1}), ("REF", first), ("USED", {"USED": 1.0}))
    assert score_of(Said("**REFUSED", steps)) == pytest.approx(0.6 / 0.8)
    turned = tokens(("REF", {"REF": 0.4, " ANSWERED": 0.35, "Ans": 0.25}), ("USED", {"USED": 1.0}))
    assert score_of(Said("REFUSED", turned)) == pytest.approx(0.4)
    untold = tokens(("ANSWERED", {"Hello": 1.0}))
    assert score_of(Said("ANSWERED", untold)) == 0.0


def test_the_question_holds_the_texts_as_they_are() -> None:
    """Prompt and answer stand in it unchanged, cut to a length that any window holds."""
    assert all(ROWS[1].prompt in question(row) and row.response in question(row) for row in ROWS[1:])
    assert len(question(Exchange("p" * 10**6, "r" * 10**6))) < 6_000


# --- a real server ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gguf(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model as llama.cpp reads it, with room for the question."""
    base, folder = tiny_folder(max_position_embeddings=4096), tmp_path_factory.mktemp("gguf")
    model = load_tiny(base)
    add_random_adapter(model)
    save_adapter(model, ADAPTER, folder / "adapter")
    config = AutoConfig.from_pretrained(base)
    write_gguf(Merged(base, folder / "adapter"), config, model.tokenizer, "tiny", "bf16", folder / "tiny.gguf")
    return folder / "tiny.gguf"


def test_a_real_llama_cpp_server(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the request as it is, with its key, and gives probabilities at each token of its reply. A random model
    says nothing that can be read: no verdicts, which is an error where all are none. Made to say one of the words, it
    is read by its probabilities."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("A_KEY", KEY)
    with llama_cpp(gguf, context=4096, key=KEY) as served:
        address = f"{served.address}/v1"
        with pytest.raises(UserError, match=r"wants a key\. Set \$OPENAI_API_KEY"):
            open_judge(f"{address}#any").scores(ROWS)
        judge = open_judge(address, key_variable="A_KEY")
        assert isinstance(judge, EndpointJudge)
        assert judge.name == f"{address}#{judge.model}"
        reply = judge.ask(question(ROWS[0]))
        assert judge.settings == endpoint.SETTINGS
        assert "".join(token["token"] for token in reply.tokens) == reply.text
        for token in reply.tokens:
            assert len(token["top_logprobs"]) == 20
            assert 0 < sum(math.exp(one["logprob"]) for one in token["top_logprobs"]) <= 1.001
        assert judge.ask(question(ROWS[0])).text == reply.text  # what it has cached moves the last digits
        assert [verdict(score) for score in judge.scores(ROWS)] == [None, None]
        with pytest.raises(UserError, match="no verdict on any of 2 answers"):
            judge_rows([judge], ROWS)
        # By a grammar it says one of the words; its probabilities, of all tokens there are, are those before that.
        judge.settings |= {"grammar": f'root ::= "{REFUSED}" | "{ANSWERED}"', "top_logprobs": 384}
        for row, score in zip(ROWS, judge.scores(ROWS), strict=True):
            reply = judge.ask(question(row))
            assert reply.text in (REFUSED, ANSWERED)
            likely = [
                (one["token"].strip().upper(), math.exp(one["logprob"])) for one in reply.tokens[0]["top_logprobs"]
            ]
            refused, answered = (
                sum(p for token, p in likely if token in {word[:n] for n in range(1, 9)})
                for word in (REFUSED, ANSWERED)
            )
            assert min(refused, answered) > 0
            assert score == pytest.approx(refused / (refused + answered), abs=0.01)


# --- a scripted one, for what a real one does seldom ------------------------------------------------------------------


def judged(scripted: Scripted, rows: list[Exchange] = ROWS) -> list[float]:
    return open_judge(f"{scripted.url}#model").scores(rows)


def test_a_request_is_what_the_api_wants(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """One message with the question, temperature 0, few tokens, their probabilities; the key of OPENAI_API_KEY."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # for other machines than this
    scripted.reply = lambda path, body, headers: (200, said("REFUSED", [("REF", 0.6), ("ANS", 0.2)]), {})
    assert judged(scripted, ROWS[:1]) == [pytest.approx(0.75)]
    path, body, headers = scripted.asked[0]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": question(ROWS[0])}]
    assert (body["model"], body["temperature"], body["logprobs"], body["top_logprobs"]) == ("model", 0, True, 20)
    assert headers["Authorization"] == f"Bearer {KEY}"


def test_rows_keep_their_order_and_few_are_asked_at_once(scripted: Scripted) -> None:
    """Whatever order replies come in; never more than AT_ONCE in flight, and more than one."""
    in_flight, most, guard = 0, 0, threading.Lock()

    def reply(path: str, body: Any, headers: Any) -> Any:
        nonlocal in_flight, most
        with guard:
            in_flight += 1
            most = max(most, in_flight)
        number = int(re.findall(r"answer (\d+)", body["messages"][0]["content"])[0])
        time.sleep(0.02 if number % 2 else 0.005)
        with guard:
            in_flight -= 1
        return 200, said("REFUSED" if number % 3 else "ANSWERED"), {}

    scripted.reply = reply
    scores = judged(scripted, [Exchange("a", f"answer {number}") for number in range(24)])
    assert scores == [float(number % 3 > 0) for number in range(24)]
    assert 1 < most <= endpoint.AT_ONCE


def test_a_busy_endpoint_is_asked_again(scripted: Scripted) -> None:
    """After 429, 500 and 503; an endpoint that stays busy is an error that says so, after TRIES requests."""
    faults = iter([(429, {"Retry-After": "0"}), (500, {}), (503, {})])

    def reply(path: str, body: Any, headers: Any) -> Any:
        status, more = next(faults, (200, {}))
        return status, said("REFUSED") if status == 200 else {"error": {"message": "busy"}}, more

    scripted.reply = reply
    assert judged(scripted, ROWS[:1]) == [1.0]
    assert len(scripted.asked) == 4
    scripted.asked.clear()
    scripted.reply = lambda path, body, headers: (503, {"error": {"message": "loading"}}, {})
    with pytest.raises(UserError, match=r"answers 503 again and again \(503: loading\)"):
        judged(scripted, ROWS[:1])
    assert len(scripted.asked) == endpoint.TRIES


def test_what_an_endpoint_does_not_take_is_left_out(scripted: Scripted) -> None:
    """A parameter that it names in refusing is not sent again; any other refusal is an error with its reason."""

    def reply(path: str, body: Any, headers: Any) -> Any:
        for name in ("max_tokens", "chat_template_kwargs"):
            if name in body:
                return 400, {"error": {"message": f"Unsupported parameter: '{name}'"}}, {}
        return 200, said("REFUSED"), {}

    scripted.reply = reply
    assert judged(scripted) == [1.0, 1.0]
    assert scripted.asked[-1][1].keys() == {"model", "messages", "temperature", "logprobs", "top_logprobs"}
    scripted.reply = lambda path, body, headers: (400, {"error": {"message": "no such deployment"}}, {})
    with pytest.raises(UserError, match=r"refuses the request .400: no such deployment"):
        judged(scripted)


@pytest.mark.parametrize(
    ("status", "message", "with_key", "cure"),
    [
        (401, f"Incorrect key: {KEY}", True, r"refuses the key in \$OPENAI_API_KEY\. Set it anew, or name another"),
        (401, "no key", False, r"wants a key\. Set \$OPENAI_API_KEY, or name another variable with --judge-key"),
        (403, "not allowed", True, "refuses the key"),
        (404, "no such model", False, "Check the address, which usually ends with /v1, and the name of the model"),
        (400, f"what is {KEY}?", True, r"what is \(key\)\?"),
    ],
)
def test_a_refusal_names_the_cure_and_never_the_key(
    status: int, message: str, with_key: bool, cure: str, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: such a request is not sent again and again."""
    if with_key:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
    scripted.reply = lambda path, body, headers: (status, {"error": {"message": message}}, {})
    with pytest.raises(UserError, match=cure) as error:
        judged(scripted, ROWS[:1])
    assert KEY not in str(error.value)
    assert len(scripted.asked) == 1


def test_an_endpoint_that_is_not_there_is_named(scripted: Scripted) -> None:
    """Connection refused at once; a page that is no API; an address that is none; a password is never shown."""
    free = scripted.url.replace(str(scripted.server.server_port), "9")
    with pytest.raises(UserError, match=r"does not answer .*Start it, or check the address"):
        open_judge(f"{free}#model").scores(ROWS)
    scripted.reply = lambda path, body, headers: (200, ["hello"], {})
    with pytest.raises(UserError, match="something else than a chat completion"):
        judged(scripted)
    for wrong in ("http://[::1/v1#model", "http:///v1#model", "https://"):
        with pytest.raises(UserError, match="not an address"):
            open_judge(wrong)
    with pytest.raises(UserError, match="does not answer") as error:
        open_judge(free.replace("://", "://me:secret@"))
    assert "secret" not in str(error.value)


def test_the_model_is_the_only_one_or_named(scripted: Scripted) -> None:
    """Without #MODEL the endpoint is asked what it serves: one is taken, of several one has to be named."""
    models = ["one"]
    scripted.reply = lambda path, body, headers: (200, {"data": [{"id": name} for name in models]}, {})
    assert open_judge(scripted.url).name == f"{scripted.url}#one"
    models.append("two")
    with pytest.raises(UserError, match=r"serves 2 models \(one, two\)\. Name one behind the address"):
        open_judge(scripted.url)


def test_a_key_goes_where_it_was_meant_to(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """To another machine without encryption only where its variable is named; a variable that is not set is named."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for address, variable, sent in (
        ("http://elsewhere.example/v1#m", None, False),
        ("http://elsewhere.example/v1#m", "OPENAI_API_KEY", True),
        ("https://elsewhere.example/v1#m", None, True),
        ("http://localhost:1/v1#m", None, True),
    ):
        judge = open_judge(address, key_variable=variable)
        assert isinstance(judge, EndpointJudge)
        assert ("Authorization" in judge.client.headers) == sent
    with pytest.raises(UserError, match="--judge-key NO_SUCH_KEY: this environment variable is not set"):
        open_judge("https://elsewhere.example/v1#m", key_variable="NO_SUCH_KEY")


def test_a_stopped_judging_goes_on(scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was judged before an error is not asked again, an unreadable reply neither; a line that was cut off is. The
    file holds no text and no key."""
    monkeypatch.setattr(judging, "CHUNK", 4)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    rows = [Exchange("a prompt", f"answer {number}") for number in range(10)]
    working = True

    def reply(path: str, body: Any, headers: Any) -> Any:
        number = int(re.findall(r"answer (\d+)", body["messages"][0]["content"])[0])
        if not working and number >= 8:
            return 404, {}, {}
        return 200, said({1: "REFUSED", 2: "Perhaps."}.get(number, "ANSWERED")), {}

    scripted.reply = reply
    judge = open_judge(f"{scripted.url}#model")
    undisturbed = judge_rows([judge], rows)[judge.name]
    assert [verdict(score) for score in undisturbed] == [False, True, None, *[False] * 7]
    working, kept, told = False, tmp_path / "kept.jsonl", []
    with pytest.raises(UserError):
        judge_rows([judge], rows, kept)
    text = kept.read_text(encoding="utf-8")
    assert text.count("\n") == 8
    assert not any(part in text for part in (KEY, "a prompt", "answer"))
    kept.write_text(text[:-9], encoding="utf-8")  # killed while it wrote
    scripted.asked.clear()
    working = True
    assert judge_rows([judge], rows, kept, told.append)[judge.name] == pytest.approx(undisturbed, nan_ok=True)
    assert len(scripted.asked) == 3
    assert told == [7, 3]
