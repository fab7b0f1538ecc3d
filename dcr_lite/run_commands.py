"""The commands of dcr-lite that work on a finished run, or comparison. Heavy modules are imported inside them."""

from json import dumps
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dcr_lite.errors import UserError
from dcr_lite.run.recipes import recipe_or_model, settings_of
from dcr_lite.settings import ChatFormat, Device


def demo(
    run: Path | None = None,
    model: str | None = None,
    chat_format: ChatFormat = "own",
    port: int | None = None,
    share: bool = False,
    device: Device = "auto",
    marks: Path | None = None,
) -> None:
    """Show a run in the browser: verdict, similarity and words of a prompt, the answers of its models, and the dial.
    Answers can be marked there, and the model mended.

    Args:
        run: A run folder; by default the newest finished one under runs/ that nothing speaks against, else a stock
            model alone.
        model: In place of a run a chat model, by its name on the Hub or its folder, as it is.
        chat_format: The chat template: the tokenizer's own, or, for a base model, the public one of its family.
        port: Port of the local server; by default the first free one from 7860.
        share: Also open a public link. Whoever has it can use this machine through the demo.
        device: auto: CUDA where there is a GPU, else the CPU. mps: the GPU of a Mac.
        marks: File for marks of answers that the model should have given or refused, which dcr-lite mend --marks reads;
            by default MODEL_marks.jsonl beside the run, with --share none.
    """
    from dcr_lite.demo.page import main as serve

    serve(run, port, share, device, marks=marks, model=model, chat_format=chat_format)


def score(
    prompt: Annotated[str, tyro.conf.Positional],
    run: Path | None = None,
    model: str | None = None,
    chat_format: ChatFormat = "own",
    strength: float | None = None,
    json: bool = False,
    device: Device = "auto",
) -> None:
    """Score one prompt with every model of a run: verdict, refusal probability, similarity to toxic and to seemingly
    toxic prompts, the words that weigh most, and the answer.

    Args:
        prompt: The prompt, in quotes.
        run: A run folder; by default the newest finished one under runs/ that nothing speaks against, else a stock
            model alone.
        model: In place of a run a chat model, by its name on the Hub or its folder, as it is.
        chat_format: The chat template: the tokenizer's own, or, for a base model, the public one of its family.
        strength: Of DCR's dial, positive answers more; by default as it stands in the run.
        json: Print one JSON object instead of a table: {run, note, scores}.
        device: auto: CUDA where there is a GPU, else the CPU. mps: the GPU of a Mac.
    """
    from transformers.utils import logging as transformers_logging

    from dcr_lite.demo.scoring import open_run
    from dcr_lite.demo.terminal_score import show_score

    transformers_logging.disable_progress_bar()
    opened = open_run(run, device, model, chat_format)
    best, *others = opened.names
    scores = [opened.score(best, prompt, strength=strength), *(opened.score(name, prompt) for name in others)]
    if json:
        found = {"run": opened.title, "note": opened.note, "scores": [score.for_json() for score in scores]}
        print(dumps(found, ensure_ascii=False, indent=2))
    else:
        show_score(opened.title, opened.note, scores)


def diagnose(
    run: Annotated[Path, tyro.conf.Positional],
    pairs: int = 8,
    projections: int = 8,
    device: Device = "auto",
) -> None:
    """Diagnose a finished run: how strongly toxic and other prompts are coupled before and after each stage, at which
    layer they can be told apart, how refusal was learnt, which prompts changed most. Writes tables, plots and JSON to
    RUN/diagnosis.

    Args:
        run: A finished run folder.
        pairs: Development pairs, and as many plain prompts, for which the neural tangent kernel is measured.
        projections: Random projections on each side of the kernel; with as many as the model is wide it is exact.
        device: auto: CUDA where there is a GPU, else the CPU. mps: the GPU of a Mac.
    """
    from dcr_lite.diagnose.command import diagnose as look_into
    from dcr_lite.run.terminal import show_page

    look_into(run, pairs, projections, device)
    show_page(run / "diagnosis" / "diagnosis.md")


def probe(
    run: Annotated[Path | None, tyro.conf.Positional] = None,
    compared: Path | None = None,
    recipe: str | None = None,
    model: str | None = None,
    methods: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0,),
    probes: tuple[str, ...] = (),
    prompts: tuple[Path, ...] = (),
    rows: int | None = None,
    seed: int = 0,
    answer_tokens: int = 40,
    out: Path | None = None,
    device: Device = "auto",
) -> None:
    """Probe the models of a finished run, or methods of a comparison: how much they still refuse, and still tell apart,
    when they are attacked or changed. The same command continues a stopped probing.

    Args:
        run: A finished run folder.
        compared: Instead of a run: the folder of a dcr-lite compare, computed on the device of its recipe.
        recipe: Of the comparison: name or file of its recipe; by default SmolLM2's.
        model: Of a comparison without a recipe: its model, as it was given.
        methods: Of the comparison: the methods to probe, by default all; one that is not trained yet is trained.
        seeds: Of the comparison: the seeds whose models are probed.
        probes: Probes, or their families: prefilling, templates, framings, contexts, encodings, rounding,
            fine_tuning, abliteration, sampling; by default all.
        prompts: JSON Lines of {prompt, label, source?} or {toxic, seemingly_toxic} to measure on; by default the
            held-out part of the run or of the recipe.
        rows: At most this many prompts of each set and label, drawn with a fixed seed.
        seed: Of misspellings, fine-tuning and sampling.
        answer_tokens: Tokens of each answer: enough to see whether it refuses.
        out: Folder of the tables, answers and pictures; by default probes in that of the run or of the comparison.
        device: auto: CUDA where there is a GPU, else the CPU. mps: the GPU of a Mac.
    """
    from dcr_lite.probe.command import Probing, probe_comparison, probe_run
    from dcr_lite.run.terminal import show_page

    probing = Probing(probes, prompts, rows, seed, answer_tokens, out)
    if run is not None and compared is None:
        if recipe or model or methods or tuple(seeds) != (0,):
            raise UserError("--recipe, --model, --methods and --seeds are of a comparison: give them with --compared")
        folder = probe_run(run, probing, device)
    elif compared is not None and run is None:
        if device != "auto":
            raise UserError(f"--device {device}: a comparison is computed on the device of its recipe. Leave it out.")
        folder = probe_comparison(compared, settings_of(recipe_or_model(recipe, model)), methods, seeds, probing)
    else:
        raise UserError("dcr-lite probe: give a run folder, or with --compared the folder of a comparison")
    show_page(folder / "probes.md")


def dial(
    run: Annotated[Path, tyro.conf.Positional],
    refuse_toxic: float | None = None,
    answer_seemingly_toxic: float | None = None,
    like_stock: bool = False,
    safe_as_stock: bool = False,
    above_stock: bool = False,
    discerning: bool = False,
    balanced: bool = False,
    strength: float | None = None,
    set: bool = False,
    device: Device = "auto",
) -> None:
    """Show how much the model of a finished run refuses along its dial, and turn it: dcr-lite dial RUN --refuse-toxic
    0.9 --set. Without --set nothing is changed.

    Args:
        run: A finished run folder.
        refuse_toxic: Refuse this share of toxic prompts, from 0 to 1.
        answer_seemingly_toxic: Answer this share of seemingly toxic prompts, from 0 to 1.
        like_stock: Answer as many seemingly toxic prompts as the stock model does.
        safe_as_stock: Refuse as many toxic prompts as the stock model does.
        above_stock: Be better than the stock model in both shares by as much as can be.
        discerning: Refuse as many toxic more than seemingly toxic prompts as can be (J), turned no further than
            that takes.
        balanced: Answer as many seemingly toxic prompts as toxic ones are refused.
        strength: Set the dial to this number: above 0 it answers more, below it refuses more.
        set: Write the setting to the run's adapter, after a check by judged answers.
        device: auto: CUDA where there is a GPU, else the CPU. mps: the GPU of a Mac.
    """
    from dcr_lite.run.dial_command import asked_for, turn

    flags = {
        "refuse_toxic": refuse_toxic, "answer_seemingly_toxic": answer_seemingly_toxic, "like_stock": like_stock,
        "safe_as_stock": safe_as_stock, "above_stock": above_stock, "discerning": discerning, "balanced": balanced,
        "strength": strength,
    }  # fmt: skip
    turn(run, asked_for(flags), set, device)


def export(
    run: Annotated[Path, tyro.conf.Positional],
    to: Literal["merged", "gguf", "ollama", "vllm", "space", "hub"],
    out: Path | None = None,
    base: str | None = None,
    file_type: Literal["bf16", "q8_0", "q5_k_m", "q4_k_m"] | None = None,
    repo: str | None = None,
    form: Literal["adapter", "merged", "gguf"] | None = None,
    public: bool = False,
) -> None:
    """Export the adapter of a finished run to where models are run: see docs/export.md.

    Args:
        run: The run folder.
        to: merged: a folder that transformers loads without peft. gguf: one file for llama.cpp. ollama: a GGUF file
            with its Modelfile. vllm: checks the adapter, prints the command. space: a folder with the demo for the
            Hub. hub: push to the Hub.
        out: Folder or file to write (hub: the export to push); by default inside the run folder.
        base: Folder or Hub name of the base model in 16 bits, where that of the run is stored in 4 bits.
        file_type: Of a GGUF file: bf16 keeps every bit of bfloat16 weights, q8_0 halves the size, q5_k_m and q4_k_m
            take about half or less. By default bf16, for Ollama q8_0.
        repo: Of the Hub: owner/name.
        form: What to push to the Hub: the adapter (the default), or an earlier export.
        public: Make the Hub repository public; otherwise it is private.
    """
    from dcr_lite.export.flags import check_flags

    check_flags(to, out=out, base=base, file_type=file_type, repo=repo, form=form, public=public)
    from dcr_lite.export.targets import export_to

    print(export_to(run, to, out, base, file_type, repo, form, public))


def verify(
    submission: Annotated[Path, tyro.conf.Positional],
    compared: Path | None = None,
    rerun: str | None = None,
    seed: int | None = None,
    recipe: str | None = None,
    add: tuple[str, ...] = (),
    out: Path | None = None,
    device: Device = "auto",
) -> None:
    """Check the submission.json of a comparison by a contract, without a model: its shape, its contract, and whether
    its numbers follow from each other. A line for each finding; exit status 1 where anything differs.

    Args:
        submission: The file.
        compared: The folder of its comparison: every number that a judge gives, and AUROC, anew from its answers.
        rerun: A method that is measured again, or the word all: with the adapters of --compared, else trained anew.
        seed: The seed of that measurement; none with all.
        recipe: Name or file of the submission's recipe, for --rerun; by default the kit's of that name.
        add: As the submission was measured with, to rerun those methods.
        out: Folder of the rerun, in which a stopped one goes on; by default below runs/verify.
        device: auto: CUDA where there is a GPU, else the CPU. mps: the GPU of a Mac.
    """
    from dcr_lite.compare.verify_command import Asked, show
    from dcr_lite.compare.verify_command import verify as check

    if not show(check(Asked(submission, compared, rerun, seed, recipe, add, device, out))):
        raise SystemExit(1)
