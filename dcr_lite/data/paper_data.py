"""Training data of the paper's size, from public sets on the Hugging Face Hub, written once as JSON Lines.

Stage 1: pairs of one category and one source. Both sides come from OR-Bench, whose toxic prompts its harmless ones were
rewritten from, each toxic prompt with the harmless one most like it; the shipped pairs join them. Across two sources a
model would learn to tell the sources. Stage 2: general instructions and refusals, no toxic prompt of stage 1 among
them. Rows that the usual benchmarks measure on are left out. docs/data.md has licences and numbers.
"""

import json
import os
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcr_lite.data.rows import Conversation, Pair, read_pairs
from dcr_lite.data.sources import hub_answers
from dcr_lite.errors import UserError
from dcr_lite.files import SHIPPED, cache_folder

VERSION = "full-1"  # of the rows below: another choice of rows gets another name, so that no run mixes two
PAIRS_PER_CATEGORY = 120  # of ten categories: with the shipped ones about 2,000 pairs
LONGEST = 2_000  # characters of an instruction with its answer, some 500 tokens: longer ones need the memory of two
SEED = 0  # of the order in which toxic prompts choose: the rows are the same on every machine


@dataclass(frozen=True)
class HubSet:
    """A public set: where it lies, the columns read, its licence. None is gated."""

    name: str
    config: str | None
    columns: tuple[str, ...]
    licence: str


SEEMINGLY_TOXIC = HubSet("bench-llm/or-bench", "or-bench-80k", ("prompt", "category"), "CC-BY-4.0")
TOXIC = HubSet("bench-llms/or-bench-toxic-all", "or-bench-toxic-all", ("prompt", "category"), "CC-BY-4.0")
# What OR-Bench measures on: out of the training rows.
MEASURED = (
    HubSet("bench-llm/or-bench", "or-bench-hard-1k", ("prompt", "category"), "CC-BY-4.0"),
    HubSet("bench-llm/or-bench", "or-bench-toxic", ("prompt", "category"), "CC-BY-4.0"),
)
INSTRUCTIONS = HubSet(
    "yahma/alpaca-cleaned",
    None,
    ("instruction", "input", "output"),
    "CC-BY-4.0 (the original Alpaca: CC-BY-NC-4.0)",
)
# The Safety-Tuned LLaMAs refusals (github.com/vinid/safety-tuned-llamas), which the paper's stage 2 uses.
REFUSALS = HubSet("fedyanin/safety_llamas", None, ("prompt", "chosen"), "CC-BY-NC-4.0")

# By the files written below; the pairs hold the shipped ones as well.
SOURCES = {
    "pairs.jsonl": (TOXIC, SEEMINGLY_TOXIC),
    "instructions.jsonl": (INSTRUCTIONS,),
    "refusals.jsonl": (REFUSALS,),
}

Load = Callable[[HubSet], Iterable[dict[str, Any]]]


@dataclass(frozen=True)
class Files:
    """The three files of training rows, as the settings name them."""

    pairs: Path
    instruction_rows: Path
    refusal_rows: Path


def full_data(cache: Path | None = None) -> Files:
    """The files, fetched and written the first time, in the user's cache folder.

    Raises UserError with the ways without the Hub where it does not answer or a set has other columns.
    """
    folder = (cache or cache_folder()) / "data" / VERSION
    files = Files(folder / "pairs.jsonl", folder / "instructions.jsonl", folder / "refusals.jsonl")
    if not all(path.exists() for path in asdict(files).values()):
        print("fetching the public sets of --data full once (about 70 MB) ...", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        pairs = or_bench_pairs(from_hub)
        used = {_plain(pair.toxic) for pair in pairs}
        _write(files.refusal_rows, refusals(from_hub, used))
        _write(files.instruction_rows, instructions(from_hub))
        _write(files.pairs, [*read_pairs(SHIPPED / "pairs.jsonl"), *pairs])
    return files


def sources(path: str | Path) -> tuple[HubSet, ...]:
    """The public sets that a file of training rows was made from; none for one that was not written here."""
    *_, data, version, name = ("", "", "", *Path(path).parts)
    return SOURCES.get(name, ()) if (data, version) == ("data", VERSION) else ()


def from_hub(wanted: HubSet) -> Iterable[dict[str, Any]]:
    """The rows of a set. Raises UserError where it cannot be had or lacks a column."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    ways = (
        "Run once with a connection, or take --data shipped, or give files of your own with --pairs, "
        "--instruction-rows and --refusal-rows."
    )
    if os.environ.get("HF_HUB_OFFLINE") or not hub_answers():
        raise UserError(f"{wanted.name}: the Hugging Face Hub does not answer. {ways}")
    try:
        rows = datasets.load_dataset(wanted.name, wanted.config, split="train")
    except (OSError, ValueError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{wanted.name} cannot be had from the Hub ({reason}). {ways}") from None
    if missing := [column for column in wanted.columns if column not in rows.column_names]:
        raise UserError(
            f"{wanted.name} has changed: no column {', '.join(missing)} among {', '.join(rows.column_names)}. {ways}"
        )
    columns: Iterable[dict[str, Any]] = rows.select_columns(list(wanted.columns))
    return columns


def or_bench_pairs(load: Load, per_category: int = PAIRS_PER_CATEGORY) -> list[Pair]:
    """Toxic prompts of OR-Bench, so many of each category, each with the harmless one of its category most like it in
    words; every prompt once."""
    measured = {_plain(row["prompt"]) for wanted in MEASURED for row in load(wanted)}
    toxic, harmless = (_by_category(load(wanted), measured) for wanted in (TOXIC, SEEMINGLY_TOXIC))
    rng = random.Random(SEED)
    pairs: list[Pair] = []
    for category in sorted(toxic.keys() & harmless.keys()):
        chosen = rng.sample(toxic[category], min(per_category, len(toxic[category]), len(harmless[category])))
        partners = _most_alike(chosen, harmless[category])
        pairs += [Pair(t, h, kind=category) for t, h in zip(chosen, partners, strict=True)]
    return pairs


def _by_category(rows: Iterable[dict[str, Any]], without: set[str]) -> dict[str, list[str]]:
    """Prompts by category: one-line ones, each once, none of ``without``."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        prompt, category = str(row["prompt"]).strip(), str(row["category"]).strip()
        key = _plain(prompt)
        if key and key not in without and "\n" not in prompt:
            found.setdefault(category, {}).setdefault(key, prompt)
    return {category: list(prompts.values()) for category, prompts in found.items()}


def _most_alike(prompts: list[str], others: list[str]) -> list[str]:
    """For each prompt the one of ``others`` that shares most of its rarer words and was not chosen before it."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(sublinear_tf=True).fit_transform([*prompts, *others])
    alike = (vectors[: len(prompts)] @ vectors[len(prompts) :].T).toarray()
    chosen = []
    for row in alike:
        best = int(row.argmax())
        alike[:, best] = -1.0
        chosen.append(others[best])
    return chosen


def instructions(load: Load) -> list[Conversation]:
    """Instructions with their input below them and their answer, short enough for one pass, each once."""
    rows: dict[str, Conversation] = {}
    for row in load(INSTRUCTIONS):
        instruction, given = str(row["instruction"]).strip(), str(row["input"] or "").strip()
        prompt = f"{instruction}\n\n{given}" if given else instruction
        response = str(row["output"]).strip()
        if prompt and response and len(prompt) + len(response) <= LONGEST:
            rows.setdefault(_plain(prompt), Conversation(prompt, response))
    return list(rows.values())


def refusals(load: Load, used: set[str]) -> list[Conversation]:
    """Toxic prompts with refusals, each once, none that stage 1 has ``used``."""
    rows: dict[str, Conversation] = {}
    for row in load(REFUSALS):
        prompt, response = str(row["prompt"]).strip(), str(row["chosen"]).strip()
        if prompt and response and _plain(prompt) not in used:
            rows.setdefault(_plain(prompt), Conversation(prompt, response))
    return list(rows.values())


def _plain(text: str) -> str:
    """A prompt's words alone: two that differ in case, spaces or punctuation are one."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _write(path: Path, rows: list[Pair] | list[Conversation]) -> None:
    """JSON Lines that are whole or absent."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for row in rows:
            fields = {name: value for name, value in asdict(row).items() if value}
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")
    partial.replace(path)
