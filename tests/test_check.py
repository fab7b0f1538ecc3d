"""dcr-lite check: each part finds what it is for, whatever happens in it becomes a finding, and what it says of a run
is measured with the run's own stages."""

import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from command_line import run_command
from hub_client import READS, TOKENS, WRITES
from hub_parts import Repository
from hub_server import Hub
from peft.tuners.lora import LoraLayer
from recipe_runs import small_settings
from small_runs import RECIPE, flags, recipe_module, write_rows
from tiny_models import load_tiny
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, mm_flop

from dcr_lite.check import command, disk, duration, four_bit, machine, memory, page, rows, sizes, trial, worker
from dcr_lite.check.duration import Counter
from dcr_lite.check.finding import Finding, Task
from dcr_lite.check.random_model import answer_of, prompts_of, random_model
from dcr_lite.data.rows import Prompt
from dcr_lite.errors import UserError
from dcr_lite.method.contrastive import ContrastiveRefinement
from dcr_lite.method.loop import Loop, Stage
from dcr_lite.method.safety_sft import SafetySFT
from dcr_lite.model import adapters
from dcr_lite.model.answer_tokens import backward_through_vocabulary
from dcr_lite.model.chat import encode_asked, encode_conversations, encode_prompts
from dcr_lite.model.hidden_states import decoder_of, final_states, prompt_states
from dcr_lite.model.loading import Model
from dcr_lite.model.memory import fit, needs
from dcr_lite.model.packing import Batch, shared_prefix
from dcr_lite.model.shapes import Shape, shape_of
from dcr_lite.run import obstacles
from dcr_lite.run.inputs import load_data
from dcr_lite.run.opening import Machine
from dcr_lite.settings import Settings
from tests.faults.forks import CONTEXT, start_server

SMALL = Shape(6, 64, 4, 2, 16, 128, 512, tied=False)
SHAPES = {
    "llama": SMALL,
    "tied": replace(SMALL, tied=True),
    "qwen3": replace(SMALL, head_norms=True),
    "gemma2": replace(SMALL, norms=4, scores=True, tied=True),
    "gemma3": replace(SMALL, norms=4, head_norms=True, tied=True),
    "phi3": replace(SMALL, fused=True),
}
CPU = Machine("cpu", torch.float32, False)
IN_FOUR_BITS = Machine("cpu", torch.float32, True)


@pytest.fixture
def settings(tiny: Path, rows: Path, tmp_path: Path) -> Settings:
    return small_settings(tiny, rows, tmp_path / "run")


def up_to_the_trial(settings: Settings) -> Task:
    """As the parts before it leave it."""
    task = Task(settings, {"machine": Finding(given=CPU), "hub": Finding(given={})})
    for name, part in (("memory", memory), ("rows", rows)):
        task.before[name] = part.look(task)
    return task


@pytest.fixture
def task(settings: Settings) -> Task:
    return up_to_the_trial(settings)


# --- a model with random weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("four_bit", [False, True], ids=["dense", "NF4"])
@pytest.mark.parametrize("kind", SHAPES)
def test_a_random_model_has_the_weights_of_its_shape(kind: str, four_bit: bool) -> None:
    """Exactly as many as the shape says, 4-bit ones counted as the weights they stand for; all linear maps of the
    decoder are quantised and nothing else."""
    shape = SHAPES[kind]
    model = random_model(shape, "cpu", torch.float32, four_bit)
    maps = [m for m in model.network.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(maps) == (len(shape.maps) * shape.layers if four_bit else 0)
    found = sum(m.in_features * m.out_features for m in maps)
    matrices = {id(p): p for p in model.network.parameters() if p.dim() == 2 and p.dtype == torch.float32}
    assert found + sum(p.numel() for p in matrices.values()) == shape.parameters
    assert all(m.weight.bnb_quantized and m.weight.dtype == torch.uint8 for m in maps)
    assert not any(tensor.is_meta for tensor in [*model.network.parameters(), *model.network.buffers()])


@pytest.mark.parametrize("four_bit", [False, True], ids=["dense", "NF4"])
def test_a_random_model_trains_as_a_loaded_one(four_bit: bool, tiny_model: Callable[..., Any]) -> None:
    """The same kinds of modules with an adapter as those of a model that was loaded, and the same attention."""
    built, loaded = random_model(SMALL, "cpu", torch.float32, four_bit), tiny_model("llama", four_bit=four_bit)
    for model in (built, loaded):
        adapters.add_adapter(model, "first", 4, 0)
    kinds = [
        {type(m) for layer in decoder_of(model.network).layers for m in layer.modules()} for model in (built, loaded)
    ]
    assert kinds[0] == kinds[1]
    assert any(issubclass(kind, LoraLayer) for kind in kinds[0])
    assert built.packs
    assert loaded.packs


def test_rows_of_a_random_model_are_as_long_as_asked() -> None:
    """Prompts, answers and what the prompts share, to the token."""
    tokenizer = random_model(SMALL, "cpu", torch.float32, False).tokenizer
    prompts = prompts_of([12, 20, 31, 14], 9)
    encoded = encode_conversations(tokenizer, prompts, [answer_of(n, i) for i, n in enumerate((5, 2, 7, 30))], 100)
    assert [len(prompt) for prompt, _ in encoded] == [12, 20, 31, 14]
    assert [len(answer) for _, answer in encoded] == [5, 2, 7, 30]
    assert shared_prefix(encode_prompts(tokenizer, prompts, 100)) == 9


# --- 4-bit products ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_a_right_four_bit_product_passes(precision: torch.dtype) -> None:
    """In every precision, on this machine."""
    found = four_bit.look(Task(None, {"machine": Finding(given=Machine("cpu", precision, True))}))  # type: ignore[arg-type]
    assert not found.problems
    assert found.values["product"] < 0.01


def _wrong(function: Callable[..., Any], by: float) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(*args, **kwargs) * by


@pytest.mark.parametrize("name", ["dequantize_4bit", "matmul_4bit"])
def test_a_wrong_four_bit_kernel_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that writes the weights out wrongly or multiplies wrongly, by a tenth, is a problem for a run in 4 bits and
    a note for another."""
    owner = bitsandbytes.functional if name == "dequantize_4bit" else bitsandbytes
    monkeypatch.setattr(owner, name, _wrong(getattr(owner, name), 1.1))
    judged = {
        on.four_bit: four_bit.look(Task(None, {"machine": Finding(given=on)}))  # type: ignore[arg-type]
        for on in (CPU, IN_FOUR_BITS)
    }
    assert "--quantization none" in judged[True].problems[0]
    assert not judged[False].problems
    assert "in 4 bits on cpu" in judged[False].notes[0]


def test_a_wrong_product_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that multiplies wrongly in the run's precision is a problem, and no later part computes on it."""
    task = Task(_smollm2(), {})
    assert machine.look(task).given is not None
    monkeypatch.setattr(torch, "mm", _wrong(torch.mm, 1.1))
    found = machine.look(task)
    assert "is off by 10%" in found.problems[0]
    assert found.given is None


def _smollm2() -> Settings:
    settings: Settings = replace(recipe_module().SETTINGS, device="cpu")
    return settings


# --- disk and Hub -----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_problem(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little for what the run writes and fetches together is a problem, with what is free and what is needed."""
    missing = Task(
        replace(settings, model="unsloth/llama-3-8b"), {"hub": Finding(given={"unsloth/llama-3-8b": "open"})}
    )
    missing.before["memory"] = Finding(given=(shape_of("unsloth/llama-3-8b"), None))
    assert sum(disk.needs(missing).values()) > 17e9
    assert not disk.look(Task(settings, {})).problems
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**10, 9 * 10**9, 4 * 10**8))
    (problem,) = disk.look(Task(settings, {})).problems
    assert "0.4 GB free and 1.0 GB needed" in problem


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub on this machine with an open and a gated model, which processes that start now ask."""
    hub = Hub()
    hub.tokens = TOKENS
    hub.models["open/model"] = Repository({"config.json": b"{}"})
    hub.models["gated/model"] = Repository({"config.json": b"{}"}, gated=True, licensed={READS})
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    yield hub
    hub.close()


def hub_finding(settings: Settings, model: str) -> Finding:
    """What the part on the Hub finds, in a process of its own, with the Hub's real client."""
    part = {"hub": worker.PARTS["hub"]}
    return worker.look(replace(settings, model=model, base_model="open/model"), parts=part)["hub"]


def test_a_gated_model_is_named(settings: Settings, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that this token does not open is a problem with its cure, one that it opens is none, and the token stays
    out of what is found."""
    found = hub_finding(settings, "gated/model")
    assert found.values["models"] == {"gated/model": "gated", "open/model": "open"}
    assert "gated/model cannot be fetched: it is gated: accept its licence on" in found.problems[0]
    monkeypatch.setenv("HF_TOKEN", WRITES)  # of another account
    assert "gated, and this token may not read it" in hub_finding(settings, "gated/model").problems[0]
    monkeypatch.setenv("HF_TOKEN", READS)
    found = hub_finding(settings, "gated/model")
    assert found.values["models"]["gated/model"] == "open"
    assert found.values["token_is_set"]
    assert not found.problems
    assert READS in [token for _, _, token in hub.log]
    assert READS not in repr(found)


def test_a_missing_model_is_named(settings: Settings, hub: Hub) -> None:
    """A name that the Hub does not know."""
    found = hub_finding(settings, "missing/model")
    assert found.values["models"]["missing/model"] == "missing"
    assert "missing/model cannot be fetched: the Hub has none of that name" in found.problems[0]


def test_without_a_hub_a_model_has_to_be_here(settings: Settings, tiny: Path) -> None:
    """A folder is enough; a name that is in no cache is a problem."""
    found = hub_finding(settings, "owner/model")
    assert found.values == {"hub_answers": False, "token_is_set": False} | {"models": found.values["models"]}
    assert "owner/model is neither a folder nor in the Hub's cache, and HF_HUB_OFFLINE is set" in found.problems[0]
    assert not hub_finding(settings, str(tiny)).problems


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows_are_counted_in_the_models_own_tokens(task: Task, tiny: Path) -> None:
    """Lengths are those of the tokens that stages train on."""
    lengths = task.given_by("rows")
    model = load_tiny(tiny)
    data = load_data(task.settings)
    mixture = data.baseline_mixture
    encoded = encode_conversations(model.tokenizer, [r.prompt for r in mixture], [r.response for r in mixture], 512)
    assert lengths.conversations == [(len(prompt), len(answer)) for prompt, answer in encoded]
    assert lengths.prefix == shared_prefix([prompt for prompt, _ in encoded])
    assert task.before["rows"].values["longest_tokens"]["rows"] == max(map(sum, lengths.conversations))
    assert not task.before["rows"].values["tokens_are_estimated"]


def test_messages_before_a_prompt_count(task: Task, tiny: Path) -> None:
    """To its tokens, estimated or not; and behind another system message rows share less."""
    tokenizer, data = load_tiny(tiny).tokenizer, load_data(task.settings)
    alone = Prompt("a", "plain", "set")
    behind = replace(alone, before=(("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello.")))
    data = replace(data, held_out=[alone, behind])
    found, estimated = rows.measured(data, tokenizer), rows.measured(data, None)
    assert found.held_out == list(map(len, encode_asked(tokenizer, data.held_out, 512)))
    assert found.prefix < task.given_by("rows").prefix
    assert found.prefix == shared_prefix(encode_asked(tokenizer, data.held_out, 512))
    assert estimated.held_out[1] > estimated.held_out[0]


def test_a_row_that_is_too_long_is_named(task: Task, tmp_path: Path) -> None:
    """As the run itself does, with its file and line."""
    file = write_rows(tmp_path / "long.jsonl", [{"prompt": "Hi", "response": "word " * 400}] * 40)
    with pytest.raises(UserError, match=r"long\.jsonl, line 1: .* tokens in the chat template"):
        rows.look(Task(replace(task.settings, instruction_rows=file), task.before))


# --- the trial --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_the_trial_takes_steps_of_the_runs_own_stages(
    architecture: str, settings: Settings, tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three steps of each stage in the loop of a run, with finite losses that fall, on the heaviest batch; a pass holds
    no more tokens than are planned; the times of the parts add up to that of the run."""
    task = up_to_the_trial(replace(settings, model=str(tiny_folder(architecture))))
    stages: list[Stage] = []
    run = Loop.run
    monkeypatch.setattr(Loop, "run", lambda loop: stages.append(loop.stage) or run(loop))
    told: list[Finding] = []
    found = trial.look(Task(task.settings, task.before, told.append))
    assert [(type(stage), stage.name) for stage in stages] == [
        (ContrastiveRefinement, "stage1"), (SafetySFT, "stage2"), (SafetySFT, "safety_sft"),
    ]  # fmt: skip
    parts, seconds = found.values["parts"], dict(found.values["whole_run_seconds"])
    shape, fitting = task.given_by("memory")
    assert found.values["layers"] == found.values["tried"]["layers"] == shape.layers
    # The peak is that of the process, in which other tests have left memory; of one that only checks, see below.
    assert not [note for note in found.notes if "more memory than estimated" not in note]
    for name, part in parts.items():
        assert 0 < part["at_once"] <= fitting.units[name]
        assert part["seconds"] > 0
        assert part["peak_bytes"] > 0
    for stage in stages:
        losses = parts[stage.name]["losses"]
        assert len(losses) == sizes.STEPS == stage.steps
        assert all(map(math.isfinite, losses))
        assert losses[-1] < losses[0]
        trained = {int(re.findall(r"layers\.(\d+)\.", n)[0]) for n, p in stage.model.network.named_parameters()
                   if any(p is own for own in stage.parameters)}  # fmt: skip
        layer = task.settings.layer
        assert trained == set({"stage1": range(layer + 1), "stage2": range(layer + 1, 4)}.get(stage.name, range(4)))
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()))
    assert list(seconds) == list(parts) == ["stage1", "stage2", "safety_sft", "evaluation"]
    assert len(told) == 1 + len(parts)  # what a part has found is kept where the next one is cut short


@pytest.mark.parametrize(
    ("changes", "tried"),
    [
        ({"stage1": "no"}, ["stage2", "safety_sft", "evaluation"]),
        ({"stage1": "no", "stage2": "no", "dial": "balanced", "compare_with": ()}, ["evaluation"]),
        ({"stage2": "no", "compare_with": ()}, ["stage1", "evaluation"]),
    ],
)
def test_a_stage_that_is_left_out_is_not_tried(settings: Settings, changes: dict[str, Any], tried: list[str]) -> None:
    """The others are, and the time of the whole run is the sum of theirs."""
    task = up_to_the_trial(replace(settings, **changes))
    values = trial.look(task).values
    assert list(values["parts"]) == values["of"] == tried
    seconds = dict(values["whole_run_seconds"])
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()))
    assert list(seconds) == tried


def test_the_heaviest_batch_is_tried(task: Task) -> None:
    """No step of the run holds more tokens than those of the trial."""
    lengths, (shape, fitting) = task.given_by("rows"), task.given_by("memory")
    fitting = replace(fitting, units=fitting.units | {"evaluation": 3})
    size = sizes.whole(shape, task.settings, lengths, fitting, CPU)
    batch, rows_of_step = task.settings.contrastive_batch, task.settings.sft_batch
    assert len(size.pairs) == batch // 2
    assert len(size.rows) == rows_of_step
    assert sum(map(sum, size.pairs)) > batch * sum(map(sum, lengths.pairs)) / len(lengths.pairs) / 2
    assert sum(map(sum, size.rows)) > rows_of_step * sum(map(sum, lengths.conversations)) / len(lengths.conversations)
    assert size.held_out == sorted(lengths.held_out)[::-1][:3]


def test_what_takes_too_long_or_does_not_fit_is_tried_in_part(task: Task) -> None:
    """For a machine without the time first fewer rows, as long as they fill the largest pass, then fewer layers, at
    last still fewer rows; for one without the memory fewer layers."""
    shape = Shape(32, 4096, 32, 8, 128, 14_336, 128_256, tied=False)
    settings = replace(task.settings, layer=16, contrastive_batch=32, sft_batch=16)
    parts = needs(shape, settings, True, 2)
    roomy, tight = fit(parts, 1e12, "x", insist=False), fit(parts, 5e9, "x", insist=False)
    lengths = replace(
        task.given_by("rows"), pairs=[(40, 40)] * 50, conversations=[(100, 100)] * 48, refuses=[False] * 48
    )
    size = sizes.whole(shape, settings, lengths, tight, IN_FOUR_BITS)
    assert sizes.choose(size, roomy, IN_FOUR_BITS, 1e9) == size
    hurried = sizes.choose(size, roomy, IN_FOUR_BITS, 1e-3)
    assert (hurried.shape.layers, hurried.settings.layer) == (sizes.FEWEST_LAYERS, 1)
    assert (len(hurried.pairs), len(hurried.rows), len(hurried.held_out)) == (2, 1, 1)
    narrow = sizes.choose(size, tight, IN_FOUR_BITS, 1e9)
    assert sizes.FEWEST_LAYERS <= narrow.shape.layers < shape.layers
    assert narrow.pairs == size.pairs
    filling = size.with_half_the_rows(640, 1600)
    assert (len(filling.pairs), len(filling.rows)) == (8, 8)
    assert filling.with_half_the_rows(640, 1600) == filling


def counted_by_torch(shape: Shape, runs: list[Callable[[Model, Batch], object]]) -> list[int]:
    """The operations of each of ``runs`` on eight rows of 7 tokens behind 8 shared ones, which nothing fills up, but
    those of attention. An adapter's grow in proportion to its rank: the count of twice the rank says what it is without
    one."""
    in_place = {torch.ops.aten.addmm_: lambda _sum, a, b, **kwargs: mm_flop(a, b)}  # torch counts addmm alone
    counts: list[list[int]] = []
    for rank in (4, 8):
        model = random_model(shape, "cpu", torch.float32, False)
        adapters.add_adapter(model, "counted", rank, 0)
        adapters.train_only(model, "counted", range(shape.layers))
        batch = model.batch([[1] * 8 + [i + 2] * 7 for i in range(8)], 8)
        counts.append([])
        for run in runs:
            with FlopCounterMode(display=False, custom_mapping=in_place) as counter, model.compute():
                run(model, batch)
            of = {str(product): n for product, n in counter.get_flop_counts()["Global"].items()}
            counts[-1].append(sum(n for name, n in of.items() if "bmm" not in name and "attention" not in name))
    return [2 * once - twice for once, twice in zip(*counts, strict=True)]


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_operations_are_those_that_torch_counts(layers: int) -> None:
    """To the last one, adapters and attention left out: of both stages, and of GradCache's first pass."""
    shape = Shape(layers, 64, 4, 2, 16, 128, 512, tied=False)
    count = Counter(shape, layers - 1, prefix=8)

    def states(model: Model, batch: Batch) -> Tensor:
        return prompt_states(model.network, batch, layers - 1)

    def stage1(model: Model, batch: Batch) -> None:
        states(model, batch).sum().backward()

    def sft(model: Model, batch: Batch) -> None:
        places = torch.cat([own[-5:] for own in batch.index])
        targets, weights = torch.ones(len(places), dtype=torch.long), torch.ones(len(places))
        backward_through_vocabulary(model, final_states(model.network, batch, places), targets, weights)

    in_parts = replace(count, at_once=20).stage1(8, 7) - count.stage1(8, 7)
    expected = [count.stage1(8, 7), count.sft(8, 7, 5, 0), in_parts]
    assert counted_by_torch(shape, [stage1, sft, torch.no_grad()(states)]) == expected


def test_the_time_of_a_run_adds_up(task: Task) -> None:
    """Twice the steps of stage 1 take twice as long but for what is read once; the parts sum to the whole; with half
    the speed everything takes twice as long."""
    lengths, (shape, _) = task.given_by("rows"), task.given_by("memory")
    once = duration.operations(shape, task.settings, lengths, lengths.prefix)
    steps = task.settings.contrastive_steps
    twice = duration.operations(shape, replace(task.settings, contrastive_steps=2 * steps), lengths, lengths.prefix)
    prompt = sum(map(sum, lengths.pairs)) / len(lengths.pairs) / 2 - lengths.prefix
    step = Counter(shape, task.settings.layer, lengths.prefix).stage1(task.settings.contrastive_batch, prompt)
    assert twice["stage1"] - once["stage1"] == pytest.approx(steps * step)  # fewer than 20 more: no further observation
    assert {name: twice[name] == once[name] for name in once} == {
        "stage1": False, "stage2": True, "safety_sft": True, "evaluation": True,
    }  # fmt: skip
    fast, slow = (duration.seconds(once, dict.fromkeys(once, rate)) for rate in (2e9, 1e9))
    assert fast["total"] == pytest.approx(sum(once.values()) / 2e9)
    assert slow == pytest.approx({name: 2 * value for name, value in fast.items()})


# --- whatever happens is a finding ------------------------------------------------------------------------------------

PARTS = {
    "good": "def look(task):\n    return Finding(['fine'], given=task.settings.seed)",
    "broken": "def look(task):\n    task.tell(Finding(['so far']))\n    raise ValueError('odd\\nmore')",
    "missing": "import nosuchpackage",
    "hanging": "def look(task):\n    task.tell(Finding(['so far']))\n    time.sleep(600)",
    "killed": "def look(task):\n    task.tell(Finding(['so far']))\n    os.kill(os.getpid(), 9)",
    "crashed": "def look(task):\n    print('the last words', flush=True)\n    os.kill(os.getpid(), 11)",
    "last": "def look(task):\n    print('noise')\n    return Finding(['given ' + str(task.given_by('good'))])",
}


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> worker.Parts:
    """Parts that fail in every way, each a module."""
    for name, text in PARTS.items():
        heading = "import os, time\nfrom dcr_lite.check.finding import Finding\n"
        (tmp_path / f"check_part_{name}.py").write_text(heading + text + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    # The one that hangs is not the first of its process, so that its two seconds are not spent on the imports.
    return {name: (f"check_part_{name}", 2.0 if name == "hanging" else 30.0) for name in PARTS}


def test_a_part_that_fails_is_a_finding(settings: Settings, parts: worker.Parts, capfd: Any) -> None:
    """One that raises, cannot be imported, is killed, crashes or hangs is told with what it had found by then; the
    others go on, and have what earlier ones gave them. Nothing is printed."""
    begun: list[str] = []
    found = worker.look(replace(settings, seed=3), begun.append, parts)
    assert list(found) == list(parts) == begun
    problems = {name: finding.problems for name, finding in found.items()}
    assert problems["good"] == problems["last"] == []
    assert found["last"].says == ["given 3"]
    assert problems["broken"] == ["ValueError: odd"]
    assert "nosuchpackage" in problems["missing"][0]
    assert "as it does when memory runs out" in problems["killed"][0]
    assert "it crashed (SIGSEGV: the last words)" in problems["crashed"][0]
    assert problems["hanging"] == ["ended after 2 seconds; what it had found by then is shown"]
    for name in ("broken", "killed", "hanging"):
        assert found[name].says == ["so far"]
    assert [name for name, finding in found.items() if finding.cut_short] == ["hanging", "killed", "crashed"]
    assert capfd.readouterr() == ("", "")


# --- the command ------------------------------------------------------------------------------------------------------


def processor_seconds() -> float:
    """Of this process's children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


@pytest.fixture(scope="module")
def check_and_share(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """The JSON of a whole check, of a model in the folder of a user who has a token, and the share of its seconds in
    which it had the processor. It has ten times the time, so that what else the machine does cuts nothing short."""
    home = tmp_path_factory.mktemp("home") / "home" / "alice"
    shutil.copytree(tiny, home / "model")
    patient = {name: (module, 10 * seconds) for name, (module, seconds) in worker.PARTS.items()}
    before = processor_seconds()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setenv("HF_TOKEN", "hf_secret_of_alice")
        patch.setenv("HOME", str(home))
        patch.setattr(worker, "SECONDS", 10 * worker.SECONDS)
        patch.setattr(worker, "look", partial(worker.look, parts=patient))
        given = flags(home / "model", rows, home / "run", json=True)
        assert run_command(patch, "check", "smollm2_135m", *given) == 0, out.getvalue()
    found: dict[str, Any] = json.loads(out.getvalue())
    return found, min(1.0, (processor_seconds() - before) / found["seconds"])


@pytest.fixture(scope="module")
def checked(check_and_share: tuple[dict[str, Any], float]) -> dict[str, Any]:
    """The JSON alone."""
    return check_and_share[0]


def test_a_check_goes_well_where_a_run_would(check_and_share: tuple[dict[str, Any], float]) -> None:
    """No problem, every part whole and within its time, all in two minutes, on a machine that does nothing else: of the
    seconds those count in which the check had the processor. In a process that only checks no part takes more memory
    than was estimated."""
    checked, share = check_and_share
    assert checked["ready"]
    assert checked["problems"] == []
    assert [name for name in worker.PARTS if checked[name]["cut_short"]] == []
    assert [name for name, (_, most) in worker.PARTS.items() if share * checked[name]["seconds"] >= most] == []
    assert share * checked["seconds"] < 120
    assert checked["trial"]["notes"] == []
    assert checked["trial"]["whole_run_seconds"]["total"] > 0


def test_json_has_the_documented_keys(checked: dict[str, Any]) -> None:
    """docs/running.md lists every key of the object and of its parts."""
    text = (RECIPE.parents[1] / "docs" / "running.md").read_text(encoding="utf-8")
    section = text.split("## Before a run")[1].split("\n## ")[0]
    documented = set(re.findall(r"`(\w+)`", section))
    keys = set(checked) | {key for name in worker.PARTS for key in checked[name]}
    assert keys - documented == set()


def test_json_names_no_person(checked: dict[str, Any]) -> None:
    """No token, no name of a user, no folder of theirs."""
    text = json.dumps(checked)
    for private in ("alice", "hf_secret", "/home", str(Path.home()), "/tmp"):
        assert private not in text
    assert checked["hub"]["token_is_set"]


def test_a_model_is_called_by_its_whole_name(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A point in it is no beginning of a file's ending, as in the name of a recipe's file; of a folder none is told."""
    monkeypatch.setattr(worker, "look", lambda settings, begin: {})
    named = {("--model", "some/Tiny-0.5B-Chat"): "Tiny-0.5B-Chat", (str(RECIPE),): RECIPE.stem}
    for words, name in (named | {("--model", "."): "a folder"}).items():
        assert command.check((*words, "--json"))
        assert json.loads(capsys.readouterr().out)["recipe"] == name


def test_names_of_people_are_taken_out() -> None:
    """Wherever they stand."""
    said = "/home/alice/a.jsonl, line 3: C:\\Users\\Bob\\b.json and hf_abcdefghi, /mnt/carol: no; https://a.b/c d/e 1/2"
    expected = "a.jsonl, line 3: b.json and hf_..., (folder): no; https://a.b/c d/e 1/2"
    assert command.without_names({"a": [said]}) == {"a": [expected]}
    assert (
        command.without_names("../alice/tiny: no and ./x/b.json, ..\\bob. and/or")
        == "(folder): no and b.json, (folder) and/or"
    )


@pytest.mark.parametrize("given", ["models/alice", "alice", "../here/models/alice", "."])
def test_json_names_no_relative_folder(
    given: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """However the folder of a model is given, also where it looks like a name on the Hub."""
    here = tmp_path / "here"
    for folder in ("models/alice", "alice"):
        shutil.copytree(tiny, here / folder)
    monkeypatch.chdir(here)
    seen = Finding([f"{given}: on this disk"], {"models": {given: "here"}}, notes=[f"{given}/x.json is damaged."])
    monkeypatch.setattr(worker, "look", lambda settings, begin: {"hub": seen})
    assert command.check(("--model", given, "--json"))
    said = capsys.readouterr().out
    assert "alice" not in said
    assert json.loads(said)["settings"]["model"] == "(folder)"


@pytest.mark.parametrize(
    ("part", "changes", "left", "said"),
    [
        ("disk", {}, "report.json", "holds a finished run: look at its report.md"),
        ("disk", {}, "metrics.jsonl", "holds a stopped run: add --resume"),
        ("machine", {"track": "wandb"}, None, "--track wandb: wandb is not installed. pip install wandb"),
        ("memory", {"layer": 3}, None, "has 4 layers, so L goes from 0 to 2"),
        ("memory", {"layer": 7, "stage2": "no"}, None, "has 4 layers, so L goes from 0 to 2"),
    ],
)
def test_what_would_end_the_run_at_once_is_a_problem(
    part: str, changes: dict[str, Any], left: str | None, said: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the run's own sentence: what lies in its folder, a tracker without its package, and a layer that the model has
    not. Without it there is none."""
    before = {"machine": Finding(given=CPU), "hub": Finding(given={})}
    monkeypatch.setattr(obstacles, "find_spec", lambda package: None)

    def problems(settings: Settings) -> list[str]:
        return worker._attempt(f"dcr_lite.check.{part}", settings, before, lambda finding: None).problems

    assert problems(settings) == []
    if left:
        settings.run.mkdir()
        for name in ("settings.json", left):
            (settings.run / name).write_text("{}")
    (problem,) = problems(replace(settings, **changes))
    assert said in problem


def test_what_stands_in_the_way_sets_the_exit_status(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A device that is not there: status 1, the problem with its cure at the end, and no traceback."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    start_server()  # a process that has the imports, to fork from
    monkeypatch.setattr(worker.multiprocessing, "get_context", lambda how: CONTEXT)
    given = flags(tiny, rows, tmp_path / "run", device="cuda")
    assert run_command(monkeypatch, "check", *given) == 1
    out, err = capsys.readouterr()
    assert "One thing stands in the way" in out
    assert "--device cuda: torch sees no CUDA GPU" in " ".join(out.split())
    assert "Traceback" not in out + err


@pytest.mark.parametrize("width", [80, 110])
def test_the_page_fits_the_terminal(
    width: int, checked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Every part has its line, the table of the trial its numbers, and no line is wider than the terminal."""
    monkeypatch.setenv("COLUMNS", str(width))
    findings = {name: Finding([f"{name} " * 30], checked[name]) for name in worker.PARTS}
    page.show(checked, findings)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert all(title in text for title in (*page.PARTS.values(), "stage 1", "safety SFT alone", "evaluation"))
    assert "Nothing stands in the way. A run takes about" in text
