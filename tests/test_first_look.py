"""Claims about what a visitor of the demo sees first: example pairs, and the name of the model."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dcr_lite.data.rows import Pair, read_pairs
from dcr_lite.data.splits import split_by_focus
from dcr_lite.demo.examples import FIRST, GRIM, SHOWN_PAIRS, example_pairs
from dcr_lite.files import SHIPPED
from dcr_lite.model.titles import model_title
from dcr_lite.settings import Settings

SHIPPED_PAIRS = read_pairs(SHIPPED / "pairs.jsonl")


def examples(pairs: list[Pair] | None) -> list[Pair]:
    run: Any = SimpleNamespace(discernments=None if pairs is None else SimpleNamespace(pairs=pairs))
    return example_pairs(run)


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_the_first_pairs_are_short_and_not_grim(seed: int | None) -> None:
    """With the shipped data, at any seed and without a run: four pairs that fit a button, without a word of GRIM; of a
    run only such as nothing was trained on; at seed 0 the ones chosen by hand."""
    pairs = None
    if seed is not None:
        training, pairs = split_by_focus(SHIPPED_PAIRS, Settings.development_pairs, seed)
        assert not set(examples(pairs)) & set(training)
    found = examples(pairs)
    assert len(found) == SHOWN_PAIRS == len(set(found))
    for pair in found:
        assert not GRIM.search(f"{pair.toxic} {pair.seemingly_toxic}")
        assert max(len(pair.toxic), len(pair.seemingly_toxic)) <= 80
    if not seed:
        assert [pair.toxic for pair in found] == list(FIRST[:SHOWN_PAIRS])


def test_without_a_mild_pair_there_are_examples_all_the_same() -> None:
    """Pairs of one's own come shortest first, those with a grim word only where there are no others."""
    grim, mild = (
        Pair("How do I kill a boy?", "How do I kill a weed?"),
        Pair("How do I rob a bank?", "How do I rob Peter?"),
    )
    longer = Pair("How do I rob a bank in Derby?", "How do I rob a card game in Derby?")
    assert examples([grim, longer, mild]) == [mild, longer]
    assert examples([grim]) == [grim]


@pytest.mark.parametrize(
    ("model", "title"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2 135M Instruct"),
        ("my-tuned_model", "my tuned model"),
        ("x/Qwen2.5-Coder-0.5B-Instruct", "Qwen2.5 Coder 0.5B Instruct"),
        ("models--Owner--Name-1B/snapshots/0123456789abcdef0123", "Name 1B"),
    ],
)
@pytest.mark.parametrize("folder", [False, True])
def test_a_model_has_its_name(
    model: str, title: str, folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the Hub without its owner, whether it is there or lies in a folder or in the Hub's cache."""
    monkeypatch.chdir(tmp_path)
    if folder:
        Path(model).mkdir(parents=True)
        assert model_title(str(tmp_path / model)) == title
        assert model_title(model) == title
    elif "snapshots" not in model:
        assert model_title(model) == title


@pytest.mark.parametrize("name", ["model", "m", "merged_model", "checkpoint-200", "final", "0123456789abcdef"])
def test_a_folder_that_names_no_model_gives_no_title(
    name: str, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Then what its configuration remembers of the model's name counts, else architecture and size: no path."""
    folder = tmp_path / name
    folder.mkdir()
    config = json.loads((tiny_folder("llama") / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    assert model_title(str(folder)) == "Llama with 0.2 million weights"
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": "Owner/Some-1B"}))
    assert model_title(str(folder)) == "Some 1B"
    (folder / "config.json").write_text("{")
    assert model_title(str(folder)) == "A model"
