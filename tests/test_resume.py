"""A run can be stopped anywhere and goes on; what is finished is never repeated or overwritten."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from recipe_runs import Finished, Stopped, assert_same_findings, run_and_stop, small_settings
from small_runs import BASELINE_STEPS, RECIPE, contents, flags, run_here, save_rows
from torch import Tensor

from dcr_lite.errors import UserError
from dcr_lite.files import SHIPPED, read_state, write_state
from dcr_lite.method import dial
from dcr_lite.model.memory import Fit
from dcr_lite.run import opening, steps
from dcr_lite.run.obstacles import LOCK
from dcr_lite.run.run_folder import RunFolder, read_settings
from dcr_lite.settings import Settings


def test_killed_in_stage1_ends_as_undisturbed(
    finished: Finished, tiny: Path, rows: Path, tmp_path: Path, logged: list[tuple[str, int]]
) -> None:
    """SIGKILL between two checkpoints of stage 1, with half a line in metrics.jsonl: --resume goes on from the last
    checkpoint, the best weights so far with it, and ends bit for bit where an undisturbed run does."""
    run = tmp_path / "run"
    seen = run_and_stop(("log", "stage1", 13), signal.SIGKILL, flags(tiny, rows, run), tmp_path / "mark")
    assert seen.code == -signal.SIGKILL
    assert (run / "metrics.jsonl").read_text().endswith('\n{"stage": "sta')
    assert 0 < finished.report["stage1"]["best_step"] < 12  # so the checkpoint of step 12 has to hold its weights
    assert run_here(flags(tiny, rows, run, resume=True)).code == 0
    assert logged[0] == ("stage1", 13)
    assert_same_findings(run, finished)


def test_killed_while_saving_in_stage2_ends_as_undisturbed(
    finished: Finished, tiny: Path, rows: Path, tmp_path: Path, logged: list[tuple[str, int]]
) -> None:
    """SIGKILL in the middle of writing a checkpoint of stage 2: the half file is not taken for a whole one, the run
    goes on from the checkpoint before it and ends bit for bit where an undisturbed one does."""
    run = tmp_path / "run"
    seen = run_and_stop(("save", "stage2", 2), signal.SIGKILL, flags(tiny, rows, run), tmp_path / "mark")
    assert seen.code == -signal.SIGKILL
    half, whole = (run / "checkpoints" / f"stage2.pt{end}" for end in (".partial", ""))
    assert 0 < half.stat().st_size < whole.stat().st_size
    assert torch.load(whole, weights_only=True)["progress"]["step"] == 4
    assert run_here(flags(tiny, rows, run, resume=True)).code == 0
    assert logged[0] == ("stage2", 5)  # and stage 1, which was done, took no step
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
    """Ctrl-C finishes the step and saves: --resume repeats not one step, and ends where an undisturbed run does; moving
    the folder is no obstacle."""
    run = stopped.copy(tmp_path)
    assert run_here(flags(tiny, rows, run, resume=True)).code == 0
    assert logged == [("safety_sft", step) for step in range(4, BASELINE_STEPS + 1)]
    assert_same_findings(run, finished)


def test_stopped_after_training_ends_as_undisturbed(
    finished: Finished, stopped: Stopped, tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    logged: list[tuple[str, int]],
) -> None:  # fmt: skip
    """Stopped between two models' answers, among the pictures and before the report, one after the other: nothing is
    trained again."""
    run = stopped.copy(tmp_path)
    calls = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(moment)
        if calls == ["measure"]:
            return whole(*args, **kwargs)
        raise KeyboardInterrupt

    for moment in ("measure", "draw_run", "write_report"):
        whole = getattr(steps, moment)
        with monkeypatch.context() as patch:
            patch.setattr(steps, moment, interrupted)
            assert run_here(flags(tiny, rows, run, resume=True)).code == 130
        assert bool(logged) == (moment == "measure")
        logged.clear()
    assert calls == ["measure", "measure", "draw_run", "write_report"]
    assert run_here(flags(tiny, rows, run, resume=True)).code == 0
    assert logged == []
    assert_same_findings(run, finished)


def test_stopped_while_the_states_of_stage_1_are_written(
    finished: Finished, stopped: Stopped, tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    logged: list[tuple[str, int]],
) -> None:  # fmt: skip
    """Half a file of states is none: they are computed again, stage 1 is not; the end is that of an undisturbed run."""
    run = stopped.copy(tmp_path)
    (run / "checkpoints" / "layer_states.safetensors").unlink()

    def halfway(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
        data = whole(tensors, metadata)
        if "mean" in tensors:  # the geometry's, which the states begin with
            (run / "checkpoints" / "layer_states.safetensors.partial").write_bytes(data[:-100])
            raise KeyboardInterrupt
        return data

    whole = safetensors.torch.save
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save", halfway)
        assert run_here(flags(tiny, rows, run, resume=True)).code == 130
    assert logged == []
    assert run_here(flags(tiny, rows, run, resume=True)).code == 0
    assert "stage1" not in {name for name, _ in logged}
    assert_same_findings(run, finished)


def test_what_is_done_leaves_the_passes_of_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after a finished stage goes through in the passes that it had, as without the stop: a dial is fitted
    to the beginning that all prompts share once a pass."""
    planned: list[str] = []
    model: Any = SimpleNamespace(plan_passes=planned.append)
    run: Any = SimpleNamespace(finished=lambda name: {"seconds": 1.0}, layer_states=Path(__file__))
    none: Any = SimpleNamespace(only_turned=False, dial="none")
    monkeypatch.setattr(steps, "restore", lambda *of: None)
    steps.refine(run, model, none, none)
    steps.train_safety_sft(run, model, "stage2", "dcr", "Stage 2", [], 1, none, none)
    assert planned == ["stage1", "stage2"]


def test_what_a_dial_cannot_be_put_on_is_said_before_stage_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after hours of training."""
    run: Any = SimpleNamespace(finished=None, layer_states=None)
    settings: Any = SimpleNamespace(only_turned=False, dial="balanced", layer=0)
    layer = SimpleNamespace(feed_forward=None)
    decoder = SimpleNamespace(layers=[layer])
    network = SimpleNamespace(config=SimpleNamespace(model_type="lfm2"))
    monkeypatch.setattr(dial, "decoder_of", lambda network: decoder)
    with pytest.raises(UserError, match=r"type lfm2 cannot carry a dial.*--dial none, with another --run"):
        steps.refine(run, cast(Any, SimpleNamespace(network=network)), cast(Any, None), settings)


def test_a_run_that_goes_on_asks_for_the_disk_that_is_left(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has written before is there already."""
    asked: list[int] = []
    monkeypatch.setattr(opening, "require_disk", lambda folder, needed: asked.append(needed))
    settings = small_settings(tiny, rows, tmp_path / "run")
    opening.will_it_fit(settings)
    (tmp_path / "run" / "stage1").mkdir(parents=True)
    (tmp_path / "run" / "stage1" / "weights").write_bytes(b"0" * 5000)
    opening.will_it_fit(settings)
    assert asked[0] - asked[1] == 5000


def test_resume_with_other_settings_names_them(stopped: Stopped, tiny: Path, rows: Path, tmp_path: Path) -> None:
    """A run is never continued with other settings: the message has each one's old and new value."""
    run = stopped.copy(tmp_path)
    before = contents(run)
    seen = run_here(flags(tiny, rows, run, resume=True, seed=7, contrastive_loss="circle"))
    assert seen.code == 1
    assert "begun with other settings" in seen.err
    assert "contrastive_loss: supervised_contrastive then, circle now; seed: 0 then, 7 now" in seen.err
    assert contents(run) == before


def test_resume_where_the_kit_was_installed_elsewhere(tmp_path: Path) -> None:
    """A run folder that was begun under another installation, in another notebook or before an upgrade, is continued
    and read with the shipped files of this one, as long as their rows are the same."""
    settings = Settings(model="model", run=tmp_path / "run")
    RunFolder(settings).log({"stage": "stage1", "step": 1, "loss": 1.0})
    settings.resume = True
    file = settings.run / "settings.json"
    file.write_text(file.read_text().replace(str(SHIPPED.parent.parent.parent), "/elsewhere/site-packages"))
    assert "/elsewhere/site-packages/dcr_lite/data/shipped/pairs.jsonl" in file.read_text()
    RunFolder(settings)
    assert read_settings(settings.run).files["pairs"] == SHIPPED / "pairs.jsonl"
    digest = next(iter(json.loads(file.read_text())["data"].values()))
    file.write_text(file.read_text().replace(digest, "0" * 16))
    with pytest.raises(UserError, match="begun with other data"):
        RunFolder(settings)
    with pytest.raises(UserError, match="made with other rows"):
        read_settings(settings.run)


def test_a_run_goes_on_in_the_numbers_that_it_was_begun_in(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a machine takes by itself may differ on the next one: there a stopped run takes what it was begun in, also
    where its memory is reckoned, and other flags than those are refused. A new run takes what the machine likes."""
    run = tmp_path / "run"
    given = {"precision": "auto", "contrastive_steps": 2, "sft_epochs": 1}
    seen = run_and_stop(("log", "stage1", 2), signal.SIGKILL, flags(tiny, rows, run, **given), tmp_path / "mark")
    assert seen.code == -signal.SIGKILL
    begun = read_state(run / "checkpoints" / "numbers.json", "")
    other = "bfloat16" if begun["precision"] == "float32" else "float32"
    for changes, said in (
        ({"precision": other}, f"--precision {begun['precision']}"),
        ({"quantization": "nf4"}, "--quantization none"),
    ):
        seen = run_here(flags(tiny, rows, run, resume=True, **given | changes))
        assert seen.code == 1
        assert f"was begun in other numbers: go on with {said}, or begin anew with another --run." in " ".join(
            seen.err.split()
        )
    write_state(begun | {"precision": other}, run / "checkpoints" / "numbers.json")  # as another machine leaves it
    settings = small_settings(tiny, rows, run, precision="auto")
    assert str(opening.load_model(settings)[0].precision) == f"torch.{other}"
    reckoned: list[Any] = []

    def what_fits(path: str, settings: Settings, on: Any) -> Fit:
        reckoned.append(on)
        return Fit({}, {}, {}, 0.0)

    with monkeypatch.context() as patch:
        patch.setattr(opening, "what_fits", what_fits)
        opening.will_it_fit(settings)
    settings.run = tmp_path / "new"
    assert str(opening.load_model(settings)[0].precision) != f"torch.{other}"
    assert [str(on.precision) for on in reckoned] == [f"torch.{other}"]


def test_resume_with_changed_data_names_the_file(tmp_path: Path) -> None:
    """A run is never continued on other rows than it was begun with."""
    rows = save_rows(tmp_path / "rows")
    settings = small_settings("model", rows, tmp_path / "run")
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


def test_what_a_kill_at_the_very_end_leaves_is_cleared(tmp_path: Path) -> None:
    """A run killed between its report and its end holds a finished run: asked for again, it loses the checkpoints and
    the lock that nobody holds."""
    settings = small_settings("model", save_rows(tmp_path / "rows"), tmp_path / "run")
    RunFolder(settings).close({})
    before = contents(settings.run)
    (settings.run / LOCK).touch()
    (settings.run / "checkpoints").mkdir()
    with pytest.raises(UserError, match="holds a finished run"):
        RunFolder(settings)
    assert contents(settings.run) == before
    assert not (settings.run / "checkpoints").exists()


def test_half_a_line_of_metrics_is_dropped(tmp_path: Path) -> None:
    """A line cut off by a crash does not run into the next one; a step taken twice counts once, as it was last."""
    settings = small_settings("model", save_rows(tmp_path / "rows"), tmp_path / "run")
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
    settings = read_settings(run)
    settings.resume = True
    begun = RunFolder(settings)
    assert done < begun.seconds() < done + 60
    begun.leave()
