"""Attacks on what lies in folders: settings, runs, read-outs, adapters, models, bases to merge, reports; and flags."""

import copy
import json
import os
import struct
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from dcr_lite.export.command import FinishedRun, open_finished
from dcr_lite.export.merge import Merged
from dcr_lite.model.adapters import load_adapter
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.loading import Model
from dcr_lite.model.memory import fit, needs
from dcr_lite.model.shapes import shape_of
from dcr_lite.run.discernment import FILE, Discernments
from dcr_lite.run.launch import launch
from dcr_lite.run.model_card import model_card
from dcr_lite.run.opening import load_base, model_settings_of
from dcr_lite.run.run_folder import RunFolder, read_settings, stored_settings
from dcr_lite.settings import ModelSettings, Settings
from tests.faults.inputs import Attack, leaves_nothing, refused, require_readable
from tests.faults.inputs_ground import Ground
from tests.faults.inputs_texts import ACTIVE, JSON, NUMBERS, SCALARS, WHOLE_TEXT, tokens_of

Edit = tuple[str, float, bytes]
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "extend", "insert", "remove", "length"]), st.floats(0, 1), st.binary(max_size=9)
    ),
    min_size=1,
    max_size=3,
)


def edited(raw: bytes, edits: list[Edit]) -> bytes:
    """``raw`` after edits: bytes flipped, cut off, added, put in or taken out; another length in a safetensors head."""
    for kind, place, more in edits:
        at = int(place * len(raw))
        match kind:
            case "flip" if at < len(raw):
                raw = raw[:at] + bytes([raw[at] ^ (more or b"\1")[0]]) + raw[at + 1 :]
            case "cut":
                raw = raw[:at]
            case "extend":
                raw += more * 20
            case "insert":
                raw = raw[:at] + more + raw[at:]
            case "remove":
                raw = raw[:at] + raw[at + len(more) :]
            case "length":
                raw = struct.pack("<Q", int(place * 10 ** (1 + 2 * len(more)))) + raw[8:]
    return raw


def changed(value: Any) -> st.SearchStrategy[Any]:
    """A JSON value of which a part is another value, gone, or as it was."""
    if isinstance(value, dict) and value:
        inner = st.sampled_from(sorted(value)).flatmap(
            lambda key: st.one_of(
                changed(value[key]).map(lambda new: {**value, key: new}),
                st.just({k: v for k, v in value.items() if k != key}),
            )
        )
        return inner | inner | inner | inner | JSON
    return SCALARS | JSON | st.just(value)


def changed_twice(value: Any) -> st.SearchStrategy[bytes]:
    """A JSON file of which up to two parts are changed, or some bytes."""
    twice = changed(value).flatmap(lambda new: st.just(new) | changed(new))
    whole = twice.map(lambda new: json.dumps(new).encode())
    broken = st.builds(edited, st.just(json.dumps(value).encode()), EDITS)
    return st.one_of(whole, whole, whole, broken, st.sampled_from([b"", b"[" * 100_000, b"\xff", b"null"]))


def loaded(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# --- runs -------------------------------------------------------------------------------------------------------------


def check_settings(raw: bytes, folder: Path) -> bool:
    """Settings that are read have their types, and can be written again."""
    (folder / "settings.json").write_bytes(raw)
    with leaves_nothing(folder):
        whole = not refused(lambda: stored_settings(folder, Settings, run=folder).for_json())
        small = not refused(lambda: model_settings_of(folder))
        refused(lambda: read_settings(folder))
    assert small >= whole
    return small


def check_run_folder(given: tuple[bytes, str, bytes], folder: Path, settings: Settings, begun: bytes) -> bool:
    """A stopped run with a damaged file is continued, or the file is named; another command's files stay."""
    raw, name, part = given
    (folder / "settings.json").write_bytes(begun)
    (folder / "metrics.jsonl").write_bytes(b'{"stage": "stage1", "step": 1, "loss": 1.0}\n')
    (folder / "checkpoints").mkdir()
    (folder / name).write_bytes(raw)
    (folder / "novel.txt").write_bytes(part)

    def go_on() -> None:
        run = RunFolder(settings)
        for stage in ("stage1", "stage2", "elapsed"):
            found = run.finished(stage)
            assert found is None or isinstance(found, dict)
        assert run.seconds() >= 0 or name.endswith("elapsed.json")
        for line in run.metrics.read_text(encoding="utf-8").splitlines():
            assert {"stage", "step"} <= json.loads(line).keys()

    with leaves_nothing(folder):
        taken = not refused(go_on)
    assert (folder / "novel.txt").read_bytes() == part
    return taken


def check_discernment(raw: bytes, folder: Path) -> bool:
    """A read-out that loads reads states, whatever bytes it was made of."""
    (folder / FILE).write_bytes(raw)
    found: list[Any] = []
    with leaves_nothing(folder):
        if refused(lambda: found.append(Discernments.load(folder))):
            return False
    for reading in found[0].models.values():
        (like,) = reading.read(torch.ones(1, len(reading.mean)))
        assert 0 <= like.toxic <= 1
        assert len(reading.points) == len(found[0].toxic) + len(found[0].seemingly_toxic)
    return True


def check_report(raw: bytes, folder: Path) -> bool:
    """A report.json that opens makes a card and a page with nothing active in them but what the kit puts there."""
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_bytes(b"{}")
    (folder / "report.json").write_bytes(raw)
    found: list[FinishedRun] = []
    with leaves_nothing(folder):
        if refused(lambda: found.append(open_finished(folder))):
            return False
        for form in ("adapter", "merged", "gguf"):
            card = model_card(found[0].report, form, licence="x\ny: z")  # type: ignore[arg-type]
            front, body = card.removeprefix("---\n").split("\n---\n", 1)
            assert all(line.partition(":")[0] in FRONT for line in front.split("\n")), front
            require_inert(body)
    return True


FRONT = ("license", "base_model", "base_model_relation", "datasets", "library_name", "pipeline_tag", "language", "tags")
OWN_LINKS = ("https://github.com/dcr-lite/", "https://huggingface.co/datasets/")


def require_inert(page: str) -> None:
    """Fails where a page of Markdown has HTML, a picture, or a link that the kit did not put there."""
    for token in tokens_of(page):
        assert token.type not in ACTIVE - {"link_open"}, token
        assert token.type != "link_open" or str(token.attrGet("href")).startswith(OWN_LINKS), token


# --- weights and models -----------------------------------------------------------------------------------------------


def replaced(whole: Path, folder: Path, name: str, raw: bytes) -> Path:
    """A copy of a folder in which one file has another content; the other files are links."""
    folder.mkdir()
    for file in whole.iterdir():
        if file.is_file() and file.name != name:
            os.link(file, folder / file.name)
    (folder / name).write_bytes(raw)
    return folder


def check_adapter(given: tuple[str, bytes], folder: Path, whole: Path, model: Model, row: list[int]) -> bool:
    """An adapter that loads answers; one that does not is named."""
    adapter = replaced(whole, folder / "adapter", *given)
    fresh = copy.copy(model)
    fresh.network = copy.deepcopy(model.network)
    with leaves_nothing(folder):
        if refused(lambda: load_adapter(fresh, "opened", adapter)):
            return False
    with torch.no_grad():
        fresh.network(input_ids=torch.tensor([row]), use_cache=False)
    return True


def check_shape(raw: bytes, folder: Path, settings: Settings) -> bool:
    """A config.json gives an estimate, or a sentence."""
    (folder / "config.json").write_bytes(raw)

    def estimate() -> None:
        fit(needs(shape_of(str(folder)), settings, True, 2), 12e9, "it").lines()

    with leaves_nothing(folder):
        return not refused(estimate)


def check_model(given: tuple[str, bytes], folder: Path, whole: Path) -> bool:
    """A model folder that loads encodes a prompt; one that does not is named."""
    model = replaced(whole, folder / "model", *given)

    def load() -> None:
        opened, _ = load_base(ModelSettings(model=str(model), device="cpu", precision="float32"))
        row = encode_prompts(opened.tokenizer, ["Hello"], opened.window)[0]
        with torch.no_grad():
            opened.network(input_ids=torch.tensor([row]), use_cache=False)

    with leaves_nothing(folder), redirect_stderr(StringIO()):
        return not refused(load)


def check_merge(given: tuple[str, bytes], folder: Path, model: Path, adapter: Path) -> bool:
    """A base and an adapter, one of them damaged, give every tensor or a sentence."""
    name, raw = given
    if name.startswith("adapter"):
        adapter = replaced(adapter, folder / "adapter", name, raw)
    else:
        model = replaced(model, folder / "model", name, raw)

    def merge() -> None:
        merged = Merged(model, adapter)
        assert all("/" not in file for file in merged.files)
        for tensor in merged:
            merged.tensor(tensor)

    with leaves_nothing(folder):
        return not refused(merge)


# --- flags ------------------------------------------------------------------------------------------------------------

FLAGS = (
    "seed", "layer", "rank", "temperature", "margin", "contrastive-steps", "contrastive-learning-rate", "sft-batch",
    "development-pairs", "instructions", "precision", "device", "data", "chat-format", "model", "pairs", "evaluation",
    "sft-learning-rate", "contrastive-layers", "whiten", "plan", "resume", "sft-epochs", "answer-tokens", "x",
)  # fmt: skip
VALUES = st.one_of(WHOLE_TEXT, NUMBERS.map(str), st.sampled_from(["", "-", "--", "True", "/dev/zero", "a" * 300, "\t"]))


def check_flags(given: list[tuple[str, str]], folder: Path, recipe: Any) -> bool:
    """Flags of any value end with 1 or 2 and a sentence; no model is there, so no run begins."""
    words = ["--model", "no model", "--run", str(folder / "run")]
    for flag, value in given:
        words += [f"--{flag}", value.replace("\0", "")]
    out, err, code = StringIO(), StringIO(), 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            launch(recipe.main, recipe.SETTINGS, words)
    except SystemExit as end:
        code = int(end.code or 0)
    said = err.getvalue()
    assert code in (0, 1, 2), code
    assert "Traceback" not in said, said
    if code == 1:
        assert said.startswith("\nerror: "), said
        require_readable(said)
    assert not (folder / "run" / "metrics.jsonl").exists()
    return False


# --- all --------------------------------------------------------------------------------------------------------------


def one_of_files(folder: Path, names: tuple[str, ...]) -> st.SearchStrategy[tuple[str, bytes]]:
    """(name, content) of a file, damaged: JSON in its values, others in their bytes."""

    def of(name: str) -> st.SearchStrategy[tuple[str, bytes]]:
        path = folder / name
        contents = (
            changed_twice(loaded(path))
            if name.endswith(".json")
            else st.builds(edited, st.just(path.read_bytes()), EDITS)
        )
        return st.tuples(st.just(name), contents)

    return st.one_of(*map(of, names))


def bound(check: Callable[..., bool], *more: Any) -> Callable[[Any, Path], bool]:
    return lambda value, folder: check(value, folder, *more)


def folder_attacks(ground: Ground) -> list[Attack]:
    from small_runs import recipe_module
    from tiny_models import load_tiny

    run, adapter = ground.run, ground.run / "adapter"
    settings = read_settings(run)
    begun = (run / "settings.json").read_bytes()
    facts = {"best": 0.5, "best_step": 3, "seconds": 1.5}
    stopped = st.tuples(
        changed_twice(facts),
        st.sampled_from(["checkpoints/stage1.json", "checkpoints/elapsed.json", "metrics.jsonl"]),
        st.binary(max_size=5),
    )
    stopped |= st.tuples(changed_twice(json.loads(begun)), st.just("settings.json"), st.just(b""))
    model = load_tiny(ground.model)
    row = encode_prompts(model.tokenizer, ["Hello"], model.window)[0]
    report = loaded(run / "report.json")
    adapters = one_of_files(adapter, ("adapter_config.json", "adapter_model.safetensors", "adapter_config.json"))
    models = one_of_files(
        ground.model,
        (
            "config.json",
            "tokenizer_config.json",
            "tokenizer.json",
            "chat_template.jinja",
            "model.safetensors",
            "generation_config.json",
        ),
    )
    index = changed_twice({"weight_map": {"a": "model.safetensors", "b": "../x.safetensors"}})
    bases = one_of_files(ground.model, ("model.safetensors", "config.json")) | st.tuples(
        st.just("model.safetensors.index.json"), index
    )
    return [
        Attack("settings of a run", 8_000, changed_twice(json.loads(begun)), check_settings),
        Attack(
            "a stopped run's folder",
            3_000,
            stopped,
            lambda v, f: check_run_folder(v, f, replace(settings, run=f, resume=True), begun),
        ),
        Attack(
            "read-outs of states, safetensors",
            3_000,
            st.builds(edited, st.just((adapter / FILE).read_bytes()), EDITS),
            check_discernment,
        ),
        Attack("reports and model cards", 2_000, changed_twice(report), check_report),
        Attack("adapters", 1_200, adapters, bound(check_adapter, adapter, model, row)),
        Attack(
            "shapes of models, config.json",
            3_000,
            changed_twice(loaded(ground.model / "config.json")),
            bound(check_shape, settings),
        ),
        Attack("model folders", 600, models, bound(check_model, ground.model)),
        Attack("bases and adapters to merge", 1_200, bases | adapters, bound(check_merge, ground.model, adapter)),
        Attack(
            "flags",
            1_000,
            st.lists(st.tuples(st.sampled_from(FLAGS), VALUES), max_size=3),
            bound(check_flags, recipe_module()),
        ),
    ]
