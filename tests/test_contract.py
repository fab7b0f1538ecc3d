"""Claims about a comparison by a frozen contract: what it fixes, and what its submission says."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from contract_runs import ONLY, SEEDS, Contracted
from small_runs import write_rows

from dcr_lite import cli
from dcr_lite.compare import command, contract
from dcr_lite.compare.contract import content_digest, contract_file, read_contract
from dcr_lite.compare.submission import FILE
from dcr_lite.compare.summary import numbers_of
from dcr_lite.data.rows import read_prompts
from dcr_lite.errors import MethodError, UserError
from dcr_lite.files import load_jsonl, sha256_of
from dcr_lite.judges.versions import judge_version
from dcr_lite.measure import judge
from dcr_lite.measure.answers import method_result, read_answers
from dcr_lite.measure.metrics import mean_interval
from dcr_lite.run import machine
from dcr_lite.settings import HELD_OUT_FILES, Settings

FROZEN = "e4589ea5840be49a5c26cbc77d721ae42edff055186e10c771704fbb76991dfb"


def test_contract_1_never_changes() -> None:
    """Neither its file nor what it names: the shipped prompts and the judges are those that it was written for."""
    assert content_digest(contract_file(1)) == FROZEN
    terms = read_contract(1)
    assert terms.sha256 == FROZEN
    assert terms.files == HELD_OUT_FILES
    labels = [prompt.label for path in terms.files for prompt in read_prompts(path)]
    assert terms.n == {label: labels.count(label) for label in set(labels)}
    assert (terms.seeds, terms.judge_names) == ((0, 1, 2), ("cues", "learned"))
    for group in ("adapters", "trained"):
        assert terms.tolerance[group].keys() == {*terms.by_judge, *terms.by_model}
    assert all(terms.tolerance["adapters"][k] < v for k, v in terms.tolerance["trained"].items())


def test_a_digest_does_not_depend_on_the_ends_of_lines(tmp_path: Path) -> None:
    """A checkout on Windows holds the same contract; another word is another one."""
    texts = {"unix": b"a\nb\n", "windows": b"a\r\nb\r\n", "other": b"a\nc\n"}
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text)
    unix, windows, other = (content_digest(tmp_path / name) for name in texts)
    assert unix == windows != other


def test_the_source_of_the_kit_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another word in a module, or another name of it, is another source; ends of lines and recipes are not."""
    run, recipes = tmp_path / "kit" / "run", tmp_path / "kit" / "recipes"
    run.mkdir(parents=True)
    recipes.mkdir()
    monkeypatch.setattr(machine, "__file__", str(run / "machine.py"))
    (run / "machine.py").write_bytes(b"a\nb\n")
    first = machine.source_digest()
    (run / "machine.py").write_bytes(b"a\r\nb\r\n")
    (recipes / "mine.py").write_bytes(b"c\n")
    assert machine.source_digest() == first
    (run / "machine.py").write_bytes(b"a\nc\n")
    changed = machine.source_digest()
    (run / "machine.py").rename(run / "other.py")
    assert len({first, changed, machine.source_digest()}) == 3


def test_the_cue_judge_is_pinned_by_what_it_decides_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed weight, or limit, is another version; other people's judges have none."""
    before = judge_version("cues")
    monkeypatch.setattr(judge, "THRESHOLD", 2.0)
    changed = judge_version("cues")
    monkeypatch.undo()
    first, *rest = judge.CUES
    monkeypatch.setattr(judge, "CUES", (first._replace(points=4), *rest))
    assert len({before, changed, judge_version("cues")}) == 3
    with pytest.raises(UserError, match="nothing pins that judge"):
        judge_version("some/classifier")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": (0, 2)}, r"--seeds 0 2 contradicts contract 1, which fixes 0 1\. Leave --seeds out"),
        ({"files": (Path("other.jsonl"),)}, "--prompts other.jsonl contradicts contract 1"),
        ({"benchmarks": ("oktest",)}, "--benchmarks oktest contradicts contract 1, which fixes none"),
        ({"rows": 3}, "--rows 3 contradicts contract 1, which fixes none"),
        ({"multiple_choice": Path("q.jsonl")}, "--multiple-choice q.jsonl contradicts"),
        ({"judges": ("cues",)}, "--judge cues contradicts contract 1, which fixes cues vowels"),
        ({"contract": 7}, "--contract 7: there is no such contract. Choose from 1"),
        ({"contract": None, "by": "Me"}, "--by names who submits, which goes with --contract"),
        ({"by": "Me\n"}, "--by: one line"),
        ({"recipe": Settings.of_model("m")}, "--contract: others run the recipe again"),
        ({"only": ("nosuch",)}, "--methods nosuch: no such method. Choose from base, "),
    ],
)
def test_what_a_contract_fixes_cannot_be_given(
    contracted: Contracted, small: Any, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    """A flag that asks for something else is an error before any work."""
    with pytest.raises(UserError, match=says):
        contracted.compare(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_a_changed_installation_measures_nothing(contracted: Contracted, small: Any, tmp_path: Path) -> None:
    """Other prompts, other instructions, another judge or another meaning under the same number are errors."""
    small.setattr(contract, "MEANING", contract.MEANING + 1)
    with pytest.raises(UserError, match="written for another version of the kit"):
        read_contract(1)
    small.setattr(contract, "MEANING", contract.MEANING - 1)
    small.setattr(contract, "judge_version", lambda name: "1" * 64)
    with pytest.raises(UserError, match="the judge cues is not that of contract 1"):
        read_contract(1)
    for name, other in (("held_out.jsonl", "plain.jsonl"), ("plain.jsonl", "held_out.jsonl")):
        for path in contracted.rows.glob("*.jsonl"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / name).write_bytes((contracted.rows / other).read_bytes())
        small.setattr(contract, "SHIPPED", tmp_path)
        with pytest.raises(UserError, match=f"{name} is not the file of contract 1"):
            read_contract(1)
    small.setattr(contract, "SHIPPED", contracted.rows)
    small.setattr(contract, "HELD_OUT_INSTRUCTIONS", contracted.rows / "plain.jsonl")
    with pytest.raises(UserError, match=r"plain.jsonl is not the file of contract 1"):
        read_contract(1)


def test_a_recipe_that_trains_on_held_out_prompts_measures_nothing(
    contracted: Contracted, small: Any, tmp_path: Path
) -> None:
    """Word for word, in any of its files; both sides of a pair count."""
    held_out = [prompt.prompt for path in read_contract(1).files for prompt in read_prompts(path)]
    for name, row in (
        ("pairs", {"toxic": "Can I cut it?", "seemingly_toxic": held_out[1], "focus": "cut"}),
        ("refusal_rows", {"prompt": held_out[0], "response": "I can't."}),
        ("instruction_rows", {"prompt": held_out[-1], "response": "A thing."}),
    ):
        rows = load_jsonl(contracted.rows / {"pairs": "pairs.jsonl"}.get(name, name.replace("_rows", "s.jsonl")))
        path = write_rows(tmp_path / f"{name}.jsonl", [*rows, row])
        recipe = tmp_path / f"{name}.py"
        recipe.write_text(
            f"{contracted.recipe.read_text()}\nfrom dataclasses import replace\n"
            f"SETTINGS = replace(SETTINGS, {name}=Path({str(path)!r}))\n"
        )
        with pytest.raises(UserError, match=f"{name}.jsonl: 1 of its prompts are among those that contract 1"):
            contracted.compare(tmp_path / "out", recipe=recipe)
    assert not (tmp_path / "out").exists()


def test_a_contract_replaces_what_a_recipe_says_of_measuring(contracted: Contracted, small: Any) -> None:
    """Its prompts and its length of answers; nothing else of the recipe."""
    own = Settings(model="m", run=Path("r"), answer_tokens=99, evaluation=(Path("mine.jsonl"),), rank=3)
    assert read_contract(1).applied(own) == replace(
        own, answer_tokens=5, evaluation=(contracted.rows / "held_out.jsonl", contracted.rows / "plain.jsonl")
    )


def test_a_submission_holds_the_numbers_of_the_stored_answers(contracted: Contracted) -> None:
    """By seed and over seeds, computed here from the answers with the cue judge's stored verdicts and by reading
    first letters; the file of answers is the one whose digest it has."""
    submission, out = contracted.submission(), contracted.out
    assert [entry["method"].split("-")[0] for entry in submission["methods"]] == [
        "base",
        *ONLY,
        "again",
        "once",
        "shifted",
    ]
    for entry in submission["methods"]:
        by_seed = {"cues": [], "vowels": []}
        for point in entry["points"]:
            folder = out / ("stock" if point["seed"] is None else f"seed{point['seed']}") / "answers"
            (path,) = folder.glob(f"{entry['method']}_{entry['strength']:g}_*.jsonl")
            assert sha256_of(path) == point["answers"]["sha256"]
            answers = read_answers(path)
            assert len(answers) == point["answers"]["n"] == 12
            vowels = [
                row | {"refused": row["response"][:1].lower() in "aeiou", "kind": "refusal"} for row in answers
            ]  # fmt: skip
            for name, rows in (("cues", answers), ("vowels", vowels)):
                expected, _ = numbers_of(method_result(rows), (0, 0))
                by_seed[name].append(expected)
                assert point["judges"][name]["numbers"] == pytest.approx(
                    {key: expected[key] for key in ("compliance", "safety", "plain", "j")}
                )
            assert point["numbers"]["auroc"] == expected["auroc"]
            assert ("kept_plain" in point["numbers"]) == (entry["method"] != "base")
        for name, values in by_seed.items():
            j = [value["j"] for value in values]
            found = entry["judges"][name]["j"]
            assert found["mean"] == pytest.approx(sum(j) / len(j))
            assert found["n"] == len(j)
            if len(j) > 1:
                assert found["ci95"] == pytest.approx(list(mean_interval(j)))


def test_an_incomplete_comparison_submits_nothing(contracted: Contracted, small: Any, tmp_path: Path) -> None:
    """A contract fixes every seed, so that where a method fails with one there is no submission."""
    out = Path(shutil.copytree(contracted.out, tmp_path / "out"))
    (out / FILE).unlink()
    (note,) = (out / "seed1" / "checkpoints").glob("measured_steered_*.json")
    note.unlink()

    def failing(*args: Any) -> None:
        raise MethodError("loss nan")

    small.setattr(command, "measure_configuration", failing)
    report = contracted.compare(out)
    assert [(one["method"], one["seed"]) for one in report["failed"]] == [("steered", 1)]
    assert not (out / FILE).exists()


def test_a_submission_can_be_published(contracted: Contracted) -> None:
    """It names contract, model, recipe, machine and who submits, and holds no prompt, no answer and no folder."""
    submission, text = contracted.submission(), (contracted.out / FILE).read_text(encoding="utf-8")
    assert submission["contract"] == {"number": 1, "sha256": content_digest(contracted.contracts / "1.json")}
    assert submission["by"] == "The tests"
    assert submission["model"]["files"].keys() == {"config.json", "model.safetensors"}
    assert submission["recipe"]["sha256"] == content_digest(contracted.recipe)
    assert submission["recipe"]["settings"].items() >= {"layer": 1, "stage2": "yes", "rank": 4}.items()
    assert not submission["recipe"]["settings"].keys() & {"model", "run", "pairs", "evaluation", "seed", "device"}
    assert submission["hardware"]["kind"]
    assert str(contracted.recipe.parent) not in text
    for path in contracted.out.glob("*/answers/*.jsonl"):
        for row in read_answers(path):
            assert row["prompt"] not in text
            assert len(row["response"]) < 8 or row["response"] not in text


def test_only_the_methods_that_are_named_are_measured(contracted: Contracted) -> None:
    """Besides the stock model; without DCR there are no differences from it, and the page says nothing of any."""
    report = json.loads((contracted.out / "comparison.json").read_text(encoding="utf-8"))
    assert [entry["method"].split("-")[0] for entry in report["methods"]][:3] == ["base", *ONLY]
    assert {point["method"] for point in report["points"]} == {entry["method"] for entry in report["methods"]}
    assert report["differences"] == {}
    assert report["curve"]["seeds"] == []  # unless it is asked for
    assert report["seeds"] == list(SEEDS)
    page = (contracted.out / "comparison.md").read_text(encoding="utf-8")
    assert "DCR minus" not in page
    assert "\n| shifted |" in page


def test_the_command_takes_a_contract(
    contracted: Contracted, small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``dcr-lite compare --contract 1`` on a finished comparison measures nothing again, shows the table and writes a
    submission of the methods that are asked for, which says how it was made."""
    out = shutil.copytree(contracted.out, tmp_path / "out")
    small.setattr("dcr_lite.compare.command.measure_configuration", None)
    argv = ["dcr-lite", "compare", "--contract", "1", "--recipe", str(contracted.recipe), "--out", str(out)]
    small.setattr(sys, "argv", [*argv, "--methods", "steered", "--add", "shifted=mine:shifted", "--by", "Me"])
    cli.main()
    assert "steered stock" in capsys.readouterr().out
    submission = json.loads((out / FILE).read_text(encoding="utf-8"))
    assert [entry["title"] for entry in submission["methods"]] == ["stock model", "steered stock", "shifted"]
    assert submission["by"] == "Me"
    assert submission["command"].startswith(
        "dcr-lite compare --contract 1 --recipe tiny.py --out out --methods steered"
    )
    small.setattr(sys, "argv", [*argv, "--seeds", "0", "1", "2"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "error: --seeds 0 1 2 contradicts contract 1" in capsys.readouterr().err
