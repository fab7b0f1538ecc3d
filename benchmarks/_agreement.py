"""Do the answers of a model's exports agree with transformers'? What the benchmarks of exports share: the models of a
run, their reference answers, those of each export beside them, kept as they come, and the table."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from statistics import fmean
from typing import Any

from dcr_lite.data.rows import Prompt, read_prompts
from dcr_lite.data.sources import locate
from dcr_lite.data.splits import sample
from dcr_lite.errors import UserError
from dcr_lite.export.command import generation_settings, model_config
from dcr_lite.files import exists, load_json, load_jsonl, write_json, write_jsonl, write_text
from dcr_lite.measure.judge import is_refusal
from dcr_lite.measure.metrics import bootstrap_mean_interval, wilson_interval, with_interval
from dcr_lite.model.chat import decode_answers, encode_prompts, set_format
from dcr_lite.model.generation import answer
from dcr_lite.model.loading import load_tokenizer
from dcr_lite.names import DCR, LABEL_TITLES, LABELS, MODEL_TITLES, STOCK, ModelName, models_of
from dcr_lite.run.opening import adapter_of, model_settings_of, open_model
from dcr_lite.run.report import markdown_table
from dcr_lite.run.run_folder import stored_settings
from dcr_lite.run.terminal import progress_bar
from dcr_lite.settings import HELD_OUT_FILES, ChatFormat, Settings

REFERENCE = "transformers"
CHUNK = 16  # prompts between two savings

Row = dict[str, Any]  # {prompt, label, source, ids: of the answer, response: its text}
Give = Callable[[slice], list[list[int]]]  # the answers to some of the prompts, as token ids


@dataclass(kw_only=True)
class Choices:
    """What every such benchmark chooses."""

    model: str
    """A run folder, a model folder, or a name on the Hub."""
    methods: tuple[ModelName, ...] = ()
    """Which models of a run folder; by default all."""
    prompts: tuple[Path, ...] = HELD_OUT_FILES
    """JSON Lines of {prompt, label, source?} or {toxic, seemingly_toxic}."""
    rows: int | None = None
    """At most so many prompts of each set and label, drawn with a fixed seed."""
    answer_tokens: int = 40
    """Tokens of each answer."""
    out: Path
    """Folder of the answers and of the table."""


@dataclass(frozen=True)
class Subject:
    """One model. name: of the run or the model. base: its folder. adapter: None for the model as it is."""

    name: str
    method: ModelName | None
    base: Path
    adapter: Path | None
    chat_format: ChatFormat

    @property
    def title(self) -> str:
        return MODEL_TITLES[self.method] if self.method else Path(self.name).name

    def tokenizer(self) -> Any:
        """With the chat template that the model was trained with."""
        tokenizer = load_tokenizer(self.adapter or self.base)
        if self.adapter is None:
            set_format(tokenizer, self.chat_format)
        return tokenizer


def subjects(choices: Choices) -> list[Subject]:
    """The models of a run in the order of its report, or the one model of another folder."""
    run = Path(choices.model)
    if not exists(run / "settings.json") or exists(run / "config.json"):
        if choices.methods:
            raise UserError(f"--methods chooses among the models of a run, and {run} is none. Leave it out.")
        return [Subject(choices.model, None, Path(locate(choices.model)[0]), None, "own")]
    settings = model_settings_of(run)
    base = Path(locate(settings.model)[0])
    methods = choices.methods or models_of(stored_settings(run, Settings, run=run).compare_with)
    adapters = {method: None if method == STOCK else adapter_of(run, method) for method in methods}
    return [Subject(str(run), method, base, adapters[method], settings.chat_format) for method in methods]


# --- answers ----------------------------------------------------------------------------------------------------------


class Answers(ABC):
    """The greedy answers of one model, from transformers and from each of its exports."""

    def __init__(self, choices: Any, subject: Subject, prompts: list[Prompt]):
        self.choices, self.subject, self.prompts = choices, subject, prompts
        self.tokenizer = subject.tokenizer()
        self.config = model_config(subject.base)
        window = self.config.max_position_embeddings - choices.answer_tokens
        self.asked = encode_prompts(self.tokenizer, [prompt.prompt for prompt in prompts], window)
        self.ends = set(generation_settings(subject.base, self.tokenizer)["eos_token_id"])

    @property
    @abstractmethod
    def forms(self) -> Sequence[str]:
        """The exports to measure, by the names that files and table have."""

    @abstractmethod
    def exported(self, form: str) -> AbstractContextManager[Give]:
        """What answers the prompts by an export, within the block, behind which the export is gone."""

    def file(self, form: str, ending: str) -> Path:
        return self.choices.out / f"{self.subject.method or 'model'}-{form}.{ending}"

    def of(self, form: str) -> list[Row]:
        """Of REFERENCE or an export, in the order of the prompts. What is kept is read, the rest given."""
        path = self.file(form, "jsonl")
        rows: list[Row] = load_jsonl(path) if path.exists() else []
        if [row["prompt"] for row in rows] != [prompt.prompt for prompt in self.prompts[: len(rows)]]:
            raise UserError(f"{path} holds answers to other prompts. Choose another --out, or delete it.")
        if len(rows) < len(self.prompts):
            answering = self._reference() if form == REFERENCE else self.exported(form)
            with answering as give, progress_bar(path.stem, len(self.prompts)) as shown:
                shown.advance(len(rows))
                while len(rows) < len(self.prompts):
                    part = slice(len(rows), len(rows) + CHUNK)
                    ids = give(part)
                    texts = decode_answers(self.tokenizer, self.asked[part], ids)
                    for prompt, own, text in zip(self.prompts[part], ids, texts, strict=True):
                        rows.append({**vars(prompt), "ids": own, "response": text})
                    write_jsonl(rows, path)
                    shown.advance(len(ids))
        return rows

    @contextmanager
    def _reference(self) -> Iterator[Give]:
        # float32: what an export loses should not be mixed with the rounding of another reference
        method = self.subject.method or DCR
        model = open_model(self.choices.model, method, precision="float32", quantization="none").model
        yield lambda part: [list(one.ids) for one in answer(model, self.asked[part], self.choices.answer_tokens)]

    def keep_size(self, form: str, size: int) -> None:
        """Bytes of an export, for the table."""
        write_json({"bytes": size}, self.file(form, "json"))

    def to_the_end(self, tokens: list[int], stops: Sequence[int] = ()) -> list[int]:
        """An answer without the token that ends it, the model's own or one of ``stops``, and what follows."""
        return list(takewhile(lambda token: token not in self.ends and token not in stops, tokens))

    def ids_of(self, text: str) -> list[int]:
        """The tokens of an answer that comes as text."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


# --- the table --------------------------------------------------------------------------------------------------------


def compared(rows: list[Row], reference: list[Row]) -> dict[str, Any]:
    """{tokens, equal, refused: {label}, changed}: each {n, share, ci95}; how the answers of an export differ from those
    of the reference to the same prompts."""
    pairs = list(zip(rows, reference, strict=True))
    shares = [_same_tokens(row["ids"], theirs["ids"]) for row, theirs in pairs]
    refused = [is_refusal(row["response"]) for row in rows]
    by_label = {
        label: [verdict for verdict, row in zip(refused, rows, strict=True) if row["label"] == label]
        for label in LABELS
    }
    interval = list(bootstrap_mean_interval(shares)) if len(set(shares)) > 1 else [shares[0]] * 2
    return {
        "tokens": {"n": len(shares), "share": fmean(shares), "ci95": interval},
        "equal": _share([row["ids"] == theirs["ids"] for row, theirs in pairs]),
        "refused": {label: _share(verdicts) for label, verdicts in by_label.items() if verdicts},
        "changed": _share([v != is_refusal(r["response"]) for v, r in zip(refused, reference, strict=True)]),
    }


def _same_tokens(ids: list[int], reference: list[int]) -> float:
    """The share of the reference's tokens, with its end, before the first that differs."""
    ours, theirs = [*ids, None], [*reference, None]
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))
    return same / len(theirs)


def _share(flags: list[bool]) -> dict[str, Any]:
    return {"n": len(flags), "share": fmean(flags), "ci95": list(wilson_interval(sum(flags), len(flags)))}


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    labels = [label for label in LABELS if any(label in one["refused"] for one in results)]
    head = [
        "model", "weights", "MB", "tokens as transformers ↑", "answers equal ↑",
        *(f"{LABEL_TITLES[label]} refused" for label in labels), "verdicts changed ↓",
    ]  # fmt: skip
    rows = []
    for one in results:
        reference = one["weights"] == REFERENCE
        size = "" if one["bytes"] is None else f"{one['bytes'] / 1e6:,.0f}"
        agreement = ["", ""] if reference else [_shown(one["tokens"]), _shown(one["equal"])]
        refused = [_shown(one["refused"][label]) if label in one["refused"] else "" for label in labels]
        changed = "" if reference else _shown(one["changed"])
        rows.append([one["model"], one["weights"], size, *agreement, *refused, changed])
    return markdown_table(head, rows)


def _shown(found: dict[str, Any]) -> str:
    return with_interval(found["share"], found["ci95"])


# --- the measurement --------------------------------------------------------------------------------------------------


def measure(choices: Choices, name: str, asked: Sequence[str], answers_of: type[Answers]) -> str:
    """Measure what is not kept yet; returns the table, which stands in --out too, as NAME.json and NAME.md. asked: the
    choices that all answers of a folder share. Raises UserError where answers there were made with others of these."""
    prompts = sample([prompt for path in choices.prompts for prompt in read_prompts(path)], choices.rows)
    state, given = choices.out / f"{name}.json", {one: getattr(choices, one) for one in asked}
    kept = load_json(state) if state.exists() else given
    if given != (of := {one: kept.get(one) for one in asked}):
        raise UserError(f"{choices.out} is of {', '.join(map(str, of.values()))}. Choose another --out.")
    write_json(given, state)
    results = []
    for subject in subjects(choices):
        answers = answers_of(choices, subject, prompts)
        reference = answers.of(REFERENCE)
        for form in (REFERENCE, *answers.forms):
            found = compared(answers.of(form), reference)
            size = None if form == REFERENCE else load_json(answers.file(form, "json"))["bytes"]
            results.append({"model": subject.title, "weights": form, **found, "bytes": size})
    write_json(given | {"results": results}, state)
    write_text(choices.out / f"{name}.md", table(results) + "\n")
    return table(results)
