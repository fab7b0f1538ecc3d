"""The settings that a run finds: by evidence, unless they are given, and once."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import run_command
from hypothesis import given
from hypothesis import strategies as st
from recipe_runs import small_settings
from small_runs import flags, run_here

from dcr_lite.data import paper_data
from dcr_lite.errors import UserError
from dcr_lite.files import load_json, write_json, write_state
from dcr_lite.measure.openings import MOST, own_openings
from dcr_lite.method import dial_fitting, safety_sft
from dcr_lite.method.layers import auroc_error, suggested_layer
from dcr_lite.model.loading import REFUSING_OPENINGS
from dcr_lite.run import dial, found_settings, inputs, own_voice
from dcr_lite.run.found_report import end_of_stage1, found_section
from dcr_lite.run.found_settings import FEW, LEARNING_RATES, as_found, asks_for_answers, assumed, choose, rate_for
from dcr_lite.run.inputs import Data
from dcr_lite.run.opening import open_model
from dcr_lite.run.run_folder import RunFolder, read_found, read_settings
from dcr_lite.settings import FOUND, Settings, layers_between

UNSET = {
    "layer": FOUND, "contrastive_learning_rate": 0.0, "contrastive_share": 0.0, "sft_learning_rate": 0.0,
    "stage2": "auto", "answers": "auto", "dial": "auto",
}  # fmt: skip
REFUSES = {"toxic": {"refusal_rate": 0.41}, "openings": ["Sorry", "As an AI"]}
COMPLIES = {"toxic": {"refusal_rate": 0.03}, "openings": ["Sorry"]}


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """Short answers in a model's own voice, and a dial of few pairs and strengths: that they are made, not how well."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(own_voice, "OWN_TOKENS", 12)
        patched.setattr(dial_fitting, "GRADIENT_PAIRS", 3)
        patched.setattr(dial, "LAST", 0.8)
        yield


# --- the layer --------------------------------------------------------------------------------------------------------


@given(depth=st.integers(1, 100))
def test_the_layer_is_looked_for_in_the_middle(depth: int) -> None:
    """Between 0.5 and 0.7 of the depth, to a layer; never the last one of several, and always somewhere."""
    found = layers_between(depth)
    assert len(found) > 0
    assert all(0 <= layer <= max(0, depth - 2) for layer in found)
    if depth > 4:
        assert 0.5 * depth - 0.5 <= found[0] <= found[-1] <= 0.7 * depth + 0.5


def test_the_lowest_layer_that_may_be_the_best_is_suggested() -> None:
    """Of those within one standard error of the best, which more prompts make smaller."""
    stock = {3: 0.60, 4: 0.70, 5: 0.75, 6: 0.77, 7: 0.76}
    assert auroc_error(0.77, 80) == pytest.approx(0.0375, abs=0.001)
    assert [suggested_layer(stock, n) for n in (10, 80, 10**6)] == [4, 5, 6]


# --- learning rates ---------------------------------------------------------------------------------------------------


def test_a_learning_rate_follows_from_the_width() -> None:
    """The known ones to the digit, between two of them a straight line of logarithms, beyond them the nearest."""
    for name, known in LEARNING_RATES.items():
        assert {width: rate_for(width, name) for width in known} == known
        rates = [rate_for(width, name) for width in (64, 576, 700, 896, 1536, 4096, 8192)]
        assert rates == sorted(rates, reverse=True)
        assert (rates[0], rates[-1]) == (known[576], known[4096])
    middle = rate_for(round((576 * 4096) ** 0.5), "sft_learning_rate")
    assert middle == pytest.approx((2e-3 * 2e-4) ** 0.5, rel=0.03)


# --- what the model does already --------------------------------------------------------------------------------------


@pytest.fixture
def whole_openings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kit's own, where tests of tiny runs have single letters."""
    monkeypatch.setattr("dcr_lite.measure.openings.REFUSING_OPENINGS", REFUSING_OPENINGS)


@pytest.mark.usefixtures("whole_openings")
@pytest.mark.parametrize(
    ("chat_format", "answers", "found"),
    [
        ("own", REFUSES, (0.5, "no", "own", "above_stock")),
        ("own", COMPLIES, (1.0, "yes", "own", "discerning")),
        ("chatml", None, (1.0, "yes", "given", "discerning")),
    ],
)
def test_a_model_that_refuses_by_itself_is_not_taught_to(
    chat_format: Any, answers: Any, found: tuple[Any, ...]
) -> None:
    """A chat model that refuses keeps half of stage 1 and needs no stage 2. One that does not keeps its voice in stage
    2, a base model learns the given answers. What is given stays whatever the evidence says."""
    settings = Settings(model="m", run=Path("r"), chat_format=chat_format, layer=3)
    chosen = choose(settings, 576, answers, None)
    assert tuple(chosen[name] for name in ("contrastive_share", "stage2", "answers", "dial")) == found
    assert chosen["evidence"]["given"] == ["layer"]
    assert chosen["openings"] == (answers["openings"] if answers else list(REFUSING_OPENINGS))
    if answers is None:
        assert "are read by 8 openings of answers: 8 of the kit" in found_section(chosen)
        assert "the stock model was not asked for its own" in found_section(chosen)
    given_ones = {
        "stage1": "no", "contrastive_share": 0.3, "stage2": "yes", "answers": "given", "dial": "like_stock",
        "sft_learning_rate": 3e-4,
    }  # fmt: skip
    chosen = choose(replace(settings, **given_ones), 576, answers, None)
    assert {name: chosen[name] for name in given_ones} == given_ones
    assert {*given_ones, "layer"} <= set(chosen["evidence"]["given"])


@pytest.mark.parametrize(
    ("chat_format", "answers", "changes", "refusals"),
    [
        ("own", REFUSES, {"stage2": "yes"}, FEW),
        ("own", REFUSES, {"stage2": "yes", "begun_refusals": FEW + 8}, 128),  # so many have to be there
        ("own", REFUSES, {"stage2": "yes", "refusals": 77}, 77),
        ("own", REFUSES, {"stage2": "yes", "refusals": 128}, 128),
        ("own", REFUSES, {"stage2": "yes", "data": "full"}, 1_000),
        ("own", REFUSES, {"stage2": "yes", "refusal_rows": Path("mine.jsonl")}, 128),
        ("own", REFUSES, {}, 128),  # of no use without a stage 2
        ("own", COMPLIES, {}, 128),
        ("own", COMPLIES, {"refusals": 77}, 77),
        ("chatml", None, {}, 128),
    ],
)
def test_a_model_that_refuses_by_itself_is_taught_few_refusals(
    chat_format: Any, answers: Any, changes: dict[str, Any], refusals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it has a stage 2 all the same: of the shipped ones, unless a number is given, which stays also where it is
    the usual one. Safety SFT alone learns as many as ever, and before anything is known a stage 2 does too."""
    monkeypatch.setattr(inputs, "full_data", lambda: paper_data.Files(*[Path("full.jsonl")] * 3))
    monkeypatch.setattr(inputs, "read_conversations", lambda path: [None] * 200)
    given_ones = Settings(model="m", run=Path("r"), chat_format=chat_format, layer=3, **changes)
    settings = inputs.resolved(given_ones)
    assert asks_for_answers(replace(settings, dial="none")) == (
        chat_format == "own" and (settings.stage2 == "auto" or settings.refusals is None)
    )
    chosen = choose(settings, 576, answers, None)
    assert chosen["refusals"] == refusals
    assert ("refusals" in chosen["evidence"]["given"]) == (settings.refusals is not None)
    assert as_found(settings, chosen).sizes == settings.sizes | {"refusals": refusals}
    usual = changes.get("refusals", 1_000 if changes.get("data") == "full" else 128)
    assert assumed(settings, 12, 576).sizes["refusals"] == usual
    assert settings.for_json()["refusals"] == settings.refusals


def test_the_number_of_refusals_is_found_once(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report tells it. A run that goes on has the same, and one that is given then is an error; a run from before
    it was found has none in its file, and is of the number in its settings, whatever the model does by itself."""
    side = {"n": 64, "refusal_rate": 0.41, "ci95": [0.0, 1.0]}
    answers = {"toxic": side, "seemingly_toxic": side, "openings": ["Sorry"]}
    monkeypatch.setattr(found_settings, "_stock_answers", lambda *args: answers)
    monkeypatch.setattr(found_settings, "draw_found", lambda *args: None)
    monkeypatch.setattr(found_settings, "width_of", lambda network: 64)
    settings = small_settings(tiny, rows, tmp_path / "run", refusals=None, stage2="yes")
    run, model, none = RunFolder(settings), SimpleNamespace(network=None), Data(*[[]] * 7)

    def find() -> dict[str, Any]:
        return found_settings.found(run, model, none, settings)  # type: ignore[arg-type]

    found = find()
    assert (found["refusals"], found["evidence"]["few_refusals"]) == (FEW, True)
    assert f"safety SFT on {FEW} refusals, few since the model refuses by itself; its answers" in found_section(found)
    monkeypatch.setattr(found_settings, "choose", lambda *args: pytest.fail("searched again"))
    assert {key: value for key, value in find().items() if key != "sha256"} == found
    assert read_settings(run.path).refusals == FEW
    run.leave()
    RunFolder(replace(settings, resume=True)).leave()
    with pytest.raises(UserError, match=r"refusals: None then, 128 now\). Restore them"):
        RunFolder(replace(settings, resume=True, refusals=128))

    older = {name: value for name, value in found.items() if name not in ("refusals", "sha256")}
    del older["evidence"]["few_refusals"]
    write_state(older, run.path / "found.json")
    began = load_json(run.path / "settings.json")
    began["settings"]["refusals"] = 128
    write_json(began, run.path / "settings.json")
    assert read_settings(run.path).refusals == 128
    assert "safety SFT; its answers" in found_section(older)
    usual = replace(settings, resume=True, refusals=128)
    RunFolder(usual).leave()
    assert as_found(usual, find()).refusals == 128


@pytest.mark.parametrize("rate", [0.41, 0.03])
def test_flags_of_a_stage_2_that_is_not_needed_are_named(
    rate: float, tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Those of the command, in the terminal and in the report; not what a recipe sets. It is no error, since nobody
    could know; where there is a stage 2 nothing is said. The report names the openings of refusals in any case."""
    side = {"n": 64, "refusal_rate": rate, "ci95": [0.0, 1.0]}
    answers = {"toxic": side, "seemingly_toxic": side, "openings": ["Sorry", "As an AI"]}
    monkeypatch.setattr(found_settings, "_stock_answers", lambda *args: answers)
    monkeypatch.setattr(found_settings, "draw_found", lambda *args: None)
    monkeypatch.setattr("sys.argv", ["dcr-lite", "train", "mine.py", "--refusals", "3", "--sft_epochs=2", "--seed=0"])
    settings = small_settings(tiny, rows, tmp_path / "run", stage2="auto", refusals=3, begun_refusals=2)
    model: Any = SimpleNamespace(network=None)
    monkeypatch.setattr(found_settings, "width_of", lambda network: 64)
    for compared, flags_, has, it in (
        ((), "--refusals, --sft-epochs", "have", "them"), (("safety_sft",), "--refusals", "has", "it")
    ):  # fmt: skip
        run = RunFolder(replace(settings, compare_with=compared, run=tmp_path / f"run{len(compared)}"))
        found = found_settings.found(run, model, Data(*[[]] * 7), replace(settings, compare_with=compared))
        run.leave()
        said = f"Stage 2 was found not to be needed, so {flags_} {has} no effect; --stage2 yes uses {it}."
        assert (said in " ".join(capsys.readouterr().out.split())) == (rate > 0.2)
        assert (f"\n- {said}\n" in found_section(found)) == (rate > 0.2)
        assert ("no effect" in found_section(found)) == (rate > 0.2)
        assert "by 2 openings of answers: 1 of the kit" in found_section(found)
        assert '1 from the refusals among the stock model\'s 128 answers: "As an AI".\n' in found_section(found)


@pytest.mark.usefixtures("whole_openings")
def test_a_models_own_way_of_refusing_is_learnt() -> None:
    """Frequent beginnings of refusals that no answer shares, in whole words, up to the one that tells them apart; none
    that a known opening covers, or that begins with another."""
    refused = [f"As an AI language model, I cannot {n}." for n in range(6)]
    refused += [f"Unfortunately, {n} is against the law." for n in range(3)] + ["I'm sorry, no."] * 20
    refused += ["It is wrong.", "It is wrong to do so.", "Assistance with that is out of the question."]
    answered = ["It is a fine day.", "It is simple.", "As usual, begin with flour.", "I like it."]
    answered += ["As an AI language model, I would begin with flour."]
    found = own_openings(refused, answered)
    assert found[: len(REFUSING_OPENINGS)] == REFUSING_OPENINGS
    assert found[len(REFUSING_OPENINGS) :] == (
        "As an AI language model, I cannot",
        "Unfortunately",
        "It is wrong",
    )
    assert own_openings([], answered) == REFUSING_OPENINGS


@pytest.mark.usefixtures("whole_openings")
@given(
    refused=st.lists(st.text("ab ,.", max_size=12), max_size=30),
    answered=st.lists(st.text("ab ,.", max_size=12), max_size=30),
)
def test_openings_never_begin_with_each_other(refused: list[str], answered: list[str]) -> None:
    """So that their probabilities add up to at most 1, whatever the answers are; at most eight are added."""
    found = own_openings(refused, answered)
    assert not [(a, b) for a in found for b in found if a != b and b.startswith(a)]
    assert len(found) <= len(REFUSING_OPENINGS) + MOST


# --- whole ------------------------------------------------------------------------------------------------------------


def unset_flags(model: Path, rows: Path, run: Path, **changes: Any) -> list[str]:
    """The flags of a small run without those that it can find by itself."""
    argv = flags(model, rows, run, **changes)
    for name in UNSET:
        flag = "--" + name.replace("_", "-")
        if flag in argv:
            del argv[argv.index(flag) : argv.index(flag) + 2]
    return argv


@pytest.fixture(scope="module")
def searched(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, without a recipe, that has found everything."""
    run = tmp_path_factory.mktemp("searched") / "run"
    with pytest.MonkeyPatch.context() as patch:
        assert run_command(patch, "train", *unset_flags(tiny, rows, run, contrastive_steps=4, sft_epochs=1)) == 0
    return run


def test_a_run_finds_all_that_is_not_given(searched: Path) -> None:
    """Every setting is final in what is read from the run folder; the report tells each choice with its picture."""
    found = read_found(searched)
    assert found is not None
    settings = read_settings(searched)
    assert {name: found[name] for name in UNSET} == {name: getattr(settings, name) for name in UNSET}
    assert not [name for name, unset in UNSET.items() if getattr(settings, name) == unset]
    assert settings.layer == 2  # of four the only one that is looked at
    evidence = found["evidence"]
    assert evidence["answers"]["toxic"]["n"] == evidence["answers"]["seemingly_toxic"]["n"] > 10
    report = json.loads((searched / "report.json").read_text(encoding="utf-8"))
    page = (searched / "report.md").read_text(encoding="utf-8")
    assert report["found"] == found
    assert found_section(found) in page
    assert "L = 2" in page
    assert (searched / "found.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("steps", "kept", "says"),
    [
        ((0, 10, 20), 20, "from 0.50 to 0.80, at step 20. The last step was the best, so more of them may still help."),
        ((0, 10, 20, 30), 20, "at step 20. It ended at step 30, since nothing better came."),
        ((0, 10, 20, 30, 40), 20, "at step 20. It ended at step 40, the most that it may take."),
        ((), None, ""),
    ],
)
def test_the_report_says_where_stage_1_ended(steps: tuple[int, ...], kept: int | None, says: str) -> None:
    """At its last step, by patience, or at its cap; nothing where there was no stage 1."""
    curve = [(step, 0.8 if step == kept else 0.5) for step in steps]
    stage1 = {"best": 0.8 if kept else None, "best_step": kept, "auroc_by_step": curve}
    said = end_of_stage1({"stage1": stage1, "settings": {"contrastive_steps": 40}})
    assert says in said
    assert bool(said) == bool(steps)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "gemma3", "olmo3", "phi3", "smollm3"])
def test_any_architecture_finds_its_settings(
    architecture: str,
    tiny_folder: Callable[..., Path],
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tied, packed or padded, its dial behind a norm or not: dcr-lite train with a model folder and nothing else about
    the model. Llama, untied, is the run of the tests above; whole runs in 4 bits are in test_recipes.py."""
    fewer = {"contrastive_steps": 2, "sft_epochs": 1, "evaluation": rows / "plain.jsonl", "compare_with": ()}
    argv = unset_flags(tiny_folder(architecture), rows, tmp_path / "run", **fewer)
    monkeypatch.setattr(safety_sft, "OBSERVATIONS", 1)
    monkeypatch.setattr(own_voice, "is_broken", lambda prompt, text: False)  # of a random model nearly all are
    assert run_command(monkeypatch, "train", *argv) == 0
    assert read_found(tmp_path / "run") is not None


def test_a_model_without_a_chat_template_needs_a_format(
    tiny_folder: Callable[..., Path], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The error names the flag and what it takes; with it the base model is trained as one: given answers, stage 2."""
    folder = tiny_folder("llama", "chatml")
    assert run_command(monkeypatch, "train", *unset_flags(folder, rows, tmp_path / "a")) == 1
    assert "--chat-format chatml, llama3, mistral, gemma" in capsys.readouterr().err
    monkeypatch.setattr(safety_sft, "OBSERVATIONS", 1)
    fewer = {"contrastive_steps": 2, "sft_epochs": 1, "chat_format": "chatml", "evaluation": rows / "plain.jsonl"}
    assert run_command(monkeypatch, "train", *unset_flags(folder, rows, tmp_path / "b", **fewer)) == 0
    found = read_found(tmp_path / "b")
    assert found is not None
    assert (found["stage2"], found["answers"], found["dial"]) == ("yes", "given", "discerning")
    assert found["evidence"]["answers"] is None


def test_an_opened_run_knows_how_its_model_refuses(searched: Path) -> None:
    """So that refusal probabilities are read later as they were in the run."""
    found = read_found(searched)
    assert found is not None
    assert open_model(str(searched), device="cpu").model.openings == tuple(found["openings"])


def test_a_damaged_finding_is_an_error(searched: Path, tmp_path: Path) -> None:
    """With the file and the cure."""
    text = (searched / "found.json").read_text(encoding="utf-8")
    (tmp_path / "found.json").write_text(text.replace('"layer": 2', '"layer": 1'))
    with pytest.raises(UserError, match=r"found\.json is missing or damaged\. Restore it, or delete it"):
        read_found(tmp_path)


def test_what_is_given_is_not_searched(tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every flag set nothing is run."""
    for name in ("_stock_answers", "_layers"):
        monkeypatch.setattr(found_settings, name, lambda *args: pytest.fail("searched"))
    few = {"contrastive_steps": 1, "sft_epochs": 1, "compare_with": [], "evaluation": rows / "plain.jsonl"}
    done = run_here(flags(tiny, rows, tmp_path / "run", **few))
    assert done.code == 0, done.err
    assert not (tmp_path / "run" / "found.png").exists()
