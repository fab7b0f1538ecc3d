"""A recipe as a user runs it: what a run leaves behind, and that it can be stopped anywhere."""

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import pyplot as plt
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from small_runs import (
    BASELINE_STEPS,
    CONTRASTIVE_STEPS,
    LAYER,
    RECIPE,
    SFT_STEPS,
    Outcome,
    contents,
    flags,
    run_here,
    save_rows,
)
from tiny_models import assert_close, load_reference
from torch import Tensor
from transformers import AutoTokenizer

from dcr_lite.data.rows import Pair
from dcr_lite.errors import UserError
from dcr_lite.measure.answers import read_answers, write_answers
from dcr_lite.method.contrastive import Contrastive, encode_pairs, stock_geometry
from dcr_lite.method.geometry import reads_as_toxic
from dcr_lite.method.safety_sft import SafetySFT
from dcr_lite.run import discernment, inputs, opening, steps, stored_states, terminal
from dcr_lite.run.run_folder import RunFolder
from dcr_lite.settings import Settings

PICTURES = {"refusal_rates.png", "refusal_scores.png", "state_map.png", "refusal_during_sft.png"}

# --- fixtures ---------------------------------------------------------------------------------------------------------

# Runs a recipe up to a moment, marks it and waits there to be stopped.
# "log STAGE STEP": after this step is logged, with half of the next line written, as a crash can leave it.
# "save STAGE N": in the middle of writing the stage's N-th checkpoint.
WAITING = """
import io, runpy, signal, sys, time
from pathlib import Path
import torch
from dcr_lite.run_folder import RunFolder

recipe, mark, what, stage, number = sys.argv[1:6]
log, save, saved = RunFolder.log, torch.save, []

def wait():
    Path(mark).touch()
    time.sleep(600)

def log_and_wait(run, row):
    log(run, row)
    if what == "log" and row["stage"] == stage and row["step"] == int(number) and "loss" in row:
        with run.metrics.open("a") as file:
            file.write('{"stage": "sta')
        wait()

def save_and_wait(value, file):
    if what == "save" and Path(file.name).stem == stage:
        saved.append(stage)
        if len(saved) == int(number):
            whole = io.BytesIO()
            save(value, whole)
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            file.flush()
            wait()
    save(value, file)

RunFolder.log, torch.save = log_and_wait, save_and_wait
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
sys.argv = [recipe, *sys.argv[6:]]
runpy.run_path(recipe, run_name="__main__")
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}


def run_and_stop(moment: tuple[str, str, int], how: signal.Signals, argv: list[str], mark: Path) -> Outcome:
    """Start the recipe in a process of its own, wait until it has come to ``moment``, and send it a signal."""
    command = [sys.executable, "-c", WAITING, str(RECIPE), str(mark), *map(str, moment), *argv]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 600
        while not mark.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(how)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert mark.exists(), f"the run never came to {moment}: {out[-500:]}{err[-2000:]}"
    return Outcome(process.returncode, out, err)


@pytest.fixture(scope="module")
def tiny(tiny_folder: Callable[..., Path]) -> Path:
    return tiny_folder("llama")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_rows(tmp_path_factory.mktemp("rows"))


@dataclass(frozen=True)
class Finished:
    """An undisturbed run, started from the command line."""

    path: Path
    seen: Outcome

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.path / "report.json").read_text(encoding="utf-8"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    path = tmp_path_factory.mktemp("finished") / "run"
    command = [sys.executable, str(RECIPE), *flags(tiny, rows, path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return Finished(path, Outcome(done.returncode, done.stdout, done.stderr))


@dataclass(frozen=True)
class Stopped:
    """A run that Ctrl-C stopped in its third stage, before that stage's first checkpoint."""

    path: Path
    seen: Outcome

    def copy(self, folder: Path) -> Path:
        return Path(shutil.copytree(self.path, folder / "run"))


@pytest.fixture(scope="module")
def stopped(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    folder = tmp_path_factory.mktemp("stopped")
    argv = flags(tiny, rows, folder / "a run")
    return Stopped(folder / "a run", run_and_stop(("log", "safety_sft", 3), signal.SIGINT, argv, folder / "mark"))


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(stage, step) of every training step that runs in this process take."""
    steps: list[tuple[str, int]] = []
    log = RunFolder.log

    def log_here(run: RunFolder, row: dict[str, Any]) -> None:
        if "loss" in row:
            steps.append((row["stage"], row["step"]))
        log(run, row)

    monkeypatch.setattr(RunFolder, "log", log_here)
    return steps


def adapter(run: Path, part: str = "adapter") -> dict[str, Tensor]:
    return load_file(run / part / "adapter_model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def assert_same_findings(run: Path, undisturbed: Finished) -> None:
    """Adapters, answers and metrics are bit for bit those of the undisturbed run."""
    found, expected = contents(run), contents(undisturbed.path)
    exact = {name for name in expected if name.endswith(("model.safetensors", ".jsonl"))}
    assert {"metrics.jsonl", "answers/dcr.jsonl", "adapter/adapter_model.safetensors"} <= exact
    assert [name for name in sorted(exact) if found.get(name) != expected[name]] == []
    readings = [load_file(path / "adapter" / discernment.FILE) for path in (run, undisturbed.path)]
    assert same(*readings)  # the file's own bytes hold its metadata in any order
    assert found.keys() == expected.keys()  # nothing half-written is left


def layer_of(key: str) -> int:
    found = re.search(r"\.layers\.(\d+)\.", key)
    assert found is not None
    return int(found[1])


# --- the command line -------------------------------------------------------------------------------------------------


def test_help_answers_at_once_without_torch() -> None:
    """--help shows every setting with its sentence, in no time: nothing heavy is imported before it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command = [sys.executable, "-X", "importtime", str(RECIPE), "--help"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    # Its own time on the processor, so that a busy machine changes nothing: a third of a second, where torch takes 3.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 2
    assert done.returncode == 0
    assert "SmolLM2-135M-Instruct, aligned in two stages" in done.stdout
    for name in Settings.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "tyro" in imported
    assert not imported & {"torch", "transformers", "peft", "matplotlib", "numpy", "datasets", "sklearn"}


def test_a_run_says_what_it_will_do_then_what_it_found(finished: Finished) -> None:
    """The plan stands before the first progress line; the end shows all three models and where things lie."""
    out = finished.seen.out
    places = [
        out.index(s) for s in ("estimated time", "Stage 1", "Stage 2", "Safety SFT alone:", "Evaluation", "AUROC ↑")
    ]
    assert places == sorted(places)
    assert f"{CONTRASTIVE_STEPS} steps of 8 prompts from 16 pairs" in out
    end = out[places[-1] :]
    assert all(name in end for name in ("stock model", "safety SFT alone", "DCR"))
    for name in ("report.md", "report.json", "adapter", "answers"):
        assert str(finished.path / name) in end  # on one line, to be copied
        assert (finished.path / name).exists()


def test_a_run_is_quiet_on_stderr(finished: Finished) -> None:
    """No warnings, no progress bars of libraries: what stands on stderr is worth reading."""
    assert finished.seen.err == ""


def test_a_page_in_the_terminal_names_the_files_of_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=screen, width=400))
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n![What it shows](picture.png)\n\n| a | b |\n|---|---|\n| 1 | 2 |\n", encoding="utf-8")
    terminal.show_page(page)
    assert str(tmp_path / "picture.png") in screen.getvalue()
    assert screen.getvalue().rstrip().endswith(str(page))


def test_a_terminal_shows_a_bar_with_the_latest_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a stage is a bar that moves, goes on where a continued stage begins, and shows losses."""
    screen = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=screen, force_terminal=True, width=140))
    with terminal.stage("Stage 1: contrastive", 40) as shown:
        shown.row({"stage": "stage1", "step": 30, "development_auroc": 0.75})
        for step in range(31, 41):
            shown.row({"stage": "stage1", "step": step, "loss": 1.5})
    last = screen.getvalue()[screen.getvalue().rindex("Stage 1: contrastive") :]
    assert "40/40" in last
    assert "loss 1.500" in last
    assert "unseen pairs AUROC 0.750" in last


def test_paths_are_shown_whole(capsys: pytest.CaptureFixture[str], finished: Finished) -> None:
    """A long path is not wrapped, and brackets in it are not taken for markup."""
    folder = Path("/a/[bold]/" + "long" * 40)
    terminal.show_plan({"run folder": "runs/[red]"})
    terminal.show_end(finished.report, folder)
    out = capsys.readouterr().out
    assert str(folder / "adapter") in out
    assert "runs/[red]" in out


# --- what a run leaves ------------------------------------------------------------------------------------------------


def test_report_json_holds_every_number(finished: Finished) -> None:
    """report.json names what ran and holds rates with intervals per set, discernment, seconds, memory, versions."""
    report = finished.report
    assert report["recipe"] == "smollm2_135m"
    assert report["model"].endswith("llama0")
    assert report["seed"] == 0
    assert list(report["methods"]) == ["base", "safety_sft", "dcr"]
    for method in report["methods"].values():
        sets = [(row["name"], row["label"], row["n"]) for row in method["sets"]]
        assert sets == [("held_out", "toxic", 4), ("held_out", "seemingly_toxic", 4), ("plain", "plain", 4)]
        for row in method["sets"]:
            low, high = row["ci95"]
            assert 0 <= low <= row["refusal_rate"] <= high <= 1
        assert 0 <= method["discernment"]["auroc"] <= 1
        assert -1 <= method["discernment"]["j"] <= 1
    seconds = report["seconds"]
    assert all(seconds[part] > 0 for part in ("stage1", "stage2", "safety_sft", "evaluate", "total"))
    assert sum(v for k, v in seconds.items() if k != "total") <= seconds["total"]
    assert 1e8 < report["peak_memory_bytes"] < 1e11
    assert {"python", "torch", "transformers", "peft", "dcr-lite"} <= report["versions"].keys()
    assert report["settings"]["contrastive_steps"] == CONTRASTIVE_STEPS
    assert report["data"]["pairs"] + report["data"]["development_pairs"] == 24


def test_rates_are_those_of_the_answers(finished: Finished) -> None:
    """Each rate in the report can be counted again in the answers that lie beside it."""
    for name, method in finished.report["methods"].items():
        answers = read_answers(finished.path / "answers" / f"{name}.jsonl")
        for row in method["sets"]:
            refused = [a["refused"] for a in answers if (a["source"], a["label"]) == (row["name"], row["label"])]
            assert len(refused) == row["n"]
            assert sum(refused) / len(refused) == row["refusal_rate"]


def test_report_md_shows_pictures_that_exist(finished: Finished) -> None:
    """Every picture that report.md shows is a PNG with something on it."""
    text = (finished.path / "report.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", text))
    assert shown == PICTURES
    for name in shown:
        assert plt.imread(finished.path / name).std() > 0.02
    assert "| DCR |" in text


def test_metrics_hold_every_step_once(finished: Finished) -> None:
    """metrics.jsonl is JSON Lines: each step of each stage once and in order, observations between them."""
    steps: dict[str, list[int]] = {}
    for row in finished.metrics:
        if "loss" in row:
            steps.setdefault(row["stage"], []).append(row["step"])
    assert steps == {
        "stage1": list(range(1, CONTRASTIVE_STEPS + 1)),
        "stage2": list(range(1, SFT_STEPS + 1)),
        "safety_sft": list(range(1, BASELINE_STEPS + 1)),
    }
    for stage, last, every in (
        ("stage1", CONTRASTIVE_STEPS, Contrastive.observe_every),
        ("stage2", SFT_STEPS, -(-SFT_STEPS // SafetySFT.looks)),
        ("safety_sft", BASELINE_STEPS, -(-BASELINE_STEPS // SafetySFT.looks)),
    ):
        seen = [row["step"] for row in finished.metrics if row["stage"] == stage and "loss" not in row]
        assert seen == [*range(0, last, every), last]


def test_stage_2_refuses_what_stage_1_tells_apart(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """Of the toxic prompts those that read as toxic, while they are enough; without the flag, whatever is drawn."""
    settings = Settings(
        str(tiny), tmp_path / "run", LAYER, development_pairs=8, instructions=12, refusals=1, baseline_refusals=6,
        pairs=rows / "pairs.jsonl", instruction_rows=rows / "instructions.jsonl", refusal_rows=rows / "refusals.jsonl",
        evaluation=(rows / "held_out.jsonl", rows / "plain.jsonl"),
    )  # fmt: skip
    data, (model, _) = inputs.load_data(settings), opening.load_model(settings)
    geometry = stock_geometry(model, encode_pairs(model, data.training), stored_states.contrastive_settings(settings))
    states = stored_states.stage1_states(model, data, settings, geometry)
    assert len(states["dcr.refusals"]) == len(data.refusals)
    # Some of them lie where toxic and some where seemingly toxic sides of training pairs lie.
    states["dcr.refusals"] = states["dcr.reference"].repeat(4, 1)[: 4 * len(data.refusals) : 4]
    toxicity = reads_as_toxic(geometry, states["dcr.reference"], states["dcr.refusals"]).tolist()
    toxic = {row.prompt for row, value in zip(data.refusals, toxicity, strict=True) if value > 0}
    assert 0 < len(toxic) < len(data.refusals)  # a guard: there is something to leave out

    def refused(**changes: Any) -> set[str]:
        chosen = stored_states.stage2_rows(data, replace(settings, **changes), states)
        return {row.prompt for row in chosen if row.refuses}

    assert refused(refusals=len(toxic)) == toxic
    assert refused(refusals=len(toxic) + 1) > toxic
    assert len(refused(refusals=len(data.refusals), discerned_refusals=False)) == len(data.refusals)


def test_stage1_keeps_what_separated_best(finished: Finished) -> None:
    """The weights kept are of the step with the highest development AUROC, which is not the stock model's."""
    best = finished.report["stage1"]
    seen = {row["step"]: row["development_auroc"] for row in finished.metrics if "development_auroc" in row}
    assert seen[best["best_step"]] == best["best"] == max(seen.values())
    assert best["best_step"] > 0


def test_peft_loads_the_adapter(finished: Finished, tiny: Path) -> None:
    """adapter/ is a LoRA adapter as peft reads it: its logits are those of the weights multiplied out by hand, and its
    greedy answers are those that the run measured."""
    loaded = PeftModel.from_pretrained(load_reference(tiny), finished.path / "adapter").eval()
    by_hand, weights = load_reference(tiny), adapter(finished.path)
    for key in [k for k in weights if "lora_A" in k]:
        layer = by_hand.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
        layer.weight.data += weights[key.replace("lora_A", "lora_B")] @ weights[key]
    tokenizer = AutoTokenizer.from_pretrained(finished.path / "adapter")
    with torch.no_grad():
        for row in read_answers(finished.path / "answers" / "dcr.jsonl")[:4]:
            turn = [{"role": "user", "content": row["prompt"]}]
            ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")["input_ids"]
            logits = loaded(input_ids=ids).logits
            assert_close(logits, by_hand(input_ids=ids).logits, 1e-5)
            mask = torch.ones_like(ids)
            said = loaded.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
            text = tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True).strip()
            # A measured answer ends where its verdict is final, perhaps in the middle of a character.
            assert text.startswith(row["response"].rstrip("\ufffd "))
    with torch.no_grad(), loaded.disable_adapter():
        assert (loaded(input_ids=ids).logits - logits).abs().max() > 0.01


def test_the_adapter_is_ready_to_publish(finished: Finished, tiny: Path) -> None:
    """Beside the weights lie the tokenizer with its chat template and a model card with the before-and-after table."""
    card = (finished.path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    head = card.split("---\n")[1]
    assert str(tiny) not in card  # a folder of this machine means nothing to others
    assert "library_name: peft" in head
    assert all(f"| {name} |" in card for name in ("stock model", "safety SFT alone", "DCR"))
    tokenizer = AutoTokenizer.from_pretrained(finished.path / "adapter")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny).chat_template


def test_answers_survive_the_line_separators_of_unicode(tmp_path: Path) -> None:
    """Whatever a model says comes back: U+2028 and U+0085 in an answer are no ends of a row."""
    said = [{"response": f"a{c}b"} for c in ("\u2028", "\u2029", "\x85", "\x0c", "\x1c", "\n", "\r\n", "\ufffd", "é")]
    write_answers(said, tmp_path / "answers.jsonl")
    assert read_answers(tmp_path / "answers.jsonl") == said


# --- what trains ------------------------------------------------------------------------------------------------------


def test_stage2_leaves_the_layers_up_to_l_alone(finished: Finished) -> None:
    """By default stage 2 trains the adapter above L only: up to L it stays exactly as stage 1 left it; and stage 1
    touches nothing above L."""
    before, after = adapter(finished.path, "stage1"), adapter(finished.path)
    assert same(after, adapter(finished.path, "stage2"))
    for key in after:
        assert torch.equal(before[key], after[key]) == (layer_of(key) <= LAYER), key
        if "lora_B" in key:  # begins at zero
            assert bool(before[key].any()) == (layer_of(key) <= LAYER), key


def test_sft_on_all_layers_changes_all(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """With --sft-layers all, stage 2 changes every layer of the adapter."""
    argv = flags(tiny, rows, tmp_path / "run", contrastive_steps=4, sft_epochs=1, sft_layers="all")
    assert run_here(argv).code == 0
    before, after = adapter(tmp_path / "run", "stage1"), adapter(tmp_path / "run")
    assert [key for key in after if torch.equal(before[key], after[key])] == []


def test_same_seed_same_adapter(finished: Finished, tiny: Path, rows: Path, tmp_path: Path) -> None:
    """The same seed gives every finding bit for bit, another one another adapter."""
    assert run_here(flags(tiny, rows, tmp_path / "again")).code == 0
    assert_same_findings(tmp_path / "again", finished)
    assert run_here(flags(tiny, rows, tmp_path / "other", seed=1, contrastive_steps=4, sft_epochs=1)).code == 0
    assert not same(adapter(tmp_path / "other", "stage1"), adapter(finished.path, "stage1"))
    starts = [adapter(run, "stage1") for run in (finished.path, tmp_path / "other")]
    frozen = next(k for k in starts[0] if layer_of(k) > LAYER and "lora_A" in k)  # as the seed drew it
    assert not torch.equal(starts[0][frozen], starts[1][frozen])


def test_the_papers_own_stage1_runs(finished: Finished, tiny: Path, rows: Path, tmp_path: Path) -> None:
    """--paper trains stage 1 with Circle loss on raw states, whatever the other settings of stage 1 say."""
    short = {"contrastive_steps": 4, "sft_epochs": 1}
    seen = run_here(flags(tiny, rows, tmp_path / "paper", paper=True, contrastive_loss="info_nce", **short))
    assert seen.code == 0
    assert "circle on raw states (the paper's)" in " ".join(seen.out.split())
    by_hand = flags(tiny, rows, tmp_path / "hand", contrastive_loss="circle", centre="none", no_whiten=True, **short)
    assert run_here(by_hand).code == 0
    assert same(adapter(tmp_path / "paper", "stage1"), adapter(tmp_path / "hand", "stage1"))


def test_a_four_bit_base_runs_the_whole_recipe(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """QLoRA on the CPU: with --quantization nf4 the base model is NF4 and both stages train on it."""
    argv = flags(tiny, rows, tmp_path / "run", quantization="nf4", contrastive_steps=6, sft_epochs=1)
    seen = run_here(argv)
    assert (seen.code, seen.err) == (0, "")
    assert "4-bit NF4 on cpu" in " ".join(seen.out.split())
    assert json.loads((tmp_path / "run" / "report.json").read_text())["settings"]["quantization"] == "nf4"
    for key, value in adapter(tmp_path / "run").items():
        assert torch.isfinite(value).all()
        assert value.any(), key


# --- stopped and continued --------------------------------------------------------------------------------------------


def test_killed_in_stage1_ends_as_undisturbed(
    finished: Finished, tiny: Path, rows: Path, tmp_path: Path, logged: list[tuple[str, int]]
) -> None:
    """SIGKILL between two checkpoints of stage 1, with half a line in metrics.jsonl: --resume goes on from the last
    checkpoint, the best weights so far with it, and ends bit for bit where an undisturbed run does."""
    run = tmp_path / "run"
    seen = run_and_stop(("log", "stage1", 33), signal.SIGKILL, flags(tiny, rows, run), tmp_path / "mark")
    assert seen.code == -signal.SIGKILL
    assert (run / "metrics.jsonl").read_text().endswith('\n{"stage": "sta')
    assert 0 < finished.report["stage1"]["best_step"] < 30  # so the checkpoint of step 30 has to hold its weights
    assert run_here(flags(tiny, rows, run, resume=True)).code == 0
    assert logged[0] == ("stage1", 31)
    assert_same_findings(run, finished)


def test_killed_while_saving_in_stage2_ends_as_undisturbed(
    finished: Finished, tiny: Path, rows: Path, tmp_path: Path, logged: list[tuple[str, int]]
) -> None:
    """SIGKILL in the middle of writing a checkpoint of stage 2: the half file is not taken for a whole one, the run
    goes on from the checkpoint before it and ends bit for bit where an undisturbed one does."""
    run = tmp_path / "run"
    seen = run_and_stop(("save", "stage2", 2), signal.SIGKILL, flags(tiny, rows, run), tmp_path / "mark")
    assert seen.code == -signal.SIGKILL
    half, whole = (run / "checkpoints" / f"stage2{end}" for end in (".partial", ".pt"))
    assert 0 < half.stat().st_size < whole.stat().st_size
    assert torch.load(whole, weights_only=True)["progress"]["step"] == 10
    assert run_here(flags(tiny, rows, run, resume=True)).code == 0
    assert logged[0] == ("stage2", 11)  # and stage 1, which was done, took no step
    assert_same_findings(run, finished)


def test_ctrl_c_says_how_to_continue(stopped: Stopped) -> None:
    """Ctrl-C ends with 130 and the command that goes on, quoted for a shell, and with no traceback."""
    assert stopped.seen.code == 130
    assert "Traceback" not in stopped.seen.err
    assert f"python {RECIPE} --model" in stopped.seen.err
    assert f"'{stopped.path}'" in stopped.seen.err  # there is a space in it
    assert stopped.seen.err.rstrip().endswith("--resume")


def test_a_stopped_run_is_not_begun_again(stopped: Stopped, tiny: Path, rows: Path, tmp_path: Path) -> None:
    """Without --resume a stopped run is left as it is, and the message names the flag."""
    run = stopped.copy(tmp_path)
    before = contents(run)
    seen = run_here(flags(tiny, rows, run))
    assert seen.code == 1
    assert "holds a stopped run: add --resume" in seen.err
    assert contents(run) == before


def test_resume_finishes_a_run_that_ctrl_c_stopped(
    finished: Finished, stopped: Stopped, tiny: Path, rows: Path, tmp_path: Path, logged: list[tuple[str, int]]
) -> None:
    """--resume repeats no stage that was done, and ends where an undisturbed run does; moving the folder is no
    obstacle."""
    run = stopped.copy(tmp_path)
    assert run_here(flags(tiny, rows, run, resume=True)).code == 0
    assert logged == [("safety_sft", step) for step in range(1, BASELINE_STEPS + 1)]
    assert_same_findings(run, finished)


@pytest.mark.parametrize("moment", ["measure", "draw_refusal_scores", "write_report"])
def test_stopped_after_training_ends_as_undisturbed(
    moment: str, finished: Finished, stopped: Stopped, tiny: Path, rows: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, logged: list[tuple[str, int]],
) -> None:  # fmt: skip
    """Stopped between two models' answers, among the pictures or before the report: nothing is trained again."""
    run = stopped.copy(tmp_path)
    calls = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(moment)
        if moment == "measure" and len(calls) == 1:
            return whole(*args, **kwargs)
        raise KeyboardInterrupt

    whole = getattr(steps, moment)
    with monkeypatch.context() as patch:
        patch.setattr(steps, moment, interrupted)
        assert run_here(flags(tiny, rows, run, resume=True)).code == 130
    logged.clear()
    assert run_here(flags(tiny, rows, run, resume=True)).code == 0
    assert logged == []
    assert_same_findings(run, finished)


def test_stopped_while_the_states_of_stage_1_are_written(
    finished: Finished, tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    logged: list[tuple[str, int]],
) -> None:  # fmt: skip
    """Half a file of states is none: they are computed again, stage 1 is not; the end is that of an undisturbed run."""
    run = tmp_path / "run"

    def halfway(tensors: dict[str, Tensor], path: Path) -> None:
        whole(tensors, path)
        if path.name.startswith("layer_states"):
            path.write_bytes(path.read_bytes()[:-100])
            raise KeyboardInterrupt

    whole = steps.save_file
    with monkeypatch.context() as patch:
        patch.setattr(steps, "save_file", halfway)
        assert run_here(flags(tiny, rows, run)).code == 130
    logged.clear()
    assert run_here(flags(tiny, rows, run, resume=True)).code == 0
    assert "stage1" not in {name for name, _ in logged}
    assert_same_findings(run, finished)


def test_resume_with_other_settings_names_them(stopped: Stopped, tiny: Path, rows: Path, tmp_path: Path) -> None:
    """A run is never continued with other settings: the message has each one's old and new value."""
    run = stopped.copy(tmp_path)
    before = contents(run)
    seen = run_here(flags(tiny, rows, run, resume=True, seed=7, contrastive_loss="circle"))
    assert seen.code == 1
    assert "begun with other settings" in seen.err
    assert "contrastive_loss: supervised_contrastive then, circle now; seed: 0 then, 7 now" in seen.err
    assert contents(run) == before


def test_resume_with_changed_data_names_the_file(tmp_path: Path) -> None:
    """A run is never continued on other rows than it was begun with."""
    rows = save_rows(tmp_path / "rows")
    files = {"pairs": "pairs", "instruction_rows": "instructions", "refusal_rows": "refusals"}
    paths = {setting: rows / f"{name}.jsonl" for setting, name in files.items()}
    settings = Settings("model", tmp_path / "run", 1, **paths, evaluation=(rows / "plain.jsonl",))
    RunFolder(settings).log({"stage": "stage1", "step": 1, "loss": 1.0})
    settings.resume = True
    RunFolder(settings)
    with (rows / "refusals.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r"other data \(.*refusals\.jsonl: [0-9a-f]{16} then, [0-9a-f]{16} now\)"):
        RunFolder(settings)


@pytest.mark.parametrize("resume", [False, True])
def test_a_finished_run_is_never_overwritten(resume: bool, finished: Finished, tiny: Path, rows: Path) -> None:
    """With or without --resume, a finished run stays as it is."""
    before = contents(finished.path)
    again = {"resume": True} if resume else {}
    seen = run_here(flags(tiny, rows, finished.path, **again))
    assert seen.code == 1
    assert "holds a finished run: look at its report.md" in seen.err
    assert contents(finished.path) == before


def test_half_a_line_of_metrics_is_dropped(tmp_path: Path) -> None:
    """A line cut off by a crash does not run into the next one; a step taken twice counts once, as it was last."""
    settings = Settings("model", tmp_path / "run", 1, evaluation=())
    RunFolder(settings).log({"stage": "stage1", "step": 1, "loss": 1.0})
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "stage1", "st')
    settings.resume = True
    run = RunFolder(settings)
    for row in ({"step": 1, "loss": 2.0}, {"step": 1, "development_auroc": 0.5}, {"step": 2, "loss": 3.0}):
        run.log({"stage": "stage1", **row})
    run.tidy_metrics()
    found = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [(row["step"], row.get("loss"), row.get("development_auroc")) for row in found] == [
        (1, 2.0, None),
        (1, None, 0.5),
        (2, 3.0, None),
    ]


def test_seconds_count_over_sessions(stopped: Stopped, tmp_path: Path) -> None:
    """The total time of a continued run includes what earlier sessions took up to their last finished part."""
    run = stopped.copy(tmp_path)
    done = json.loads((run / "checkpoints" / "elapsed.json").read_text())["seconds"]
    stage1 = json.loads((run / "checkpoints" / "stage1.json").read_text())["seconds"]
    assert done > stage1 > 0


def test_development_pairs_share_no_prompt_with_training(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """What a run trains on, chooses by and measures on are different prompts."""
    settings = Settings(
        str(tiny), tmp_path / "run", LAYER, development_pairs=8, instructions=12, refusals=4, baseline_refusals=6,
        pairs=rows / "pairs.jsonl", instruction_rows=rows / "instructions.jsonl", refusal_rows=rows / "refusals.jsonl",
        evaluation=(rows / "held_out.jsonl", rows / "plain.jsonl"),
    )  # fmt: skip
    data = inputs.load_data(settings)

    def prompts(pairs: list[Pair]) -> set[str]:
        return {text for p in pairs for text in (p.toxic, p.seemingly_toxic)}

    training = prompts(data.training) | {row.prompt for row in [*data.refusals, *data.baseline_mixture]}
    watched, held_out = {p.prompt for p in data.watched}, {p.prompt for p in data.held_out}
    assert not training & watched
    assert not (training | watched) & held_out
    assert {p.label for p in data.watched} == {"toxic", "seemingly_toxic", "plain"}
