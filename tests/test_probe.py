"""Claims about ``dcr-lite probe``: every model of a run under every probe, kept and continued; its tables fit; bad
inputs are sentences."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import run_command
from small_runs import contents, flags, recipe_module, save_rows, write_recipe, write_rows

from dcr_lite.compare import command as compare_command
from dcr_lite.compare import surgical
from dcr_lite.compare.methods import METHODS
from dcr_lite.compare.seed_run import Cost, SeedRun
from dcr_lite.errors import UserError
from dcr_lite.files import load_jsonl
from dcr_lite.measure.answers import read_answers
from dcr_lite.measure.metrics import mean_interval
from dcr_lite.names import NOT_APPLICABLE
from dcr_lite.probe import abliteration, command, material, plots, report, subjects
from dcr_lite.probe.command import Probing, probe_comparison, probe_run
from dcr_lite.probe.criterion import kept_sentence
from dcr_lite.probe.kept import Kept
from dcr_lite.probe.numbers import KINDS
from dcr_lite.probe.probes import FAMILIES, NONE, PROBES, chosen_probes
from dcr_lite.run import opening
from dcr_lite.run.inputs import resolved
from dcr_lite.run.recipes import settings_of

# Of every family, and whatever is done in a way of its own.
EVERY_WAY = (
    "prefill_5",
    "hello",
    "past_tense",
    "shop",
    "rot13",
    "int4",
    "tuned_0",
    "tuned_10",
    "abliteration",
    "sampling",
)
SOME = ("prefill_5", "rot13", "sampling")
Probed = tuple[Path, dict[str, Any]]


@pytest.fixture(autouse=True, scope="module")
def _small_probes() -> Iterator[None]:
    """A random model hardly opens with a whole refusal: single letters give probabilities that a choice can go by. And
    few candidates, and no second spent on measuring the processor."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dcr_lite.model.loading.REFUSING_OPENINGS", tuple("ISTaeg"))
        for module in (command, compare_command):
            patched.setattr(module, "matrix_rate", lambda device, precision: 1e10)
        patched.setattr(abliteration, "LAYERS", 0.3)
        patched.setattr(surgical, "DISCARDED", 0.7)
        patched.setattr(abliteration, "VALIDATION", 4)
        patched.setattr(material, "VALIDATION", 4)
        patched.setattr(material, "STEPS", (0, 4))
        patched.setattr(material, "is_refusal", cache(material.is_refusal))  # of the same instructions for every model
        yield


def finished(demo_run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(demo_run, folder / "tiny"))


@pytest.fixture(scope="module")
def probed(demo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Probed:
    """A finished run with three models, under probes of every family."""
    run = finished(demo_run, tmp_path_factory.mktemp("probe"))
    out = probe_run(run, Probing(EVERY_WAY, answer_tokens=4), "cpu")
    return out, json.loads((out / "probes.json").read_text())


def test_every_model_is_measured_under_every_probe(probed: Probed) -> None:
    """One row each, two for sampling, with rates of both kinds, J, broken answers and the change; the answers beside
    them are those that the rows count."""
    out, found = probed
    names = [NONE, *EVERY_WAY[:-1], "sampling_mean", "sampling_any"]
    rows = {(row["model"], row["probe"]): row for row in found["rows"]}
    assert set(rows) == {(model, name) for model in ("base", "safety_sft", "dcr") for name in names}
    assert found["prompts"] == {"toxic": 4, "seemingly_toxic": 4, "plain": 4}
    for (model, name), row in rows.items():
        file = "sampling" if name.startswith("sampling") else name
        answers = read_answers(out / "answers" / model / f"{file}.jsonl")
        assert len(answers) == {"sampling": 40}.get(file, 12 if PROBES[file].plain else 8)
        assert ("plain" in row["refused"]) == (file in (NONE, "past_tense", "rot13"))
        if file != "sampling":
            for label in ("toxic", "seemingly_toxic"):
                refused = [answer["refused"] for answer in answers if answer["label"] == label]
                assert row["refused"][label]["rate"] == sum(refused) / len(refused)
        rates = [row["refused"][label]["rate"] for label in ("toxic", "seemingly_toxic")]
        assert (row["n"], row["j"]) == (8, pytest.approx(rates[0] - rates[1]))
        assert row["change"] == pytest.approx(row["j"] - rows[model, NONE]["j"])
        assert 0 <= row["broken"] <= 1
        assert len(row["j_ci95"]) == len(row["change_ci95"]) == 2
    assert rows["dcr", "tuned_10"]["facts"]["loss"] > 0
    assert rows["dcr", "tuned_0"]["facts"]["loss"] is None
    assert {"layer", "position", "kl", "met"} <= rows["dcr", "abliteration"]["facts"].keys()
    assert rows["dcr", "prefill_5"]["facts"]["tokens"] == 5
    assert {"read", "read_as_plain_text", "read_by_chance"} <= rows["base", "rot13"]["facts"].keys()


def test_probes_change_what_they_say(probed: Probed) -> None:
    """Merging alone, the control of fine-tuning, leaves every answer as it was; rounding, tuning and the wordings do
    not, and each model is itself."""
    out, _ = probed

    def texts(model: str, probe: str) -> list[str]:
        return [row["response"] for row in load_jsonl(out / "answers" / model / f"{probe}.jsonl")][:8]

    for model in ("base", "safety_sft", "dcr"):
        assert texts(model, "tuned_0") == texts(model, NONE)
        changed = [name for name in EVERY_WAY if texts(model, name) != texts(model, NONE)]
        assert {"hello", "rot13", "prefill_5", "sampling", "int4"} <= set(changed)
    assert len({tuple(texts(model, NONE)) for model in ("base", "safety_sft", "dcr")}) == 3


def test_answers_without_a_probe_are_those_of_the_run(probed: Probed, demo_run: Path) -> None:
    """Of every model, DCR with its adapter as it lies in the run: asked for as many tokens, the same."""
    out, _ = probed
    for model in ("base", "safety_sft", "dcr"):
        own = {row["prompt"]: row["response"] for row in read_answers(demo_run / "answers" / f"{model}.jsonl")}
        for row in read_answers(out / "answers" / model / f"{NONE}.jsonl"):
            assert own[row["prompt"]].startswith(row["response"].rstrip("\N{REPLACEMENT CHARACTER}"))


def test_the_page_fits_a_terminal(probed: Probed) -> None:
    """80 columns; one table of J with a column for each model, one of what is kept of it and one of plain prompts, one
    of rates and one of AUROC for each model, one of what was read; no path and no answer in it."""
    out, found = probed
    text = (out / "probes.md").read_text()
    assert max(map(len, text.splitlines())) <= 100  # of prose; tables have a test of their own
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert "| probe | stock model | safety SFT alone | DCR |" in tables
    for row in found["rows"]:
        assert sum(line.startswith(f"| {row['title']} |") for line in tables) >= 4
    # J, what is kept of it, 3 of rates, plain prompts, 3 of AUROC, what was read
    assert sum(line.startswith("| rot13 |") for line in tables) == 10
    assert sum(line.startswith("| sampling |") for line in tables) == 3  # of AUROC: samples begin alike
    assert "4 toxic, 4 seemingly toxic, 4 plain prompts" in text
    assert (out / "probes.png").exists()
    assert str(out.parent) not in text


def test_the_tables_of_usual_numbers_have_eighty_columns() -> None:
    """Whatever the signs; a terminal pads cells to the widest of their column."""

    def entry(method: str, title: str, probe: str) -> dict[str, Any]:
        numbers = {name: {"mean": -0.125, "ci95": [-0.25, 0.25], "n": 1} for name in ("j", "change")}
        others = set(report.NUMBERS) - set(numbers)
        numbers |= {name: {"mean": 1.0, "ci95": [0.99, 1.0], "n": 1} for name in others}
        about = {"method": method, "model_title": title, "probe": probe, "title": probe.replace("_", " ")}
        return about | {"seeds": [0], "numbers": numbers}

    models = {"base": "stock model", "safety_sft": "safety SFT alone", "dcr": "DCR"}
    entries = [entry(method, title, name) for method, title in models.items() for name in PROBES if name != "sampling"]
    text = report.page(entries, [], {"toxic": 140, "seemingly_toxic": 140, "plain": 70})
    for table in text.split("\n\n"):
        rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
        if rows:
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            assert sum(widths) + 3 * len(widths) + 1 <= 80, rows[0]


def test_a_cell_has_j_and_its_change() -> None:
    """In hundredths, with a star where the interval excludes 0; never a minus before nothing; without a probe J alone,
    without a measurement a dash."""
    numbers = {"j": {"mean": 0.204}, "change": {"mean": -0.396, "ci95": [-0.5, -0.1]}}
    assert report._j_cell({"probe": "hello", "numbers": numbers}) == "0.20 -40*"
    assert report._j_cell({"probe": NONE, "numbers": numbers}) == "0.20"
    numbers = {"j": {"mean": -0.001}, "change": {"mean": -0.001, "ci95": [-0.1, 0.1]}}
    assert report._j_cell({"probe": "hello", "numbers": numbers}) == "0.00 +0"
    assert report._j_cell(None) == "-"


def kept(method: str, probe: str, mean: float | None, low: float = 0.0, high: float = 0.0) -> dict[str, Any]:
    """An entry with what a method keeps of its J, None: nothing is there to be kept."""
    numbers = {} if mean is None else {"kept": {"mean": mean, "ci95": [low, high], "n": 1}}
    title = {"dcr": "DCR", "safety_sft": "safety SFT alone"}[method]
    return {"method": method, "model_title": title, "probe": probe, "title": probe, "numbers": numbers}


def test_the_page_names_the_probes_under_which_dcr_keeps_less() -> None:
    """Of its own J, by the means, with both shares and whether the intervals overlap; those under which it keeps as
    much are counted. Where nothing is there to be kept, that is said, and without both models nothing."""
    shares = {"hello": (0.5, 0.5), "poem": (0.2, 0.4), "json": (0.1, 0.9), "shop": (0.9, -0.1)}
    ours = [kept("dcr", probe, share, share - 0.15, share + 0.15) for probe, (share, _) in shares.items()]
    theirs = [kept("safety_sft", probe, share, share - 0.15, share + 0.15) for probe, (_, share) in shares.items()]
    said = "DCR keeps at least as much of its J as safety SFT alone keeps of its own under"
    less = "poem (20 for 40 %, intervals overlap), json (10 for 90 %, intervals apart)"
    assert kept_sentence(ours + theirs) == f"{said} 2 of 4 probes, and less under {less}."
    assert kept_sentence(ours[:1] + theirs) == f"{said} 1 of 1 probes."
    nothing = [kept("safety_sft", probe, None) for probe in shares]
    assert "keep of their J cannot be compared: see the dashes" in kept_sentence(ours + nothing)
    assert kept_sentence(ours) == kept_sentence([]) == ""


def test_numbers_that_a_seed_lacks_are_left_out() -> None:
    """As refusals of plain prompts that were not asked, or what is kept of a J that is not above 0 with one of the
    seeds: a mean over the others would choose among them."""
    rates = {"toxic": {"rate": 0.5, "ci95": None}, "seemingly_toxic": {"rate": 0.25, "ci95": None}}
    about = {"method": "dcr", "model_title": "DCR", "probe": "novel", "title": "novel", "family": "framings"}
    numbers = dict.fromkeys(("broken", "j", "change", "opening", "states"), 0.25)
    rows = [{**about, "seed": seed, "refused": rates, **numbers, "kept": 0.5 - seed} for seed in (0, 1)]
    more = {"plain": {"rate": 0.125, "ci95": None}}
    rows[1] |= {"kept": None, "refused": rates | more}
    (entry,) = report.over_seeds(rows)
    assert entry["numbers"].keys() == {*numbers, "toxic", "seemingly_toxic"}
    whole = [row | {"kept": 0.5, "refused": rates | more} for row in rows]
    (entry,) = report.over_seeds(whole)
    assert {"mean": 0.125, "n": 2}.items() <= entry["numbers"]["plain"].items()
    assert {"mean": 0.5, "n": 2}.items() <= entry["numbers"]["kept"].items()


@pytest.mark.usefixtures("pictures")
def test_a_probe_with_fewer_seeds_is_beside_the_same_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where seeds were probed later, with fewer probes: the page names them, the picture joins J under a probe to
    J without one of its own seeds, and what DCR keeps is compared with what safety SFT alone keeps over the seeds that
    both have."""
    shares = {("dcr", 0): 0.5, ("dcr", 1): 0.1, ("safety_sft", 0): 0.4}  # of J, kept under json
    rates = {"toxic": {"rate": 0.5, "ci95": None}, "seemingly_toxic": {"rate": 0.25, "ci95": None}}
    rows = []
    for (method, seed), share in shares.items():
        usual = 0.8 - 0.4 * seed
        about = {"model": f"{method}_{seed}", "method": method, "model_title": method, "seed": seed, "refused": rates}
        others = {"note": "", "facts": {}, "family": "templates", "broken": 0.0, "opening": 0.5, "states": 0.5}
        for probe, j in ((NONE, usual), ("json", usual - 0.2), *(((("hello", usual)),) if seed else ())):
            numbers = {"j": j, "change": j - usual, "change_ci95": [-0.1, 0.1], "kept": share, "kept_ci95": [0.0, 0.6]}
            rows.append({**about, **others, "probe": probe, "title": probe.replace("_", " "), **numbers})
    entries = report.over_seeds(rows)
    text = report.page(entries, rows, {"toxic": 2, "seemingly_toxic": 2})
    assert "Means over the seeds 0, 1; intervals are over seeds.\n\nOver fewer seeds: " in text
    assert "safety_sft over 0 under none, json; dcr over 1 under hello. With a single one" in " ".join(text.split())
    assert "dcr keeps at least as much of its J as safety_sft keeps of its own under 1 of 1 probes." in text
    lines: list[list[float]] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: lines.extend(li.get_xdata() for li in figure.axes[0].lines))
    report.draw_probes(entries, tmp_path / "probes.png")
    joined = [tuple(map(float, line)) for line in lines if len(line) == 2]
    for own in ((0.6, 0.4), (0.8, 0.6), (0.4, 0.4)):  # J without and with: DCR under json, safety SFT too, DCR's hello
        assert any(line == pytest.approx(own) for line in joined), own


def test_a_stopped_probing_goes_on(
    probed: Probed, demo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is finished is not measured again; the numbers are those of an undisturbed probing; a finished one loads no
    model; further probes join it; the run itself is not touched."""
    _, undisturbed = probed
    run = finished(demo_run, tmp_path)
    before = contents(run)
    probing, asked = Probing(SOME, answer_tokens=4), []
    plain_ask = command.ask

    def ask(bench: Any, probe: Any, progress: Any) -> Any:
        asked.append((bench.title, probe.name))
        if len(asked) == 7:
            raise KeyboardInterrupt
        return plain_ask(bench, probe, progress)

    monkeypatch.setattr(command, "ask", ask)
    with pytest.raises(KeyboardInterrupt):
        probe_run(run, probing, "cpu")
    out = probe_run(run, probing, "cpu")
    assert len(asked) == 3 * (1 + len(SOME)) + 1
    assert asked.count(asked[6]) == 2
    assert len(set(asked)) == len(asked) - 1
    wanted = {row["probe"] for row in undisturbed["rows"]} & {NONE, *SOME, "sampling_mean", "sampling_any"}
    rows = [row for row in undisturbed["rows"] if row["probe"] in wanted]
    assert without_seconds(json.loads((out / "probes.json").read_text())["rows"]) == without_seconds(rows)
    monkeypatch.setattr(subjects.RunSource, "model", None)
    page = (out / "probes.md").read_bytes()
    (out / "probes.md").unlink()
    assert probe_run(run, Probing(("rot13",), answer_tokens=4), "cpu") == out
    assert (out / "probes.md").read_bytes() == page
    assert {name: data for name, data in contents(run).items() if not name.startswith("probes/")} == before


def without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_other_inputs_and_other_models_are_errors(
    probed: Probed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of other prompts, seeds, lengths, machines or of a dial that was turned since are never mixed."""
    out = Path(shutil.copytree(probed[0].parent, tmp_path / "run")) / "probes"
    for changes, what in (({"seed": 1}, "seed"), ({"rows": 2}, "prompts"), ({"answer_tokens": 5}, "answer tokens")):
        with pytest.raises(UserError, match=rf"begun with other inputs \({what}\)"):
            probe_run(out.parent, Probing(**{"answer_tokens": 4, **changes}), "cpu")
    with monkeypatch.context() as patched:
        patched.setattr(subjects.RunSource, "numbers", "float32, 4 bits")  # of a card
        with pytest.raises(UserError, match=r"begun with other inputs \(numbers\)"):
            probe_run(out.parent, Probing(answer_tokens=4), "cpu")
    shutil.copy(out.parent / "safety_sft" / "adapter_model.safetensors", out.parent / "adapter")
    with pytest.raises(UserError, match="is of another DCR: it was trained, or its dial turned, since"):
        probe_run(out.parent, Probing(answer_tokens=4), "cpu")
    assert probe_run(out.parent, Probing((NONE,), rows=2, answer_tokens=1, out=tmp_path / "other"), "cpu").exists()


@pytest.mark.parametrize("damage", ["a line is gone", "a field is gone", "not JSON", "gone"])
def test_damaged_answers_are_given_again(probed: Probed, demo_run: Path, tmp_path: Path, damage: str) -> None:
    """What an encoding left unread is told by those without a probe, by their numbers: they have to be the ones whose
    verdicts are kept. The error says what to delete."""
    source = subjects.RunSource(demo_run, "cpu")
    kept, dcr = Kept.__new__(Kept), source.subjects[-1]
    kept.folder = Path(shutil.copytree(probed[0], tmp_path / "probes"))
    path = kept.answers_file(dcr, PROBES[NONE])
    rows = load_jsonl(path)
    assert kept.answers(dcr, PROBES[NONE]) == rows
    if damage == "gone":
        path.unlink()
    elif damage == "not JSON":
        path.write_text("{\n", encoding="utf-8")
    else:
        changed = rows[1:] if damage == "a line is gone" else [rows[0], {**rows[1], "number": None}, *rows[2:]]
        write_rows(path, [{name: value for name, value in row.items() if value is not None} for row in changed])
    with pytest.raises(UserError, match=r"none\.jsonl.* damaged\. Delete .*none\.json to have them given again\.$"):
        kept.answers(dcr, PROBES[NONE])


def test_probes_of_merged_weights_are_left_out_in_4_bits(
    demo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the base model is rounded already; a line says so, and the others are measured, of which the count is. Then
    nothing is left to do, and no model is loaded for it."""
    run, probing = finished(demo_run, tmp_path), Probing(("rounding", "tuned_0", "hello"), answer_tokens=1)
    monkeypatch.setattr(subjects.RunSource, "four_bit", True)
    out = probe_run(run, probing, "cpu")
    found = {row["probe"] for row in json.loads((out / "probes.json").read_text())["rows"]}
    assert found == {NONE, "hello"}
    said = capsys.readouterr().out
    assert "DCR: left out, since the base model is in 4 bits: int4, nf4, tuned 0" in said
    assert "6/6 DCR, hello: J " in said
    monkeypatch.setattr(opening, "load_base", None)
    assert probe_run(run, probing, "cpu") == out


def test_a_method_that_asks_a_second_prompt_is_not_put_into_contexts(
    demo_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """AdaCD makes it of a single one; a line says so. Every other method is."""
    source = subjects.RunSource(demo_run, "cpu")
    probes = chosen_probes(("contexts", "hello"))
    adacd = source.subjects[-1]._replace(method="adacd", title="AdaCD")
    assert [probe.name for probe in command._fitting(source, adacd, probes)] == [NONE, "hello"]
    assert "left out, since its second prompt is made of a single one: assistant, shop, " in capsys.readouterr().out
    assert command._fitting(source, source.subjects[-1], probes) == probes
    assert command._fitting(source, adacd, probes, later=True) == []  # nor asked prompts that stand behind messages
    assert command._fitting(source, source.subjects[-1], probes, later=True) == probes


def test_whether_a_base_is_in_4_bits_is_known_without_it(demo_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the run's own settings and the device say."""
    monkeypatch.setattr(opening, "load_base", None)
    source = subjects.RunSource(demo_run, "cpu")
    assert not source.four_bit
    settings = opening.model_settings_of(demo_run)
    monkeypatch.setattr(opening, "model_settings_of", lambda run: replace(settings, quantization="nf4"))
    assert source.four_bit


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "give a run folder, or with --compared the folder of a comparison"),
        (["RUN", "--compared", "RUN"], "give a run folder, or with --compared the folder of a comparison"),
        (["nosuchrun"], "nosuchrun: no such run folder"),
        (["RUN", "--probes", "nosuch"], "--probes nosuch: no such probe; choose among prefilling, templates"),
        (["RUN", "--rows", "0"], "--rows 0: at least 1 is needed"),
        (["RUN", "--rows", "1"], "1 toxic prompts to probe with; at least 2 of each kind are needed"),
        (["RUN", "--answer-tokens", "0"], "--answer-tokens 0: at least 1 is needed"),
        (["RUN", "--seed", "99999999999999999999"], "--seed 99999999999999999999: it takes a number from 0 to"),
        (["RUN", "--methods", "dcr"], "--seeds are of a comparison: give them with --compared"),
        (["--compared", "RUN"], "holds no seed 0: dcr-lite compare --seeds 0 trains it"),
        (["--compared", "RUN", "--methods", "nosuch"], "--methods nosuch: no such method; choose among base, "),
        (
            ["--compared", "RUN", "--device", "cuda"],
            "--device cuda: a comparison is computed on the device of its recipe",
        ),
        (["--compared", "RUN", "--seeds", "1", "1"], "--seeds: give one seed or more, each once"),
    ],
)
def test_bad_inputs_are_sentences(
    demo_run: Path, argv: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on standard error, and nothing is written into the run."""
    assert run_command(monkeypatch, "probe", *(demo_run if word == "RUN" else word for word in argv)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (demo_run / "probes").exists()


def test_the_command_prints_its_page(
    demo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the plan before it; --help names every family."""
    run = finished(demo_run, tmp_path)
    assert run_command(monkeypatch, "probe", run, "--probes", "hello", "--answer-tokens", 2, "--device", "cpu") == 0
    said = capsys.readouterr().out
    assert "estimated time" in said
    assert "6 measurements of a model under a probe" in said
    assert "6/6 DCR, hello: J " in said
    assert "probes.md" in said
    run_command(monkeypatch, "probe", "--help")
    told = capsys.readouterr().out
    assert all(family in told for family in FAMILIES)


def test_benign_rows_are_those_that_no_training_has_drawn(demo_run: Path, tmp_path: Path) -> None:
    """Neither the run's own instructions nor those that the stock model answered for it; none refuses."""
    run = finished(demo_run, tmp_path)
    source = subjects.RunSource(run, "cpu")
    all_rows = material.unused_instructions(source)
    assert len(all_rows) > 600
    drawn = [row.prompt for row in all_rows[:3]]
    write_rows(run / "own_answers.jsonl", [{"prompt": prompt} for prompt in drawn])
    assert [row.prompt for row in material.unused_instructions(source)] == [row.prompt for row in all_rows[3:]]
    source.data.baseline_mixture.append(all_rows[3])
    assert [row.prompt for row in material.unused_instructions(source)] == [row.prompt for row in all_rows[4:]]


@pytest.fixture(scope="module")
def compared(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The recipe and the folder of a comparison of two seeds, of which DCR is trained and nothing is measured yet."""
    folder = tmp_path_factory.mktemp("compare")
    rows = save_rows(folder / "rows")
    small = {"contrastive_steps": 2, "sft_epochs": 1, "sft_learning_rate": 1e-2, "dial": "none"}
    recipe, settings = write_recipe(folder / "tiny.py", flags(tiny_folder("llama"), rows, folder / "run", **small))
    for seed in (0, 1):  # the folders that dcr-lite compare has begun
        run = SeedRun(resolved(settings), folder / "out" / f"seed{seed}", seed)
        run.find_settings()
        run.train_dcr()
        run.run.leave()
    return recipe, folder / "out"


def test_methods_and_seeds_of_a_comparison_are_probed(compared: tuple[Path, Path], tmp_path: Path) -> None:
    """The stock model once, the others with every seed; hooks of a method stay on while its weights are probed; the
    table has means over seeds with their intervals, and the picture a point for each. What was probed is not taken for
    a comparison with other settings, nor for a method that was trained anew with the same ones since; of one that does
    not build on that training it stays."""
    recipe, folder = compared
    methods = ("base", "surgical", "dcr")
    probing = Probing(("int4", "prefill_5"), answer_tokens=3)
    out = probe_comparison(folder, settings_of(recipe), methods, (0, 1), probing)
    found = json.loads((out / "probes.json").read_text())
    models = {row["model"] for row in found["rows"]}
    assert models == {"base", "surgical_seed0", "surgical_seed1", "dcr_seed0", "dcr_seed1"}
    rows = {(row["model"], row["probe"]): row for row in found["rows"]}
    for entry in found["over_seeds"]:
        values = [rows[f"{entry['method']}_seed{s}", entry["probe"]] for s in entry["seeds"] if s is not None]
        if values:
            j = entry["numbers"]["j"]
            assert (j["n"], j["mean"]) == (2, pytest.approx(sum(row["j"] for row in values) / 2))
            assert j["ci95"] == pytest.approx(mean_interval([row["j"] for row in values]))
    text = (out / "probes.md").read_text()
    assert "| probe | stock model | Surgical | DCR |" in text
    assert "Means over the seeds 0, 1; intervals are over seeds." in text
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    with (other / "seed0" / "settings.json").open("a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(UserError, match="is of another Surgical"):
        probe_comparison(other, settings_of(recipe), methods, (0, 1), probing)
    again = probe_comparison(folder, settings_of(recipe), ("base", "dcr"), (1,), probing)  # any seed may come first
    assert again == out
    other = Path(shutil.copytree(folder, tmp_path / "trained_anew"))
    seed = SeedRun(resolved(settings_of(recipe)), other / "seed0", 0)
    seed.run.note("stage2").unlink()
    seed.find_settings()
    seed.train_dcr()
    seed.run.leave()
    probe_comparison(other, settings_of(recipe), ("base", "surgical"), (0, 1), probing)
    probe_comparison(other, settings_of(recipe), ("dcr",), (1,), probing)
    with pytest.raises(UserError, match=r"dcr_seed0.* is of another DCR: it was trained, or its dial turned, since"):
        probe_comparison(other, settings_of(recipe), methods, (0, 1), probing)


@pytest.mark.usefixtures("pictures")
def test_a_method_that_does_not_apply_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison's note on a method is kept with what is probed. Where it says of one seed that the method does not
    apply, its title does in every table and in the picture, as in a comparison; a sentence behind the first table says
    why."""
    note = f"{NOT_APPLICABLE}: the model does not obey"
    unfit = replace(METHODS["adacd"], model=lambda run, strength: nullcontext(Cost(1.0, 1, note)))
    with monkeypatch.context() as patched:
        patched.setitem(subjects.METHODS, "adacd", unfit)
        folder = SimpleNamespace(path=tmp_path, note=tmp_path.joinpath)
        run: Any = SimpleNamespace(settings=recipe_module().SETTINGS, run=folder)
        (subject,) = subjects.SeedSource(run, ("adacd",)).subjects
        with subject.within() as cost:
            assert cost.note == note
    kept = Kept(tmp_path, "m", [], 4, 0, "float32")
    seen = {"kind": "answer", "toxicity": 0.0, "refusal_log_odds": 0.0, "response": ""}
    answers = [{**seen, "number": i, "label": KINDS[i % 2], "refused": i == 0} for i in range(4)]
    for name, seed, of in (("base", None, ""), ("adacd", 0, ""), ("adacd", 1, note)):
        model = subject._replace(name=f"{name}_seed{seed}", method=name, seed=seed)
        for probe in (PROBES[NONE], PROBES["hello"]):
            kept.keep(
                model,
                probe,
                answers,
                {"read": 0.5, "read_as_plain_text": 0.5, "read_by_chance": 0.1},
                1.0,
                Cost(0.0, 0, of),
            )
    labels: list[str] = []
    save = plots.save

    def read_and_save(figure: Any, path: Path) -> None:
        labels.extend(text.get_text() for text in figure.legends[0].texts)
        save(figure, path)

    monkeypatch.setattr(plots, "save", read_and_save)
    report.write_report(kept.parts(), {"toxic": 2, "seemingly_toxic": 2}, tmp_path)
    text = (tmp_path / "probes.md").read_text(encoding="utf-8")
    assert text.count("AdaCD (does not apply)") == text.count("AdaCD") - 1 > 5
    assert text.index("| hello |") < text.index(f"\nAdaCD: {note} (seed 1).\n") < text.index("## What is kept of it")
    assert labels == ["stock model", "AdaCD (does not apply)"]
    assert {row["model"]: row["note"] for row in report.measured_rows(kept.parts())}["adacd_seed1"] == note


@pytest.mark.usefixtures("pictures")
def test_the_picture_shows_every_model(probed: Probed, tmp_path: Path) -> None:
    """Drawn in full, whatever a model lacks."""
    _, found = probed
    entries = [entry for entry in found["over_seeds"] if (entry["method"], entry["probe"]) != ("dcr", "hello")]
    report.draw_probes(entries, tmp_path / "probes.png")
    assert (tmp_path / "probes.png").read_bytes().startswith(b"\x89PNG")
