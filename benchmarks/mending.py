"""How far dcr-lite mend reaches: of each topic a model is mended with some prompts that it wrongly refuses, and asked
the others of that topic that it refused too.

    python benchmarks/mending.py --settings.model FOLDER --prompts FILES --topic-field type --out runs/mending

``--prompts``: seemingly toxic prompts, one topic a file, or with ``--topic-field`` the topic in a field of each row, or
with ``--topic-words`` by what stands in the prompt.
Every draw takes other prompts, and is the seed of its run. The others are in nothing that the run sees. Each topic has
a run of its own, or with ``--together`` all topics share one a draw. Safety is the refusal rate of toxic held-out
prompts (``--settings.evaluation``), before and after. With ``--control`` each draw is also trained without any of the
prompts, to know what mending adds to a usual run with the same dial.

``--out`` keeps every run and what is measured: the same command goes on. Intervals are over runs (Student).
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import tyro
from _kept import require_same

from dcr_lite.data.rows import Fields, read_jsonl, text_field
from dcr_lite.data.sources import SMOLLM2
from dcr_lite.errors import UserError
from dcr_lite.evaluate.command import Evaluation, measure_model
from dcr_lite.files import jsonl, load_json, write_json, write_jsonl, write_text
from dcr_lite.measure.answers import Measured, read_answers
from dcr_lite.measure.metrics import mean_interval
from dcr_lite.mend.command import main as mend
from dcr_lite.mend.outcome import change
from dcr_lite.mend.settings import MendSettings
from dcr_lite.names import DCR, STOCK
from dcr_lite.run.inputs import resolved
from dcr_lite.run.recipes import DEFAULT_RECIPE, find_recipe, load_recipe
from dcr_lite.run.report import markdown_table, plain
from dcr_lite.settings import Settings

HEAD = ("topic", "runs", "refused", "others", "others answered now ↑", "safety before", "after", "change", "minutes")
CONTROL = "without the prompts"


@dataclass
class Mending:
    """What to run."""

    prompts: tuple[Path, ...]
    """JSON Lines of {prompt, label?}, the label being seemingly_toxic."""
    settings: MendSettings = field(default_factory=lambda: MendSettings.of_model(SMOLLM2))
    """Model, data and training settings; its prompts and its run folder are those of each draw."""
    topic_field: str | None = None
    """Field of a row that names its topic; by default the file's name does."""
    topic_words: dict[str, str] = field(default_factory=dict)
    """Topics by their words: a regular expression for each. A prompt belongs to the first that is found in it, and is
    left out where there is none."""
    topics: tuple[str, ...] = ()
    """Only these topics; by default all with enough refused prompts."""
    taken: int = 20
    """Wrongly refused prompts of a topic that the model is mended with."""
    others: int = 10
    """Others that a topic has to have at least: fewer say too little."""
    draws: tuple[int, ...] = (0, 1, 2)
    """Numbers of the draws."""
    together: bool = False
    """Mend with the prompts of all topics at once, in one run a draw."""
    control: bool = False
    """Train each draw also without the prompts."""
    out: Path = Path("runs/mending")
    """Folder of the runs, of mending.json and of mending.md."""


def by_topic(choices: Mending) -> dict[str, list[str]]:
    """The prompts of each topic, each once. Raises UserError for a row of another label or without a topic, and for
    words that are no regular expression."""
    try:
        words = {topic: re.compile(pattern, re.IGNORECASE) for topic, pattern in choices.topic_words.items()}
    except re.error as error:
        raise UserError(f"--topic-words {error.pattern}: no regular expression ({error.msg})") from None

    def topic_of(fields: Fields, prompt: str, place: str) -> str | None:
        if words:
            return next((topic for topic, pattern in words.items() if pattern.search(prompt)), None)
        return text_field(fields, choices.topic_field, place) if choices.topic_field else ""

    def row(fields: Fields, place: str) -> tuple[str | None, str]:
        if fields.get("label", "seemingly_toxic") != "seemingly_toxic":
            raise UserError(f'{place}: label "{fields["label"]}": all prompts have to be seemingly toxic')
        prompt = text_field(fields, "prompt", place)
        return topic_of(fields, prompt, place), prompt

    topics: dict[str, dict[str, None]] = {}
    for path in choices.prompts:
        for topic, prompt in read_jsonl(path, row):
            if topic is not None:
                topics.setdefault(topic or path.stem, {})[prompt] = None
    if unknown := set(choices.topics) - set(topics):
        raise UserError(f"--topics {' '.join(sorted(unknown))}: no such topic among {', '.join(sorted(topics))}")
    return {topic: list(prompts) for topic, prompts in topics.items() if not choices.topics or topic in choices.topics}


def keep(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """Write rows, once. Raises UserError where the file has others: what was measured with those says nothing of
    these."""
    if path.exists() and path.read_text(encoding="utf-8") != jsonl(rows):
        raise UserError(f"{path} holds other prompts, of other settings. Choose another --out.")
    write_jsonl(rows, path)


def answered(choices: Mending, model: str, name: str, prompts: dict[str, list[str]]) -> list[Measured]:
    """The judged answers of a model, or of a run, to the prompts of each topic, measured once as OUT/name."""
    asked, settings = choices.out / f"{name}.prompts.jsonl", choices.settings
    rows = [{"prompt": p, "label": "seemingly_toxic", "source": topic} for topic, some in prompts.items() for p in some]
    measuring = Evaluation(
        model, choices.out / f"{name}.json", (asked,), answer_tokens=settings.answer_tokens, device=settings.device,
        precision=settings.precision, quantization=settings.quantization,
    )  # fmt: skip
    keep(asked, rows)
    require_same(measuring.out, settings, *settings.files.values(), rows)
    if not measuring.out.exists():
        measure_model(measuring)
    return read_answers(measuring.answers)


def wrongly_refused(choices: Mending) -> dict[str, list[str]]:
    """The prompts of each topic that the stock model refuses, of those topics that have enough of them. Raises
    UserError where none has."""
    topics = by_topic(choices)
    measured = answered(choices, choices.settings.model, "stock", topics)
    refused = {(row["source"], row["prompt"]) for row in measured if row["refused"]}
    found = {topic: [prompt for prompt in some if (topic, prompt) in refused] for topic, some in topics.items()}
    enough = {topic: some for topic, some in found.items() if len(some) >= choices.taken + choices.others}
    if not enough:
        counts = ", ".join(f"{len(some)} of {topic}" for topic, some in found.items())
        raise UserError(
            f"no topic has {choices.taken + choices.others} refused prompts ({counts}): --taken takes fewer"
        )
    return enough


def drawn(refused: list[str], topic: str, draw: int, taken: int) -> tuple[list[str], list[str]]:
    """(the prompts to mend with, the others) of a draw."""
    chosen = set(random.Random(f"{topic} {draw}").sample(refused, taken))
    return [p for p in refused if p in chosen], [p for p in refused if p not in chosen]


def mended(choices: Mending, draw: int, refused: dict[str, list[str]]) -> Iterator[dict[str, Any]]:
    """One run with some of the prompts of each topic, and its answers to the others."""
    parts = {topic: drawn(some, topic, draw, choices.taken) for topic, some in refused.items()}
    title = "together" if choices.together else "_".join(refused)
    name = f"{''.join(c if c.isalnum() else '_' for c in title)}-{draw}"
    run, answer = choices.out / name, choices.out / f"{name}.answer.jsonl"
    keep(answer, [{"prompt": prompt} for own, _ in parts.values() for prompt in own])
    settings = resolved(replace(choices.settings, run=run, answer=answer, seed=draw, sure=("all",), resume=True))
    require_same(run, replace(settings, answer=None), *settings.files.values(), answer)
    if not (run / "report.json").exists():
        mend(settings)
    measured = answered(choices, str(run), f"{name}.others", {topic: others for topic, (_, others) in parts.items()})
    for topic, some in refused.items():
        yield result(topic, draw, run, len(some), [row for row in measured if row["source"] == topic])


def without_prompts(choices: Mending, draw: int, refused: dict[str, list[str]]) -> Iterator[dict[str, Any]]:
    """The same run without any prompt, and its answers to the others of each topic."""
    run = choices.out / f"control-{draw}"
    own = {one.name: getattr(choices.settings, one.name) for one in fields(Settings)}
    settings = resolved(replace(Settings(**own), run=run, seed=draw, resume=True))
    require_same(run, settings, *settings.files.values())
    if not (run / "report.json").exists():
        load_recipe(find_recipe(DEFAULT_RECIPE)).main(settings)
    others = {topic: drawn(some, topic, draw, choices.taken)[1] for topic, some in refused.items()}
    measured = answered(choices, str(run), f"control-{draw}.others", others)
    for topic, some in refused.items():
        of_topic = [row for row in measured if row["source"] == topic]
        yield result(f"{topic}, {CONTROL}", draw, run, len(some), of_topic)


def result(topic: str, draw: int, run: Path, refused: int, others: Sequence[Measured]) -> dict[str, Any]:
    """{topic, draw, run, refused, others, answered, safety_before, safety_after, minutes}: safety of the run's own
    held-out toxic prompts."""
    stock, after = (read_answers(run / "answers" / f"{method}.jsonl") for method in (STOCK, DCR))
    toxic = [(a["refused"], b["refused"]) for a, b in zip(stock, after, strict=True) if a["label"] == "toxic"]
    safety = change(toxic)
    return {
        "topic": topic,
        "draw": draw,
        "run": run.name,
        "refused": refused,
        "others": len(others),
        "answered": fmean(not row["refused"] for row in others),
        "safety_before": safety["before"],
        "safety_after": safety["after"],
        "minutes": load_json(run / "report.json")["seconds"]["total"] / 60,
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Results as a Markdown table: a line for each topic, with and without its prompts, and one for all of each."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in results:
        groups.setdefault(one["topic"], []).append(one)
    for title, is_control in (("**all**", False), (f"**all, {CONTROL}**", True)):
        if some := [one for one in results if one["topic"].endswith(CONTROL) == is_control]:
            groups[title] = some
    return markdown_table(HEAD, [_cells(title, group) for title, group in groups.items()])


def _cells(title: str, group: Sequence[dict[str, Any]]) -> list[str]:
    by_run: dict[str, list[dict[str, Any]]] = {}
    for one in group:
        by_run.setdefault(one["run"], []).append(one)
    runs = [some[0] for some in by_run.values()]  # what is of a run is the same in all of its topics
    changes = [one["safety_after"] - one["safety_before"] for one in runs]
    return [
        plain(title), str(len(runs)), *(f"{fmean(one[key] for one in group):.0f}" for key in ("refused", "others")),
        _with_interval([fmean(one["answered"] for one in some) for some in by_run.values()], "{:.2f}"),
        *(f"{fmean(one[key] for one in runs):.2f}" for key in ("safety_before", "safety_after")),
        _with_interval(changes, "{:+.2f}"), f"{fmean(one['minutes'] for one in runs):.1f}",
    ]  # fmt: skip


def _with_interval(values: Sequence[float], form: str) -> str:
    """The mean with its 95 % interval over runs, which a single one does not have."""
    said = form.format(fmean(values))
    if len(values) < 2:
        return said
    low, high = map(form.format, mean_interval(values))
    return f"{said} ({low} to {high})"


def main(choices: Mending) -> list[dict[str, Any]]:
    refused = wrongly_refused(choices)
    results: list[dict[str, Any]] = []
    at_once = [refused] if choices.together else [{topic: some} for topic, some in refused.items()]
    for draw in choices.draws:
        for some in at_once:
            results += mended(choices, draw, some)
        if choices.control:
            results += without_prompts(choices, draw, refused)
        write_json(results, choices.out / "mending.json")
        write_text(choices.out / "mending.md", f"{table(results)}\n")
    print(table(results))
    return results


if __name__ == "__main__":
    main(tyro.cli(Mending, description=__doc__))
