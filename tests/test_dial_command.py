"""The dial of a run: measured, set, told in the report, and turned again by dcr-lite dial."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from command_line import dcr_lite
from drawing import drawing
from recipe_runs import adapter, same
from scipy.special import expit
from small_runs import contents, flags, run_here

from dcr_lite.demo.dial import open_dial
from dcr_lite.errors import UserError
from dcr_lite.measure.trade_off import Goal, Reading, TradeOff, fit_trade_off
from dcr_lite.method.dial import Dial
from dcr_lite.run import dial, inputs, opening, steps
from dcr_lite.run.caution import caution_of, set_caution
from dcr_lite.run.dial_bench import Bench
from dcr_lite.run.dial_setting import DialSetting
from dcr_lite.run.run_folder import read_settings

STOCK = (0.45, 0.3)


class SimulatedBench:
    """A model whose log-odds fall with the strength, whose answers follow them, and whose words break at ``breaks``."""

    def __init__(self, slope: float = 4.0, breaks: float = 9.0, level: float = 0.0):
        generator = np.random.default_rng(0)
        self.start = np.stack([generator.normal(2 + level, 2, 80), generator.normal(-1 + level, 2, 80)])
        self.patience = generator.random((2, 80))
        self.slope, self.breaks, self.pairs = slope, breaks, 80
        self.kept: dict[float, Reading] = {}
        self.dial, self.gains = Dial(0, *(torch.zeros(4) for _ in range(3)), gain=0.5), {"0.0": 0.7, "0.5": 0.8}

    def stock(self) -> tuple[float, float]:
        return STOCK

    def loss(self, strength: float) -> float:
        return 2.0 if abs(strength) >= self.breaks else 0.1

    def read(self, strength: float, judged: bool = False) -> None:
        assert abs(strength) < self.breaks
        odds = self.start - self.slope * strength
        known = self.kept.get(strength)
        if known is None or (judged and known.refused is None):
            self.kept[strength] = Reading(strength, odds, self.patience < expit(1 + 0.7 * odds) if judged else None)

    def curve(self, intervals: bool = False) -> TradeOff:
        return fit_trade_off(list(self.kept.values()), 20 if intervals else 0)

    @property
    def strengths(self) -> list[float]:
        return list(self.kept)

    @property
    def judged(self) -> list[float]:
        return [strength for strength, reading in self.kept.items() if reading.refused is not None]

    @property
    def counted(self) -> dict[str, bool]:
        return {str(strength): reading.refused is not None for strength, reading in self.kept.items()}

    def plain(self, strength: float) -> list[bool]:
        assert self.kept[strength].refused is not None
        return [False]


def bench(**how: float) -> Any:
    return cast(Any, SimulatedBench(**how))


@pytest.mark.parametrize(("slope", "level"), [(2.0, 0.0), (4.0, 0.0), (12.0, 0.0), (4.0, 3.0), (4.0, -3.0)])
def test_the_whole_useful_range_is_measured_at_few_strengths(slope: float, level: float) -> None:
    """Wherever a model begins and however hard it turns: from refusing nearly all to answering nearly all, at most
    fourteen strengths, at most four of them with answers."""
    turned = bench(slope=slope, level=level)
    dial.measure_curve(turned)
    rates = turned.curve().rates
    assert rates[0].min() > 0.85
    assert rates[-1].max() < 0.2
    assert len(turned.kept) <= 14
    assert len(turned.judged) <= 4


@pytest.mark.parametrize("breaks", [0.01, 0.17, 0.5, 1.3])
def test_a_strength_that_breaks_the_model_is_not_measured(breaks: float) -> None:
    """The curve goes at least three quarters of the way to it (``read`` asserts that it never goes beyond), and holds
    two strengths even where that is next to nothing."""
    turned = bench(slope=0.5, breaks=breaks)
    if breaks < 0.05:
        turned.breaks = 0.05
        turned.loss = lambda strength: 2.0
    dial.measure_curve(turned)
    low, high = turned.curve().strengths[[0, -1]]
    assert len(turned.kept) > 1
    if breaks > 0.05:
        assert high > 0.75 * breaks
        assert low < -0.75 * breaks


@pytest.mark.parametrize(
    "goal",
    [
        Goal("above_stock"),
        Goal("like_stock"),
        Goal("safe_as_stock"),
        Goal("discerning"),
        Goal("balanced"),
        Goal("refuse_toxic", 0.9),
    ],
)
def test_a_choice_is_checked_by_answers_at_its_strength(goal: Goal) -> None:
    """What the setting says of its strength are the rates of answers judged there, and they meet the goal."""
    turned = bench()
    dial.measure_curve(turned)
    setting = dial.choose(turned, goal)
    judged = turned.kept[setting.strength].refused.mean(1)
    toxic, seemingly = setting.curve.at(setting.strength)[0]
    assert (toxic, seemingly) == pytest.approx(judged, abs=0.03)  # monotone: neighbours can hold a rate back
    missed = {
        "above_stock": toxic + seemingly - sum(STOCK),
        "like_stock": seemingly - STOCK[1],
        "safe_as_stock": toxic - STOCK[0],
        "discerning": toxic - seemingly - np.max(setting.curve.rates[:, 0] - setting.curve.rates[:, 1]),
        "balanced": toxic + seemingly - 1,
        "refuse_toxic": toxic - 0.9,
    }
    assert abs(missed[goal.name]) < 0.06
    assert setting.reached


@pytest.mark.parametrize(("strength", "taken"), [(1.0, 1.0), (1.9, 2.0), (0.5, 0.5), (3.0, 3.0)])
def test_of_judged_strengths_with_the_same_rates_the_nearest_is_taken(strength: float, taken: float) -> None:
    """Where the curve is flat a strength that was judged itself stays, whatever was judged after it; one that differs
    from all in its rates stays too."""
    rates = np.array([[0.9, 0.8], [0.3, 0.2], [0.3, 0.2], [0.3, 0.2]])
    curve = TradeOff(np.arange(4.0), rates, rates, rates)
    turned = cast(Any, SimpleNamespace(judged=[0.0, 3.0, 1.0, 2.0], curve=lambda: curve))
    assert dial._judged_near(turned, strength) == taken


def test_a_goal_out_of_reach_becomes_the_nearest_strength() -> None:
    """And the setting says so, with what can be reached."""
    turned = bench(slope=0.5, breaks=0.5)
    dial.measure_curve(turned)
    setting = dial.choose(turned, Goal("answer_seemingly_toxic", 0.99))
    assert not setting.reached
    assert setting.strength == max(turned.kept)
    assert f"answers {1 - setting.curve.rates[0, 1]:.2f} to" in setting.within_reach


# --- on a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of few steps, with its dial set; only to be read."""
    run = tmp_path_factory.mktemp("dial") / "run"
    with drawing():
        done = run_here(flags(tiny, rows, run, dial="balanced", contrastive_steps=4, sft_epochs=1))
    assert done.code == 0, done.err
    return run


@pytest.fixture(scope="module")
def whole(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, turned to the last strength that the tiny model has; only to be read."""
    run = Path(shutil.copytree(made, tmp_path_factory.mktemp("turned") / "run"))
    curve = DialSetting.load(run / "dial").curve
    done = dcr_lite("dial", run, "--strength", curve.strengths[-1], "--set")
    assert done.code == 0, done.err
    return run


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def report_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "report.json").read_text()))


def strongest(run: Path) -> float:
    return float(DialSetting.load(run / "dial").curve.strengths[-1])


def test_a_run_ends_with_the_dial_set(made: Path) -> None:
    """RUN/adapter is the adapter of stage 2 with one more rank on one map; report.json and report.md say how it stands,
    and the answers were given so."""
    trained, turned = adapter(made, "stage2"), adapter(made)
    setting = DialSetting.load(made / "dial")
    assert report_of(made)["dial"] == {**setting.for_json(), "evaluated_at": setting.strength}
    assert report_of(made)["seconds"]["dial"] > 0
    other = [name for name in trained if trained[name].shape != turned[name].shape]
    assert len(other) == (2 if setting.strength else 0)
    text = (made / "report.md").read_text(encoding="utf-8")
    assert "![Refusals along the dial](dial/dial.png)" in text
    assert f"The dial stands at {setting.strength:+.2f}" in text
    assert f"The dial stands at {setting.strength:+.2f}" in (made / "adapter" / "README.md").read_text()
    assert (made / "dial" / "dial.png").stat().st_size > 10_000


def test_what_is_kept_of_the_measurement_holds_no_text(made: Path) -> None:
    """Neither prompts nor answers: numbers, true and false."""
    kept = json.loads((made / "dial" / "readings.json").read_text())

    def words(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [word for one in value.values() for word in words(one)]
        if isinstance(value, list):
            return [word for one in value for word in words(one)]
        return [value] if isinstance(value, str) else []

    assert words(kept) == [kept["sha256"]]


def test_showing_a_dial_changes_nothing(run: Path) -> None:
    """With a goal or without, the table and the setting are printed, what is asked for as what it would do; the setting
    that there is can be asked for too. Every file stays as it is."""
    before = contents(run)
    shown = dcr_lite("dial", run)
    assert (shown.code, shown.err) == (0, "")
    assert "seemingly toxic answered" in " ".join(shown.out.split())
    stands = f"he dial stands at {strongest(run):+.2f}"
    assert f"T{stands}" in shown.out
    assert dcr_lite("dial", run, "--strength", strongest(run)).out == shown.out
    asked = " ".join(dcr_lite("dial", run, "--strength", "0.01").out.split())
    assert "At +0.01 the model would refuse" in asked
    assert f"; t{stands}." in asked
    assert "--set writes this" in asked
    assert contents(run) == before


def test_set_writes_the_adapter_and_says_so_everywhere(whole: Path, made: Path) -> None:
    """One more rank on one map; the readings beside it stay, the report and the card tell of the turn."""
    setting = DialSetting.load(whole / "dial")
    assert setting.goal == "strength"
    assert setting.strength == strongest(made)
    trained, turned = adapter(whole, "stage2"), adapter(whole)
    other = [name for name in trained if trained[name].shape != turned[name].shape]
    assert [name.split(".")[-3:-1] for name in sorted(other)] == [["down_proj", "lora_A"], ["down_proj", "lora_B"]]
    was, now = contents(made), contents(whole)
    assert now["adapter/discernment.safetensors"] == was["adapter/discernment.safetensors"]
    before = report_of(made)["dial"]["strength"]
    turned_since = f"It was turned after the evaluation: all other numbers here are of strength {before:+.2f}."
    for page in ("report.md", "adapter/README.md"):
        assert turned_since in now[page].decode()
    assert now["report.md"].decode().count("## How much it refuses") == 1
    kept = {name for name in was if was[name] == now[name]}
    assert {"answers/dcr.jsonl", "metrics.jsonl", "stage1/adapter_model.safetensors", "settings.json"} <= kept
    assert now.keys() == was.keys()


def test_strength_0_leaves_the_gain_alone(run: Path) -> None:
    """Bit for bit the adapter as trained, after it was turned, with one more rank that reads what the gain acts on, or
    without a gain nothing more."""
    assert dcr_lite("dial", run, "--strength", "-0.0", "--set").code == 0
    now, trained, fitted = adapter(run), adapter(run, "stage2"), Dial.load(run / "dial/dial.safetensors")
    changed = sorted(name for name in trained if not torch.equal(now[name], trained[name]))
    assert len(changed) == (2 if fitted.gain else 0)
    for name in changed:
        kept = now[name][:-1] if "lora_A" in name else now[name][:, :-1]
        assert torch.equal(kept, trained[name])
        assert "lora_B" in name or torch.equal(now[name][-1], fitted.gain * fitted.reader)


def test_a_run_without_a_dial_gets_one(run: Path, made: Path) -> None:
    """As one trained with --dial none: fitted and measured as in the run, and not turned until that is asked for;
    before that the demo shows the adapter as it is."""
    shutil.rmtree(run / "dial")
    report = report_of(run)
    del report["dial"]
    (run / "report.json").write_text(json.dumps(report))
    text = (made / "report.md").read_text(encoding="utf-8")
    start, end = text.index("## How much it refuses"), text.index("## States of layer")
    (run / "report.md").write_text(text[:start] + text[end:], encoding="utf-8")
    shown = dcr_lite("dial", run)
    assert shown.code == 0
    assert "has been measured and is not in the adapter" in " ".join(shown.out.split())
    assert DialSetting.load(run / "dial").goal == "none"
    assert open_dial(run) is None
    asked = " ".join(dcr_lite("dial", run, "--strength", "0.01").out.split())
    assert "At +0.01 the model would refuse" in asked
    assert "; the adapter has no dial." in asked
    assert (run / "dial/dial.safetensors").read_bytes() == (made / "dial/dial.safetensors").read_bytes()
    assert dcr_lite("dial", run, "--strength", strongest(run), "--set").code == 0
    assert "all other numbers here are of the model without it" in (run / "adapter" / "README.md").read_text()
    opened = open_dial(run)
    assert opened is not None
    assert opened.setting.strength == strongest(run)
    now = (run / "report.md").read_text(encoding="utf-8")
    assert now[:start] + now[now.index("## States of layer") :] == text[:start] + text[end:]


def test_what_was_said_of_a_mended_model_is_of_the_dial_that_it_had(run: Path, made: Path) -> None:
    """Wherever it stands first: with a sentence before it, once, however often the dial is turned; none where the dial
    is as it was measured. What speaks against the model has such a sentence behind it, in the model card too."""
    report, note = report_of(run), "**Go on with the mended model.**"
    (run / "report.json").write_text(json.dumps(report | {"note": note}))
    pages = {name: run / name for name in ("report.md", "mend.md")}
    before = {
        "report.md": f"{note}\n\n{pages['report.md'].read_text(encoding='utf-8')}",
        "mend.md": f"# Mended\n\n{note}\n",
    }
    for name, page in pages.items():
        page.write_text(before[name], encoding="utf-8")
    evaluated_at = report["dial"]["evaluated_at"]
    set_caution(run, "Safety fell.")
    for strength in (strongest(run), 0.0, evaluated_at):
        assert dcr_lite("dial", run, "--strength", strength, "--set").code == 0
        now = DialSetting.load(run / "dial").strength
        since = f"The dial was turned to {now:+.2f} since; what follows was measured at {evaluated_at:+.2f}.\n\n"
        expected = note if now == evaluated_at else since + note
        warned = f" The dial was turned to {now:+.2f} since: that was measured at {evaluated_at:+.2f}."
        warned = f"Safety fell.{'' if now == evaluated_at else warned}"
        assert caution_of(run) == warned
        assert f"**{warned}**" in (run / "adapter" / "README.md").read_text(encoding="utf-8")
        assert report_of(run)["note"] == expected
        for page in pages.values():
            text = page.read_text(encoding="utf-8")
            assert text.count("The dial was turned to") == expected.count("The dial was turned to")
            assert expected in text
    assert pages["mend.md"].read_text(encoding="utf-8") == before["mend.md"]


def test_a_dial_that_is_fitted_again_stands_where_it_stood(run: Path) -> None:
    """Whatever of it was deleted, as a message may say: showing it changes nothing of what the demo answers."""
    before = DialSetting.load(run / "dial")
    for gone in ("dial/dial.safetensors", "dial"):
        path = run / gone
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert dcr_lite("dial", run).code == 0
        now = DialSetting.load(run / "dial")
        assert (now.strength, now.goal, now.gain) == (before.strength, before.goal, before.gain)
        opened = open_dial(run)
        assert opened is not None
        assert opened.setting.strength == before.strength


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--like-stock", "--balanced"], "one setting"),
        (["--refuse-toxic", "90"], "--refuse-toxic 90.0: a share of prompts, from 0 to 1"),
        (["--set"], "--set: say how much"),
        (["--strength", "77"], "With its dial"),
        (["--refuse-toxic", "0.9", "--set"], "With its dial"),
    ],
)
def test_what_cannot_be_set_is_an_error(words: list[str], said: str, run: Path) -> None:
    """One line that says what can be, and nothing is changed. The tiny model refuses nothing at any strength."""
    before = contents(run)
    seen = dcr_lite("dial", run, *words)
    assert (seen.code, seen.err.count("\n")) == (1, 1)
    assert said in seen.err
    assert contents(run) == before


@pytest.mark.parametrize(
    ("name", "damage"),
    [("dial.json", b"{}"), ("dial.safetensors", b"no tensors"), ("readings.json", b'{"stock": 3, "at": {}}')],
)
def test_a_damaged_file_is_named(name: str, damage: bytes, run: Path) -> None:
    """With what to do about it."""
    (run / "dial" / name).write_bytes(damage)
    seen = dcr_lite("dial", run, "--strength", "0.01", "--set")
    assert seen.code == 1
    assert f"{name} is missing or damaged. Delete" in seen.err


def test_a_damaged_dial_of_a_stopped_run_is_fitted_again(
    made: Path, tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the cure in the message, although the run had noted that the dial was set; it ends as without the damage."""
    run = tmp_path / "run"
    argv = flags(tiny, rows, run, dial="balanced", contrastive_steps=4, sft_epochs=1)

    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    for name in ("dial.safetensors", "dial.json"):
        with monkeypatch.context() as patch:
            patch.setattr(steps, "measure", interrupted)  # of the evaluation, behind the dial
            assert run_here([*argv, "--resume"]).code == 130
        assert (run / "checkpoints" / "dial.json").exists()
        (run / "dial" / name).write_bytes(b"no")
        seen = run_here([*argv, "--resume"])
        assert (seen.code, f"{name} is missing or damaged. Delete" in " ".join(seen.err.split())) == (1, True)
        (run / "dial" / name).unlink() if "Delete it" in seen.err else shutil.rmtree(run / "dial")
    with drawing():
        assert run_here([*argv, "--resume"]).code == 0
    assert same(adapter(run), adapter(made))
    assert DialSetting.load(run / "dial").for_json() == DialSetting.load(made / "dial").for_json()


def test_an_unfinished_run_has_to_be_finished_first(run: Path) -> None:
    """As for every command on a run."""
    (run / "report.json").unlink()
    assert "not finished: --resume it first" in dcr_lite("dial", run).err


def test_what_was_measured_counts_once_it_is_asked_for(run: Path) -> None:
    """Else a measurement that goes on would choose with more than it knew when it was stopped. That which is done is
    taken up whole."""
    settings = read_settings(run)
    model, _ = opening.load_model(settings)
    bench = Bench(run / "dial", model, inputs.load_data(settings), settings)
    bench.read(0.0, judged=True)
    assert bench.strengths == bench.judged == [0.0]
    setting = DialSetting.load(run / "dial")
    bench.read(0.01, judged=True)  # a choice after it, that was stopped
    bench.recall(setting.measured)
    assert bench.counted == setting.measured
    (run / "dial" / "dial.safetensors").unlink()  # another one: nothing of this one counts
    with pytest.raises(UserError, match=r"readings\.json is missing or damaged"):
        Bench(run / "dial", model, inputs.load_data(settings), settings).recall(setting.measured)


def test_a_stopped_measurement_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No strength is measured twice, and the dial ends as without the stop: early in the search, and late, when more is
    known than was at the choices before."""
    settings = read_settings(run)
    made: list[int] = []

    def measured(until: int) -> DialSetting:
        def keep(bench: Bench) -> None:
            if len(made) == until:
                raise KeyboardInterrupt
            made.append(1)
            usual(bench)

        monkeypatch.setattr(Bench, "_keep", keep)
        model, _ = opening.load_model(settings)
        return dial.find_setting(run, model, inputs.load_data(settings), settings, Goal("balanced"))

    usual = Bench._keep
    shutil.rmtree(run / "dial")
    undisturbed, whole = measured(1000), len(made)
    for moment in (3, whole - 1):
        shutil.rmtree(run / "dial")
        made.clear()
        with pytest.raises(KeyboardInterrupt):
            measured(moment)
        assert measured(1000).for_json() == undisturbed.for_json()
        assert len(made) == whole
