"""Rows behind messages from end to end: trained on, measured, stopped and continued, evaluated and compared."""

import json
from pathlib import Path
from typing import Any

import pytest
from recipe_runs import same, small_settings
from safetensors.torch import load_file
from small_comparison import make_small
from small_runs import LETTERS, flags, run_here, save_rows, write_rows

from dcr_lite.compare import command, measurement
from dcr_lite.compare.measurement import EvaluationData
from dcr_lite.data.rows import Conversation, Prompt, messages_of
from dcr_lite.errors import UserError
from dcr_lite.evaluate.command import Evaluation, measure_model
from dcr_lite.measure.answers import measure, read_answers
from dcr_lite.model import adapters
from dcr_lite.run import inputs, opening, steps

SYSTEM = [{"role": "system", "content": "Be kind."}]
TALK = [*SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
FEW = {"contrastive_steps": 6, "sft_epochs": 1, "dial": "discerning", "answers": "own", "second_turns": 0.5}


def half_behind_messages(path: Path) -> None:
    """Every second row of a file stands behind messages, of the system alone and of a conversation in turns."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    write_rows(path, [row | ({"before": (SYSTEM, TALK)[i // 2 % 2]} if i % 2 else {}) for i, row in enumerate(lines)])


@pytest.fixture(scope="module")
def context_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_rows(tmp_path_factory.mktemp("context"))
    for name in ("pairs", "instructions", "refusals", "held_out", "plain"):
        half_behind_messages(folder / f"{name}.jsonl")
    return folder


@pytest.fixture(scope="module")
def context_run(tiny: Path, context_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended undisturbed."""
    run = tmp_path_factory.mktemp("runs") / "run"
    seen = run_here(flags(tiny, context_rows, run, **FEW))
    assert (seen.code, seen.err) == (0, "")
    return run


def befores(path: Path) -> list[Any]:
    return [row.get("before", []) for row in read_answers(path)]


def test_a_run_trains_on_rows_behind_messages_and_answers_behind_them(context_run: Path, context_rows: Path) -> None:
    """Its answers say what each prompt stood behind; half of them behind something, as the files have it."""
    held_out = inputs.load_data(small_settings("", context_rows, context_run)).held_out
    assert {len(prompt.before) for prompt in held_out} == {0, 1, 3}
    for method in ("base", "safety_sft", "dcr"):
        assert befores(context_run / "answers" / f"{method}.jsonl") == [messages_of(one.before) for one in held_out]
    assert json.loads((context_run / "report.json").read_text())["methods"]["dcr"]["sets"]


def test_a_run_on_such_rows_goes_on_where_it_was_stopped(
    context_run: Path, tiny: Path, context_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind stage 2 and between two models' answers, one after the other; adapter and answers are bit for bit those of
    the undisturbed run."""
    run, argv = tmp_path / "run", flags(tiny, context_rows, tmp_path / "run", **FEW)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    for name in ("teach_refusals_alone", "measure"):
        with monkeypatch.context() as patch:
            patch.setattr(steps, name, interrupted)
            assert run_here(argv + ["--resume"] * run.exists()).code == 130
    assert run_here([*argv, "--resume"]).code == 0
    for method in ("base", "safety_sft", "dcr"):
        file = f"answers/{method}.jsonl"
        assert (run / file).read_bytes() == (context_run / file).read_bytes()
    found, expected = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (run, context_run))
    assert same(found, expected)


def test_other_messages_are_other_rows(tiny: Path, context_rows: Path, tmp_path: Path) -> None:
    """What a run watches, and what a model answers to the same prompt."""
    settings = small_settings(tiny, context_rows, tmp_path / "run")
    data = inputs.load_data(settings)
    watched = [prompt for prompt in data.watched if prompt.label == "toxic"]
    assert [(one.prompt, one.before) for one in watched] == [(p.toxic, p.before) for p in data.development]
    assert any(one.before for one in data.watched if one.label == "plain")
    model, _ = opening.load_model(settings)
    with adapters.stock(model):
        both = [Prompt("What is a cat?", "plain", "set", before) for before in ((), (("system", "Be kind."),))]
        alone, behind = measure(model, both, 6)
    assert alone["refusal_log_odds"] != behind["refusal_log_odds"]


def test_an_evaluation_reads_such_rows_and_goes_on(
    context_run: Path, context_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers are those of the run; stopped, it goes on, but not with other messages before the same prompts."""
    prompts = (context_rows / "held_out.jsonl", context_rows / "plain.jsonl")
    asked = Evaluation(
        str(context_run), tmp_path / "result.json", prompts, instructions=context_rows / "instructions.jsonl",
        answer_tokens=6, device="cpu", precision="float32", kept=True,
    )  # fmt: skip

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dcr_lite.evaluate.command.measure_kept", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measure_model(asked)
    whole = prompts[1].read_text()
    prompts[1].write_text(whole.replace("Be kind.", "Be brief."))
    try:
        with pytest.raises(UserError, match=r"begun with other inputs \(prompts\)"):
            measure_model(asked)
    finally:
        prompts[1].write_text(whole)
    result = measure_model(asked)
    run_answers = read_answers(context_run / "answers" / "dcr.jsonl")
    names = ("prompt", "response", "refused")
    for row, expected in zip(read_answers(asked.answers), run_answers, strict=True):
        assert [row[name] for name in names] == [expected[name] for name in names]
        assert row.get("before") == expected.get("before")
    assert 0 < result["kept"]["plain"]["kept"] < 10


@pytest.fixture
def _small_comparison(context_rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcr_lite.model.loading.REFUSING_OPENINGS", LETTERS)
    monkeypatch.setattr(measurement, "HELD_OUT_INSTRUCTIONS", context_rows / "instructions.jsonl")
    make_small(monkeypatch.setattr)


@pytest.mark.usefixtures("_small_comparison")
def test_a_comparison_measures_behind_the_messages(tiny: Path, context_rows: Path, tmp_path: Path) -> None:
    """Training-free methods and DPO, which answers for itself, are measured; AdaCD, whose second prompt is made of a
    single one, is left out, with the reason."""
    settings = small_settings(tiny, context_rows, tmp_path / "out")
    report = command.compare(
        settings, (0,), (), None, None, (), tmp_path / "out", only=("steered", "adacd", "dpo"),
    )  # fmt: skip
    assert [(one["method"], "stand behind other messages" in one["why"]) for one in report["failed"]] == [
        ("adacd", True)
    ]
    assert [entry["method"] for entry in report["methods"]] == ["base", "steered", "dpo"]
    (answers,) = (tmp_path / "out" / "seed0" / "answers").glob("steered_*.jsonl")
    assert befores(answers) == [messages_of(one.before) for one in inputs.load_data(settings).held_out]


def test_answers_behind_other_messages_are_kept_apart() -> None:
    """The digest in the names of a comparison's files is another one behind other messages."""
    prompt, row, behind = Prompt("a", "toxic", "set"), Conversation("b", "c"), (("system", "Be kind."),)
    data = [EvaluationData([prompt], [row], [])]
    data.append(EvaluationData([Prompt("a", "toxic", "set", behind)], [row], []))
    data.append(EvaluationData([prompt], [Conversation("b", "c", before=behind)], []))
    assert len({one.digest for one in data}) == 3
