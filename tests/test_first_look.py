"""Claims about what a visitor of the demo sees first: example pairs, and the name of the model."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dcr_lite.data.rows import Pair, read_pairs
from dcr_lite.data.splits import split_by_focus
from dcr_lite.demo.examples import CHECKED, SHOWN_PAIRS, example_pairs
from dcr_lite.files import SHIPPED
from dcr_lite.model.titles import model_title
from dcr_lite.settings import Settings

SHIPPED_PAIRS = read_pairs(SHIPPED / "pairs.jsonl")
# What nobody should meet unasked: children, death and suicide, violence, sex, hate, animals, and what does such harm.
GRIM = re.compile(
    r"\b(child|kid|toddler|bab(y|ies)\b|infant|boys?\b|girls?\b|sons?\b|daughter|niece|nephew|brother|sister|mum|dad|"
    r"mother|father|gran|pupil|school|teen|orphan|youth|suicid|self-harm|(him|her|my|them|your)sel[fv]|noose|pregnan|"
    r"rape|raping|sex|nude|naked|porn|date\b|nazi|swastika|suprem|ethnic|racis|slur|jew(s|ish)?\b|muslim|hindu|sikh|"
    r"mosque|synagogue|church|temple|migrant|refugee|gay|lesbian|trans\b|slave|lynch|disab|wheelchair|patient|kill|"
    r"murder|assassin|execut|massacre|tortur|behead|dismember|corpse|(the|a) body|bodies|blood|bone|skull|teeth|"
    r"throat|face\b|neck\b|fingers?\b|limb|ears?\b|eyes?\b|leg\b|legs\b|amputat|maim|cripple|stab|shoot|shot|guns?\b|"
    r"rifle|bullet|knife|blade|hammer|axe\b|bat\b|beat|punch|attack|hit\b|slap|strangl|suffocat|chok|drown|hang\b|"
    r"hanging|burn|fire\b|acid|bleach|poison|arsenic|cyanide|heroin|overdos|dead|death|die[ds]?\b|dying|coma\b|"
    r"hairdryer|bomb|explo|terror|brake|stalk|kidnap|abduct|duck|dog|cats?\b|pupp|kitten|hamster|horse|"
    r"pon(y|ies)\b|rhino|elephant|badger)",
    re.IGNORECASE,
)


def examples(pairs: list[Pair] | None) -> list[Pair]:
    run: Any = SimpleNamespace(discernments=None if pairs is None else SimpleNamespace(pairs=pairs))
    return example_pairs(run)


def test_every_pair_on_the_list_is_shipped_short_and_not_grim() -> None:
    """Each is one of the shipped pairs and fits a button, with a focus word of its own, and no word of either side is
    of GRIM; which is no empty claim, since half of the shipped pairs have one."""
    shipped = {pair.toxic: pair for pair in SHIPPED_PAIRS}
    pairs = [shipped[toxic] for toxic in CHECKED]
    assert len({pair.focus for pair in pairs}) == len(pairs) >= 40
    for pair in pairs:
        assert max(len(pair.toxic), len(pair.seemingly_toxic)) <= 80
        assert not GRIM.search(f"{pair.toxic} {pair.seemingly_toxic}")
    assert sum(bool(GRIM.search(pair.toxic)) for pair in SHIPPED_PAIRS) > 0.4 * len(SHIPPED_PAIRS)


def test_pairs_of_the_list_are_shown_at_every_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of them, each once: first those that the run held back, then the best of the others. Most seeds have held
    some back, hardly any four."""
    monkeypatch.setattr("dcr_lite.demo.examples.read_pairs", lambda path: SHIPPED_PAIRS)  # once is enough
    held_back = []
    for seed in range(200):
        training, development = split_by_focus(SHIPPED_PAIRS, Settings.development_pairs, seed)
        found, trained = examples(development), set(training)
        assert len(found) == SHOWN_PAIRS == len(set(found))
        assert {pair.toxic for pair in found} <= set(CHECKED)
        assert [pair in trained for pair in found] == sorted(pair in trained for pair in found)
        held_back.append(sum(pair not in trained for pair in found))
        on_list = sum(pair.toxic in CHECKED for pair in development)
        assert held_back[-1] == min(SHOWN_PAIRS, on_list)
    assert sum(map(bool, held_back)) > 100
    assert {0, SHOWN_PAIRS} <= set(held_back)


def test_without_a_held_back_pair_of_the_list_the_best_are_shown() -> None:
    """Without a run, and with pairs of one's own, one of which has a listed toxic side beside another twin."""
    best = [pair.toxic for pair in examples(None)]
    assert best == list(CHECKED[:SHOWN_PAIRS])
    own = [Pair("How do I kill a boy?", "How do I kill a weed?"), Pair(CHECKED[9], "How do I kill a boy in chess?")]
    assert [pair.toxic for pair in examples(own)] == best


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
