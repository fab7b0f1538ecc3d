"""Claims about benchmarks/quantised.py: what a GGUF file answers is compared with transformers' answers token by token,
and nothing is answered twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import quantised
from _agreement import compared
from finished_runs import logits, rounded
from tiny_models import load_reference

from dcr_lite.errors import UserError
from dcr_lite.export.command import export_merged, open_finished
from dcr_lite.files import load_jsonl, write_jsonl
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.loading import load_tokenizer

REFUSAL = "I'm sorry, but I can't help with that."


def row(label: str, ids: list[int], refuses: bool) -> dict[str, Any]:
    return {"label": label, "ids": ids, "response": REFUSAL if refuses else "Preheat the oven."}


def test_answers_are_compared_token_by_token() -> None:
    """The share of tokens before the first that differs counts the end as one of them; refusals are by label; a verdict
    has changed where the two judge otherwise."""
    reference = [row("toxic", [1, 2, 3], True), row("toxic", [4], True), row("seemingly_toxic", [5, 6, 7], False)]
    ours = [row("toxic", [1, 2, 3], True), row("toxic", [4, 4], False), row("seemingly_toxic", [5, 9, 7], False)]
    found = compared(ours, reference)
    assert found["tokens"]["share"] == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)
    assert found["equal"]["share"] == pytest.approx(1 / 3)
    assert found["refused"]["toxic"] == {"n": 2, "share": 0.5, "ci95": pytest.approx([0.0945, 0.9055], abs=1e-3)}
    assert found["refused"]["seemingly_toxic"]["share"] == 0
    assert found["changed"]["share"] == pytest.approx(1 / 3)
    assert "plain" not in found["refused"]
    same = compared(reference, reference)
    assert (same["tokens"]["ci95"], same["equal"]["share"], same["changed"]["share"]) == ([1, 1], 1, 0)


@pytest.fixture(scope="module")
def choices(demo_run: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> quantised.Quantised:
    """Eight prompts, answered by the tiny run's three models."""
    out = tmp_path_factory.mktemp("quantised")
    return quantised.Quantised(
        model=str(demo_run),
        file_types=("bf16", "q8_0"),
        prompts=(rows / "held_out.jsonl",),
        answer_tokens=12,
        out=out,
    )


@pytest.fixture(scope="module")
def measured(choices: quantised.Quantised) -> str:
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel (xllamacpp) is not installed here")
    return quantised.main(choices)


def test_llama_cpp_answers_as_transformers_itself(
    measured: str, choices: quantised.Quantised, demo_run: Path, tmp_path: Path
) -> None:
    """Every token of the bf16 file, the end of each answer among them, is the one that transformers' own forward pass
    of the merged weights in bf16 finds most probable there, or as probable up to rounding."""
    run = open_finished(demo_run)
    network = rounded(load_reference(export_merged(run, tmp_path / "merged")))
    tokenizer = load_tokenizer(run.adapter)
    for own in load_jsonl(choices.out / "dcr-bf16.jsonl"):
        (asked,) = encode_prompts(tokenizer, [own["prompt"]], 512)
        said = own["ids"] if len(own["ids"]) == 12 else [*own["ids"], tokenizer.eos_token_id]
        found = logits(network, [*asked, *said])[len(asked) - 1 : -1]
        short = found.max(-1).values - found[range(len(said)), said]
        assert short.max() < 0.1 * found.std()  # llama.cpp rounds the states to bf16 too


def test_the_table_has_every_model_and_type(measured: str, choices: quantised.Quantised) -> None:
    """A line for the reference and for each file of each model of the run; the files themselves are gone."""
    lines = [line.split(" | ")[:2] for line in measured.splitlines()[2:]]
    titles = ["| stock model", "| safety SFT alone", "| DCR"]
    assert lines == [[title, kind] for title in titles for kind in ("transformers", "bf16", "q8_0")]
    assert (choices.out / "quantised.md").read_text() == measured + "\n"
    assert not list(choices.out.glob("*.gguf"))


def test_by_the_openai_interface_the_answers_are_the_same(
    measured: str, choices: quantised.Quantised, tmp_path: Path
) -> None:
    """The file's own chat template makes of a prompt what the run trained with, so llama.cpp says the same letters."""
    asked = replace(choices, methods=("dcr",), file_types=("bf16",), through="openai", out=tmp_path)
    assert "| DCR | bf16 |" in quantised.main(asked)
    by_tokens, by_text = (load_jsonl(of.out / "dcr-bf16.jsonl") for of in (choices, asked))
    assert [row["response"] for row in by_text] == [row["response"] for row in by_tokens]


def test_a_stopped_measurement_goes_on(
    measured: str, choices: quantised.Quantised, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept is not answered again, the rest is, and the table is the same."""
    path = choices.out / "safety_sft-q8_0.jsonl"
    kept = load_jsonl(path)
    write_jsonl(kept[:3], path)
    asked: list[int] = []
    greedy = quantised.Served.greedy

    def counted(served: Any, tokens: list[int], most: int) -> list[int]:
        asked.append(len(tokens))
        return greedy(served, tokens, most)

    monkeypatch.setattr(quantised.Served, "greedy", counted)
    assert quantised.main(choices) == measured
    assert len(asked) == len(kept) - 3
    assert load_jsonl(path) == kept


def test_answers_of_another_model_are_not_taken(measured: str, choices: quantised.Quantised, tiny: Path) -> None:
    """Another model, another length or other prompts in the same folder are errors."""
    with pytest.raises(UserError, match="Choose another --out"):
        quantised.main(replace(choices, model=str(tiny)))
    with pytest.raises(UserError, match=r", 12, tokens\. Choose another --out"):
        quantised.main(replace(choices, through="openai"))
    with pytest.raises(UserError, match="answers to other prompts"):
        quantised.main(replace(choices, rows=1))
