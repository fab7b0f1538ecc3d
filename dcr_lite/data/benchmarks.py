"""Public benchmarks by name: address, columns and licence of each. Fetched once, then kept in the cache folder.

None needs an account: some have gated copies (walledai/...), which are not used.
"""

from dataclasses import dataclass
from pathlib import Path

from dcr_lite.data.hub import HUB
from dcr_lite.data.public_sets import public_rows
from dcr_lite.data.rows import Prompt, fields_of, read_prompts
from dcr_lite.errors import UserError
from dcr_lite.files import cache_folder, write_jsonl


@dataclass(frozen=True)
class Benchmark:
    """Address and columns of a benchmark.

    path: a data set of the Hub, or "csv", "text" or "json" for a file, whose address is ``file``. column: holds the
    prompt of a row, or a list of them. label: of all rows; with ``label_column`` the label for each of its values, and
    other rows are left out.
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
        """Where a person can download it."""
        return self.file or f"{HUB}/datasets/{self.path}"


RAW = "https://raw.githubusercontent.com"


def _github(repository: str, file: str) -> str:
    return f"{RAW}/{repository}/HEAD/{file}"


def _safety_tuned(name: str) -> Benchmark:
    """An evaluation set of Safety-Tuned LLaMAs: one JSON object with a list of prompts."""
    file = _github("vinid/safety-tuned-llamas", f"data/evaluation/{name}.json")
    return Benchmark("json", "instructions", TOXIC, "CC-BY-NC-4.0", "2309.07875", file=file)


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
    "harmbench": Benchmark(  # its standard behaviours: no copyright, no context
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
    "i_malicious": _safety_tuned("I-MaliciousInstructions"),
    "i_cona": _safety_tuned("I-CoNa"),
    "i_controversial": _safety_tuned("I-Controversial"),
    "catqa": Benchmark(
        "declare-lab/CategoricalHarmfulQA", "Question", TOXIC, "Apache-2.0", "2402.11746", split="en"
    ),
}  # fmt: skip


def load_benchmark(name: str, cache: Path | None = None) -> list[Prompt]:
    """The prompts of a benchmark, from the cache or fetched and kept there.

    Raises UserError for an unknown name, an unreachable source (with what to do instead), or a file whose columns have
    changed.
    """
    if name not in BENCHMARKS:
        raise UserError(f"--benchmarks {name}: no such benchmark. Choose from {', '.join(BENCHMARKS)}.")
    kept = (cache or cache_folder()) / "benchmarks" / f"{name}.jsonl"
    if not kept.exists():
        write_jsonl(map(fields_of, _fetch(name, BENCHMARKS[name])), kept)
    return read_prompts(kept)


def benchmarks_at_hand(cache: Path | None = None) -> dict[str, list[Prompt]]:
    """The prompts of those benchmarks that were fetched before, by name; nothing is fetched."""
    folder = (cache or cache_folder()) / "benchmarks"
    return {name: read_prompts(kept) for name in BENCHMARKS if (kept := folder / f"{name}.jsonl").exists()}


def _fetch(name: str, benchmark: Benchmark) -> list[Prompt]:
    """The prompts of a benchmark from its source, repeated ones once."""
    instead = (
        f"Download {benchmark.address} on a machine with a connection, and give its prompts with --prompts FILE: "
        'JSON Lines of {"prompt": ..., "label": "toxic" or "seemingly_toxic"}.'
    )
    columns = [benchmark.column, *filter(None, [benchmark.label_column])]
    rows = public_rows(name, benchmark.path, columns, instead, benchmark.config, benchmark.split, benchmark.file)
    prompts: dict[str, Prompt] = {}
    for row in rows:
        value = str(row[benchmark.label_column]).strip() if benchmark.label_column else ""
        label = benchmark.label if isinstance(benchmark.label, str) else benchmark.label.get(value)
        held = row[benchmark.column]
        for text in (str(one or "").strip() for one in (held if isinstance(held, list) else [held])):
            if label and text:
                prompts.setdefault(text, Prompt(text, label, name))
    if not prompts:
        raise UserError(f"{name} has changed: no prompts among its rows. {instead}")
    return list(prompts.values())
