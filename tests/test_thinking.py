"""Claims about thinking: it is never judged, no family is asked for it unless it is wanted, and what is asked is what
is trained."""

import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import run_command
from finished_runs import MakeRun
from hypothesis import given
from hypothesis import strategies as st
from llama_cpp import llama_cpp
from thinking_templates import EMPTY, FAMILIES, MODEL, USER
from tiny_models import CHAT_TEMPLATE, PROMPTS, build_tokenizer, random_rows

from dcr_lite.data.rows import Prompt
from dcr_lite.demo.batching import Batching
from dcr_lite.errors import UserError
from dcr_lite.evaluate.command import Evaluation, measure_model
from dcr_lite.export.command import export_gguf
from dcr_lite.measure.judge import is_refusal, opening_match, refusal_score, string_match, verdict_is_final
from dcr_lite.measure.kinds import kind_of
from dcr_lite.model import generation
from dcr_lite.model.chat import (
    can_think,
    decode_answers,
    encode_asked,
    encode_conversations,
    encode_prompts,
    prompt_text,
)
from dcr_lite.model.dates import fix_day
from dcr_lite.model.generation import answer
from dcr_lite.model.loading import Model, load_tokenizer
from dcr_lite.model.thinking import BLOCKS, answer_at_once, answer_of, left_open, not_begun

WINDOW = 512
REFUSAL = "I'm sorry, but I can't help with that. It could hurt somebody, so please talk to a friend instead."
DOUBTS = "I can't help with that, I think. It is illegal. No, wait, they want to end a process."
texts = st.text(st.characters(codec="utf-8", exclude_characters="<>[]|"), max_size=60)


def tokenizer_of(template: str) -> Any:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    fix_day(tokenizer)
    answer_at_once(tokenizer)
    return tokenizer


# --- what is the answer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("opening", "closing"), BLOCKS)
def test_thinking_is_not_judged(opening: str, closing: str) -> None:
    """Whatever is thought, the verdict is that of the answer behind it: thoughts that refuse do not make a refusal, and
    long ones hide none."""
    for thoughts in (DOUBTS, DOUBTS * 60):
        assert not is_refusal(f"{opening}\n{thoughts}\n{closing}\n\nSend it SIGKILL.")
        assert refusal_score(f"{opening}{thoughts}{closing}{REFUSAL}") == refusal_score(REFUSAL)
        assert not opening_match(f"{opening}Sorry{closing}Send it SIGKILL.")
        assert string_match(f"{opening}{thoughts}{closing}{REFUSAL}")
        assert not string_match(f"{opening}{thoughts}{closing}Send it SIGKILL.")


@pytest.mark.parametrize(("opening", "closing"), BLOCKS)
def test_an_answer_that_has_not_begun_is_no_refusal(opening: str, closing: str) -> None:
    """Of a block that is still open nothing is judged, and no verdict is final; behind it one is."""
    thoughts = f"{opening}\n{REFUSAL}"
    assert answer_of(thoughts) == ""
    assert not_begun(thoughts)
    assert refusal_score(thoughts) == 0.0
    assert not is_refusal(thoughts)
    assert not verdict_is_final(thoughts)
    assert kind_of("Hi", thoughts) == "broken"
    assert kind_of("Hi", f"{thoughts}{closing}Hello there.") == "answer"
    assert verdict_is_final(f"{thoughts}{closing}{REFUSAL}")
    assert not not_begun(f"{thoughts}{closing}{REFUSAL}")
    assert not not_begun("")  # it has ended, without a word


@given(thoughts=texts, said=texts, block=st.sampled_from(BLOCKS))
def test_what_follows_the_block_is_the_answer(thoughts: str, said: str, block: tuple[str, str]) -> None:
    """It comes through unchanged but for white space around it, in any case of the markers, after several blocks, and
    from a block that the prompt opened; and once found it is found again."""
    opening, closing = block
    for whole in (
        said,
        f"{opening}{thoughts}{closing}{said}",
        f" {opening.upper()}{thoughts}{closing.upper()}\n\n{said}",
        f"{opening}{thoughts}{closing}\n{opening}{closing}{said}",
        f"{thoughts}a{closing}{said}",
    ):
        assert answer_of(whole) == said.strip()
        assert answer_of(answer_of(whole)) == said.strip()


@pytest.mark.parametrize(
    "text",
    [
        "Models think between <think> and other markers.",
        'Split the text at "</think>" and keep the rest.',
        "`</think>` ends a block.",
        "Use <thinker> tags, or [THINKING].",
    ],
)
def test_an_answer_may_speak_of_markers(text: str) -> None:
    """An opening in the middle of an answer opens nothing, and a quoted closing closes nothing."""
    assert answer_of(text) == text


@pytest.mark.parametrize("part", ["<think>", "</think>", "<think></think>", "<|channel|>", "</think> ", "a</think>"])
def test_hostile_repetition_stays_fast(part: str) -> None:
    """A broken model's endless markers take no time."""
    start = time.process_time()
    answer_of(part * 20_000)
    assert time.process_time() - start < 0.5


# --- how a model is asked ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_asked_without_thinking_and_with_it_on_request(family: str) -> None:
    """The prompt ends as the family's own template has it for each, whoever renders it; the user's turn is the same."""
    one = FAMILIES[family]
    own = build_tokenizer()
    own.chat_template = one.template
    assert prompt_text(own, "Hi").endswith(f"Hi<|im_end|>\n{one.unasked}")
    tokenizer = tokenizer_of(one.template)
    assert prompt_text(tokenizer, "Hi").endswith(f"{USER}Hi<|im_end|>\n{one.without}")
    assert prompt_text(tokenizer, "Hi", thinking=True).endswith(f"{USER}Hi<|im_end|>\n{one.thinking}")
    assert can_think(tokenizer)
    turns = [{"role": "user", "content": "Hi"}]
    plain = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert plain == prompt_text(tokenizer, "Hi")
    (row,), (thoughtful,) = (encode_prompts(tokenizer, ["Hi"], WINDOW, thinking) for thinking in (False, True))
    assert tokenizer.decode(row) == prompt_text(tokenizer, "Hi")
    assert tokenizer.decode(thoughtful) == prompt_text(tokenizer, "Hi", thinking=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_behind_messages_is_asked_with_thinking_on_request(family: str) -> None:
    """It ends as a single prompt does."""
    one = FAMILIES[family]
    tokenizer = tokenizer_of(one.template)
    asked = [Prompt("Hi", "plain", "set", (("user", "Yes?"), ("assistant", "No.")))]
    for thinking, end in ((False, one.without), (True, one.thinking)):
        [row] = encode_asked(tokenizer, asked, WINDOW, thinking)
        assert tokenizer.decode(row).endswith(f"{USER}Hi<|im_end|>\n{end}")
        assert "No.<|im_end|>" in tokenizer.decode(row)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_is_what_is_asked(family: str) -> None:
    """Answers are learnt behind the very prompt that is asked with, with nothing of a thinking block left to learn."""
    tokenizer = tokenizer_of(FAMILIES[family].template)
    [asked] = encode_prompts(tokenizer, ["Hi"], WINDOW)
    [(start, said)] = encode_conversations(tokenizer, ["Hi"], ["Sure."], WINDOW)
    assert start == asked
    assert tokenizer.decode(said) == FAMILIES[family].answer
    assert answer_of(tokenizer.decode(start + said).rpartition(MODEL)[2]) == "Sure.<|im_end|>"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_default_travels_with_the_tokenizer(family: str, tmp_path: Path) -> None:
    """Saved, loaded by the kit and made to answer at once again, a template is the same, and asks the same."""
    tokenizer = tokenizer_of(FAMILIES[family].template)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.chat_template == tokenizer.chat_template
    assert prompt_text(loaded, "Hi", thinking=True).endswith(FAMILIES[family].thinking)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, "{{ raise_exception('no') }}", "{% if %}", None])
def test_a_template_without_thinking_stays_as_it_is(template: str | None) -> None:
    """As do one that fails, which the first prompt will say, and none at all."""
    assert tokenizer_of(template).chat_template == template  # type: ignore[arg-type]


def test_a_template_keeps_its_white_space() -> None:
    """What a template begins and ends with comes through the defaults and the switch that are added to it."""
    for end in ("", "\n", "\n\n", "  x\n"):
        own = build_tokenizer()
        own.chat_template = "\n  <s>{{ messages[0].content }}" + end
        before = prompt_text(own, "Hi")
        own.chat_template += "{% if add_generation_prompt %}{{ '<think>' }}{% endif %}"
        assert prompt_text(tokenizer_of(own.chat_template), "Hi", thinking=True).startswith(before)


# --- what a model says ------------------------------------------------------------------------------------------------


def test_markers_stay_in_the_text_and_other_special_tokens_do_not() -> None:
    """Where a family's markers are special tokens, as gpt-oss's are, decoding keeps them and drops the others."""
    tokenizer = build_tokenizer()
    whole = (
        "<|channel|>analysis<|message|>They greet.<|end|><|start|>assistant<|channel|>final<|message|>Hello.<|im_end|>"
    )
    special = ["<|channel|>", "<|message|>", "<|start|>", "<|end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    [ids] = tokenizer([whole], add_special_tokens=False)["input_ids"]
    assert special[0] not in tokenizer.decode(ids, skip_special_tokens=True)  # so this is what is to be done
    (text,) = decode_answers(tokenizer, [[1, 2, 3]], [ids])
    assert text == "<|channel|>analysis<|message|>They greet.assistant<|channel|>final<|message|>Hello."
    assert answer_of(text) == "Hello."
    assert not_begun(decode_answers(tokenizer, [[1, 2, 3]], [ids[:6]])[0])


def test_a_block_that_the_prompt_opened_is_seen_in_the_answer(tiny_model: Callable[..., Model]) -> None:
    """Asked to think by a template that opens the block itself, what the model says begins inside it: not judged, and
    never stopped as a refusal. Asked without, the same words are an answer."""
    model = tiny_model()
    model.tokenizer.chat_template = FAMILIES["DeepSeek R1"].template
    answer_at_once(model.tokenizer)
    thoughtful, plain = (encode_prompts(model.tokenizer, PROMPTS, WINDOW, thinking) for thinking in (True, False))
    seen: list[str] = []
    for rows, opening in ((thoughtful, "<think>\n"), (plain, "")):
        said = answer(model, rows, 9, stop=lambda text: bool(seen.append(text)))  # type: ignore[func-returns-value]
        assert all(one.text.startswith(opening) for one in said)
        assert all(text.startswith(opening) for text in seen)
        assert [not_begun(one.text) for one in said] == [bool(opening)] * len(rows)
        batching = Batching(model, ThreadPoolExecutor(1), lambda which: None, lambda begun: begun, 100)
        with batching.answering("", rows[:1], 3) as (streamed,):
            assert batching.whole(streamed) == answer(model, rows[:1], 3)[0].text
        seen.clear()


def test_a_user_opens_no_block() -> None:
    """A prompt that ends with a marker is a user's turn: what follows it in the template is the model's."""
    tokenizer = tokenizer_of(FAMILIES["Qwen3"].template)
    [row] = encode_prompts(tokenizer, ["What does this mean: <think>"], WINDOW)
    assert left_open(tokenizer.decode(row)) == ""
    assert decode_answers(tokenizer, [row], [tokenizer("Hello")["input_ids"]]) == ["Hello"]


def test_an_answer_knows_its_tokens(tiny_model: Callable[..., Model]) -> None:
    """Their text is the answer's, and their first ones are the answer that fewer tokens would have given."""
    model = tiny_model()
    rows = random_rows([5, 1, 9], shared=3)
    for one, short in zip(answer(model, rows, 9), answer(model, rows, 4), strict=True):
        assert decode_answers(model.tokenizer, [[1]], [list(one.ids)]) == [one.text]
        assert one.ids[:4] == short.ids


# --- measured ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def thinker(tiny_folder: Callable[..., Path], tmp_path: Path) -> Evaluation:
    """The measurement of a model whose template is Qwen3's."""
    folder = Path(shutil.copytree(tiny_folder("qwen3"), tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(FAMILIES["Qwen3"].template)
    rows = [{"prompt": text, "label": label} for text, label in zip(PROMPTS, ("plain", "toxic") * 2, strict=False)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "talks.jsonl").write_text('{"prompt": "Hi", "response": "Sure."}\n')
    return Evaluation(
        str(folder), tmp_path / "result.json", (tmp_path / "rows.jsonl",), instructions=tmp_path / "talks.jsonl",
        answer_tokens=5, device="cpu", precision="float32",
    )  # fmt: skip


def test_evaluate_asks_with_thinking_on_request(
    thinker: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--thinking asks otherwise and says so in the result; a stopped measurement is not continued the other way; an
    answer that has not begun is counted and told."""
    asked: list[str] = []
    plain_answer = generation.answer

    def seen(model: Model, rows: list[list[int]], *rest: Any) -> Any:
        asked.extend(model.tokenizer.batch_decode(rows))
        return [replace(one, text="<think>\nHm") for one in plain_answer(model, rows, *rest)]

    monkeypatch.setattr("dcr_lite.measure.answers.answer", seen)
    result = measure_model(thinker)
    assert all(text.endswith(MODEL + EMPTY) for text in asked)
    assert result["settings"]["thinking"] is False
    asked.clear()
    argv = ["evaluate", "--model", thinker.model, "--device", "cpu", "--out", str(tmp_path / "other.json")]
    argv += ["--precision", "float32"]
    argv += ["--prompts", str(thinker.prompts[0]), "--instructions", str(thinker.instructions), "--answer-tokens", "5"]
    assert run_command(monkeypatch, *argv, "--thinking") == 0
    assert all(text.endswith(MODEL) for text in asked)
    assert f"{len(asked)} of {len(asked)} answers had not begun after 5 tokens" in " ".join(
        capsys.readouterr().out.split()
    )
    other = json.loads((tmp_path / "other.json").read_text())
    assert other["settings"]["thinking"] is True
    assert other["not_begun"] == len(asked) == 4
    assert other["general"]["answer_loss"] == pytest.approx(result["general"]["answer_loss"])


def test_a_stopped_measurement_goes_on_as_it_was_asked(thinker: Evaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was begun with thinking is not continued without it."""

    def stopped(*rest: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("dcr_lite.evaluate.command.answer_loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        measure_model(replace(thinker, thinking=True))
    with pytest.raises(UserError, match=r"begun with other inputs \(thinking\)"):
        measure_model(thinker)


def test_thinking_that_no_template_knows_is_refused(thinker: Evaluation, tiny_folder: Callable[..., Path]) -> None:
    """--thinking of a model that has no such switch is an error before anything is measured."""
    with pytest.raises(UserError, match="no thinking to switch on"):
        measure_model(replace(thinker, model=str(tiny_folder("llama")), thinking=True))
    assert not thinker.unfinished.exists()


@pytest.mark.parametrize("family", ["Qwen3", "SmolLM3", "DeepSeek R1"])
def test_a_gguf_file_asks_as_the_run_did(family: str, make_run: MakeRun) -> None:
    """The exported template writes the prompt that was trained with where llama.cpp is told not to think, and opens the
    same block as the family's own where it is not."""
    run, model = make_run()
    tokenizer = tokenizer_of(FAMILIES[family].template)
    tokenizer.save_pretrained(run.adapter)
    with llama_cpp(export_gguf(run)) as served:
        for thinking in (False, True):
            text = served.prompt_text("Hi", enable_thinking=thinking)
            assert text == prompt_text(tokenizer, "Hi", thinking)
            assert [served.tokens(text)] == encode_prompts(tokenizer, ["Hi"], model.window, thinking)
