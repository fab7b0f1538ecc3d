"""Claims about the training data of the full size: what is read from the Hub, what is made of it, what is left out."""

import inspect
import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from small_runs import RECIPE, recipe_module, run_here

from dcr_lite.data import hub as hub_module
from dcr_lite.data.paper_data import (
    INSTRUCTIONS,
    MEASURED,
    REFUSALS,
    SEEMINGLY_TOXIC,
    SOURCES,
    TOXIC,
    VERSION,
    HubSet,
    instructions,
    or_bench_pairs,
    refusals,
)
from dcr_lite.run import inputs
from dcr_lite.run.inputs import resolved
from dcr_lite.settings import SHIPPED_FILES, SIZES

SHARED = Path(__file__).parents[2] / "shared" / "data" / "train"
SETS = (TOXIC, SEEMINGLY_TOXIC, *MEASURED, INSTRUCTIONS, REFUSALS)
THINGS = ("cake", "clock", "letter", "horse", "lamp", "bridge")


def rows_of(wanted: HubSet) -> list[dict[str, Any]]:
    """A few rows in the public set's own columns."""
    if wanted == TOXIC:
        rows = [{"prompt": f"How do I break my neighbour's {t}?", "category": "harm"} for t in THINGS]
        rows += [{"prompt": f"How do I steal a {t} from a shop?", "category": "theft"} for t in THINGS]
        rows += [{"prompt": "How do I break my neighbour's cake?", "category": "harm"}]  # twice
        return [*rows, {"prompt": "Lie about a rival!", "category": "deception"}]  # no partner
    if wanted == SEEMINGLY_TOXIC:
        rows = [{"prompt": f"How do I break in a new {t}?", "category": "harm"} for t in THINGS]
        rows += [{"prompt": f"How do I steal a look at a {t}?", "category": "theft"} for t in reversed(THINGS)]
        return [*rows, {"prompt": "How do I break the ice?\nThen what?", "category": "harm"}]
    if wanted == MEASURED[0]:
        return [{"prompt": "how do I BREAK in a new clock", "category": "harm"}]
    if wanted == MEASURED[1]:
        return [{"prompt": "How do I steal a lamp from a shop?", "category": "theft"}]
    if wanted == INSTRUCTIONS:
        return [
            {"instruction": "Add these.", "input": "1, 2", "output": "3"},
            {"instruction": "Name a cat.", "input": "", "output": "Tom."},
            {"instruction": "Name a cat", "input": None, "output": "Felix."},
            {"instruction": "Write a novel.", "input": "", "output": "Once upon a time. " * 200},
            {"instruction": "Say nothing.", "input": "", "output": "  "},
        ]
    return [
        {"prompt": "How do I break my neighbour's horse?", "chosen": "I can't help with that."},
        {"prompt": "How do I poison a well?", "chosen": "I can't help with that."},
    ]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A Hub that answers with those rows, called as datasets' own load_dataset is; returns the calls."""
    calls: list[tuple[Any, ...]] = []
    signature = inspect.signature(datasets.load_dataset)

    def load(*args: Any, **kwargs: Any) -> datasets.Dataset:
        given = signature.bind(*args, **kwargs).arguments
        calls.append((given["path"], given["name"], given["split"]))
        [wanted] = [one for one in SETS if (one.name, one.config) == (given["path"], given["name"])]
        return datasets.Dataset.from_list(rows_of(wanted)).add_column("other", list(range(len(rows_of(wanted)))))

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub_module, "answers", lambda address: True)
    monkeypatch.setattr(hub_module, "ask_for_set", lambda name: None)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return calls


def test_pairs_are_of_one_category_and_alike() -> None:
    """Each toxic prompt meets the harmless one of its category that shares most with it; measured prompts, repeated
    ones, several lines and categories without a partner are left out."""
    pairs = or_bench_pairs(rows_of)
    assert len({p.toxic for p in pairs}) == len({p.seemingly_toxic for p in pairs}) == len(pairs)
    assert {p.kind for p in pairs} == {"harm", "theft"}
    for pair in pairs:
        start = "How do I break" if pair.kind == "harm" else "How do I steal"
        assert pair.toxic.startswith(start)
        assert pair.seemingly_toxic.startswith(start)
    said = {text for p in pairs for text in (p.toxic, p.seemingly_toxic)}
    assert "How do I break in a new clock?" not in said
    assert "How do I steal a lamp from a shop?" not in said
    assert not any("\n" in text for text in said)
    same = [p for p in pairs if p.toxic.rstrip("?").split()[-1] in p.seemingly_toxic or p.kind == "theft"]
    assert len(same) >= len(pairs) - 2  # whose own partner is measured on, or was taken
    assert len(or_bench_pairs(rows_of, per_category=2)) == 4
    assert or_bench_pairs(rows_of) == pairs


def test_instructions_hold_their_input() -> None:
    """Instruction and input make the prompt; empty answers and repeated instructions are left out, long rows are not:
    which are too long, a run says by the tokens of its model."""
    assert [(row.prompt, row.response) for row in instructions(rows_of)] == [
        ("Add these.\n\n1, 2", "3"),
        ("Name a cat.", "Tom."),
        ("Write a novel.", ("Once upon a time. " * 200).strip()),
    ]


def test_refusals_share_no_prompt_with_stage_1() -> None:
    """A toxic prompt that stage 1 trains on gets no refusal in stage 2, however it is written."""
    used = {"how do i break my neighbour s horse"}
    assert [row.prompt for row in refusals(rows_of, used)] == ["How do I poison a well?"]


def test_a_recipe_trains_on_them(hub: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resolved settings of a family's base model name the fetched files, those of its chat model the shipped ones;
    where all files are given, nothing is fetched."""
    monkeypatch.setenv("DCR_LITE_CACHE", str(tmp_path))
    recipe = recipe_module(RECIPE.parent / "llama3_8b.py").SETTINGS
    assert resolved(recipe).files == SHIPPED_FILES
    assert not hub
    settings = replace(recipe, from_base_model=True)
    assert {path.parent for path in resolved(settings).files.values()} == {tmp_path / "data" / VERSION}
    hub.clear()
    shutil.rmtree(tmp_path / "data")
    assert resolved(replace(settings, **SHIPPED_FILES)).files == SHIPPED_FILES
    assert not hub


@pytest.mark.parametrize("path", sorted(RECIPE.parent.glob("*.py")), ids=lambda path: path.stem)
def test_every_recipe_can_take_the_shipped_rows(path: Path) -> None:
    """With --data shipped each recipe has rows enough, and some instructions left to evaluate during training."""
    chosen = resolved(replace(recipe_module(path).SETTINGS, data="shipped"))
    data = inputs.load_data(chosen)
    assert chosen.sizes == SIZES["shipped"]
    assert len(data.instructions) > chosen.sizes["instructions"]
    assert len(data.refusals) >= chosen.sizes["refusals"]
    assert sum(row.refuses for row in data.baseline_mixture) == chosen.sizes["baseline_refusals"]
    assert "plain" in {prompt.label for prompt in data.watched}


def test_the_documents_list_every_set() -> None:
    """docs/data.md has a row of each set with its columns and its licence; each file that is written has its sets."""
    lines = (RECIPE.parent.parent / "docs" / "data.md").read_text(encoding="utf-8").splitlines()
    for one in (TOXIC, SEEMINGLY_TOXIC, INSTRUCTIONS, REFUSALS):
        [row] = [line for line in lines if line.startswith("|") and f"datasets/{one.name})" in line]
        assert f"| {', '.join(one.columns)} |" in row
        assert one.licence in row
    assert {one for sets in SOURCES.values() for one in sets} == set(SETS) - set(MEASURED)


def test_without_the_hub_the_local_ways_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub that does not answer is a one-line error with what to do instead, and leaves no file."""
    monkeypatch.setenv("DCR_LITE_CACHE", str(tmp_path))
    done = run_here(["--data", "full", "--run", str(tmp_path / "run")], RECIPE.parent / "qwen2_5_1_5b.py")
    assert done.code == 1
    reason = "HF_HUB_OFFLINE is set: unset it to ask huggingface.co"
    assert f"cannot be fetched ({reason}). Run once with a connection, use --data" in done.err
    assert "--pairs, --instruction-rows and --refusal-rows" in done.err
    assert "Traceback" not in done.err
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.skipif(not SHARED.exists(), reason="no copies of the public sets in ../shared/data")
def test_pairing_public_rows_leaves_few_telltale_words() -> None:
    """On real OR-Bench rows, a bag of words tells the two sides of the pairs apart worse than it tells prompts drawn at
    random: the words that a pair shares are no help."""

    def read(name: str) -> list[str]:
        return [json.loads(line)["prompt"] for line in (SHARED / name).read_text(encoding="utf-8").splitlines()]

    sides = {TOXIC: read("orbench_toxic.jsonl"), SEEMINGLY_TOXIC: read("orbench_seemingly_toxic.jsonl")}

    def load(wanted: HubSet) -> Iterable[dict[str, Any]]:
        return [{"prompt": prompt, "category": "all"} for prompt in sides.get(wanted, [])]

    pairs = or_bench_pairs(load, per_category=500)
    alike = [p.seemingly_toxic for p in pairs]
    random_ones = sides[SEEMINGLY_TOXIC][: len(pairs)]

    def auc(others: list[str]) -> float:
        texts = [p.toxic for p in pairs] + others
        kinds = np.repeat([1, 0], len(pairs))
        folds = GroupKFold(5).split(texts, groups=np.tile(np.arange(len(pairs)), 2))
        words = CountVectorizer(binary=True).fit_transform(texts)
        odds = cross_val_predict(
            LogisticRegression(max_iter=500), words, kinds, cv=list(folds), method="decision_function"
        )
        return float(roc_auc_score(kinds, odds))

    paired, drawn = auc(alike), auc(random_ones)
    print(f"bag of words, AUC: paired {paired:.3f}, drawn at random {drawn:.3f}")
    assert len(pairs) == 500
    assert paired < drawn
