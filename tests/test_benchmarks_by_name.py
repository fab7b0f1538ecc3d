"""Public benchmarks by name, offline: their columns as published, with rows of our own."""

from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import datasets
import pytest

from dcr_lite.data import hub
from dcr_lite.data.benchmarks import BENCHMARKS, benchmarks_at_hand, load_benchmark
from dcr_lite.data.rows import Prompt
from dcr_lite.errors import UserError
from dcr_lite.names import LABELS

# The columns of each, as published in 2025 and 2026, and what tells its rows apart.
COLUMNS: dict[str, list[str]] = {
    "xstest": ["id", "prompt", "type", "label", "focus", "note"],
    "or_bench_hard": ["prompt", "category"],
    "oktest": ["prompt"],
    "phtest": ["Request", "Harmfulness"],
    "coconot_contrast": ["id", "category", "subcategory", "prompt", "response"],
    "jailbreakbench_benign": ["Index", "Goal", "Target", "Behavior", "Category", "Source"],
    "or_bench_toxic": ["prompt", "category"],
    "advbench": ["goal", "target"],
    "harmbench": ["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"],
    "jailbreakbench": ["Index", "Goal", "Target", "Behavior", "Category", "Source"],
    "strongreject": ["category", "source", "forbidden_prompt"],
    "simple_safety_tests": ["id", "harm_area", "counter", "category", "prompt"],
    "malicious_instruct": ["text"],
    "i_malicious": ["instructions", "tags", "inputs"],
    "i_cona": ["instructions", "inputs"],
    "i_controversial": ["instructions", "inputs"],
    "catqa": ["Category", "Subcategory", "Question"],
}
OTHER_VALUES = {"xstest": None, "phtest": "controversial", "harmbench": "copyright"}  # of the label column; left out


def published(name: str) -> list[dict[str, str]]:
    """Three rows a label, and one to leave out, in a benchmark's own columns."""
    benchmark = BENCHMARKS[name]
    values = [""] if isinstance(benchmark.label, str) else list(benchmark.label)
    if other := OTHER_VALUES.get(name):
        values.append(other)
    rows = []
    for value in values:
        for i in range(3):
            row = dict.fromkeys(COLUMNS[name], "something else")
            row[benchmark.column] = f" What is {value or 'thing'}, number {i}?\n"
            if benchmark.label_column:
                row[benchmark.label_column] = value
            rows.append(row)
    return rows + rows[:1]


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A load_dataset with the real one's signature, and a host that answers; what it was asked for is recorded."""
    loader = create_autospec(datasets.load_dataset)
    monkeypatch.setattr(datasets, "load_dataset", loader)
    monkeypatch.setattr(hub, "answers", lambda host: True)
    monkeypatch.setattr(hub, "ask_for_set", lambda name: None)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return loader


def test_every_benchmark_has_its_columns_and_both_labels_occur() -> None:
    """The columns here are those of every benchmark that the command line offers; both labels are among theirs."""
    assert tuple(BENCHMARKS) == tuple(COLUMNS)
    labels = {x for b in BENCHMARKS.values() for x in ([b.label] if isinstance(b.label, str) else b.label.values())}
    assert labels == {"toxic", "seemingly_toxic"} < set(LABELS)


def test_offline_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For an unreachable host the error has the address to download from and the flag to use; nothing is kept."""
    monkeypatch.setattr(hub, "answers", lambda host: False)
    with pytest.raises(UserError, match="cannot be fetched") as said:
        load_benchmark("advbench", tmp_path)
    assert f"Download {BENCHMARKS['advbench'].address} " in str(said.value)
    assert "--prompts FILE" in str(said.value)
    assert not list(tmp_path.rglob("*.jsonl"))


def test_changed_labels_are_an_error(online: Any, tmp_path: Path) -> None:
    """A benchmark whose rows have other labels is an error, not an empty set."""
    online.return_value = datasets.Dataset.from_list([{"prompt": "a", "label": "fine"}])
    with pytest.raises(UserError, match="xstest has changed: no prompts"):
        load_benchmark("xstest", tmp_path)


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    """The error for an unknown name lists the benchmarks."""
    with pytest.raises(UserError, match=r"xtest: no such benchmark\. Choose from xstest, "):
        load_benchmark("xtest", tmp_path)


def test_what_was_fetched_is_at_hand(tmp_path: Path) -> None:
    """By name, and nothing else is asked for: here nothing answers."""
    assert benchmarks_at_hand(tmp_path) == {}
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "oktest.jsonl").write_text(
        '{"prompt": "a", "label": "seemingly_toxic", "source": "oktest"}'
    )
    assert benchmarks_at_hand(tmp_path) == {"oktest": [Prompt("a", "seemingly_toxic", "oktest")]}
