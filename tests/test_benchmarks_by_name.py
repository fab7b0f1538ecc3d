"""Public benchmarks by name, offline: their columns as published, with rows of our own."""

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import datasets
import pytest

from dcr_lite import cli
from dcr_lite.data import hub
from dcr_lite.data.benchmarks import BENCHMARKS, load_benchmark
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
}
OTHER_VALUES = {"xstest": None, "phtest": "controversial", "harmbench": "copyright"}  # of the label column; left out


def published(name: str) -> datasets.Dataset:
    """Three rows a label, and one to leave out, in a benchmark's own columns."""
    benchmark = BENCHMARKS[name]
    values = [""] if isinstance(benchmark.label, str) else list(benchmark.label)
    if other := OTHER_VALUES.get(name):
        values.append(other)
    rows = []
    for value in values:
        for i in range(3):
            row = dict.fromkeys(COLUMNS[name], "something else")
            row[benchmark.column] = f" What is {value or 'thing'} number {i}?\n"
            if benchmark.label_column:
                row[benchmark.label_column] = value
            rows.append(row)
    return datasets.Dataset.from_list(rows + rows[:1])


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A load_dataset with the real one's signature, and a host that answers; what it was asked for is recorded."""
    loader = create_autospec(datasets.load_dataset)
    monkeypatch.setattr(datasets, "load_dataset", loader)
    monkeypatch.setattr(hub, "answers", lambda host: True)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return loader


def test_every_benchmark_of_the_command_is_known() -> None:
    """The names in the command's help are the names that there are, and both labels are among them."""
    said = inspect.getdoc(cli.evaluate)
    assert said is not None
    assert all(name in said for name in BENCHMARKS)
    assert set(COLUMNS) == set(BENCHMARKS)
    labels = {x for b in BENCHMARKS.values() for x in ([b.label] if isinstance(b.label, str) else b.label.values())}
    assert labels == {"toxic", "seemingly_toxic"} < set(LABELS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_published_columns_become_prompts(name: str, online: Any, tmp_path: Path) -> None:
    """Each prompt once, without the space around it, with the label its row has; rows of no label are left out. The
    library is asked for the config, split and file that the benchmark names, and only once."""
    benchmark = BENCHMARKS[name]
    online.return_value = published(name)
    prompts = load_benchmark(name, tmp_path)
    online.assert_called_once_with(
        benchmark.path, name=benchmark.config, data_files=benchmark.file, split=benchmark.split
    )
    mapping = {"": benchmark.label} if isinstance(benchmark.label, str) else benchmark.label
    assert prompts == [
        Prompt(f"What is {value or 'thing'} number {i}?", label, name)
        for value, label in mapping.items()
        for i in range(3)
    ]
    online.side_effect = AssertionError("fetched twice")
    assert load_benchmark(name, tmp_path) == prompts


@pytest.mark.parametrize(("name", "kind"), [("advbench", "csv"), ("malicious_instruct", "text")])
def test_a_file_is_read_by_the_library_itself(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real load_dataset takes what a benchmark of a file says, here for a file on this machine."""
    file = tmp_path / f"file.{kind}"
    file.write_text('goal,target\n"Name two, or three cats.",x\n' if kind == "csv" else "Name two, or three cats.\n\n")
    monkeypatch.setitem(BENCHMARKS, name, replace(BENCHMARKS[name], file=str(file)))
    monkeypatch.setattr(hub, "answers", lambda host: True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "library")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert load_benchmark(name, tmp_path) == [Prompt("Name two, or three cats.", "toxic", name)]


def test_offline_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An unreachable host is named, with the address to get the file from and the flag to give it by; nothing is
    kept."""
    monkeypatch.setattr(hub, "answers", lambda host: False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name, host in (("xstest", "huggingface.co"), ("advbench", "raw.githubusercontent.com")):
        with pytest.raises(UserError) as said:
            load_benchmark(name, tmp_path)
        for part in (f"{name} cannot be fetched ({host} does not answer)", BENCHMARKS[name].address, "--prompts FILE"):
            assert part in str(said.value)
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("error", [ConnectionError("no route"), datasets.exceptions.DatasetNotFoundError("gone")])
def test_a_failed_download_is_a_sentence(error: Exception, online: Any, tmp_path: Path) -> None:
    """What the library raises is said in one line with the way to do without."""
    online.side_effect = error
    with pytest.raises(UserError, match=rf"phtest cannot be fetched \({error}\).*--prompts FILE"):
        load_benchmark("phtest", tmp_path)


def test_changed_columns_are_noticed(online: Any, tmp_path: Path) -> None:
    """A benchmark that was rebuilt with other columns is named with the columns found."""
    online.return_value = datasets.Dataset.from_list([{"text": "a", "label": "safe"}])
    with pytest.raises(UserError, match=r"xstest has changed: no column prompt among text, label"):
        load_benchmark("xstest", tmp_path)
    online.return_value = datasets.Dataset.from_list([{"prompt": "a", "label": "fine"}])
    with pytest.raises(UserError, match="xstest has changed: no prompts"):
        load_benchmark("xstest", tmp_path)


def test_an_unknown_name_lists_those_that_there_are(tmp_path: Path) -> None:
    """A typing mistake costs no search."""
    with pytest.raises(UserError, match=r"xtest: no such benchmark\. Choose from xstest, "):
        load_benchmark("xtest", tmp_path)


def test_a_kept_benchmark_can_be_read_as_prompts(online: Any, tmp_path: Path) -> None:
    """What is kept is a file as --prompts takes it."""
    online.return_value = published("xstest")
    prompts = load_benchmark("xstest", tmp_path)
    lines = (tmp_path / "benchmarks" / "xstest.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"prompt": p.prompt, "label": p.label, "source": "xstest"} for p in prompts
    ]
