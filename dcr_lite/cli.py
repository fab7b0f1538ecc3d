"""The command dcr-lite. Heavy modules are imported inside the commands, so that --help answers at once."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from dcr_lite import __version__
from dcr_lite.data.benchmarks import BENCHMARKS
from dcr_lite.errors import UserError, sentence
from dcr_lite.interrupts import printing, sigterm_as_ctrl_c
from dcr_lite.mend.command import ABOUT as ABOUT_MENDING
from dcr_lite.mend.command import main as mend_model
from dcr_lite.mend.settings import MendSettings
from dcr_lite.names import ModelName
from dcr_lite.run.launch import launch
from dcr_lite.run.recipes import DEFAULT_RECIPE, find_recipe, load_recipe, model_in, recipe_or_model, recipe_titles
from dcr_lite.run_commands import demo, diagnose, dial, export, probe, score, verify
from dcr_lite.settings import HELD_OUT_FILES, Device, Precision, Quantization, Settings

ANY_MODEL = """A chat or base model, aligned with settings that are found (docs/method.md). The model is on the Hugging
Face Hub, by its name, or in a folder."""
JUDGES = (
    "Judges of refusals, the first for the main numbers: cues, learned, a text classifier (a folder, or a name on the "
    "Hub) or an OpenAI-compatible endpoint (http://localhost:8080/v1#MODEL). See docs/measuring.md."
)
PUBLIC = f"Public benchmarks, fetched once: {', '.join(BENCHMARKS)}."
KEPT = "Also measure answers kept, of those that the stock model gives first: about twice the time."
JudgeNames = Annotated[tuple[str, ...], tyro.conf.arg(help=JUDGES)]
KEY = "Environment variable that holds an endpoint's key; by default OPENAI_API_KEY."
JudgeKey = Annotated[str | None, tyro.conf.arg(help=KEY)]


def train(words: Annotated[tuple[str, ...], tyro.conf.Positional]) -> None:
    """Train a model: dcr-lite train --model NAME_OR_FOLDER, or with a recipe: dcr-lite train smollm2_135m. Settings
    are flags. Without words, list the recipes."""
    if not words or words[0] in ("-h", "--help"):
        titles = recipe_titles()
        print("usage: dcr-lite train --model NAME_OR_FOLDER [flags]\n       dcr-lite train RECIPE [flags]\n")
        print("Any chat model, or base model with --chat-format, of the Hugging Face Hub or in a folder; or a RECIPE,")
        print("one of these (memory is an estimate; smollm2_135m alone has been run) or the path of a recipe file:\n")
        for name, title in titles.items():
            print(f"  {name:<{max(map(len, titles))}}  {title}")
        print("\nTheir flags: dcr-lite train --model NAME_OR_FOLDER --help, or dcr-lite train RECIPE --help.")
        return None
    name, *flags = words
    if not name.startswith("-"):
        recipe = load_recipe(find_recipe(name))
        return launch(recipe.main, recipe.SETTINGS, flags, ("train", name))
    if (model := model_in(words)) is None:
        raise UserError(f"dcr-lite train {name}: name a model with --model, or a recipe before its flags")
    story = load_recipe(find_recipe(DEFAULT_RECIPE)).main  # which is the same in every recipe
    return launch(story, Settings.of_model(model), words, ("train",), ANY_MODEL)


def mend(words: Annotated[tuple[str, ...], tyro.conf.Positional]) -> None:
    """Mend a chat model that refuses what it should answer: dcr-lite mend --model NAME_OR_FOLDER --answer refused.txt
    --refuse must_refuse.txt. All settings of a run are flags."""
    model = model_in(words)
    if model is None and not {"-h", "--help"} & set(words):
        raise UserError("dcr-lite mend: name the model with --model")
    return launch(mend_model, MendSettings.of_model(model or "NAME_OR_FOLDER"), words, ("mend",), ABOUT_MENDING)


def judge(
    answers: Annotated[str, tyro.conf.Positional],
    out: str,
    string_match: bool = False,
    judge: JudgeNames = ("cues",),
    judge_key: JudgeKey = None,
) -> None:
    """Judge a file of answers: adds refused (true or false) and a score from 0 to 1 to every row. The cue judge needs
    no model and no network.

    Args:
        answers: JSON Lines of {prompt, response}; other fields are kept. - reads standard input.
        out: File for the labelled rows; - writes to standard output.
        string_match: Add the two string matches of the literature (string_match: GCG, opening_match: XSTest).
    """
    from dcr_lite.evaluate.labelling import judge_file

    for line in judge_file(answers, out, string_match, judge, judge_key):
        print(line, file=sys.stderr)


def evaluate(
    model: str,
    out: Path,
    prompts: tuple[Path, ...] = (),
    benchmarks: Annotated[tuple[str, ...], tyro.conf.arg(help=PUBLIC)] = (),
    method: ModelName = "dcr",
    rows: int | None = None,
    instructions: Path | None = None,
    multiple_choice: Path | None = None,
    answer_tokens: int = 40,
    whole_answers: bool = False,
    thinking: bool = False,
    device: Device = "auto",
    precision: Precision = "auto",
    quantization: Quantization = "auto",
    judge: JudgeNames = ("cues",),
    judge_key: JudgeKey = None,
    kept: Annotated[bool, tyro.conf.arg(help=KEPT)] = False,
) -> None:
    """Measure one model: refusal rates by set, discernment, general ability. The same command continues a stopped
    measurement.

    Args:
        model: A run folder, the folder of an adapter or of a model, or a name on the Hub.
        out: File for the result, JSON. The answers go beside it. Private: contains answers to toxic prompts.
        prompts: JSON Lines of {prompt, label, source?} or {toxic, seemingly_toxic}; by default the shipped held-out
            prompts.
        method: Which model of a run: DCR's, safety SFT alone, or the stock model.
        rows: At most this many prompts of each set and label, drawn with a fixed seed.
        instructions: JSON Lines of {prompt, response} for the answer loss; by default the shipped held-out ones.
        multiple_choice: JSON Lines of {question, choices, answer}, answered by log-likelihood.
        answer_tokens: Tokens of each answer: enough to see whether it refuses.
        whole_answers: Give refusals to their end as well, which tells partial from full ones; --answer-tokens 150.
        thinking: Let the model think before it answers, which is not judged; needs --answer-tokens 1024 or more.
        device: auto: CUDA where there is a GPU, else the CPU. mps: the GPU of a Mac.
        precision: auto: what the run was given; without that bfloat16 where the device multiplies it natively, else
            float16 on a GPU and float32 on a CPU.
        quantization: Of the base model's weights. auto: what the run was given; without that 4-bit NF4 on CUDA, else
            none.
    """
    from dcr_lite.evaluate.command import Evaluation, measure_model
    from dcr_lite.evaluate.table import show
    from dcr_lite.measure.general_ability import HELD_OUT_INSTRUCTIONS

    asked = Evaluation(
        model, out, prompts or (() if benchmarks else HELD_OUT_FILES), benchmarks, method, rows,
        instructions or HELD_OUT_INSTRUCTIONS, multiple_choice, answer_tokens, whole_answers, thinking, device,
        precision, quantization, judge, judge_key, kept,
    )  # fmt: skip
    show(measure_model(asked), asked)


def compare(
    recipe: str | None = None,
    model: str | None = None,
    seeds: tuple[int, ...] | None = None,
    prompts: tuple[Path, ...] = (),
    rows: int | None = None,
    multiple_choice: Path | None = None,
    curve_seeds: tuple[int, ...] | None = None,
    out: Path = Path("runs/compare"),
    judge: Annotated[tuple[str, ...] | None, tyro.conf.arg(help=f"{JUDGES} By default cues.")] = None,
    judge_key: JudgeKey = None,
    methods: tuple[str, ...] = (),
    add: tuple[str, ...] = (),
    contract: int | None = None,
    by: str | None = None,
    benchmarks: Annotated[tuple[str, ...], tyro.conf.arg(help=PUBLIC)] = (),
) -> None:
    """Train and measure twelve models on one recipe: the stock model, the same steered and with DCR's dial alone,
    safety SFT alone, data augmentation, Surgical, SCANS, AdaCD, ProSafePrune, ACTOR, DPO and DCR. Writes tables, a
    trade-off plot and JSON. The same command continues a stopped comparison.

    Args:
        recipe: Name or file of the recipe whose model, data and settings all methods share; by default SmolLM2's.
        model: In place of a recipe a chat model, by its name on the Hub or its folder; its settings are found.
        seeds: Of the first weights, the split and the order of rows; by default 0 1 2. Intervals are over them.
        prompts: JSON Lines of {prompt, label, source?} or {toxic, seemingly_toxic} to measure on; without them and
            --benchmarks the recipe's held-out part.
        rows: At most this many prompts of each set and label, drawn with a fixed seed.
        multiple_choice: JSON Lines of {question, choices, answer}, answered by log-likelihood.
        curve_seeds: Seeds for which every method is measured at further strengths, for the trade-off curve; by default
            the first one, with nothing behind the flag none.
        out: Folder of the comparison: comparison.md, comparison.json, trade_off.png, adapters and answers.
        methods: Only some, besides the stock model, of steered, dial_alone, safety_sft, augmented, surgical, scans,
            adacd, prosafeprune, actor, dpo and dcr; by default all.
        add: Other people's methods, NAME=FOLDER of an adapter or NAME=package.module:function (docs/comparing.md).
        contract: Number of a frozen contract, which fixes prompts, seeds and judges; writes submission.json as well.
        by: Who submits, for the leaderboard; with --contract.
    """
    from dcr_lite.compare.command import compare as run_comparison
    from dcr_lite.compare.command import require_all
    from dcr_lite.run.terminal import show_page

    report = run_comparison(
        recipe_or_model(recipe, model), seeds, prompts, rows, multiple_choice, curve_seeds, out, judge, judge_key,
        methods, add, contract, by, benchmarks,
    )  # fmt: skip
    show_page(out / "comparison.md")
    require_all(report, out)


def check(words: Annotated[tuple[str, ...], tyro.conf.Positional] = ()) -> None:
    """Check what a run will meet on this machine, in about two minutes: dcr-lite check llama3_8b --json. Takes a recipe
    and its settings as flags."""
    from dcr_lite.check.command import check as look

    if not look(words):
        raise SystemExit(1)


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "mend": mend,
    "check": check,
    "demo": demo,
    "score": score,
    "evaluate": evaluate,
    "judge": judge,
    "compare": compare,
    "verify": verify,
    "diagnose": diagnose,
    "probe": probe,
    "dial": dial,
    "export": export,
}


@printing()
def main() -> None:
    """The entry point. Errors that a user can fix are one line on standard error, with exit status 1."""
    argv = sys.argv[1:] or ["--help"]
    command = argv[0]
    if command == "--version":
        print(f"dcr-lite {__version__}")
        return
    if not command.startswith("-") and command not in COMMANDS:
        print(f"error: dcr-lite has no command {command}. Its commands: {', '.join(COMMANDS)}.", file=sys.stderr)
        raise SystemExit(2)
    sigterm_as_ctrl_c()
    try:
        if command in ("train", "mend", "check"):  # all settings of a run are flags
            COMMANDS[command](tuple(argv[1:]))
        else:
            tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                args=argv,
                prog="dcr-lite",
                description="Chat models that refuse toxic prompts and answer seemingly toxic ones.",
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except Exception as error:
        if (said := sentence(error, "run the same command again")) is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        if command in ("evaluate", "compare", "dial", "probe", "verify"):
            print("\nstopped; what is done is kept. Run the same command again to continue.", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
