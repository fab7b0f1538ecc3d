"""One model measured whole: refusal rates by set, discernment with intervals, general ability. What is done stays done:
answers lie in a file beside the result, and the same command goes on where it was stopped."""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcr_lite.data.benchmarks import load_benchmark
from dcr_lite.data.rows import Prompt, read_choices, read_conversations, read_prompts
from dcr_lite.data.splits import sample
from dcr_lite.errors import UserError
from dcr_lite.files import write_json
from dcr_lite.measure.answers import Measured, discernment_intervals, measure, method_result
from dcr_lite.measure.general_ability import HELD_OUT_INSTRUCTIONS, answer_loss, multiple_choice
from dcr_lite.model.chat import encode_prompts
from dcr_lite.run.machine import hardware, peak_memory_bytes, versions
from dcr_lite.run.opening import Method, Opened, open_model
from dcr_lite.run.terminal import console, stage
from dcr_lite.settings import Device, Precision, Quantization

CHUNK = 256  # prompts between two savings: two full batches, so that saving costs no speed


@dataclass(frozen=True)
class Asked:
    """What to measure, and how. rows: at most so many prompts of each set and label, drawn with a fixed seed."""

    model: str
    out: Path
    prompts: tuple[Path, ...]
    benchmarks: tuple[str, ...] = ()
    method: Method = "dcr"
    rows: int | None = None
    instructions: Path = HELD_OUT_INSTRUCTIONS
    choices: Path | None = None
    answer_tokens: int = 40
    device: Device = "auto"
    precision: Precision = "auto"
    quantization: Quantization = "auto"

    @property
    def answers(self) -> Path:
        """Where the answers lie: for your eyes, since answers to toxic prompts are among them."""
        return self.out.with_suffix(".answers.jsonl")

    @property
    def begun(self) -> Path:
        """What was begun, while it is not finished."""
        return self.out.with_suffix(".begun.json")


def _require_new(out: Path) -> None:
    """Raises UserError for a result that is there already, or a place where none can be written."""
    if out.is_dir():
        raise UserError(f"{out} is a folder. Give --out the name of a file, such as {out / 'result.json'}.")
    if out.exists():
        raise UserError(f"{out} holds a finished measurement. Move it away, or choose another --out.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}). Choose another --out.") from None


def _line(answer: tuple[int, Measured]) -> str:
    number, row = answer
    return json.dumps({"number": number, **row}, ensure_ascii=False) + "\n"


class _Begun:
    """What a stopped measurement has left: answers by the number of their prompt, and parts that are whole."""

    def __init__(self, asked: Asked, state: dict[str, Any]):
        """Raises UserError for a measurement that was begun otherwise."""
        self.asked = asked
        self.kept: dict[str, Any] = {"state": state, "seconds": 0.0, "parts": {}}
        if asked.begun.exists():
            self.kept = json.loads(asked.begun.read_text(encoding="utf-8"))
            changed = [k for k in state if self.kept["state"].get(k) != state[k]]
            if changed:
                raise UserError(
                    f"{asked.out} was begun otherwise (other {', '.join(changed)}). Restore that, choose another "
                    f"--out, or delete {asked.begun} to begin anew."
                )
        else:
            asked.answers.unlink(missing_ok=True)
            write_json(self.kept, asked.begun)
        self.started = time.monotonic()
        self.before = float(self.kept["seconds"])

    def answers(self) -> dict[int, Measured]:
        """Answers so far; half a line, which a killed process can leave, is dropped."""
        rows = {}
        # Not splitlines(): it also cuts at the line separators of Unicode, which answers may hold.
        text = self.asked.answers.read_text(encoding="utf-8") if self.asked.answers.exists() else ""
        for line in text.split("\n"):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            rows[row.pop("number")] = row
        self.write(rows)
        return rows

    def write(self, rows: dict[int, Measured]) -> None:
        """These answers and no others."""
        partial = self.asked.answers.with_suffix(".partial")
        partial.write_text("".join(map(_line, rows.items())), encoding="utf-8")
        partial.replace(self.asked.answers)

    def add(self, rows: dict[int, Measured]) -> None:
        """Keep some answers more."""
        with self.asked.answers.open("a", encoding="utf-8") as file:
            file.writelines(map(_line, rows.items()))
        self._save()

    def part(self, name: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self.kept["parts"].get(name)
        return found

    def finish(self, name: str, result: dict[str, Any]) -> None:
        self.kept["parts"][name] = result
        self._save()

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def _save(self) -> None:
        self.kept["seconds"] = self.seconds()
        write_json(self.kept, self.asked.begun)


def _state(asked: Asked, opened: Opened, prompts: list[Prompt]) -> dict[str, Any]:
    """What has to be the same when a measurement goes on."""
    texts = json.dumps([[p.prompt, p.label, p.source] for p in prompts]).encode()
    files = {"instructions": asked.instructions, "multiple choice": asked.choices}
    return {
        "model": asked.model,
        "method": asked.method,
        "adapter": opened.adapter_sha256,
        "prompts": hashlib.sha256(texts).hexdigest(),
        "answer tokens": asked.answer_tokens,
        "precision": str(opened.model.precision),
        "quantisation": opened.model.four_bit,
        **{name: hashlib.sha256(path.read_bytes()).hexdigest() if path else None for name, path in files.items()},
    }


def _answer_all(opened: Opened, prompts: list[Prompt], answer_tokens: int, begun: _Begun) -> list[Measured]:
    """Every prompt's judged answer in the order given; prompts of similar length together, saved as they come."""
    answers = begun.answers()
    todo = sorted((i for i in range(len(prompts)) if i not in answers), key=lambda i: len(prompts[i].prompt))
    with stage("Answers", len(prompts)) as shown:
        if answers:
            shown.advance(len(answers))
        for start in range(0, len(todo), CHUNK):
            chunk = todo[start : start + CHUNK]
            measured = measure(opened.model, [prompts[i] for i in chunk], answer_tokens, shown.advance)
            new = dict(zip(chunk, measured, strict=True))
            begun.add(new)
            answers |= new
    answers = {i: answers[i] for i in range(len(prompts))}
    begun.write(answers)
    return list(answers.values())


def measure_model(asked: Asked) -> dict[str, Any]:
    """Measure as asked; writes ``asked.out`` and returns what is in it:

    sets: [{name, label, n, refusal_rate, ci95}], 95 % Wilson intervals; overall: the same by label.
    discernment: {auroc, auroc_ci95, j, j_ci95}, 95 % bootstrap intervals over prompts.
    general: {answer_loss, answers, tokens, multiple_choice: {accuracy, ci95, n, chance} or None}.
    And what was measured with what: model, base, adapter_sha256, settings, seconds, memory, hardware, versions.

    Raises UserError naming file and line, a prompt that is too long, or a result that is already there.
    """
    sets = [read_prompts(path) for path in asked.prompts] + [load_benchmark(name) for name in asked.benchmarks]
    prompts = sample([prompt for rows in sets for prompt in rows], asked.rows)
    instructions = read_conversations(asked.instructions)
    choices = read_choices(asked.choices) if asked.choices else []
    _require_new(asked.out)
    opened = open_model(asked.model, asked.method, asked.device, asked.precision, asked.quantization)
    model = opened.model
    encode_prompts(model.tokenizer, [p.prompt for p in prompts], model.window - asked.answer_tokens)
    begun = _Begun(asked, _state(asked, opened, prompts))
    measured = _answer_all(opened, prompts, asked.answer_tokens, begun)

    general = begun.part("answer loss")
    if general is None:
        with stage("Answer loss", len(instructions)) as shown:
            general = answer_loss(model, instructions, shown.advance)
        begun.finish("answer loss", general)
    chosen = begun.part("multiple choice")
    if choices and chosen is None:
        with stage("Multiple choice", len(choices)) as shown:
            chosen = multiple_choice(model, choices, shown.advance)
        begun.finish("multiple choice", chosen)

    result = {
        "model": asked.model,
        "method": asked.method if opened.adapter else "base",
        "base": opened.base,
        "source": opened.source,
        "adapter_sha256": opened.adapter_sha256,
        **method_result(measured),
        "discernment": discernment_intervals(measured),
        "general": {**general, "multiple_choice": chosen},
        "settings": {
            "prompts": [str(path) for path in asked.prompts],
            "benchmarks": list(asked.benchmarks),
            "rows": asked.rows,
            "instructions": asked.instructions.name,
            "multiple_choice": asked.choices and asked.choices.name,
            "answer_tokens": asked.answer_tokens,
            "precision": str(model.precision).removeprefix("torch."),
            "four_bit": model.four_bit,
        },
        "seconds": begun.seconds(),
        "peak_memory_bytes": peak_memory_bytes(),
        "hardware": hardware(model.device),
        "versions": versions(),
    }
    write_json(result, asked.out)
    asked.begun.unlink()
    return result


def show(result: dict[str, Any], asked: Asked) -> None:
    """The result as a table, and where things lie."""
    from rich.table import Table

    table = Table(title="Refusal rates (95 % interval)", title_justify="left", title_style="bold")
    for column, side in (("set", "left"), ("label", "left"), ("n", "right"), ("refused", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for row in result["sets"]:
        low, high = row["ci95"]
        rate = f"{row['refusal_rate']:.3f} [dim]{low:.3f}-{high:.3f}[/dim]"
        table.add_row(row["name"], row["label"].replace("_", " "), str(row["n"]), rate)
    console.print(table)
    found = result["discernment"]
    for name, key in (("J", "j"), ("AUROC", "auroc")):
        if found[f"{key}_ci95"]:
            low, high = found[f"{key}_ci95"]
            console.print(f"{name} {found[key]:.3f} [dim]{low:.3f}-{high:.3f}[/dim]")
    general = result["general"]
    console.print(f"answer loss {general['answer_loss']:.3f} nats per token on {general['answers']} held-out answers")
    if chosen := general["multiple_choice"]:
        low, high = chosen["ci95"]
        console.print(
            f"multiple choice {chosen['accuracy']:.3f} [dim]{low:.3f}-{high:.3f}[/dim] of {chosen['n']}, "
            f"chance {chosen['chance']:.2f}"
        )
    console.print()
    for path, what in ((asked.out, "the numbers"), (asked.answers, "what the model said: for your eyes")):
        console.print(f"  {path!s:<36} {what}", markup=False, soft_wrap=True)
