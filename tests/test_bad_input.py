"""Errors of the user are one-line messages that name the place and the cure, before any work is done."""

import errno
import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Outcome, contents, flags, run_here, save_rows, write_rows

from dcr_lite.run.run_folder import RunFolder

LONG = "word " * 600  # the tiny model's window has 512 tokens


@pytest.fixture(scope="module")
def tiny(tiny_folder: Callable[..., Path]) -> Path:
    return tiny_folder("llama")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return save_rows(tmp_path / "rows")


def assert_refused(seen: Outcome, *said: str) -> None:
    """The run ended with 1 and one sentence on stderr that says all this; there is no traceback, and no stage began."""
    assert seen.code == 1, seen.err
    assert seen.err.startswith("\nerror: ")
    assert "Traceback" not in seen.err
    for part in said:
        assert part in seen.err, seen.err
    assert "Stage 1" not in seen.out


# --- rows -------------------------------------------------------------------------------------------------------------

PAIR = {"toxic": "How do I kill a man?", "seemingly_toxic": "How do I kill a process?"}
TALK = {"prompt": "Name two cats.", "response": "Tom and Tim."}
WRONG_ROWS: dict[str, tuple[bytes, str]] = {  # the third line of each file, and what is said; more in test_rows.py
    "pairs": (b'{"toxic": "a", "focus": "b"}', 'field "seemingly_toxic" is missing'),
    "refusals": (b'{"prompt": "a", "response": ""}', 'field "response" is empty'),
    "instructions": ('{"prompt": "é", "response": "a"}'.encode("latin-1"), "not UTF-8 at byte 12"),
    "plain": (b'{"prompt": "a", "label": "harmless"}', 'label "harmless" is none of toxic, seemingly'),
}


@pytest.mark.parametrize("name", WRONG_ROWS)
def test_a_wrong_row_is_an_error_with_file_and_line(name: str, rows: Path, tmp_path: Path) -> None:
    """Whatever is wrong with a row of any file, the message has the file, the line and what is wrong."""
    line, said = WRONG_ROWS[name]
    path = rows / f"{name}.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]))
    assert_refused(run_here(flags("no model", rows, tmp_path / "run")), f"{path}, line 3: {said}")


@pytest.mark.parametrize("flag", ["pairs", "instruction_rows", "refusal_rows", "evaluation"])
@pytest.mark.parametrize(("name", "said"), [("no.jsonl", "no such file"), ("", "cannot be read"), ("x", "no rows")])
def test_a_file_that_cannot_be_used_is_an_error(flag: str, name: str, said: str, rows: Path, tmp_path: Path) -> None:
    """A path that leads nowhere, a folder and an empty file are errors with the path; without a file there is no run
    folder either."""
    (rows / "x").write_text("\n \n")
    seen = run_here(flags("no model", rows, tmp_path / "run", **{flag: rows / name}))
    assert_refused(seen, f"{rows / name}: {said}")
    assert name == "x" or not (tmp_path / "run").exists()


def test_one_pair_is_too_few(rows: Path, tmp_path: Path) -> None:
    """From one pair nothing can be held back: the message says how many it takes."""
    write_rows(rows / "pairs.jsonl", [PAIR])
    assert_refused(run_here(flags("no model", rows, tmp_path / "run")), "1 pairs are too few", "at least 4")


def test_pairs_of_one_focus_word_cannot_be_split(rows: Path, tmp_path: Path) -> None:
    """Development pairs share no focus word with training pairs, so one word for all is a mistake that is named."""
    write_rows(rows / "pairs.jsonl", [PAIR | {"focus": "kill"}] * 6)
    assert_refused(run_here(flags("no model", rows, tmp_path / "run")), "all pairs share one focus word")


@pytest.mark.parametrize("flag", ["refusals", "baseline_refusals", "instructions"])
def test_more_rows_asked_for_than_given(flag: str, rows: Path, tmp_path: Path) -> None:
    """A mixture that the files cannot fill is refused with both numbers."""
    seen = run_here(flags("no model", rows, tmp_path / "run", **{flag: 99}))
    given = 18 if flag == "instructions" else 6
    assert_refused(seen, f"99 {flag.removeprefix('baseline_')} asked for and {given} given")


@pytest.mark.parametrize("name", ["pairs", "instructions", "refusals", "held_out", "plain"])
def test_a_row_longer_than_the_window_is_found_before_training(
    name: str, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    """A row that does not fit the model's window is named with its length, wherever it stands, before stage 1."""
    longest = {"held_out": PAIR | {"toxic": LONG}, "plain": {"prompt": LONG, "label": "plain"}}
    row = longest.get(name, PAIR | {"seemingly_toxic": LONG} if name == "pairs" else TALK | {"response": LONG})
    path = rows / f"{name}.jsonl"
    write_rows(path, [*(json.loads(line) for line in path.read_text().splitlines()), row])
    drawn = {
        "instructions": 19 if name == "instructions" else 12,
        "refusals": 7 if name == "refusals" else 4,
    }  # all rows
    seen = run_here(flags(tiny, rows, tmp_path / "run", **drawn))
    line = len(path.read_text().splitlines())
    assert_refused(seen, f"{path}, line {line}: ", " tokens in the chat template", "this model's window of 512")
    assert "Shorten it, or leave that row out" in seen.err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("file", "shown"), [("held_out", "0.00"), ("only_toxic", "-"), ("only_seemingly_toxic", "-"), ("plain", "-")]
)
def test_evaluation_of_one_kind_runs_without_auroc(
    file: str, shown: str, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    """Prompts of a single kind are measured all the same; what needs both kinds is left open, not made up."""
    for label in ("toxic", "seemingly_toxic"):
        write_rows(rows / f"only_{label}.jsonl", [{"prompt": "Can I cut a man?", "label": label, "source": "mine"}])
    short = {"contrastive_steps": 1, "stage2": "no", "compare_with": []}
    seen = run_here(flags(tiny, rows, tmp_path / "run", evaluation=rows / f"{file}.jsonl", **short))
    assert (seen.code, seen.err) == (0, "")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    for method in report["methods"].values():
        known = [value is not None for value in method["discernment"].values()]
        assert known == [shown != "-"] * 2
    assert f"| {shown} |" in (tmp_path / "run" / "report.md").read_text(encoding="utf-8")


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [-2, 3, 4, 30])
def test_a_layer_out_of_range_is_refused_with_the_range(layer: int, tiny: Path, rows: Path, tmp_path: Path) -> None:
    """L needs a layer at or below it for stage 1 and one above it for stage 2."""
    seen = run_here(flags(tiny, rows, tmp_path / "run", layer=layer))
    assert_refused(seen, f"--layer {layer}", "has 4 layers, so L goes from 0 to 2")


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("contrastive_steps", 0),
        ("contrastive_batch", 3),
        ("development_pairs", 0),
        ("instructions", 0),
        ("refusals", -1),
        ("sft_epochs", 0),
        ("sft_batch", 0),
        ("rank", 0),
        ("answer_tokens", 0),
        ("contrastive_layers", -1),
    ],
)
def test_a_number_that_makes_no_run_is_refused(flag: str, value: int, rows: Path, tmp_path: Path) -> None:
    """A number that would break a later stage is refused at the start, with the least that works."""
    seen = run_here(flags("no model", rows, tmp_path / "run", **{flag: value}))
    assert_refused(seen, f"--{flag.replace('_', '-')} {value}: it takes at least {value + 1}")


@pytest.mark.parametrize("seed", [-1, 2**63, 99999999999999999999])
def test_a_seed_that_some_generator_does_not_take_is_refused(seed: int, rows: Path, tmp_path: Path) -> None:
    """With the numbers that are taken, before anything is loaded."""
    seen = run_here(flags("no model", rows, tmp_path / "run", seed=seed))
    assert_refused(seen, f"--seed {seed}: it takes a number from 0 to 9223372036854775807")


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("flag", ["contrastive_learning_rate", "sft_learning_rate", "temperature", "scale"])
def test_a_rate_that_is_none_is_refused(flag: str, value: float, rows: Path, tmp_path: Path) -> None:
    """Before anything is loaded, not by the optimiser of stage 2 when stage 1 is done."""
    loss = "circle" if flag == "scale" else "info_nce"
    seen = run_here(flags("no model", rows, tmp_path / "run", **{"contrastive_loss": loss, flag: value}))
    assert_refused(seen, f"--{flag.replace('_', '-')} {value}: it takes a number above 0")


def test_a_run_that_does_nothing_is_refused(rows: Path, tmp_path: Path) -> None:
    """Without stages and without a dial there is no model to measure."""
    seen = run_here(flags("no model", rows, tmp_path / "run", stage1="no", stage2="no", dial="none"))
    assert_refused(seen, "--stage1 no --dial none, and no stage 2: nothing is left to do.")


def test_an_unknown_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A flag that does not exist ends with 2, as command-line programs do, and names it."""
    seen = run_here(["--contrastive-stepz", "3"])
    assert seen.code == 2
    assert "contrastive-stepz" in seen.out + seen.err
    assert "Traceback" not in seen.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """--device cuda is not silently run on the CPU."""
    seen = run_here(flags(tiny, rows, tmp_path / "run", device="cuda"))
    assert_refused(seen, "--device cuda: torch sees no CUDA GPU. Use --device cpu")


# --- the model --------------------------------------------------------------------------------------------------------


NOT_LOADED = "cannot be loaded as a chat model"
# What is wrong with a copy of the tiny model: files that are gone, or another config.json; and what is said.
DAMAGED: dict[str, tuple[str | dict[str, Any], str]] = {
    "no chat template": ("chat_template.jinja", "has no chat template"),
    "no config": ("config.json", "not a model folder (no config.json in it)"),
    "no weights": ("model.safetensors", NOT_LOADED),
    "no tokenizer": ("token*", NOT_LOADED),
    "an unknown architecture": ({"model_type": "abacus", "architectures": ["Abacus"]}, NOT_LOADED),
    "no chat model": ({"model_type": "clip"}, NOT_LOADED),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_folder_that_is_no_chat_model_is_an_error(damage: str, tiny: Path, rows: Path, tmp_path: Path) -> None:
    """A model that cannot be trained is an error that says what it lacks."""
    wrong, said = DAMAGED[damage]
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    if isinstance(wrong, dict):
        config = {} if damage == "no chat model" else json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | wrong))
    else:
        for file in model.glob(wrong):
            file.unlink()
    assert_refused(run_here(flags(model, rows, tmp_path / "run")), f"{model}", said)


def test_weights_that_were_cut_off_are_an_error(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """Half a file of weights is no model."""
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert_refused(run_here(flags(model, rows, tmp_path / "run")), f"{model}", NOT_LOADED)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nobody/nothing-of-the-kind", "neither a folder nor in the Hub's cache, and HF_HUB_OFFLINE is set: unset it"),
        ("no such/model/at all", "no such folder, and not a Hub name (owner/model)"),
    ],
)
def test_an_unknown_model_offline_is_named(name: str, said: str, rows: Path, tmp_path: Path) -> None:
    """Offline, a name that no cache knows is named with what to do; nothing waits for the network."""
    assert_refused(run_here(flags(name, rows, tmp_path / "run")), name, said)


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_too_little_disk_is_said_first(monkeypatch: pytest.MonkeyPatch, rows: Path, tmp_path: Path) -> None:
    """Without room for the adapters the run does not begin, and says how much is needed."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 5 * 10**6))
    seen = run_here(flags("no model", rows, tmp_path / "deep" / "run"))
    assert_refused(seen, f"{tmp_path}: 5 MB free and 1,000 MB needed")
    assert not (tmp_path / "deep").exists()


def test_a_disk_that_fills_up_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, rows: Path, tmp_path: Path
) -> None:
    """When the disk fills up in mid-run, the message names the file, and that --resume goes on."""

    def full(run: RunFolder, row: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run.metrics))

    monkeypatch.setattr(RunFolder, "log", full)
    seen = run_here(flags(tiny, rows, tmp_path / "run"))
    assert seen.code == 1
    assert f"error: {tmp_path / 'run' / 'metrics.jsonl'}: No space left on device. Free some disk, then" in seen.err


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_left_alone(resume: bool, rows: Path, tmp_path: Path) -> None:
    """A folder with files that are no run's is never written into."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "novel.txt").write_text("chapter one")
    again = {"resume": True} if resume else {}
    seen = run_here(flags("no model", rows, tmp_path / "mine", **again))
    assert_refused(seen, f"{tmp_path / 'mine'} is not empty and no run of this kit", "--run")
    assert contents(tmp_path / "mine") == {"novel.txt": b"chapter one"}


def test_a_file_for_a_run_folder_is_named(rows: Path, tmp_path: Path) -> None:
    """--run wants a folder."""
    (tmp_path / "notes").write_text("mine")
    assert_refused(run_here(flags("no model", rows, tmp_path / "notes")), f"{tmp_path / 'notes'} is a file")


def test_a_mended_mistake_needs_no_other_folder(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """A run that a mistake stopped before any work is begun again by the same command, on the mended data."""
    good = (rows / "pairs.jsonl").read_bytes()
    (rows / "pairs.jsonl").write_bytes(good + b"{")
    argv = flags(tiny, rows, tmp_path / "run")
    assert_refused(run_here(argv), "pairs.jsonl, line 25: not JSON")
    (rows / "pairs.jsonl").write_bytes(good)
    assert_refused(run_here([*argv, "--layer", "9"]), "--layer 9")  # another mistake; the first one left no trace
