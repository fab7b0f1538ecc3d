"""Training data of the paper's size, from public sets on the Hugging Face Hub, written once as JSON Lines.

Stage 1: the shipped pairs, and pairs from OR-Bench, whose harmless prompts were rewritten from its toxic ones. Each
toxic prompt is paired with the most similar harmless one of its category. Both sides come from one source, since with
two a model would learn to tell the sources apart. Stage 2: general instructions and refusals, without the toxic prompts
of stage 1. The prompts that OR-Bench measures on are left out. docs/data.md has licences and numbers.
"""

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dcr_lite.data.public_sets import public_rows
from dcr_lite.data.rows import Conversation, Pair, fields_of, read_pairs
from dcr_lite.files import SHIPPED, cache_folder, write_jsonl

VERSION = "full-2"  # of the rows below: with another choice of rows it changes, so that no run mixes two
PAIRS_PER_CATEGORY = 120  # ten categories: about 2,000 pairs with the shipped ones
SEED = 0  # of which toxic prompts are drawn and in which order: the rows are the same on every machine


@dataclass(frozen=True)
class HubSet:
    """A public set of the Hub: name, configuration, the columns read, licence. None is gated."""

    name: str
    config: str | None
    columns: tuple[str, ...]
    licence: str


SEEMINGLY_TOXIC = HubSet("bench-llm/or-bench", "or-bench-80k", ("prompt", "category"), "CC-BY-4.0")
TOXIC = HubSet("bench-llms/or-bench-toxic-all", "or-bench-toxic-all", ("prompt", "category"), "CC-BY-4.0")
# OR-Bench's own test prompts, left out of the training rows.
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

# The public sets in each file written below; pairs.jsonl also has the shipped pairs.
SOURCES = {
    "pairs.jsonl": (TOXIC, SEEMINGLY_TOXIC),
    "instructions.jsonl": (INSTRUCTIONS,),
    "refusals.jsonl": (REFUSALS,),
}

Load = Callable[[HubSet], Iterable[dict[str, Any]]]


@dataclass(frozen=True)
class Files:
    """The three files of training rows, under the names of the settings."""

    pairs: Path
    instruction_rows: Path
    refusal_rows: Path


def full_data() -> Files:
    """The training files in the cache folder, fetched and written the first time.

    Raises UserError where the Hub does not answer or a set has other columns, with what to do instead.
    """
    folder = cache_folder() / "data" / VERSION
    files = Files(folder / "pairs.jsonl", folder / "instructions.jsonl", folder / "refusals.jsonl")
    if not all(path.exists() for path in asdict(files).values()):
        print("fetching the public sets of --data full once (about 70 MB) ...", flush=True)
        write_rows(files, from_hub, or_bench_pairs(from_hub), read_pairs(SHIPPED / "pairs.jsonl"))
    return files


def write_rows(files: Files, load: Load, pairs: list[Pair], others: Sequence[Pair] = ()) -> None:
    """Write the files: refusals and instructions of the sets, of the former none whose prompt is in ``pairs``; these,
    behind ``others``."""
    _write(files.refusal_rows, refusals(load, {_plain(pair.toxic) for pair in pairs}))
    _write(files.instruction_rows, instructions(load))
    _write(files.pairs, [*others, *pairs])


def sources(path: str | Path) -> tuple[HubSet, ...]:
    """The public sets in a file of training rows; none for a file that ``full_data`` did not write."""
    *_, data, version, name = ("", "", "", *Path(path).parts)
    return SOURCES.get(name, ()) if (data, version) == ("data", VERSION) else ()


def from_hub(wanted: HubSet) -> Iterable[dict[str, Any]]:
    """The rows of a set. Raises UserError where it cannot be fetched or lacks a column."""
    instead = (
        "Run once with a connection, use --data shipped, or give files of your own with --pairs, --instruction-rows "
        "and --refusal-rows."
    )
    rows: Iterable[dict[str, Any]] = public_rows(wanted.name, wanted.name, wanted.columns, instead, wanted.config)
    return rows


def or_bench_pairs(load: Load, per_category: int = PAIRS_PER_CATEGORY) -> list[Pair]:
    """Pairs of OR-Bench: at most ``per_category`` toxic prompts of each category, each with the harmless prompt of that
    category most like it in words. Every prompt is used once."""
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
    """Prompts of one line by category, each once, except those in ``without``."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        prompt, category = str(row["prompt"]).strip(), str(row["category"]).strip()
        key = _plain(prompt)
        if key and key not in without and "\n" not in prompt:
            found.setdefault(category, {}).setdefault(key, prompt)
    return {category: list(prompts.values()) for category, prompts in found.items()}


def _most_alike(prompts: list[str], others: list[str]) -> list[str]:
    """For each prompt the one of ``others`` with the largest TF-IDF cosine that no earlier prompt has taken."""
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
    """Instructions (with their input below them) and answers, each once."""
    rows: dict[str, Conversation] = {}
    for row in load(INSTRUCTIONS):
        instruction, given = str(row["instruction"]).strip(), str(row["input"] or "").strip()
        prompt = f"{instruction}\n\n{given}" if given else instruction
        response = str(row["output"]).strip()
        if prompt and response:
            rows.setdefault(_plain(prompt), Conversation(prompt, response))
    return list(rows.values())


def refusals(load: Load, used: set[str]) -> list[Conversation]:
    """Toxic prompts with refusals, each once, except those that stage 1 has ``used``."""
    rows: dict[str, Conversation] = {}
    for row in load(REFUSALS):
        prompt, response = str(row["prompt"]).strip(), str(row["chosen"]).strip()
        if prompt and response and _plain(prompt) not in used:
            rows.setdefault(_plain(prompt), Conversation(prompt, response))
    return list(rows.values())


def _plain(text: str) -> str:
    """The words of a prompt, without case, spacing and punctuation, to compare prompts by."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _write(path: Path, rows: list[Pair] | list[Conversation]) -> None:
    """JSON Lines of the fields that are not empty."""
    write_jsonl(map(fields_of, rows), path)
