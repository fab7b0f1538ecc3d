"""Claims about other people's methods in a comparison: adapters and functions become rows and leave nothing behind."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from contract_runs import SEEDS, Contracted, example

from dcr_lite.compare import command, measurement
from dcr_lite.compare.added import ADAPTER_FILES, COLOURS, added_methods
from dcr_lite.compare.methods import METHODS
from dcr_lite.compare.tables import COSTS
from dcr_lite.errors import UserError
from dcr_lite.measure.answers import read_answers

pytestmark = pytest.mark.usefixtures("small")


def report_of(contracted: Contracted) -> dict[str, Any]:
    return json.loads((contracted.out / "comparison.json").read_text(encoding="utf-8"))


def answers_of(contracted: Contracted, name: str, seed: int | None) -> list[dict[str, Any]]:
    folder = contracted.out / ("stock" if seed is None else f"seed{seed}") / "answers"
    (path,) = folder.glob(f"{name}*.jsonl")
    return read_answers(path)


def test_what_is_added_stands_behind_the_kits_methods_under_its_name(contracted: Contracted) -> None:
    """In the order of the flags; an adapter is measured once, or once a seed where its folder says {seed}, a function
    with every seed."""
    entries = report_of(contracted)["methods"][3:]
    assert [(entry["method"].partition("-")[0], entry["seeds"]) for entry in entries] == [
        ("again", list(SEEDS)), ("once", [None]), ("shifted", list(SEEDS)),
    ]  # fmt: skip
    page = (contracted.out / "comparison.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")]
    titles = ["| stock model", "| steered stock", "| safety SFT alone", "| again", "| once", "| shifted"]
    assert [row for row in rows if row in titles][:6] == titles


def test_an_added_adapter_answers_as_the_method_that_trained_it(contracted: Contracted) -> None:
    """To the last digit, with every seed and once."""
    for seed in SEEDS:
        assert answers_of(contracted, "again-", seed) == answers_of(contracted, "safety_sft_6", seed)
    assert answers_of(contracted, "once-", None) == answers_of(contracted, "safety_sft_6", 0)
    assert answers_of(contracted, "once-", None) != answers_of(contracted, "base_0", None)


def test_an_added_function_acts_on_the_stock_model(contracted: Contracted) -> None:
    """The example of docs/comparing.md, of about ten lines: its answers or scores are not the stock model's, and it is
    measured by answers kept as every method is."""
    lines = [line for line in example().splitlines() if line.strip() and not line.startswith(("#", "from"))]
    assert len(lines) <= 10
    odds = [[row["refusal_log_odds"] for row in answers_of(contracted, name, seed)]
            for name, seed in (("shifted-", 0), ("base_0", None))]  # fmt: skip
    assert odds[0] != odds[1]
    (entry,) = [entry for entry in report_of(contracted)["methods"] if entry["method"].startswith("shifted-")]
    assert entry["numbers"]["kept_plain"]["mean"] > 0
    assert entry["numbers"]["minutes"]["mean"] > 0


RUDE = """
from contextlib import contextmanager

@contextmanager
def rude(model, training, development):
    assert not any(p.requires_grad for p in model.network.parameters())
    assert all((training.toxic, training.seemingly_toxic, training.plain, development.toxic))
    for parameter in model.network.parameters():
        parameter.data.mul_(1.5)
    model.steering = None
    yield

def no_block(model, training, development):
    return 3

number = 3
"""


def test_what_a_function_leaves_on_the_model_reaches_no_other(contracted: Contracted, tmp_path: Path) -> None:
    """A method measured behind one that multiplies all weights, and does not divide them again, has the numbers that it
    has without it; so has a point of the curve."""
    (contracted.module / "rude.py").write_text(RUDE, encoding="utf-8")
    plain = {"contract": None, "seeds": (0,), "only": ("steered",), "curve_seeds": (0,)}
    added = ("first=rude:rude", "second=mine:shifted")
    with_it = contracted.compare(tmp_path / "with", added=added, **plain)
    without = contracted.compare(tmp_path / "without", added=added[1:], **plain)

    def numbers(report: dict[str, Any]) -> dict[Any, Any]:
        return {
            (point["method"], point["strength"]): {k: v for k, v in point["numbers"].items() if k not in COSTS}
            for point in report["points"]
            if not point["method"].startswith("first-")
        }

    assert numbers(with_it) == numbers(without)
    assert len(numbers(without)) == 6  # stock, four strengths, the function
    (first,) = [point for point in with_it["points"] if point["method"].startswith("first-")]
    assert first["numbers"]["answer_loss"] != with_it["points"][0]["numbers"]["answer_loss"]


def test_another_version_of_a_method_has_another_key(contracted: Contracted, tmp_path: Path) -> None:
    """By the adapter's weights and configuration, or by the function and its module's source; the same one has the
    same."""
    seed0, seed1 = (contracted.out / f"seed{seed}" / "safety_sft_6" for seed in SEEDS)

    def key(what: Any) -> str:
        (found,) = added_methods((f"x={what}",), SEEDS)
        return found

    assert key(seed0) == key(contracted.recipe.parent / "adapter") != key(seed1)
    both = str(seed0).replace("seed0", "seed{seed}")
    functions = {key(f"contextlib:{name}") for name in ("contextmanager", "nullcontext")}
    assert len({key(seed0), key(both), key("mine:shifted"), *functions}) == 5


def test_an_added_adapter_is_not_measured_again_where_seeds_are_added(
    contracted: Contracted, small: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its key is another one, as of all seeds' adapters; what is measured of a seed's adapter stays. Another adapter of
    that seed is measured anew."""
    for seed in SEEDS:
        shutil.copytree(contracted.out / f"seed{seed}" / "safety_sft_6", tmp_path / f"mine{seed}")
    done: list[tuple[str, int | None]] = []

    def measure(run: Any, method: Any, one: Any, *more: Any) -> None:
        done.append((method.title, one.seed))
        measurement.measure_configuration(run, method, one, *more)

    small.setattr(command, "measure_configuration", measure)
    given = {"contract": None, "only": ("base",), "curve_seeds": (), "added": (f"x={tmp_path}/mine{{seed}}",)}
    first = contracted.compare(tmp_path / "out", seeds=(0,), **given)
    both = contracted.compare(tmp_path / "out", seeds=(0, 1), **given)
    assert done == [("stock model", None), ("x", 0), ("x", 1)]
    (before,), (now, other) = ([one for one in report["points"] if one["seed"] is not None] for report in (first, both))
    assert before["method"] != now["method"] == other["method"]
    assert now == before | {"method": now["method"]}
    shutil.rmtree(tmp_path / "mine0")
    shutil.copytree(tmp_path / "mine1", tmp_path / "mine0")
    contracted.compare(tmp_path / "out", seeds=(0, 1), **given)
    assert done[3:] == [("x", 0)]


def test_an_added_function_works_on_while_the_model_answers(tmp_path: Path) -> None:
    """So the table of costs says; an added adapter is weights. Neither has the colour of one of the kit's methods."""
    for name in ADAPTER_FILES:
        (tmp_path / name).write_text("{}", encoding="utf-8")
    methods = added_methods(("x=contextlib:contextmanager", f"y={tmp_path}"), SEEDS)
    assert [method.in_weights for method in methods.values()] == [False, True]
    assert not set(COLOURS) & {method.colour for method in METHODS.values()}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("dcr=x", "--add dcr=x: there is a method named dcr already"),
        ("SCANS=x", "there is a method named SCANS already"),
        ("mine", "--add mine: give NAME=FOLDER or NAME=package.module:function"),
        ("a/b=x", "give NAME=FOLDER"),
        ("=x", "give NAME=FOLDER"),
        ("x=nosuchfolder", "nosuchfolder holds no adapter as peft saves it .there is no adapter_config.json in it."),
        ("x=nosuch.module:function", "nosuch.module cannot be imported .No module named 'nosuch'"),
        ("x=mine:nosuch", "mine has no function nosuch"),
        ("x=sys:exit", "--add x=sys:exit: sys is no file, so its versions cannot be told apart"),
        ("x=rude:number", "rude has no function number"),
        ("x=fails:function", "fails fails while it is imported .division by zero"),
    ],
)
def test_what_cannot_be_added_is_an_error_before_any_work(
    contracted: Contracted, tmp_path: Path, word: str, says: str
) -> None:
    """A sentence with the flag as it was given."""
    (contracted.module / "rude.py").write_text(RUDE, encoding="utf-8")
    (contracted.module / "fails.py").write_text("1 / 0", encoding="utf-8")
    with pytest.raises(UserError, match=says):
        contracted.compare(tmp_path / "out", added=(word,))
    with pytest.raises(UserError, match="there is a method named X already"):
        added_methods(("x=mine:shifted", "X=mine:shifted"), SEEDS)
    assert not (tmp_path / "out").exists()


def test_a_damaged_adapter_and_a_function_without_a_block_are_errors(contracted: Contracted, tmp_path: Path) -> None:
    """When they are come to; what was measured before is kept."""
    (contracted.module / "rude.py").write_text(RUDE, encoding="utf-8")
    torn = tmp_path / "torn"
    torn.mkdir()
    for path in (contracted.recipe.parent / "adapter").iterdir():
        (torn / path.name).write_bytes(path.read_bytes()[: 100 if path.suffix == ".safetensors" else None])
    plain = {"contract": None, "seeds": (0,), "only": ("base",), "curve_seeds": ()}
    for word, says in ((f"x={torn}", "this adapter is damaged"), ("x=rude:no_block", "returned int where a context")):
        with pytest.raises(UserError, match=says):
            contracted.compare(tmp_path / "out", added=(word,), **plain)
    report = contracted.compare(tmp_path / "out", added=("x=mine:shifted",), **plain)
    assert [entry["method"].partition("-")[0] for entry in report["methods"]] == ["base", "x"]
    assert set(METHODS) & {"x"} == set()
