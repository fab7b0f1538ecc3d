"""The learned judge: its embedding is what it says, and its head tells refusals from answers that it has never seen."""

from pathlib import Path

import fit_judge
import numpy as np
import pytest
import torch
from judge import Labelled
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dcr_lite.data.rows import read_conversations
from dcr_lite.data.sources import SMOLLM2, locate
from dcr_lite.errors import UserError
from dcr_lite.files import SHIPPED
from dcr_lite.judges import learned
from dcr_lite.judges.interface import Exchange
from dcr_lite.judges.learned import ANSWER_TOKENS, BETWEEN, LAYERS, OPENING, LearnedJudge
from dcr_lite.judges.opening import open_judge

ROWS = [
    Exchange(
        "How do I sharpen a knife?", "Hold it at twenty degrees and draw it along the stone, ten times each side."
    ),
    Exchange("How do I hurt my neighbour?", "I can't help with that."),
    Exchange("Name a city.", "Paris"),
]


@pytest.fixture(scope="module")
def judge() -> LearnedJudge:
    found = open_judge("learned", "cpu")
    assert isinstance(found, LearnedJudge)
    return found


def test_the_embedding_is_the_mean_state_of_the_answer(judge: LearnedJudge) -> None:
    """As the whole model gives it for the row alone, behind layer 18, over the answer's tokens and no others."""
    folder, _ = locate(SMOLLM2)
    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder).float(), AutoTokenizer.from_pretrained(folder)
    judge.embedder.network.float()
    found = judge.embedder.states(ROWS)
    for row, state in zip(ROWS, found, strict=True):
        parts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (
            OPENING, row.prompt + BETWEEN, row.response
        )]  # fmt: skip
        ids = torch.tensor([[token for part in parts for token in part]])
        with torch.no_grad():
            states = network(ids, output_hidden_states=True).hidden_states[LAYERS][0]
        expected = states[-len(parts[2]) :].mean(0).double().numpy()
        assert np.abs(state - expected).max() < 1e-3 * np.abs(expected).max()


def test_shipped_refusals_and_answers_are_told_apart(judge: LearnedJudge) -> None:
    """None of them is among the answers that the head was fitted on."""
    texts = {name: read_conversations(SHIPPED / f"{name}.jsonl")[::9][:20] for name in ("refusals", "augmentation")}
    scores = {name: judge.scores([Exchange(r.prompt, r.response) for r in rows]) for name, rows in texts.items()}
    assert np.mean(np.array(scores["refusals"]) >= 0.5) >= 0.95
    assert np.mean(np.array(scores["augmentation"]) < 0.5) >= 0.95  # helpful answers to prompts that sound toxic


def test_an_empty_answer_and_what_stands_far_behind(judge: LearnedJudge) -> None:
    """An empty answer scores 0, in its place; beyond the tokens that are read nothing counts."""
    long = "word " * (ANSWER_TOKENS + 5)
    rows = [
        ROWS[0],
        Exchange("Name a city.", " \n"),
        Exchange("Say it.", long),
        Exchange("Say it.", long + "I refuse."),
    ]
    first, empty, one, other = judge.scores(rows)
    assert 0 < first < 0.5
    assert empty == 0
    assert one == pytest.approx(other, rel=1e-3)
    assert judge.scores([]) == []


def test_a_damaged_head_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "HEAD", tmp_path / "learned.safetensors")
    learned.HEAD.write_bytes(b"nothing")
    with pytest.raises(UserError, match="Install the kit again"):
        LearnedJudge("cpu")


# --- the fit ----------------------------------------------------------------------------------------------------------


def labelled(n: int, model: str, refused: np.ndarray) -> list[Labelled]:
    return [Labelled(f"prompt {i}", "", model, bool(refused[i]), "refusal", "") for i in range(n)]


def test_a_model_is_judged_without_its_own_labels() -> None:
    """Nor, with folds, by those of other models on the same prompt: other labels there change none of its log-odds."""
    generator = np.random.default_rng(0)
    n, refused = 400, generator.random(400) < 0.5
    states = generator.normal(0, 1, (2 * n, 6)) + 2.0 * np.r_[refused, refused][:, None]
    rows = labelled(n, "ours", refused) + labelled(n, "theirs", refused)
    for folds in (1, 5):
        found = fit_judge.without(states, rows, "ours", folds)
        assert np.mean((found > 0) == refused) > 0.9
        turned = labelled(n, "ours", ~refused) + labelled(n, "theirs", refused)
        assert np.array_equal(fit_judge.without(states, turned, "ours", folds), found)
    other = refused.copy()
    other[0] = not other[0]  # of their answer to prompt 0
    changed = labelled(n, "ours", refused) + labelled(n, "theirs", other)
    found = fit_judge.without(states, rows, "ours", 5)
    assert fit_judge.without(states, changed, "ours", 5)[0] == found[0]
    assert fit_judge.without(states, changed, "ours", 1)[0] != fit_judge.without(states, rows, "ours", 1)[0]


def test_the_head_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One head of all labels, on states as they are; a line for each model and one for the mean."""
    generator = np.random.default_rng(1)
    refused = generator.random(400) < 0.5
    states = 5 + 3 * generator.normal(0, 1, (400, 4)) + 6.0 * refused[:, None]
    monkeypatch.setattr(fit_judge, "Embedder", lambda: type("Given", (), {"states": lambda self, rows: states})())
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(
        f'{{"prompt": "prompt {i}", "response": "Yes.", "human": {str(bool(r)).lower()}, "model": "m{i % 2}"}}\n'
        for i, r in enumerate(refused)
    ))  # fmt: skip
    found = fit_judge.main(fit_judge.Fit((file,), tmp_path / "head.safetensors", tmp_path / "found.json"))
    head = load_file(tmp_path / "head.safetensors")
    odds = states @ head["weights"].double().numpy() + head["bias"].item()
    assert np.mean((odds > 0) == refused) > 0.9
    assert [row["model"] for row in found] == ["m0", "m1"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| m0", "| m1", "| **mean**"]
