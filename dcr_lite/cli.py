"""The command dcr-lite. Anything heavy is imported after --help has answered."""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dcr_lite.errors import UserError
from dcr_lite.settings import Device, Precision, Quantization

app = tyro.extras.SubcommandApp()
BAR = 24  # characters


@app.command
def score(
    prompt: Annotated[str, tyro.conf.Positional],
    run: Path | None = None,
    json: bool = False,
) -> None:
    """Score one prompt with the models of a run: verdict, probability, similarity to both kinds, words, answer.

    Args:
        prompt: The prompt, in quotes.
        run: A run folder; by default the newest finished one under runs/, else the stock model alone.
        json: One JSON object for machines: {run, note, scores}.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    from dcr_lite.demo.scoring import open_run

    transformers_logging.disable_progress_bar()
    opened = open_run(run)
    scores = [opened.score(name, prompt) for name in opened.names]
    if json:
        _print_json({"run": opened.title, "note": opened.note, "scores": [s.for_json() for s in scores]})
    else:
        _show(opened.title, opened.note, scores)


@app.command
def judge(
    answers: Annotated[str, tyro.conf.Positional],
    out: str,
    string_match: bool = False,
) -> None:
    """Judge a file of answers: each row gets refused (true | false) and a score from 0 to 1. No model, no network.

    Args:
        answers: JSON Lines of {prompt, response}; other fields are kept. - reads from a pipe.
        out: Where the labelled rows go; - for standard output.
        string_match: Add the two string matches of the literature (string_match: GCG, opening_match: XSTest).
    """
    from dcr_lite.evaluate.labelling import label_answers, write_rows
    from dcr_lite.measure.metrics import wilson_interval

    rows = label_answers(answers, string_match)
    write_rows(rows, out)
    refused = sum(row["refused"] for row in rows)
    low, high = wilson_interval(refused, len(rows))
    summary = f"{len(rows):,} answers, {refused:,} refusals: {refused / len(rows):.3f} (95 % {low:.3f}-{high:.3f})"
    print(summary, file=sys.stderr)


@app.command
def evaluate(
    model: str,
    out: Path,
    prompts: tuple[Path, ...] = (),
    benchmarks: tuple[str, ...] = (),
    method: Literal["dcr", "safety_sft", "base"] = "dcr",
    rows: int | None = None,
    instructions: Path | None = None,
    multiple_choice: Path | None = None,
    answer_tokens: int = 40,
    device: Device = "auto",
    precision: Precision = "auto",
    quantization: Quantization = "auto",
) -> None:
    """Measure one model: refusal rates by set, discernment, general ability. Called again, it goes on where it stopped.

    Args:
        model: A run folder, the folder of an adapter or of a model, or a name on the Hub.
        out: The result, as JSON. Answers lie beside it, in NAME.answers.jsonl: keep those to yourself.
        prompts: JSON Lines of {prompt, label, source?} or {toxic, seemingly_toxic}; by default the shipped held-out
            prompts.
        benchmarks: Public ones by name, fetched once: xstest, or_bench_hard, oktest, phtest, coconot_contrast,
            jailbreakbench_benign, or_bench_toxic, advbench, harmbench, jailbreakbench, strongreject,
            simple_safety_tests, malicious_instruct.
        method: Which model of a run: DCR's, safety SFT alone, or the stock model.
        rows: At most so many prompts of each set and label, drawn with a fixed seed.
        instructions: JSON Lines of {prompt, response} for the answer loss; by default the shipped held-out ones.
        multiple_choice: JSON Lines of {question, choices, answer}, answered by log-likelihood.
        answer_tokens: Tokens of each answer: enough to see whether it refuses.
        device: auto takes CUDA where there is a GPU.
        precision: auto takes bfloat16 where the device multiplies it natively (of a run: what it was trained in).
        quantization: Of the base model's weights; auto: 4-bit NF4 on a CUDA GPU, none elsewhere (of a run: as trained).
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from dcr_lite.evaluate.command import Evaluation, measure_model
    from dcr_lite.evaluate.table import show
    from dcr_lite.measure.general_ability import HELD_OUT_INSTRUCTIONS
    from dcr_lite.settings import Settings

    asked = Evaluation(
        model,
        out,
        prompts or (() if benchmarks else Settings(model, Path(), 0).evaluation),
        benchmarks,
        method,
        rows,
        instructions or HELD_OUT_INSTRUCTIONS,
        multiple_choice,
        answer_tokens,
        device,
        precision,
        quantization,
    )
    try:
        show(measure_model(asked), asked)
    except KeyboardInterrupt:
        print("\nstopped. What is done is kept; the same command goes on.", file=sys.stderr)
        raise SystemExit(130) from None


@app.command
def compare(
    recipe: Path = Path("recipes/smollm2_135m.py"),
    seeds: tuple[int, ...] = (0, 1, 2),
    prompts: tuple[Path, ...] = (),
    rows: int | None = None,
    choices: Path | None = None,
    curve_seeds: tuple[int, ...] | None = None,
    out: Path = Path("runs/compare"),
) -> None:
    """Train and measure the stock model, safety SFT alone, data augmentation, Surgical, SCANS and DCR on one recipe:
    one table, one trade-off picture, JSON. Called again, it goes on where it stopped.

    Args:
        recipe: The recipe whose model, data and settings all methods share.
        seeds: Of the first weights, the split and the order of rows. Intervals are over them.
        prompts: JSON Lines of {prompt, label, source?} or {toxic, seemingly_toxic} to measure on; by default the
            recipe's held-out part.
        rows: At most so many prompts of each file, drawn with a fixed seed.
        choices: JSON Lines of {question, choices, answer}: multiple choice, for general ability.
        curve_seeds: Seeds for which every method is measured at further strengths, for the trade-off curve; by default
            the first one, with nothing behind the flag none.
        out: Where everything is kept: comparison.md, comparison.json, trade_off.png, adapters and answers.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from dcr_lite.compare.command import compare as run_comparison
    from dcr_lite.run.terminal import show_page

    run_comparison(recipe, seeds, prompts, rows, choices, seeds[:1] if curve_seeds is None else curve_seeds, out)
    show_page(out / "comparison.md")


@app.command
def export(
    run: Annotated[Path, tyro.conf.Positional],
    to: Literal["merged", "gguf", "hub"],
    out: Path | None = None,
    base: str | None = None,
    file_type: Literal["bf16", "q8_0"] | None = None,
    repo: str | None = None,
    form: Literal["adapter", "merged", "gguf"] | None = None,
    public: bool = False,
) -> None:
    """Make the adapter of a finished run into what others load: merged weights, a GGUF file, a page on the Hub.

    Args:
        run: The run folder.
        to: merged: a folder that transformers loads without peft. gguf: one file for llama.cpp. hub: push to the Hub.
        out: Where it goes (hub: where the export lies); by default into the run folder.
        base: A folder or Hub name of the base in 16 bits, where the run's own base is stored in 4.
        file_type: Of a GGUF: bf16 (the default) keeps every bit, q8_0 halves the file.
        repo: For the Hub: owner/name.
        form: For the Hub: the adapter alone (the default), or what was exported before.
        public: For the Hub: visible to everybody at once.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from dcr_lite.export.command import check_flags, export_gguf, export_merged, open_finished

    check_flags(to, base=base, file_type=file_type, repo=repo, form=form, public=public)
    finished = open_finished(run)
    if to == "merged":
        print(f"written: {export_merged(finished, out, base)}")
    elif to == "gguf":
        print(f"written: {export_gguf(finished, out, base, file_type or 'bf16')}")
    else:
        from dcr_lite.export.hub import push

        print(f"pushed: {push(finished, str(repo), form or 'adapter', out, public)}")


@app.command
def diagnose(
    run: Annotated[Path, tyro.conf.Positional],
    pairs: int = 8,
    projections: int = 8,
) -> None:
    """Look into a finished run: how tightly toxic and other prompts are coupled before and after each stage, at which
    layer they can be told apart, how refusal was learnt, whom it helped. Tables, pictures and JSON in RUN/diagnosis.

    Args:
        run: A finished run folder.
        pairs: Development pairs, and as many plain prompts, whose kernel is measured.
        projections: Random projections on each side of the kernel; from the width of the model on it is exact.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from dcr_lite.diagnose.command import diagnose as look_into
    from dcr_lite.run.terminal import show_page

    look_into(run, pairs, projections)
    show_page(run / "diagnosis" / "diagnosis.md")


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _show(title: str, note: str, scores: list[Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from dcr_lite.names import METHODS, NAMES
    from dcr_lite.run.terminal import console

    first = scores[0]
    console.print(Text(title, "dim"))
    if note:
        console.print(Text(note, "yellow"))
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "verdict", "refusal probability", "like toxic", "like seemingly toxic"):
        table.add_column(column)
    for one in scores:
        like = one.similarity
        numbers = ("-", "-") if like is None else (f"{like.toxic:.2f}", f"{like.seemingly_toxic:.2f}")
        words = "refuses" if one.refused else "answers"
        table.add_row(METHODS[one.model], words, f"{one.refusal_probability:.2f}", *numbers)
    console.print(table)
    if first.similarity:
        console.print()
        for kind, value in (("toxic", first.similarity.toxic), ("seemingly_toxic", first.similarity.seemingly_toxic)):
            full = round(value * BAR)
            console.print(Text(f"{NAMES[kind]:<16}{'█' * full}{'░' * (BAR - full)} {value:.2f}"))
    if first.words:
        heaviest = max(abs(word.weight) for word in first.words) or 1.0
        marked = Text("\n" + first.prompt)
        for word in first.words:
            if abs(word.weight) > heaviest / 3:
                marked.stylize("bold yellow" if word.weight > 0 else "bold green", word.start + 1, word.stop + 1)
        console.print(marked)
        top = sorted(first.words, key=lambda word: -abs(word.weight))[:3]
        console.print(Text("weigh most: " + ", ".join(f"{w.text} {w.weight:+.1f}" for w in top), "dim"))
    for one in scores:
        console.print(Text(f"\n{METHODS[one.model]}:", "bold"))
        console.print(Text(one.answer))  # never read as markup


def main() -> None:
    """The entry point: mistakes in a sentence, exit status 1."""
    try:
        app.cli(
            prog="dcr-lite",
            description="Discernment between toxic and seemingly toxic prompts.",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
