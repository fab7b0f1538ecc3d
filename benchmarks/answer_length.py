"""How long an answer has to be before its verdict has settled, and what more tokens cost.

    python benchmarks/answer_length.py --models runs/smollm2_135m HuggingFaceTB/SmolLM2-135M-Instruct --rows 100
    python benchmarks/answer_length.py --compared runs/compare --recipe recipes/smollm2_135m.py --rows 10

Every prompt is answered once with 256 tokens, without an early stop, and the answer is cut: greedy decoding would have
given the same with fewer. Of each length the table has the refusal rates by label, the verdicts that differ from those
at 256 tokens with the 95 % Wilson interval of their share, the answers that had ended, and the seconds a prompt takes
with the early stop of an evaluation. A length has settled where at most 1 % of verdicts still change, at it and at
every longer one. Answers are kept in --out and not given again. Private: they contain answers to toxic prompts.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from dcr_lite.compare.command import seed_run
from dcr_lite.compare.methods import METHODS, Method
from dcr_lite.compare.seed_run import SeedRun
from dcr_lite.data.rows import Prompt, read_prompts
from dcr_lite.data.splits import sample
from dcr_lite.errors import UserError
from dcr_lite.files import exists, load_json, load_jsonl, write_json, write_jsonl
from dcr_lite.measure.answers import measure
from dcr_lite.measure.judge import is_refusal
from dcr_lite.measure.metrics import wilson_interval
from dcr_lite.model.chat import decode_answers, encode_prompts
from dcr_lite.model.generation import answer
from dcr_lite.model.loading import Model
from dcr_lite.model.memory import PROMPT_TOKENS
from dcr_lite.names import DCR, LABEL_TITLES, LABELS, ModelName
from dcr_lite.run.opening import open_model
from dcr_lite.run.recipes import load_recipe
from dcr_lite.run.report import markdown_table
from dcr_lite.run.terminal import progress_bar
from dcr_lite.settings import HELD_OUT_FILES, Device, Precision, Quantization, Settings

LENGTHS = (20, 40, 100, 150, 256)  # tokens
SETTLED = 0.01  # of the verdicts may still change
CHUNK = 64  # prompts between two savings

Row = dict[str, Any]  # {prompt, label, source, tokens: of the whole answer, texts: the answer at each length}


@dataclass
class Choices:
    """What to measure."""

    models: tuple[str, ...] = ()
    """Run folders, adapters, model folders, or names on the Hub."""
    methods: tuple[ModelName, ...] = (DCR,)
    """Which models of a run folder."""
    compared: Path | None = None
    """The folder of a dcr-lite compare: all of its methods at their usual strengths, of --seed. What is not trained yet
    is trained."""
    recipe: Path = Path("recipes/smollm2_135m.py")
    """The recipe of that comparison."""
    seed: int = 0
    """The seed of it."""
    prompts: tuple[Path, ...] = HELD_OUT_FILES
    """JSON Lines of {prompt, label, source?} or {toxic, seemingly_toxic}."""
    rows: int | None = None
    """At most so many prompts of each set and label, drawn with a fixed seed."""
    timed: int = 32
    """Prompts on which the time at each length is taken; 0: none."""
    out: Path = Path("runs/answer_length")
    """Folder of the answers and of answer_length.json."""
    device: Device = "auto"
    """As those of dcr-lite evaluate."""
    precision: Precision = "auto"
    quantization: Quantization = "auto"


class Subject(NamedTuple):
    """A model that is measured, loaded where it has something left to do."""

    title: str
    opened: Callable[[], AbstractContextManager[Model]]


def subjects(choices: Choices) -> Iterator[Subject]:
    """The models in their order."""
    for name in choices.models:
        for method in choices.methods if _is_run(name) else (DCR,):
            title = re.sub(r"[^\w.-]+", "_", name.strip("/")) + (f"_{method}" if _is_run(name) else "")
            yield Subject(title, partial(_model, choices, name, method))
    if choices.compared:
        run = seed_run(load_recipe(choices.recipe).SETTINGS, choices.compared, choices.seed)
        for name, method in METHODS.items():
            yield Subject(f"{choices.compared.name}_{name}", partial(_of_method, run, method))
        run.run.leave()


@contextmanager
def _model(choices: Choices, name: str, method: ModelName) -> Iterator[Model]:
    device, precision, quantization = choices.device, choices.precision, choices.quantization
    yield open_model(name, method, device=device, precision=precision, quantization=quantization).model


@contextmanager
def _of_method(run: SeedRun, method: Method) -> Iterator[Model]:
    with method.model(run, method.strengths(run.settings)[0]):
        yield run.model


def measured(choices: Choices, subject: Subject, prompts: list[Prompt]) -> tuple[list[Row], dict[str, float]]:
    """The rows of all prompts, in their order, and the seconds of one at each length; what is kept of them is read."""
    path, times = (choices.out / f"{subject.title}.{end}" for end in ("jsonl", "seconds.json"))
    rows: list[Row] = load_jsonl(path) if path.exists() else []
    if [row["prompt"] for row in rows] != [prompt.prompt for prompt in prompts[: len(rows)]]:
        raise UserError(f"{path} holds answers to other prompts. Choose another --out, or delete it.")
    if len(rows) < len(prompts) or (choices.timed and not times.exists()):
        with subject.opened() as model, _roomy(model):
            _answer_all(model, prompts, rows, path, subject.title)
            if choices.timed and not times.exists():
                write_json(_seconds(model, prompts[:: max(1, len(prompts) // choices.timed)][: choices.timed]), times)
    return rows, load_json(times) if choices.timed else {}


@contextmanager
def _roomy(model: Model) -> Iterator[None]:
    """Within the block as many prompts are answered at once as fit with the longest answers."""
    usual, planned = model.prompts_at_once, PROMPT_TOKENS + Settings.answer_tokens
    model.prompts_at_once = max(1, usual * planned // (PROMPT_TOKENS + LENGTHS[-1]))
    try:
        yield
    finally:
        model.prompts_at_once = usual


def _answer_all(model: Model, prompts: list[Prompt], rows: list[Row], path: Path, title: str) -> None:
    """Add the answers that are not among ``rows`` yet, a few at a time."""
    with progress_bar(title, len(prompts)) as shown:
        shown.advance(len(rows))
        while len(rows) < len(prompts):
            chunk = prompts[len(rows) :][:CHUNK]
            rows += answered(model, chunk)
            write_jsonl(rows, path)
            shown.advance(len(chunk))


def _seconds(model: Model, prompts: list[Prompt]) -> dict[str, float]:
    """Of one prompt at each length, with the early stop of an evaluation."""
    measure(model, prompts[:1], LENGTHS[0])  # what the first pass alone has to prepare
    found = {}
    for length in LENGTHS:
        start = time.perf_counter()
        measure(model, prompts, length)
        found[str(length)] = (time.perf_counter() - start) / len(prompts)
    return found


def _is_run(name: str) -> bool:
    """Whether a name is that of a run folder, which holds several models."""
    return exists(Path(name) / "settings.json") and not exists(Path(name) / "config.json")


def answered(model: Model, prompts: list[Prompt]) -> list[Row]:
    """The answers to some prompts, whole and cut to each length."""
    asked = encode_prompts(model.tokenizer, [prompt.prompt for prompt in prompts], model.window - LENGTHS[-1])
    said = answer(model, asked, LENGTHS[-1])
    cut = {
        str(length): decode_answers(model.tokenizer, asked, [list(one.ids[:length]) for one in said])
        for length in LENGTHS
    }
    return [
        {**vars(prompt), "tokens": len(one.ids), "texts": {length: texts[i] for length, texts in cut.items()}}
        for i, (prompt, one) in enumerate(zip(prompts, said, strict=True))
    ]


def summary(rows: list[Row]) -> dict[str, Any]:
    """{lengths: {length: {refused, changed, ended}}, settled}: verdicts at each length against those at the longest.

    refused: {label: {n, rate, ci95}}; changed: {n, share, ci95}; ended: the share of answers that the model had ended
    before they had so many tokens; settled: the least length with no more than SETTLED of changed verdicts there and at
    every longer one.
    """
    verdicts = {length: [is_refusal(row["texts"][str(length)]) for row in rows] for length in LENGTHS}
    lengths: dict[int, dict[str, Any]] = {}
    for length, refused in verdicts.items():
        by_label = {
            label: [verdict for verdict, row in zip(refused, rows, strict=True) if row["label"] == label]
            for label in LABELS
        }
        changed = sum(a != b for a, b in zip(refused, verdicts[LENGTHS[-1]], strict=True))
        lengths[length] = {
            "refused": {label: _rate(own) for label, own in by_label.items() if own},
            "changed": {
                "n": changed, "share": changed / len(rows), "ci95": list(wilson_interval(changed, len(rows))),
            },
            "ended": sum(row["tokens"] < length for row in rows) / len(rows),
        }  # fmt: skip
    settled = LENGTHS[-1]
    for length in reversed(LENGTHS):
        if lengths[length]["changed"]["share"] > SETTLED:
            break
        settled = length
    return {"n": len(rows), "lengths": lengths, "settled": settled}


def _rate(refused: list[bool]) -> dict[str, Any]:
    n = len(refused)
    return {"n": n, "rate": sum(refused) / n, "ci95": list(wilson_interval(sum(refused), n))}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown, with a line for each model and length, and below it where verdicts have settled."""
    head = ["model", "tokens", *(f"{LABEL_TITLES[label]} refused" for label in LABELS)]
    head += [f"verdicts other than at {LENGTHS[-1]}", "ended", "seconds a prompt"]
    lines, settled = [], []
    for title, result in results.items():
        for length, found in result["lengths"].items():
            refused = [
                _interval(rate["rate"], rate["ci95"]) if (rate := found["refused"].get(label)) else "-"
                for label in LABELS
            ]
            changed = f"{found['changed']['n']} ({_interval(found['changed']['share'], found['changed']['ci95'])})"
            time_taken = result["seconds"].get(str(length))
            cost = "-" if time_taken is None else f"{time_taken:.2f}"
            lines.append([title, str(length), *refused, changed, f"{found['ended']:.2f}", cost])
        settled.append(f"{title}: settled at {result['settled']} tokens ({result['n']} answers)")
    return "\n".join([markdown_table(head, lines), "", *settled])


def _interval(share: float, ci95: list[float]) -> str:
    return f"{share:.3f}, {ci95[0]:.3f}-{ci95[1]:.3f}"


def main(choices: Choices) -> dict[str, dict[str, Any]]:
    if not choices.models and not choices.compared:
        raise UserError("name models with --models, or a comparison with --compared")
    prompts = sample([prompt for path in choices.prompts for prompt in read_prompts(path)], choices.rows)
    choices.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    together: list[Row] = []
    for subject in subjects(choices):
        rows, seconds = measured(choices, subject, prompts)
        results[subject.title] = {**summary(rows), "seconds": seconds}
        together += rows
    if len(results) > 1:
        results["all"] = {**summary(together), "seconds": {}}
    write_json(results, choices.out / "answer_length.json")
    print(table(results))
    return results


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
