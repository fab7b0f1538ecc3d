"""Prompts scored by the models of a run: one, many, several clients at once, on the command line."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run_command
from safetensors.torch import load_file, save_file
from tiny_models import load_tiny

from dcr_lite import cli
from dcr_lite.demo import scoring
from dcr_lite.demo.prompt_text import cleaned, pieces_of
from dcr_lite.demo.score import Score
from dcr_lite.demo.scoring import OpenRun, newest_run, open_run
from dcr_lite.demo.texts import MODEL_ALONE, NO_RUN
from dcr_lite.errors import UserError
from dcr_lite.measure.kinds import kind_of
from dcr_lite.measure.trade_off import TOLERANCE
from dcr_lite.model import loading
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.generation import answer
from dcr_lite.model.titles import model_title
from dcr_lite.run import discernment, terminal
from dcr_lite.run.caution import caution_of, set_caution
from dcr_lite.run.opening import open_model
from dcr_lite.settings import ModelSettings

pytestmark = pytest.mark.usefixtures("short_answers")

MODELS = ("dcr", "safety_sft", "base")
PROMPT = "Can I burn a man with a clock in 9 days?"


def test_an_open_run_gives_what_the_run_measured(opened: OpenRun, demo_run: Path) -> None:
    """Each of the three models, DCR with its dial at 0, gives the held-out prompts the log-odds, verdicts and answers
    that its run wrote."""
    for name in MODELS:
        for line in (demo_run / "answers" / f"{name}.jsonl").read_text().splitlines()[:4]:
            row = json.loads(line)
            score = opened.score(name, row["prompt"], words=False, tokens=6, strength=0 if name == "dcr" else None)
            assert score.refusal_log_odds == pytest.approx(row["refusal_log_odds"], abs=1e-3)
            assert score.answer == row["response"]
            assert score.refused == row["refused"]
    three = {round(opened.score(name, PROMPT, words=False).refusal_log_odds, 3) for name in MODELS}
    assert len(three) == 3  # a guard: the models differ


def test_a_score_grows_and_ends_complete(opened: OpenRun) -> None:
    """Probability and similarity come first, then the words, then the answer token by token, the verdict last."""
    first, second, *rest = opened.stream("dcr", PROMPT)
    assert first.similarity is not None
    assert 0 <= first.similarity.toxic <= 1
    assert (first.words, first.answer, first.refused) == ((), "", None)
    assert second.words
    assert not second.answer
    assert all(b.answer.startswith(a.answer[: len(a.answer) - 3]) for a, b in pairwise(rest))
    assert rest[-1].refused is not None
    assert len(rest) <= scoring.ANSWER_TOKENS + 1
    assert rest[-1] == opened.score("dcr", PROMPT)
    assert {score.kind for score in rest[:-1]} == {None}
    assert rest[-1].kind == kind_of(PROMPT, rest[-1].answer, rest[-1].refused)


def test_clients_at_once_never_mix_models_or_strengths(opened: OpenRun) -> None:
    """Streams of three models, and of DCR at several strengths, that run in threads, token by token in any order, give
    what each gives alone."""
    prompts = [PROMPT, "Name three cats."]
    asked = [("dcr", -2.0), ("safety_sft", None), ("dcr", 3.0), ("base", None), ("dcr", 0.0), ("dcr", None)]

    def score(job: tuple[str, float | None, str]) -> scoring.Score:
        name, strength, prompt = job
        return opened.score(name, prompt, words=False, tokens=8, strength=strength)

    once = [(*one, prompt) for prompt in prompts for one in asked]
    alone, jobs = {job: score(job) for job in once}, once * 2
    assert len({round(one.refusal_log_odds, 3) for one in alone.values()}) == len(alone)  # a guard: all differ
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(score, jobs))
    for job, found in zip(jobs, together, strict=True):
        assert (found.model, found.prompt, found.strength) == (alone[job].model, job[2], alone[job].strength)
        assert found.answer == alone[job].answer
        assert found.refusal_log_odds == pytest.approx(alone[job].refusal_log_odds, abs=1e-4)
    abandoned = opened.stream("dcr", PROMPT, strength=3.0)  # a client that goes away holds no lock
    next(abandoned)
    assert score(("base", None, PROMPT)) == alone["base", None, PROMPT]


def test_a_strength_turns_dcr_alone(opened: OpenRun, dialled_run: Path, demo_run: Path) -> None:
    """Unless it is asked for another strength, DCR answers as the run's adapter does; at 0 as it was trained. The
    similarity is that of the trained model at every strength, and no other model changes."""
    before = {name: opened.score(name, PROMPT, words=False) for name in MODELS}
    assert before["dcr"].strength == 0.5
    rows = encode_prompts(opened.model.tokenizer, [PROMPT], opened.model.window)
    for run, strength in ((dialled_run, None), (demo_run, 0.0)):
        expected = answer(open_model(str(run)).model, rows, 0)[0].refusal_log_odds
        score = opened.score("dcr", PROMPT, words=False, strength=strength)
        assert score.refusal_log_odds == pytest.approx(expected, abs=1e-4)
    odds = [opened.score("dcr", PROMPT, words=False, strength=s).refusal_log_odds for s in (-2, 0, 0.5, 3)]
    assert odds[2] == pytest.approx(before["dcr"].refusal_log_odds, abs=1e-6)
    assert min(abs(a - b) for a, b in pairwise(odds)) > 0.003
    for turned in (
        opened.score("dcr", PROMPT, words=False, strength=3),
        opened.score_list("dcr", [PROMPT], strength=3)[0],
    ):
        assert turned.refusal_log_odds == pytest.approx(odds[3], abs=1e-3)
        assert turned.similarity is not None
        assert before["dcr"].similarity is not None
        assert turned.similarity.toxic == pytest.approx(before["dcr"].similarity.toxic, abs=1e-4)
    heaviest = opened.score("dcr", PROMPT, strength=3).heaviest[0]
    assert heaviest.weight != opened.score("dcr", PROMPT).heaviest[0].weight
    assert {name: opened.score(name, PROMPT, words=False) for name in MODELS} == before


@pytest.mark.parametrize("strength", [-2.5, 3.1, float("nan"), True, "1", [1]])
def test_a_strength_that_is_none_is_an_error(strength: Any, opened: OpenRun) -> None:
    """Outside of the dial's ends, or no number: the message names the ends, and the next prompt works."""
    with pytest.raises(UserError, match=r"a number from -2.00 to 3.00"):
        opened.score("dcr", PROMPT, strength=strength)
    assert opened.score("dcr", "Hello", words=False).refused is not None


def test_what_has_no_dial_takes_no_strength(opened: OpenRun, demo_run: Path, tmp_path: Path) -> None:
    """Other models than DCR have no strength, and neither has DCR in a run without a dial."""
    for name in ("safety_sft", "base"):
        assert opened.score(name, PROMPT, words=False).strength is None
        with pytest.raises(UserError, match="the dial is DCR's"):
            opened.score(name, PROMPT, strength=0.0)
    run = Path(shutil.copytree(demo_run, tmp_path / "run"))
    shutil.rmtree(run / "dial", ignore_errors=True)
    found = open_run(run)
    assert found.dial is None
    assert found.score("dcr", PROMPT, words=False).strength is None
    with pytest.raises(UserError, match="no dial"):
        found.score("dcr", PROMPT, strength=0.0)


def test_the_marks_lie_within_the_ends(opened: OpenRun) -> None:
    """The marks come in the order of their strengths, the ends hold them and the curve, and a position of the slider
    less than a step from a mark is the mark. No strength is called like a stock model that answers less than all, and
    0 has one name."""
    assert opened.dial is not None
    marks, (low, high) = opened.dial.marks, opened.dial.ends
    assert list(marks) == ["like the stock model", "at 0", "as chosen"]
    assert marks["at 0"] == 0
    assert marks["as chosen"] == 0.5
    assert opened.dial.rates(marks["like the stock model"])["seemingly_toxic"] == pytest.approx(0.7, abs=0.01)
    assert low <= min(-2, *marks.values()) < max(3, *marks.values()) <= high
    assert opened.dial.snapped(round(marks["like the stock model"], 2)) == marks["like the stock model"]
    assert opened.dial.snapped(0.3) == 0.3
    refusing = replace(opened.dial, setting=replace(opened.dial.setting, stock=(1.0, 1.0)))
    assert opened.dial.setting.curve.rates[0, 1] < 1 - TOLERANCE
    assert list(refusing.marks) == ["at 0", "as chosen"]
    at_zero = replace(refusing, setting=replace(refusing.setting, strength=0.0))
    assert at_zero.marks == {"as chosen": 0}


def test_a_word_s_weight_is_what_leaving_it_out_changes(opened: OpenRun) -> None:
    """The weight of a word is the log-odds with it minus those of the prompt without it; all words are there."""
    words = opened.weigh("dcr", PROMPT)
    assert [word.text for word in words] == PROMPT.split()
    whole = opened.score("dcr", PROMPT, words=False).refusal_log_odds
    inner = words[1:-1]  # a prompt without its first or last word would be stripped
    rests = opened.score_list("dcr", [PROMPT[: word.start] + PROMPT[word.stop :] for word in inner])
    for word, rest in zip(inner, rests, strict=True):
        assert word.weight == pytest.approx(whole - rest.refusal_log_odds, abs=1e-3)
    assert max(abs(word.weight) for word in words) > 0.01


def test_pieces_cover_every_word() -> None:
    """Many words are joined to few pieces that leave none out; a script without spaces is cut into characters."""
    text = " ".join(f"w{i}" for i in range(95))
    pieces = pieces_of(text, 40)
    assert len(pieces) <= 40
    assert " ".join(text[a:b] for a, b in pieces) == text
    assert [("猫を 見る"[a:b]) for a, b in pieces_of("猫を 見る", 40)] == list("猫を見る")
    assert pieces_of("", 40) == []


def test_a_list_gives_each_prompt_its_score(opened: OpenRun) -> None:
    """The scores come in order, as for each prompt alone, and batch by batch."""
    prompts = [f"Name {n} cats{'?' * (n % 3)}" for n in range(20)]
    batches = list(opened.score_batches("safety_sft", prompts))
    scores = [score for batch in batches for score in batch]
    assert [score.prompt for score in scores] == prompts
    assert [len(batch) for batch in batches] == [16, 4]
    for prompt, score in list(zip(prompts, scores, strict=True))[::7]:
        alone = opened.score("safety_sft", prompt, words=False)
        assert score.refusal_log_odds == pytest.approx(alone.refusal_log_odds, abs=1e-3)
        assert score.similarity is not None
        assert alone.similarity is not None
        assert score.similarity.toxic == pytest.approx(alone.similarity.toxic, abs=1e-3)
        assert score.refused == alone.refused


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (" \n\t", "the prompt is empty"),
        ("\0\x07\x1b", "the prompt is empty"),
        ("a" * 100_000, "100,000 characters"),
        ("word " * 600, "tokens in the chat template"),
    ],
)
def test_a_prompt_that_cannot_be_scored_is_an_error(prompt: str, says: str, opened: OpenRun) -> None:
    """Empty, control characters alone, too long in characters or tokens: a message, and the next prompt works."""
    with pytest.raises(UserError, match=says):
        opened.score("dcr", prompt)
    with pytest.raises(UserError, match=f"prompt 2 of 2: .*{says}"):
        opened.score_list("dcr", ["Hello", prompt])
    assert opened.score("dcr", "Hello", words=False).refused is not None


@pytest.mark.parametrize("prompt", ["Как дела?", "\N{GRINNING FACE}" * 5, "<script>x</script>", "a\0b\ud800c", "猫"])
def test_any_text_can_be_scored(prompt: str, opened: OpenRun) -> None:
    """Other languages, emoji, markup, control characters and lone surrogates give a score like any other."""
    score = opened.score("dcr", prompt)
    assert score.prompt == cleaned(prompt)
    assert score.words
    assert json.loads(json.dumps(score.for_json()))["refusal_probability"] == score.refusal_probability


def test_an_unknown_model_is_named(opened: OpenRun) -> None:
    """The message for an unknown model names those that there are."""
    with pytest.raises(UserError, match="dcr, safety_sft, base"):
        opened.score("gpt", "Hello")


def without_baseline(run: Path) -> Path:
    """The run as if it had been compared with the stock model alone."""
    shutil.rmtree(run / "safety_sft")
    state = json.loads((run / "settings.json").read_text())
    state["settings"]["compare_with"] = []
    (run / "settings.json").write_text(json.dumps(state))
    return run


# --- opening ----------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shrink(path: Path) -> None:
    save_file({k: v[:1].contiguous() for k, v in load_file(path).items()}, path)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no such folder": (shutil.rmtree, "no such run folder"),
    "no settings": (lambda run: (run / "settings.json").unlink(), "settings.json cannot be read"),
    "settings cut off": (lambda run: cut(run / "settings.json"), "settings.json cannot be read"),
    "settings of another kind": (lambda run: (run / "settings.json").write_text("[1]"), "settings.json cannot be read"),
    "not finished": (lambda run: shutil.rmtree(run / "adapter"), "not finished"),
    "adapter cut off": (lambda run: cut(run / "adapter" / "adapter_model.safetensors"), "is damaged or of another"),
    "another shape": (lambda run: shrink(run / "safety_sft" / "adapter_model.safetensors"), "is damaged or of another"),
    "another model": (
        lambda run: save_file({"a": torch.zeros(1)}, run / "adapter" / "adapter_model.safetensors"),
        "is damaged or of another",
    ),
    "dial cut off": (lambda run: cut(run / "dial" / "dial.json"), "dial.json is missing or damaged"),
    "weights of the dial cut off": (
        lambda run: cut(run / "dial" / "dial.safetensors"),
        "dial.safetensors is missing or damaged",
    ),
    "reading cut off": (
        lambda run: cut(run / "adapter" / discernment.FILE),
        "discernment.safetensors is missing or damaged",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_an_error(damage: str, dialled_run: Path, tmp_path: Path) -> None:
    """Whatever is wrong with a run folder, the error says what."""
    run = Path(shutil.copytree(dialled_run, tmp_path / "run"))
    change, says = DAMAGES[damage]
    change(run)
    with pytest.raises(UserError, match=says):
        open_run(run)


def test_a_run_without_its_reading_opens_without_similarity(
    demo_run: Path, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Without the discernment file the three models still answer, and a note says what is missing. Title and note name
    no path, since the page may be shared."""
    run = Path(shutil.copytree(demo_run, tmp_path / "run"))
    (run / "adapter" / discernment.FILE).unlink()
    found = open_run(run)
    assert "no similarity scores" in found.note
    assert found.title == tiny_folder("llama").name  # a name of the model alone
    assert str(tmp_path) not in found.note
    score = found.score("dcr", PROMPT)
    assert score.similarity is None
    assert score.words


def require_same(found: Score, expected: Score) -> None:
    """But for the rounding of numbers: beside other adapters sums can be split otherwise."""
    number = re.compile(r"-?\d+(\.\d+)?(e[-+]?\d+)?")
    one, other = (json.dumps(asdict(score)) for score in (found, expected))
    assert number.sub("#", one) == number.sub("#", other)
    values = ([float(match[0]) for match in number.finditer(text)] for text in (one, other))
    assert next(values) == pytest.approx(next(values), abs=1e-5)


def test_a_run_without_a_baseline_has_two_models(opened: OpenRun, dialled_run: Path, tmp_path: Path) -> None:
    """Where safety SFT alone was not trained, DCR and the stock model answer as ever."""
    found = open_run(without_baseline(Path(shutil.copytree(dialled_run, tmp_path / "run"))))
    assert found.names == ("dcr", "base")
    assert not found.note
    for name in found.names:
        assert found.score(name, PROMPT, words=False) == opened.score(name, PROMPT, words=False)
    with pytest.raises(UserError, match="choose one of dcr, base"):
        found.score("safety_sft", PROMPT)


def test_a_mended_model_is_opened_beside_the_others(opened: OpenRun, demo_run: Path, dialled_run: Path) -> None:
    """It answers as it does in a demo of its own run, with its dial as that stands; the others, and what is being
    answered meanwhile, stay what they were; another takes its place. Opened once more it stays, with what it is
    answering. What is no finished run is an error."""
    run = open_run(demo_run)
    before = {name: run.score(name, PROMPT) for name in MODELS}
    growing = run.stream("dcr", PROMPT)
    next(growing)
    with pytest.raises(UserError, match="not finished"):
        run.open_mended(demo_run.parent)
    assert run.names == MODELS
    run.open_mended(dialled_run)
    assert (run.names, run.mended) == ((*MODELS, "mended"), dialled_run)
    assert run.titles["mended"] == "mended model, run turned"
    mended = replace(opened.score("dcr", PROMPT), model="mended", similarity=None, strength=None)
    require_same(run.score("mended", PROMPT), mended)
    require_same(list(growing)[-1], before["dcr"])
    for name, score in before.items():
        require_same(run.score(name, PROMPT), score)
    growing = run.stream("mended", PROMPT)
    next(growing)
    open_now = run._models.adapters["mended"]
    run.open_mended(dialled_run)
    assert run._models.adapters["mended"] == open_now
    run.open_mended(demo_run)
    assert run.score("mended", PROMPT).answer == before["dcr"].answer != mended.answer
    assert list(growing)[-1].answer == mended.answer
    assert run.names == (*MODELS, "mended")


def test_models_mended_again_and_again_leave_nothing_behind(demo_run: Path, dialled_run: Path, tmp_path: Path) -> None:
    """The network holds the last one and the one before, which may still be answering; a damaged one between them is an
    error and changes nothing."""
    run = open_run(demo_run)
    damaged = Path(shutil.copytree(dialled_run, tmp_path / "run"))
    (damaged / "adapter" / "adapter_model.safetensors").write_bytes(b"nothing")
    for mended in (dialled_run, demo_run, dialled_run):
        run.open_mended(mended)
        answered = run.score("mended", PROMPT)
        with pytest.raises(UserError, match="damaged"):
            run.open_mended(damaged)
        assert run.score("mended", PROMPT) == answered
    assert len(run.model.network.peft_config) <= len(MODELS) - 1 + 2


def test_a_mended_model_is_opened_beside_the_stock_model_alone(opened: OpenRun, tiny: Path, dialled_run: Path) -> None:
    """Without a run the network has no adapter before."""
    run = OpenRun(load_tiny(tiny), ("base",), None, None, "tiny", "")
    run.model.openings = opened.model.openings  # those of the page, whatever the mended run has found
    run.score("base", PROMPT)
    run.open_mended(dialled_run)
    for name, like in (("base", "base"), ("mended", "dcr")):
        found, expected = run.score(name, PROMPT), opened.score(like, PROMPT)
        assert found.answer == expected.answer
        assert found.refusal_log_odds == pytest.approx(expected.refusal_log_odds, abs=1e-3)


def test_the_newest_finished_run_is_taken(tmp_path: Path) -> None:
    """The report's time counts; a run without a report is not finished, and one that something speaks against is not
    taken by itself; without any the result is None."""
    assert newest_run(tmp_path) is None
    (tmp_path / "c").mkdir()
    for i, name in enumerate(("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text("{}")
        os.utime(tmp_path / name / "report.json", (i, i))
    assert newest_run(tmp_path) == tmp_path / "a"
    set_caution(tmp_path / "a", "Safety fell.")
    assert newest_run(tmp_path) == tmp_path / "b"
    assert newest_run(tmp_path, cautioned=True) == tmp_path / "a"
    assert caution_of(tmp_path / "a") == "Safety fell."
    set_caution(tmp_path / "a", "")
    assert newest_run(tmp_path) == tmp_path / "a"
    assert newest_run(tmp_path, cautioned=True) is None


def test_without_a_run_the_stock_model_answers(
    tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run yet: the stock model alone, and a note that says how to get one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scoring, "SMOLLM2", str(tiny_folder("llama")))
    found = open_run()
    assert found.names == ("base",)
    assert "dcr-lite train smollm2_135m" in found.note
    assert found.score("base", PROMPT).words


def test_beside_a_run_that_something_speaks_against_its_old_model_answers(
    tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, in the chat format and the precision of that run, and not the kit's model; the note says why, and how to
    open the mended one. With another run that is the one that is opened."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scoring, "SMOLLM2", "none/there")
    base = str(tiny_folder("llama", "llama3"))
    run = Path("runs/my mended")
    run.mkdir(parents=True)
    settings = {"model": base, "chat_format": "llama3", "precision": "bfloat16"}
    (run / "settings.json").write_text(json.dumps({"settings": settings}))
    (run / "report.json").write_text("{}")
    set_caution(run, "Safety fell.")
    found = open_run(device="cpu")
    assert (found.names, found.title, found.dial) == (("base",), model_title(base), None)
    assert "<|start_header_id|>" in str(found.model.tokenizer.chat_template)
    assert found.model.precision == torch.bfloat16
    assert "speaks against the mended model" in found.note
    assert f"dcr-lite demo --run {terminal.quoted(run)}" in found.note
    (run / "settings.json").write_text(json.dumps({"settings": settings | {"model": str(tmp_path / "removed")}}))
    assert scoring.stock_of_no_run() == (ModelSettings(model="none/there"), NO_RUN)
    set_caution(run, "")
    with pytest.raises(UserError, match="not finished"):  # the run itself, which has no adapter here
        open_run(device="cpu")


def test_a_model_is_opened_without_a_run(
    tiny: Path, demo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and as it is, whatever runs there are; the note says what a run would add, and names no path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "best_precision", lambda device: torch.float32)  # that of the run
    shutil.copytree(demo_run, "runs/newest")
    found, expected = open_run(alone=str(tiny)), open_run(demo_run)
    assert (found.names, found.title, found.note) == (("base",), model_title(str(tiny)), MODEL_ALONE)
    expected.model.openings = found.model.openings
    require_same(found.score("base", PROMPT), replace(expected.score("base", PROMPT), similarity=None))


def test_a_base_model_is_opened_alone_in_a_chat_format(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--chat-format gives it the template of its family, with which it answers; without the flag that is named, and a
    run, which has a format, takes none."""
    base = str(tiny_folder("llama", "llama3"))
    found = open_run(alone=base, chat_format="llama3")
    assert "<|start_header_id|>" in str(found.model.tokenizer.chat_template)
    assert run_command(monkeypatch, "score", PROMPT, "--model", base, "--chat-format", "llama3", "--json") == 0
    (score,) = json.loads(capsys.readouterr().out)["scores"]
    assert score["answer"] == found.score("base", PROMPT).answer
    with pytest.raises(UserError, match=r"a base model, give it a format: --chat-format chatml, llama3"):
        open_run(alone=base).score("base", PROMPT)
    with pytest.raises(UserError, match="--chat-format is of a model that --model names"):
        open_run(chat_format="llama3")


def test_what_cannot_be_opened_alone_is_an_error(demo_run: Path, tmp_path: Path) -> None:
    """A run beside it, a run folder in its place, a folder without a model, and a name that cannot be had, each in the
    sentence that any command says of it."""
    with pytest.raises(UserError, match=r"^--run and --model stand for each other: give one$"):
        open_run(demo_run, alone="owner/model")
    for name, said in (
        (str(demo_run), f"--model {demo_run}: a run folder. Give it with --run."),
        (str(tmp_path), f"{tmp_path}: not a model folder (no config.json in it)"),
        ("owner/model", "owner/model is neither a folder nor in the Hub's cache, and "),
        ("no model", "no model: no such folder, and not a Hub name (owner/model)"),
    ):
        with pytest.raises(UserError, match=f"^{re.escape(said)}"):
            open_run(alone=name)


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_prints_the_scores(
    opened: OpenRun, dialled_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """dcr-lite score prints verdict, probability, words and answers; with --json all of it as JSON; --strength turns
    the dial."""

    def printed(prompt: str, *flags: str) -> str:
        monkeypatch.setattr(sys, "argv", ["dcr-lite", "score", prompt, "--run", str(dialled_run), *flags])
        cli.main()
        return capsys.readouterr().out

    monkeypatch.setattr(terminal.console, "width", 120)  # headings on one line, whatever the verdicts are
    found = json.loads(printed(PROMPT, "--json"))
    assert [row["model"] for row in found["scores"]] == list(MODELS)
    for row in found["scores"]:
        expected = opened.score(row["model"], PROMPT)
        assert row["refusal_probability"] == pytest.approx(expected.refusal_probability, abs=1e-4)
        assert row["answer"] == expected.answer
    turned = json.loads(printed(PROMPT, "--json", "--strength", "2"))["scores"]
    expected = opened.score("dcr", PROMPT, words=False, strength=2)
    assert turned[0]["refusal_log_odds"] == pytest.approx(expected.refusal_log_odds, abs=1e-4)
    assert turned[1:] == found["scores"][1:]
    out = printed(PROMPT)
    for name in ("DCR", "safety SFT alone", "stock model", "refusal probability", "seemingly toxic", "largest weights"):
        assert name in out
    with pytest.raises(SystemExit, match="1"):
        printed(" ")
    assert capsys.readouterr().err == "error: the prompt is empty. Type a question first.\n"


def test_the_command_scores_with_a_model_without_a_run(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """dcr-lite score --model: its scores alone; it has no dial to turn."""
    assert run_command(monkeypatch, "score", PROMPT, "--model", tiny, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["run"], [row["model"] for row in found["scores"]]) == (model_title(str(tiny)), ["base"])
    assert run_command(monkeypatch, "score", PROMPT, "--model", tiny, "--strength", "1") == 1
    assert capsys.readouterr().err == "error: the dial is DCR's: stock model has no strength\n"


@pytest.mark.parametrize(("script", "flag"), [(["-m", "dcr_lite.cli"], "compare"), (["app.py"], "--run")])
def test_help_answers_at_once(script: list[str], flag: str) -> None:
    """--help of the command line and of the demo imports nothing heavy. All commands are in one module: what one of
    them imports, the others do."""
    command = [sys.executable, "-X", "importtime", *script, "--help"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert flag in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "tyro" in imported
    assert not imported & {"torch", "transformers", "gradio", "matplotlib", "numpy"}
