"""Public benchmarks by name: where each lies, what its columns mean, under which licence. Fetched once, then kept.

All of them can be had without an account. Gated copies (walledai/...) exist of some; none is needed here.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dcr_lite.data.rows import Prompt, read_prompts
from dcr_lite.data.sources import host_answers
from dcr_lite.errors import UserError
from dcr_lite.files import cache_folder

HUB = "https://huggingface.co"
GITHUB = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lies and how its rows become prompts.

    path: a data set of the Hub, or "csv" or "text" for a file, whose address is ``file``. column: of the prompts.
    label: of every row; or with ``label_column`` that of the rows with each of its values, other rows are left out.
    paper: its arXiv number.
    """

    path: str
    column: str
    label: str | dict[str, str]
    licence: str
    paper: str
    config: str | None = None
    split: str = "train"
    file: str | None = None
    label_column: str | None = None

    @property
    def address(self) -> str:
        """Where a person finds it."""
        return self.file or f"{HUB}/datasets/{self.path}"


def _github(repository: str, file: str) -> str:
    return f"{GITHUB}/{repository}/HEAD/{file}"


SEEMINGLY, TOXIC = "seemingly_toxic", "toxic"
BENCHMARKS: dict[str, Benchmark] = {
    # seemingly toxic prompts, of XSTest also their toxic counterparts
    "xstest": Benchmark(
        "Paul/XSTest", "prompt", {"safe": SEEMINGLY, "unsafe": TOXIC}, "CC-BY-4.0", "2308.01263",
        label_column="label",
    ),
    "or_bench_hard": Benchmark(
        "bench-llm/or-bench", "prompt", SEEMINGLY, "CC-BY-4.0", "2405.20947", config="or-bench-hard-1k"
    ),
    "oktest": Benchmark(
        "csv", "prompt", SEEMINGLY, "none stated", "2401.17633",
        file=_github("InvokerStark/OverKill", "data/OKTest.csv"),
    ),
    "phtest": Benchmark(  # its controversial rows are left out
        "furonghuang-lab/PHTest", "Request", {"harmless": SEEMINGLY}, "MIT", "2409.00598",
        label_column="Harmfulness",
    ),
    "coconot_contrast": Benchmark(
        "allenai/coconot", "prompt", SEEMINGLY, "ODC-BY", "2407.12043", config="contrast", split="test"
    ),
    "jailbreakbench_benign": Benchmark(
        "JailbreakBench/JBB-Behaviors", "Goal", SEEMINGLY, "MIT", "2404.01318", config="behaviors", split="benign"
    ),
    # toxic prompts
    "or_bench_toxic": Benchmark(
        "bench-llm/or-bench", "prompt", TOXIC, "CC-BY-4.0", "2405.20947", config="or-bench-toxic"
    ),
    "advbench": Benchmark(
        "csv", "goal", TOXIC, "MIT", "2307.15043",
        file=_github("llm-attacks/llm-attacks", "data/advbench/harmful_behaviors.csv"),
    ),
    "harmbench": Benchmark(  # the behaviours that stand alone: no copyright, no context
        "csv", "Behavior", {"standard": TOXIC}, "MIT", "2402.04249",
        file=_github("centerforaisafety/HarmBench", "data/behavior_datasets/harmbench_behaviors_text_all.csv"),
        label_column="FunctionalCategory",
    ),
    "jailbreakbench": Benchmark(
        "JailbreakBench/JBB-Behaviors", "Goal", TOXIC, "MIT", "2404.01318", config="behaviors", split="harmful"
    ),
    "strongreject": Benchmark(
        "csv", "forbidden_prompt", TOXIC, "MIT", "2402.10260",
        file=_github("alexandrasouly/strongreject", "strongreject_dataset/strongreject_dataset.csv"),
    ),
    "simple_safety_tests": Benchmark(
        "Bertievidgen/SimpleSafetyTests", "prompt", TOXIC, "CC-BY-2.0", "2311.08370", split="test"
    ),
    "malicious_instruct": Benchmark(
        "text", "text", TOXIC, "none stated", "2310.06987",
        file=_github("Princeton-SysML/Jailbreak_LLM", "data/MaliciousInstruct.txt"),
    ),
}  # fmt: skip


def load_benchmark(name: str, cache: Path | None = None) -> list[Prompt]:
    """The prompts of a benchmark: from the cache, else fetched and kept there.

    Raises UserError for an unknown name, an unreachable source (with the way to do without), or a file whose columns
    have changed.
    """
    if name not in BENCHMARKS:
        raise UserError(f"--benchmarks {name}: there is no such one. There are {', '.join(BENCHMARKS)}.")
    kept = (cache or cache_folder()) / "benchmarks" / f"{name}.jsonl"
    if not kept.exists():
        prompts = _fetch(name)
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".partial")
        rows = ({"prompt": p.prompt, "label": p.label, "source": p.source} for p in prompts)
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        partial.replace(kept)
    return read_prompts(kept)


def _fetch(name: str) -> list[Prompt]:
    benchmark = BENCHMARKS[name]
    host = benchmark.file or os.environ.get("HF_ENDPOINT", HUB)
    if os.environ.get("HF_HUB_OFFLINE") or not host_answers(host):
        raise _unreachable(name, f"{urlsplit(host).netloc} does not answer")
    import datasets

    try:
        rows = datasets.load_dataset(
            benchmark.path, name=benchmark.config, data_files=benchmark.file, split=benchmark.split
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise _unreachable(name, (str(error).strip().splitlines() or [type(error).__name__])[0]) from None
    return _prompts(name, rows)


def _unreachable(name: str, why: str) -> UserError:
    benchmark = BENCHMARKS[name]
    return UserError(
        f"{name} cannot be fetched ({why}). Get {benchmark.address} where there is a connection, and give its prompts "
        'as --prompts FILE: JSON Lines of {"prompt": ..., "label": "toxic" or "seemingly_toxic"}.'
    )


def _prompts(name: str, rows: Any) -> list[Prompt]:
    """Rows of a benchmark as prompts, repeated ones once."""
    benchmark = BENCHMARKS[name]
    needed = {benchmark.column, *filter(None, [benchmark.label_column])}
    if missing := needed - set(rows.column_names):
        raise UserError(
            f"{name}: {benchmark.address} has changed; no column {', '.join(sorted(missing))} among "
            f"{', '.join(rows.column_names)}. Give its prompts with --prompts FILE."
        )
    prompts: dict[str, Prompt] = {}
    for row in rows:
        value = str(row[benchmark.label_column]).strip() if benchmark.label_column else ""
        label = benchmark.label if isinstance(benchmark.label, str) else benchmark.label.get(value)
        text = str(row[benchmark.column] or "").strip()
        if label and text:
            prompts.setdefault(text, Prompt(text, label, name))
    if not prompts:
        raise UserError(f"{name}: no prompts at {benchmark.address}; it has changed. Give them with --prompts FILE.")
    return list(prompts.values())
