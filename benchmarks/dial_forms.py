"""Whether the dial is the same in every form: a shift at run time, the adapter, merged weights, a GGUF file.

    python benchmarks/dial_forms.py --run runs/smollm2_135m

One line per form and strength: the refusal rates of the development pairs by judged answers, how many of the answers
are judged as with the shift at run time, and the largest and mean change of the log-odds of opening with a refusal. The
GGUF file is answered from by llama.cpp (pip install xllamacpp), by greedy answers in its own chat template; without it
that form is left out. The run's files stay as they are.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import tyro

from dcr_lite.data.rows import Prompt
from dcr_lite.export.command import FinishedRun, export_gguf, export_merged, open_finished
from dcr_lite.files import write_json
from dcr_lite.measure.answers import Measured, measure
from dcr_lite.measure.judge import is_refusal
from dcr_lite.method.dial import Dial, set_strength
from dcr_lite.model import adapters
from dcr_lite.model.hidden_states import decoder_of
from dcr_lite.model.loading import Model
from dcr_lite.names import DCR
from dcr_lite.run.dial_bench import DIAL
from dcr_lite.run.dial_command import open_as_trained
from dcr_lite.run.dial_setting import FOLDER
from dcr_lite.run.opening import open_model
from dcr_lite.run.report import markdown_table
from dcr_lite.run.run_folder import read_settings
from dcr_lite.run.terminal import progress_bar

HEAD = [
    "form",
    "strength",
    "toxic refused",
    "seemingly toxic refused",
    "judged alike",
    "log-odds: largest change",
    "mean",
]


@dataclass
class Choices:
    """What to run."""

    run: Path
    """A finished run with a dial."""
    strengths: tuple[float, ...] = (-0.3, 0.15, 0.3, 0.6)
    """Of the dial."""
    pairs: int = 80
    """At most so many development pairs."""
    json: Path = Path("runs/dial_forms.json")
    """File of the results."""


@contextlib.contextmanager
def shifted(model: Model, dial: Dial, strength: float) -> Iterator[None]:
    """Within the block the dial's vector is added to what layer L puts out, at every token, and what its gain makes of
    what its reader reads there."""
    shift, reader = dial.shift.to(model.device), dial.reader.to(model.device)
    layer, read = decoder_of(model.network).layers[dial.layer], {}

    def look(_module: Any, inputs: Any) -> None:
        read["x"] = inputs[0] @ reader.to(inputs[0])

    def add(_module: Any, _inputs: Any, states: Any) -> Any:
        return states + ((strength + dial.gain * read["x"].view(states.shape[:-1]))[..., None] * shift).to(states)

    with layer.mlp.down_proj.register_forward_pre_hook(look), layer.register_forward_hook(add):
        yield


def gguf_answers(file: Path, prompts: list[Prompt], tokens: int) -> list[Measured] | None:
    """What llama.cpp answers; None where it is not installed. Log-odds are not read."""
    try:
        import xllamacpp
    except ImportError:
        return None
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.cpuparams.n_threads = str(file), 512, 1, 2
    params.verbosity, params.port = 0, 0  # silent, at any free port
    server = xllamacpp.Server(params)
    found: list[Measured] = []
    with progress_bar("llama.cpp", len(prompts)) as shown:
        for prompt in prompts:
            messages = [{"role": "user", "content": prompt.prompt}]
            body = json.dumps({"messages": messages, "max_tokens": tokens, "temperature": 0}).encode()
            asked = Request(
                f"{server.listening_address}/v1/chat/completions", body, {"Content-Type": "application/json"}
            )
            with urlopen(asked, timeout=120) as answer:
                text = json.load(answer)["choices"][0]["message"]["content"]
            found.append({"refused": is_refusal(text), "refusal_log_odds": float("nan")})
            shown.advance(1)
    return found


def exported(model: Model, dial: Dial, strength: float, run: FinishedRun, folder: Path) -> FinishedRun:
    """A finished run in ``folder`` that has nothing but its adapter, with the dial at a strength."""
    set_strength(model, DCR, dial, strength)
    adapters.save_adapter(model, DCR, folder / "adapter", lambda _: None)
    set_strength(model, DCR, dial, None)
    return FinishedRun(folder, run.report)


def row(form: str, strength: float, found: list[Measured], usual: list[Measured]) -> dict[str, Any]:
    """The numbers of one form at one strength, beside the shift at run time."""
    refused = np.array([one["refused"] for one in found])
    alike = refused == [one["refused"] for one in usual]
    moved = np.abs(
        [one["refusal_log_odds"] - other["refusal_log_odds"] for one, other in zip(found, usual, strict=True)]
    )
    rates = refused.reshape(2, -1).mean(1).tolist()
    odds = None if np.isnan(moved).any() else [moved.max().item(), moved.mean().item()]
    return {"form": form, "strength": strength, "rates": rates, "alike": alike.mean().item(), "log_odds": odds}


def measured_at(model: Model, dial: Dial, strength: float, prompts: list[Prompt], tokens: int, run: FinishedRun) -> Any:
    """The rows of every form at a strength."""
    adapters.activate(model, DCR)
    with shifted(model, dial, strength):
        usual = measure(model, prompts, tokens)
    yield row("shift at run time", strength, usual, usual)
    set_strength(model, DCR, dial, strength)
    found = measure(model, prompts, tokens)
    set_strength(model, DCR, dial, None)
    yield row("adapter", strength, found, usual)
    with tempfile.TemporaryDirectory() as folder:
        turned = exported(model, dial, strength, run, Path(folder))
        opened = open_model(str(export_merged(turned)), device=model.device)
        opened.model.openings = model.openings
        yield row("merged", strength, measure(opened.model, prompts, tokens), usual)
        del opened
        answers = gguf_answers(export_gguf(turned), prompts, tokens)
        if answers:
            yield row("GGUF, bf16", strength, answers, usual)


def main(choices: Choices) -> list[dict[str, Any]]:
    run = open_finished(choices.run)
    settings = replace(read_settings(choices.run), device="auto")
    model, data = open_as_trained(settings)
    dial = Dial.load(choices.run / FOLDER / DIAL)
    pairs = data.development[: choices.pairs]
    prompts = [Prompt(pair.toxic, "toxic", "development") for pair in pairs]
    prompts += [Prompt(pair.seemingly_toxic, "seemingly_toxic", "development") for pair in pairs]
    rows: list[dict[str, Any]] = []
    for strength in choices.strengths:
        for one in measured_at(model, dial, strength, prompts, settings.answer_tokens, run):
            rows.append(one)
            write_json(rows, choices.json)
    shown = [
        [one["form"], f"{one['strength']:g}", *(f"{rate:.3f}" for rate in one["rates"]), f"{one['alike']:.3f}"]
        + ([f"{value:.3f}" for value in one["log_odds"]] if one["log_odds"] else ["", ""])
        for one in rows
    ]  # fmt: skip
    print(markdown_table(HEAD, shown))
    return rows


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
