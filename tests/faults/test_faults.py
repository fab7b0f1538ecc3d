"""The campaign of faults in short (``make faults`` is the long form): a few kills, and every other fault once."""

import copy
import json
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dcr_lite.errors import UserError
from dcr_lite.files import load_jsonl, load_tensors, read_state, save_tensors, write_state
from tests.faults import damage, forks, kills, troubles
from tests.faults.scenes import FEW, World

Undisturbed = Callable[[str], kills.Undisturbed]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """undisturbed(command) -> what that command leaves without a fault."""
    folder = tmp_path_factory.mktemp("faults")
    world, known = World(folder, FEW | {"contrastive_steps": 8, "sft_epochs": 1}), {}

    def of(name: str) -> kills.Undisturbed:
        if name not in known:
            place = folder / f"without {name}"
            known[name] = kills.Undisturbed.of(world.scenes[name], place)
            if name == "train":
                world.finished = place / "run"  # as it would be made once more
        return known[name]

    return of


@pytest.mark.parametrize(
    ("command", "moments"),
    [
        ("train", ("operation",)),
        ("evaluate", ("write",)),
        ("diagnose", ("operation",)),
        ("dial", ("operation", "write")),
        ("export to merged", ("operation", "write")),
        ("export to gguf", ("operation", "write")),
    ],
)
def test_a_killed_command_goes_on_to_the_same_files(
    command: str, moments: tuple[str, ...], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """kill -9 between two operations on files and in the middle of a write: nothing half-written is left to be read,
    the next try ends with the bytes of an undisturbed one, and repeats no step before the last checkpoint."""
    chance = random.Random(command)
    for moment in moments:
        tries = (kills.trial(undisturbed(command), tmp_path / f"{moment}{n}", chance, (moment,)) for n in range(9))
        found = next(one for one in tries if one.moments or one.problem)  # it may end before it is killed
        assert found.problem is None, found


@pytest.mark.parametrize(
    ("fault", "command"),
    [
        (troubles.disk_full, "train"),
        (troubles.read_only, "export to merged"),
        (troubles.removed, "evaluate"),
        (troubles.two_at_once, "train"),
        (troubles.clock_set_back, "evaluate"),
        (troubles.ended_by_signal, "train"),
        (troubles.little_memory, "evaluate"),
        (damage.damaged, "train"),
    ],
)
def test_a_fault_ends_in_a_sentence_and_is_healed(
    fault: Callable[..., troubles.Tried], command: str, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """No traceback, nothing lost, and the same command ends well once the fault is over."""
    found = fault(undisturbed(command), tmp_path / "here", random.Random(fault.__name__))
    assert found.problem is None, found


def test_a_second_run_in_a_folder_names_the_first(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """While one run works in a folder, another says so with the number of its process, and changes nothing."""
    scene = undisturbed("train").scene
    first = forks.Trial(scene.argv, tmp_path)
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert first.process.exitcode is None, first.said
        first.process.join(0.01)
    first.signal(signal.SIGSTOP)  # else it might be finished before the second has begun
    try:
        second = forks.run(scene.again, tmp_path)
    finally:
        first.signal(signal.SIGCONT)
    assert second.in_a_sentence
    assert f"another command of this kit (process {first.process.pid}) works in run" in " ".join(second.said.split())
    assert first.wait().code == 0


@pytest.mark.parametrize("change", ["more", "fewer"])
def test_a_run_of_another_version_is_left_as_it_is(change: str, undisturbed: Undisturbed, tmp_path: Path) -> None:
    """A stopped run with a setting that this version does not know, or without one that it does, is named as begun with
    other settings."""
    scene = undisturbed("train").scene
    folder = tmp_path / "run"
    folder.mkdir()
    settings = copy.deepcopy(undisturbed("train").left["run/settings.json"])
    if change == "more":
        settings["settings"]["warp"] = 9
    else:
        del settings["settings"]["temperature"]
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "metrics.jsonl").write_text("")
    ended = forks.run(scene.again, tmp_path)
    assert ended.in_a_sentence
    assert "was begun with other settings" in ended.said
    assert json.loads((folder / "settings.json").read_text()) == settings


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """Of tensors and of notes, wherever it is: the file is refused, or holds what was written."""
    tensors, note = {"a": torch.arange(8.0), "b": torch.ones(2, 3)}, {"seconds": 1.5, "best": None}
    save_tensors(tensors, tmp_path / "t.safetensors")
    write_state(note, tmp_path / "n.json")
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    refused = 0
    for path, data in whole.items():
        for bit in range(0, 8 * len(data), 3):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            try:
                if path.suffix == ".json":
                    found = read_state(path, "Cure.")
                    assert note.items() <= found.items()
                else:
                    loaded = load_tensors(path, "Cure.")
                    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
            except UserError as error:
                assert str(error) == f"{path} is missing or damaged. Cure."  # noqa: PT017 - not every bit is refused
                refused += 1
    assert refused > 500


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    """Only the last line may be cut off."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n{"a"')
    with pytest.raises(UserError, match=r"rows\.jsonl, line 2 is damaged"):
        load_jsonl(path)
