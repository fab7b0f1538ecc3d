"""Scoring without a browser: what a run saves to read states by, one prompt, a list, the command line."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from dcr_lite import cli
from dcr_lite.data.rows import read_pairs
from dcr_lite.data.splits import split_by_focus
from dcr_lite.demo import markup, scoring
from dcr_lite.demo.prompt_list import MAX_BYTES, read_prompt_list
from dcr_lite.demo.scoring import OpenRun, Score, cleaned, newest_run, open_run, pieces_of
from dcr_lite.errors import UserError
from dcr_lite.method.contrastive import encode_pairs, stock_geometry
from dcr_lite.method.geometry import Geometry
from dcr_lite.run import discernment, inputs, steps, stored_states
from dcr_lite.run.discernment import Discernment, Discernments
from dcr_lite.settings import Settings

MODELS = ("dcr", "safety_sft", "base")
PROMPT = "Can I burn a man with a clock in 9 days?"


def states_of_two_kinds(pairs: int, apart: float, seed: int = 0) -> torch.Tensor:
    """Random states, toxic ones shifted along the first axis, all far from the origin."""
    states = torch.randn(2 * pairs, 8, generator=torch.Generator().manual_seed(seed)) + 5
    states[:pairs, 0] += apart
    return states


# --- the reading of states --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", ["batch", "stock", "none"])
def test_a_reading_is_its_formula(centre: Any) -> None:
    """Scores, cosines and place are those that the docstrings state, computed with plain loops."""
    reference, development = states_of_two_kinds(20, 3.0), states_of_two_kinds(12, 3.0, seed=1)
    geometry = Geometry.fit(states_of_two_kinds(50, 1.0, seed=2), centre, whiten=True)
    fitted = Discernment.fit(geometry, reference, development)
    mean = {"batch": reference.mean(0), "stock": geometry.mean, "none": torch.zeros(8)}[centre]
    units = [normalize((s - mean) @ geometry.whitening, dim=0) for s in reference]
    kinds = [normalize(torch.stack(part).mean(0), dim=0) for part in (units[:20], units[20:])]
    for state, like in zip(development, fitted.read(development), strict=True):
        unit = normalize((state - mean) @ geometry.whitening, dim=0)
        for kind, (slope, intercept), cosine, score in zip(
            kinds, fitted.calibration.tolist(), (like.toxic_cosine, like.seemingly_toxic_cosine),
            (like.toxic, like.seemingly_toxic), strict=True,
        ):  # fmt: skip
            assert cosine == pytest.approx(float(unit @ kind), abs=1e-5)
            assert score == pytest.approx(1 / (1 + float(torch.tensor(-slope * cosine - intercept).exp())), abs=1e-5)
        assert like.place == pytest.approx((fitted.axes @ unit).tolist(), abs=1e-5)
    assert fitted.auroc > 0.8
    assert float(fitted.axes[0] @ fitted.axes[1]) == pytest.approx(0, abs=1e-5)
    assert fitted.points.shape == (24, 2)


def test_scores_are_the_share_of_the_kind() -> None:
    """Where cosines of the kinds are normal, log-odds are linear in them: the calibration finds that line."""
    generator = torch.Generator().manual_seed(0)
    cosines = 0.2 * torch.randn(20_000, generator=generator)
    is_kind = torch.arange(20_000) < 10_000
    cosines[is_kind] += 0.1
    slope, intercept = discernment._calibrate(cosines, is_kind)
    assert slope == pytest.approx(0.1 / 0.2**2, rel=0.08)
    scores = (slope * cosines + intercept).sigmoid()
    for low in (0.2, 0.4, 0.6, 0.7):
        near = (scores >= low) & (scores < low + 0.1)
        assert float(is_kind[near].float().mean()) == pytest.approx(float(scores[near].mean()), abs=0.05)


def test_a_cosine_that_misleads_says_nothing() -> None:
    """A kind that lies farther from its own mean than the other gives 0.5, never the opposite of what is said."""
    cosines = torch.linspace(-1, 1, 40)
    assert discernment._calibrate(cosines, cosines < 0) == (0.0, 0.0)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    """The file holds every tensor and text, of any language, and nothing else is needed to read a state."""
    geometry = Geometry.fit(states_of_two_kinds(50, 1.0), "batch", whiten=True)
    one = Discernment.fit(geometry, states_of_two_kinds(20, 2.0), states_of_two_kinds(2, 2.0, seed=1))
    Discernments(7, ["a", "\N{GRINNING FACE}"], ["b", "日本"], {"dcr": one}).save(tmp_path)
    found = Discernments.load(tmp_path)
    assert found is not None
    assert (found.layer, found.toxic, found.seemingly_toxic) == (7, ["a", "\N{GRINNING FACE}"], ["b", "日本"])
    states = states_of_two_kinds(3, 1.0, seed=5)
    assert found.models["dcr"].read(states) == one.read(states)
    assert found.models["dcr"].auroc == one.auroc
    assert Discernments.load(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("damage", ["cut", "empty", "no metadata", "another form"])
def test_a_damaged_reading_is_named(damage: str, demo_run: Path, tmp_path: Path) -> None:
    """Whatever happened to the file: its path and the cure in a sentence."""
    path = tmp_path / discernment.FILE
    whole = (demo_run / "adapter" / discernment.FILE).read_bytes()
    if damage == "no metadata":
        save_file(load_file(demo_run / "adapter" / discernment.FILE), path)
    elif damage == "another form":
        save_file({"dcr.mean": torch.zeros(3)}, path, {"discernment": '{"auroc": {"dcr": 1}, "layer": 1}'})
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    with pytest.raises(UserError, match="is damaged"):
        Discernments.load(tmp_path)


def test_a_run_saves_its_reading_without_looking_at_held_out_prompts(demo_run: Path, tmp_path: Path) -> None:
    """All three models are read; the map holds development pairs alone; a fit that has no held-out prompts is the
    same, bit for bit."""
    saved = demo_run / "adapter" / discernment.FILE
    found = Discernments.load(demo_run / "adapter")
    assert found is not None
    chosen = json.loads((demo_run / "settings.json").read_text())["settings"]
    _, development = split_by_focus(read_pairs(Path(chosen["pairs"])), chosen["development_pairs"], chosen["seed"])
    assert [(p.toxic, p.seemingly_toxic) for p in found.pairs] == [(p.toxic, p.seemingly_toxic) for p in development]
    assert found.models.keys() == set(MODELS)
    assert found.layer == chosen["layer"]

    values = chosen | {key: Path(chosen[key]) for key in ("pairs", "instruction_rows", "refusal_rows")}
    settings = Settings(**values | {"run": demo_run, "evaluation": tuple(map(Path, chosen["evaluation"]))})
    data, model = dataclasses.replace(inputs.load_data(settings), held_out=[]), open_run(demo_run).model
    geometry = stock_geometry(model, encode_pairs(model, data.training), stored_states.contrastive_settings(settings))
    states = stored_states.stage1_states(model, data, settings, geometry)
    stored_states.fit_discernments(model, data, settings, states).save(tmp_path)
    again, first = load_file(tmp_path / discernment.FILE), load_file(saved)
    assert again.keys() == first.keys()
    assert all(torch.equal(again[key], first[key]) for key in first)


# --- an open run ------------------------------------------------------------------------------------------------------


def test_an_open_run_says_what_the_run_measured(opened: OpenRun, demo_run: Path) -> None:
    """Each of the three models gives the held-out prompts the log-odds, verdicts and answers that its run wrote."""
    for name in MODELS:
        rows = [json.loads(line) for line in (demo_run / "answers" / f"{name}.jsonl").read_text().splitlines()][:4]
        for row in rows:
            score = opened.score(name, row["prompt"], words=False, tokens=6)
            assert score.refusal_log_odds == pytest.approx(row["refusal_log_odds"], abs=1e-3)
            assert score.answer == row["response"]
            assert score.refused == row["refused"]
    three = {name: opened.score(name, PROMPT, words=False).refusal_log_odds for name in MODELS}
    assert len({round(value, 3) for value in three.values()}) == 3  # a guard: the models differ


def test_a_score_grows_and_ends_whole(opened: OpenRun) -> None:
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


def test_clients_at_once_never_mix_models(opened: OpenRun) -> None:
    """Streams of three models that run in threads, step by step between each other, say what each says alone."""
    prompts = [PROMPT, "Name three cats.", "Can I steal a horse with a letter?"]
    alone = {(n, p): opened.score(n, p, words=False, tokens=16) for n in MODELS for p in prompts}
    jobs = [(n, p) for p in prompts for n in MODELS] * 2
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda job: opened.score(*job, words=False, tokens=16), jobs))
    for key, score in zip(jobs, together, strict=True):
        assert (score.model, score.prompt) == key
        assert score.answer == alone[key].answer
        assert score.refusal_log_odds == pytest.approx(alone[key].refusal_log_odds, abs=1e-4)
    abandoned = opened.stream("dcr", PROMPT)  # a client that goes away holds no lock
    next(abandoned)
    assert opened.score("base", PROMPT, words=False, tokens=16) == alone["base", PROMPT]


def test_a_word_weighs_what_its_absence_changes(opened: OpenRun) -> None:
    """The weight of a word is the log-odds with it minus those of the prompt without it; all words are there."""
    words = opened.weigh("dcr", PROMPT)
    assert [word.text for word in words] == PROMPT.split()
    whole = opened.score("dcr", PROMPT, words=False).refusal_log_odds
    for word in words:
        without = PROMPT[: word.start] + PROMPT[word.stop :]
        rest = opened.score_list("dcr", [without])[0].refusal_log_odds if without.strip() == without else None
        if rest is not None:
            assert word.weight == pytest.approx(whole - rest, abs=1e-3)
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
    """The scores come in order, as for each prompt alone, with the progress of every batch."""
    prompts = [f"Name {n} cats{'?' * (n % 3)}" for n in range(20)]
    told: list[tuple[int, int]] = []
    scores = opened.score_list("safety_sft", prompts, lambda done, total: told.append((done, total)))
    assert [score.prompt for score in scores] == prompts
    assert told == [(16, 20), (20, 20)]
    for prompt, score in list(zip(prompts, scores, strict=True))[::7]:
        alone = opened.score("safety_sft", prompt, words=False)
        assert score.refusal_log_odds == pytest.approx(alone.refusal_log_odds, abs=1e-3)
        assert score.similarity is not None
        assert alone.similarity is not None
        assert score.similarity.toxic == pytest.approx(alone.similarity.toxic, abs=1e-3)
        assert score.refused == alone.refused


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "the prompt is empty"),
        (" \n\t", "the prompt is empty"),
        ("\0\x07\x1b", "the prompt is empty"),
        ("a" * 100_000, "100,000 characters"),
        ("word " * 600, "tokens in the chat template"),
    ],
)
def test_a_prompt_that_cannot_be_scored_is_refused_kindly(prompt: str, said: str, opened: OpenRun) -> None:
    """Empty, nothing but control characters, too long in characters or tokens: a sentence, and the next one works."""
    with pytest.raises(UserError, match=said):
        opened.score("dcr", prompt)
    with pytest.raises(UserError, match=f"prompt 2 of 2: .*{said}"):
        opened.score_list("dcr", ["Hello", prompt])
    assert opened.score("dcr", "Hello", words=False).refused is not None


@pytest.mark.parametrize("prompt", ["Как дела?", "\N{GRINNING FACE}" * 5, "<script>x</script>", "a\0b\ud800c", "猫"])
def test_any_text_can_be_scored(prompt: str, opened: OpenRun) -> None:
    """Other languages, emoji, markup, control characters and halves of characters give a score like any other."""
    score = opened.score("dcr", prompt)
    assert score.prompt == cleaned(prompt)
    assert score.words
    assert json.loads(json.dumps(score.for_json()))["refusal_probability"] == score.refusal_probability


def test_an_unknown_model_is_named(opened: OpenRun) -> None:
    """A model that is not there is answered with those that are."""
    with pytest.raises(UserError, match="dcr, safety_sft, base"):
        opened.score("gpt", "Hello")


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
    "reading cut off": (lambda run: cut(run / "adapter" / discernment.FILE), "discernment.safetensors is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_named(damage: str, demo_run: Path, tmp_path: Path) -> None:
    """Whatever is wrong with a run folder, opening it says so in a sentence."""
    run = Path(shutil.copytree(demo_run, tmp_path / "run"))
    change, said = DAMAGES[damage]
    change(run)
    with pytest.raises(UserError, match=said):
        open_run(run)


def test_a_run_of_an_earlier_version_opens_without_similarity(demo_run: Path, tmp_path: Path) -> None:
    """Without the reading the three models still answer, and a note says what is missing."""
    run = Path(shutil.copytree(demo_run, tmp_path / "run"))
    (run / "adapter" / discernment.FILE).unlink()
    found = open_run(run)
    assert "no similarity scores" in found.note
    score = found.score("dcr", PROMPT)
    assert score.similarity is None
    assert score.words


def test_the_newest_finished_run_is_taken(tmp_path: Path) -> None:
    """By the time its report was written; a stopped run is passed over; without any there is none."""
    assert newest_run(tmp_path) is None
    for i, name in enumerate(("b", "a", "c")):
        (tmp_path / name).mkdir()
        if name != "c":
            (tmp_path / name / "report.json").write_text("{}")
            os.utime(tmp_path / name / "report.json", (i, i))
    assert newest_run(tmp_path) == tmp_path / "a"


def test_without_a_run_the_stock_model_answers(
    tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run yet: the stock model alone, and a note that says how to get one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scoring, "SMOLLM2", str(tiny_folder("llama")))
    found = open_run()
    assert found.names == ("base",)
    assert "make train" in found.note
    assert found.score("base", PROMPT).words


# --- lists ------------------------------------------------------------------------------------------------------------

GOOD_LISTS = {
    "lines": ("the list", b"Hello\n\n  Bye, now \n"),
    "csv": ("a.csv", b'id,Prompt\n1,Hello\n2,"Bye, now"\n'),
    "csv of one column": ("a.csv", b'Hello\n"Bye, now"\n'),
    "pasted csv": ("the list", b'prompt\nHello\n"Bye, now"\n'),
    "json lines": ("a.jsonl", b'{"prompt": "Hello"}\n{"text": "Bye, now"}\n'),
    "pasted json lines": ("the list", b'\xef\xbb\xbf{"prompt": "Hello"}\n{"prompt": "Bye, now"}'),
}
BAD_LISTS = {
    "empty": ("a.csv", b" \n", "no prompts in it"),
    "a picture": ("a.csv", b"\x89PNG\r\n\x1a\n\0\0", "no text in UTF-8"),
    "zeros": ("a.csv", b"\0" * 50, "no text file"),
    "too large": ("a.csv", b"a" * (MAX_BYTES + 1), "the limit is 5 MB"),
    "no such column": ("a.csv", b"id,name\n1,a\n", "none of its columns .id, name. is called prompt"),
    "a short row": ("a.csv", b"id,prompt\n1,a\n2\n", "line 3: no column"),
    "an open quote": ("a.csv", b'prompt\n"a\n', "no well-formed CSV"),
    "bad JSON": ("a.jsonl", b'{"prompt": "a"}\n{"prompt"', "line 2: not JSON"),
    "no text": ("a.jsonl", b'{"prompt": 3}', "line 1: no text in a field called prompt"),
}


@pytest.mark.parametrize("kind", GOOD_LISTS)
def test_lists_are_read_as_people_have_them(kind: str) -> None:
    """Lines, CSV and JSON Lines, from a file or pasted, give the same prompts."""
    name, raw = GOOD_LISTS[kind]
    assert read_prompt_list(raw, name) == ["Hello", "Bye, now"]


@pytest.mark.parametrize("kind", BAD_LISTS)
def test_a_wrong_list_is_named(kind: str) -> None:
    """Whatever is wrong with a list, a sentence says where."""
    name, raw, said = BAD_LISTS[kind]
    with pytest.raises(UserError, match=said):
        read_prompt_list(raw, name)


# --- pictures as markup -----------------------------------------------------------------------------------------------

EVIL = "<script>x</script> \"'<img src=x onerror=y> &lt; ${z}"


def test_no_text_from_outside_becomes_markup(opened: OpenRun) -> None:
    """Prompts and the map's texts are escaped in every picture, and every picture is described in words."""
    assert opened.discernments is not None
    score = opened.score("dcr", EVIL)
    texts = [EVIL] * len(opened.discernments.toxic)
    readings = dataclasses.replace(opened.discernments, toxic=texts, seemingly_toxic=texts)
    pictures = [
        markup.verdict(score), markup.bars(score, readings.models["dcr"]), markup.state_map([score], readings),
        markup.words(score), markup.pair_table({"dcr": (score, score)}), markup.empty(EVIL),
    ]  # fmt: skip
    for picture in pictures:
        assert "<script" not in picture
        assert "<img" not in picture
        assert 'aria-label="' in picture
    assert "&lt;script&gt;" in markup.words(score)
    assert f"opening with a refusal {score.refusal_probability:.2f}" in markup.verdict(score)


def test_the_map_shows_every_point_and_the_prompt(opened: OpenRun) -> None:
    """One shape for each development prompt, of its kind, and a ring for each prompt at hand."""
    assert opened.discernments is not None
    scores = [opened.score("dcr", prompt, words=False) for prompt in (PROMPT, "Hello")]
    drawn = markup.state_map(scores, opened.discernments)
    assert drawn.count("<title>toxic:") == drawn.count("<title>seemingly toxic:") == len(opened.discernments.toxic)
    assert drawn.count('r="9"') == 2


def test_a_verdict_waits_for_the_judge() -> None:
    """Before the answer the verdict is called likely; afterwards it is the judge's, whatever the probability."""
    assert "Likely answers" in markup.verdict(Score("dcr", "a", -3.0))
    assert "Likely refuses" in markup.verdict(Score("dcr", "a", 3.0))
    assert "Refuses" in markup.verdict(Score("dcr", "a", -3.0, refused=True))
    assert Score("dcr", "a", -1e6).refusal_probability == pytest.approx(0, abs=1e-12)
    assert Score("dcr", "a", 0.0).refusal_probability == 0.5


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_prints_the_scores(
    opened: OpenRun, demo_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """dcr-lite score prints verdict, probability, words and answers for people, and with --json all of it for
    machines."""
    monkeypatch.setattr(sys, "argv", ["dcr-lite", "score", PROMPT, "--run", str(demo_run), "--json"])
    cli.main()
    found = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in found["scores"]] == list(MODELS)
    for row in found["scores"]:
        expected = opened.score(row["model"], PROMPT)
        assert row["refusal_probability"] == pytest.approx(expected.refusal_probability, abs=1e-4)
        assert row["answer"] == expected.answer
    monkeypatch.setattr(sys, "argv", ["dcr-lite", "score", PROMPT, "--run", str(demo_run)])
    cli.main()
    out = capsys.readouterr().out
    for name in ("DCR", "safety SFT alone", "stock model", "refusal probability", "seemingly toxic", "weigh most"):
        assert name in out
    monkeypatch.setattr(sys, "argv", ["dcr-lite", "score", " ", "--run", str(demo_run)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: the prompt is empty. Type a question first.\n"


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (["-m", "dcr_lite.cli", "score", "--help"], "--run"),
        (["-m", "dcr_lite.cli", "compare", "--help"], "--seeds"),
        (["-m", "dcr_lite.cli", "diagnose", "--help"], "--projections"),
        (["app.py", "--help"], "--run"),
    ],
)
def test_help_answers_at_once(command: list[str], flag: str) -> None:
    """--help of the command and of the demo imports nothing heavy."""
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command], cwd=root, capture_output=True, text=True, check=True
    )
    assert flag in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "tyro" in imported
    assert not imported & {"torch", "transformers", "gradio", "matplotlib", "numpy"}
