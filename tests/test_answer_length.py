"""Claims about benchmarks/answer_length.py: answers are given once, cut as fewer tokens would have left them, and the
length that it names is the least at which verdicts have settled."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import answer_length
import pytest
from tiny_models import PROMPTS

from dcr_lite.data.rows import Prompt
from dcr_lite.errors import UserError
from dcr_lite.files import load_jsonl, write_jsonl
from dcr_lite.measure.answers import measure
from dcr_lite.model.loading import Model

REFUSAL = "I'm sorry, but I can't help with that."
ANSWER = "Preheat the oven."


def row(label: str, tokens: int, *refused: bool) -> dict[str, Any]:
    """An answer that refuses or not at each length."""
    texts = {str(n): REFUSAL if r else ANSWER for n, r in zip(answer_length.LENGTHS, refused, strict=True)}
    return {"prompt": "Hi", "label": label, "source": "set", "tokens": tokens, "texts": texts}


def test_the_settled_length_is_the_least_that_stays_settled() -> None:
    """Of 100 verdicts one may still change. A length that happens to agree with the longest, between two that do not,
    has not settled."""
    steady = [row("toxic", 30, True, True, True, True, True)] * 99
    assert answer_length.summary([*steady, row("toxic", 300, False, False, True, True, True)])["settled"] == 20
    late = [row("plain", 256, True, False, True, False, False)] * 2
    found = answer_length.summary([*steady[:98], *late])
    assert [found["lengths"][n]["changed"]["n"] for n in answer_length.LENGTHS] == [2, 0, 2, 0, 0]
    assert found["settled"] == 150
    assert found["lengths"][40]["changed"]["ci95"][1] > 0.01
    never = [row("toxic", 256, False, False, False, False, True)] * 2
    assert answer_length.summary([*steady[:98], *never])["settled"] == 256


def test_rates_are_by_label_and_length() -> None:
    """Refusal rates at each length, and how many answers had ended before it."""
    rows = [row("toxic", 20, False, True, True, True, True), row("toxic", 256, False, False, False, False, False)]
    found = answer_length.summary([*rows, row("plain", 101, False, False, False, False, False)])["lengths"]
    assert found[20]["refused"]["toxic"]["rate"] == 0.0
    assert found[40]["refused"]["toxic"] == {"n": 2, "rate": 0.5, "ci95": pytest.approx([0.0945, 0.9055], abs=1e-3)}
    assert "seemingly_toxic" not in found[40]["refused"]
    assert [found[n]["ended"] for n in answer_length.LENGTHS] == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])


def test_a_cut_answer_is_what_fewer_tokens_give(tiny_model: Callable[..., Model]) -> None:
    """Word for word the answer of that many tokens, and so is its verdict."""
    model = tiny_model()
    prompts = [Prompt(text, "plain", "set") for text in PROMPTS[:3]]
    rows = answer_length.answered(model, prompts)
    for length in answer_length.LENGTHS[:3]:
        measured = measure(model, prompts, length)
        assert [one["texts"][str(length)] for one in rows] == [one["response"] for one in measured]
    assert [one["prompt"] for one in rows] == PROMPTS[:3]


def test_answers_are_given_once(
    demo_run: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stopped comparison goes on with the prompts that are left; a finished one loads no model; other prompts are an
    error. The table has a line for each model and length."""
    prompts = tmp_path / "rows.jsonl"
    write_jsonl([{"prompt": text, "label": "plain"} for text in PROMPTS[:5]], prompts)
    choices = answer_length.Choices(
        (str(demo_run), str(tiny)), ("dcr", "base"), prompts=(prompts,), timed=1, out=tmp_path / "out", device="cpu",
        precision="float32",
    )  # fmt: skip
    monkeypatch.setattr(answer_length, "CHUNK", 2)
    monkeypatch.setattr(answer_length, "LENGTHS", (4, 8))
    plain_answered, asked = answer_length.answered, []

    def answered(model: Model, some: list[Prompt]) -> Any:
        if len(asked) == 2:
            asked.append(0)
            raise KeyboardInterrupt
        asked.append(len(some))
        return plain_answered(model, some)

    monkeypatch.setattr(answer_length, "answered", answered)
    with pytest.raises(KeyboardInterrupt):
        answer_length.main(choices)
    results = answer_length.main(choices)
    assert asked == [2, 2, 0, 1, 2, 2, 1, 2, 2, 1]
    dcr, base, folder, together = results
    assert (dcr.endswith("_dcr"), base.endswith("_base"), together) == (True, True, "all")
    assert load_jsonl(choices.out / f"{base}.jsonl") == load_jsonl(choices.out / f"{folder}.jsonl")
    assert results["all"]["n"] == 15
    assert all(seconds > 0 for seconds in results[dcr]["seconds"].values())
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(f"| {dcr} |") for line in lines) == 2
    assert sum("settled at" in line for line in lines) == 4
    monkeypatch.setattr(answer_length, "open_model", None)
    assert answer_length.main(choices) == results
    write_jsonl([{"prompt": "Others", "label": "plain"}], prompts)
    with pytest.raises(UserError, match="answers to other prompts"):
        answer_length.main(choices)
