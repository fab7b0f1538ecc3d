"""A few of the generated inputs of every attack, the same ones each time; ``python -m tests.faults.inputs`` tries
100,000."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the demo needs the extra: pip install 'dcr-lite[demo]'")

from hypothesis import strategies as st

from tests.faults import inputs
from tests.faults.inputs import Attack, leaves_nothing, require_readable, run_attack, table
from tests.faults.inputs_demo import demo_attacks
from tests.faults.inputs_folders import folder_attacks
from tests.faults.inputs_ground import Ground, served
from tests.faults.inputs_mend import mend_attacks
from tests.faults.inputs_texts import text_attacks

INPUTS = 400  # in all

pytestmark = pytest.mark.usefixtures("short_answers")


@pytest.fixture(scope="module")
def ground(tiny: Path, demo_run: Path, opened: Any) -> Iterator[Ground]:
    with served(tiny, demo_run, opened) as found:
        yield found


@pytest.mark.parametrize("group", ["texts", "mending", "folders", "the demo"])
def test_no_generated_input_breaks_a_reader(group: str, ground: Ground, tmp_path: Path) -> None:
    """Every input is read, or refused in a sentence: no traceback, no hang, no file left behind, nothing that runs."""
    attacks = {
        "texts": text_attacks,
        "mending": mend_attacks,
        "folders": lambda: folder_attacks(ground),
        "the demo": lambda: demo_attacks(ground),
    }
    for attack in attacks[group]():
        row = run_attack(attack, max(12, INPUTS * attack.share // 100_000), None, tmp_path)
        assert not row.failure, f"{row.name}\n{row.failure}"
        assert row.inputs >= 10, row


def breaks_in_steps(value: int, folder: Path) -> bool:
    """A reader with one fault: 0 a bug, 1 a hang, 2 a file left behind, 3 a message that steers the terminal."""
    if value == 0:
        raise ValueError("a bug")
    while value == 1:
        pass
    with leaves_nothing(folder):
        (folder / "left").touch() if value == 2 else None
    require_readable("\x1b[2J" if value == 3 else "a sentence")
    return True


@pytest.mark.parametrize("fault", range(5))
def test_every_kind_of_fault_is_noticed(fault: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader with a bug, a hang, a file left behind or a hostile message is counted as broken; one without is not."""
    monkeypatch.setattr(inputs, "SECONDS", 0.2)
    row = run_attack(Attack("it", 1, st.just(fault), breaks_in_steps), 10, 0, tmp_path)
    assert bool(row.failure) == (fault < 4)
    assert f"| it | {row.inputs} |" in table([row])
