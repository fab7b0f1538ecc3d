"""Claims about the two backends: which is chosen and why, and that with unsloth every result is the same."""

import ast
import inspect
import json
import os
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from recipe_runs import small_settings
from small_runs import RECIPE, flags, run_here, save_rows
from tiny_models import (
    ADAPTER,
    LAYERS,
    OPENINGS,
    PROMPTS,
    add_random_adapter,
    assert_close,
    assert_far,
    losses_of,
    random_rows,
    take_gradients,
)
from torch import Tensor
from unsloth_stub import SIGNATURES, _fast_forward, install

from dcr_lite.compare import command as compare_command
from dcr_lite.data.rows import Conversation
from dcr_lite.diagnose import command as diagnose_command
from dcr_lite.errors import UserError
from dcr_lite.method import safety_sft
from dcr_lite.method.dial_fitting import read_inputs
from dcr_lite.method.loop import Loop
from dcr_lite.method.safety_sft import SafetySFT, SafetySFTConfig
from dcr_lite.model import configuration, loading, unsloth
from dcr_lite.model.adapters import activate, add_adapter, stock, train_only
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.generation import answer
from dcr_lite.model.hidden_states import decoder_of, prompt_states, states_above, states_at_layer
from dcr_lite.model.loading import Model
from dcr_lite.model.packing import pad
from dcr_lite.model.streaming import Growing, GrowingTogether
from dcr_lite.model.unsloth import TRANSFORMERS, Choice, choose

UNSLOTH = Choice("unsloth", "asked for")
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2"]
ROWS = random_rows([5, 11, 3, 8], shared=4)
Folder = Callable[..., Path]


@pytest.fixture
def both(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Model, Model]]:
    """both(architecture, four_bit=, **config) -> the same model with the same adapter, from transformers and from
    the stub."""
    install(monkeypatch)

    def load(architecture: str = "llama", four_bit: bool = False, **config: Any) -> tuple[Model, Model]:
        loaded = []
        for choice in (TRANSFORMERS, UNSLOTH):
            folder = tiny_folder(architecture, **config)
            model = loading.load(folder, "cpu", torch.float32, four_bit, choice)
            add_random_adapter(model)
            loaded.append(model)
        return loaded[0], loaded[1]

    return load


# --- the choice -------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """machine(capability=, installed=) -> what the choice finds here; ``installed`` is a version."""

    def pretend(capability: tuple[int, int] | None = (8, 9), installed: str | None = unsloth.VERSION) -> None:
        monkeypatch.setattr(unsloth, "_capability", lambda: capability)
        monkeypatch.setattr(unsloth, "_installed", lambda: installed)

    return pretend


def test_unsloth_is_taken_where_it_can_work_and_is_asked_for(machine: Callable[..., None]) -> None:
    """A GPU of capability 7.0 or more, unsloth installed, an architecture that it serves: then it is taken where it is
    asked for. A T4 (7.5) is enough. By itself nothing takes it, since it has not been run on a card."""
    for capability in ((7, 0), (7, 5), (8, 0), (12, 0)):
        machine(capability=capability)
        for architecture in unsloth.ARCHITECTURES:
            assert choose("unsloth", "cuda", architecture).name == "unsloth"
            assert choose("auto", "cuda", architecture) == Choice("transformers", unsloth.UNTRIED)
    assert choose("unsloth", "cuda", "llama").why == "asked for"
    assert choose("transformers", "cuda", "llama") == TRANSFORMERS


@pytest.mark.parametrize(
    ("device", "here", "architecture", "reason"),
    [
        ("cpu", {}, "llama", "needs a CUDA GPU, and this run is on cpu"),
        ("mps", {}, "llama", "needs a CUDA GPU, and this run is on mps"),
        ("cuda", {"capability": None}, "llama", "needs a CUDA GPU, and torch sees none"),
        ("cuda", {"capability": (6, 1)}, "llama", "needs a GPU of capability 7.0, and this one has 6.1"),
        ("cuda", {"installed": None}, "llama", "is not installed (pip install 'dcr-lite[gpu]')"),
        ("cuda", {"installed": "2026.11.1"}, "llama", "2026.11.1 is installed, and the kit works with 2026.10.7 alone"),
        ("cuda", {}, "lfm2", "has no fast path for lfm2"),
    ],
)
def test_an_obstacle_is_named(
    machine: Callable[..., None], device: str, here: dict[str, Any], architecture: str, reason: str
) -> None:
    """What keeps unsloth from working is the reason for transformers, and an error where unsloth was asked for."""
    machine(**here)
    choice = choose("auto", device, architecture)
    assert choice.name == "transformers"
    assert reason in choice.why
    with pytest.raises(UserError, match=r"--backend unsloth: unsloth [^\n]* Leave the flag out"):
        choose("unsloth", device, architecture)


def test_a_run_says_its_backend_and_why(tiny_folder: Folder, tmp_path: Path) -> None:
    """The plan names the backend and the reason; --backend unsloth without a GPU is a one-line error."""
    rows = save_rows(tmp_path / "rows")
    few = {"contrastive_steps": 1, "stage2": "no", "compare_with": [], "evaluation": rows / "plain.jsonl"}
    argv = flags(tiny_folder("llama"), rows, tmp_path / "run", **few)
    done = run_here([*argv, "--backend", "unsloth"])
    assert done.code == 1
    assert "--backend unsloth: unsloth needs a CUDA GPU, and this run is on cpu" in done.err
    done = run_here([*argv, "--resume"])  # stopped before anything was done
    assert done.code == 0, done.err
    assert "transformers (unsloth needs a CUDA GPU, and this run is on cpu)" in " ".join(done.out.split())


def test_looking_for_unsloth_does_not_import_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing it without a GPU raises, so it is looked for without: a package that fails on import is found."""
    (tmp_path / "unsloth").mkdir()
    (tmp_path / "unsloth" / "__init__.py").write_text("raise NotImplementedError('no accelerator')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "unsloth", raising=False)
    monkeypatch.setattr(unsloth, "_capability", lambda: (8, 9))
    monkeypatch.setattr(unsloth, "_installed", lambda: unsloth.VERSION)
    assert choose("unsloth", "cuda", "llama").name == "unsloth"
    assert "unsloth" not in sys.modules
    unsloth.prepare("unsloth", "cpu")
    unsloth.prepare("auto", "cuda")
    unsloth.prepare("transformers", "cuda")
    assert "unsloth" not in sys.modules
    with pytest.raises(UserError, match=r"cannot be imported \(no accelerator\). Use --backend transformers"):
        unsloth._import()


def test_it_is_imported_first_and_without_its_compiler(tmp_path: Path) -> None:
    """A recipe that takes unsloth imports it before transformers and peft, which it patches, and with its compiled
    forward off, whose cache a pass by hand can spoil."""
    (tmp_path / "unsloth.py").write_text(
        "import os, sys\n"
        "assert not {'transformers', 'peft', 'trl'} & sys.modules.keys()\n"
        "print('compiler off:', os.environ['UNSLOTH_COMPILE_DISABLE'])\n"
    )
    code = (
        "import runpy, sys\n"
        "from dcr_lite.model import unsloth\n"
        "from dcr_lite.run import launch\n"
        "unsloth._capability, unsloth._installed = lambda: (8, 9), lambda: unsloth.VERSION\n"
        "launch._start = lambda main, settings: print('begins', 'unsloth' in sys.modules)\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "sys.argv = ['recipe.py', '--backend', 'unsloth']\n"
        f"runpy.run_path({str(RECIPE)!r}, run_name='__main__')"
    )
    environment = {name: value for name, value in os.environ.items() if name != "UNSLOTH_COMPILE_DISABLE"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split("\n")[:2] == ["compiler off: 1", "begins True"], done.stderr


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((6, 1), torch.float32), ((7, 0), torch.float16), ((7, 5), torch.float16), ((8, 0), torch.bfloat16),
     ((8, 9), torch.bfloat16), ((12, 0), torch.bfloat16)],
)  # fmt: skip
def test_a_card_computes_in_what_it_multiplies_fast(capability: tuple[int, int], precision: torch.dtype) -> None:
    """A T4 (7.5) and its like take float16, later cards bfloat16, earlier ones float32."""
    assert loading.precision_of_card(capability) == precision


def test_no_module_imports_unsloth_by_a_statement() -> None:
    """model/unsloth.py alone imports it, when it is needed."""
    for path in Path(unsloth.__file__).parents[1].rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0].startswith("unsloth") for name in names)


def test_weights_of_the_old_form_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without safetensors is refused before unsloth sees it, which would unpickle what is there."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    with pytest.raises(UserError, match="holds no weights in safetensors"):
        unsloth.load(tmp_path, torch.float32, False)


def test_compare_and_diagnose_load_with_transformers(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steered answers need a cache, and kernels a graph that can be replayed: a recipe or a run that takes unsloth is
    compared and diagnosed with transformers, and nothing stops after other methods have trained."""
    settings = small_settings(tiny, rows, tmp_path / "run", backend="unsloth")
    asked: list[str] = []

    def stop(given: Any, *args: Any) -> Any:
        asked.append(given.backend)
        raise UserError("far enough")

    monkeypatch.setattr(compare_command, "SeedRun", stop)
    with pytest.raises(UserError, match="far enough"):
        compare_command.compare(settings, (0,), (), None, None, (), tmp_path / "out")
    monkeypatch.setattr(diagnose_command.opening, "load_model", stop)
    with pytest.raises(UserError, match="far enough"):
        next(diagnose_command._measure(settings, ["stock"], 2, 2))
    assert asked == ["transformers", "transformers"]


# --- its calls --------------------------------------------------------------------------------------------------------


PINNED = "unsloth==2026.10.7"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ast.Module]:
    """source(file) -> a file of the pinned version's models, read and not imported: its wheel comes from the package
    index, without what it depends on (31 MB, which pip keeps)."""
    folder = tmp_path_factory.mktemp("unsloth")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "1", "--timeout", "6", "download"]
    command = [*pip, "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), PINNED]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        pytest.skip(f"no package index gives {PINNED}: {done.stderr.strip()[-200:]}")
    wheel = zipfile.ZipFile(wheels[0])
    return lambda file: ast.parse(wheel.read(f"unsloth/models/{file}"))


def function(tree: ast.Module, name: str, owner: str | None = None) -> ast.FunctionDef:
    """The function of that name in a file, or in one of its classes."""
    bodies = (
        [n.body for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == owner] if owner else [tree.body]
    )
    [found] = [node for body in bodies for node in body if isinstance(node, ast.FunctionDef) and node.name == name]
    return found


def arguments(found: ast.FunctionDef) -> tuple[str, ...]:
    return tuple(a.arg for a in found.args.args)


def test_the_recorded_signatures_are_the_sources(source: Callable[[str], ast.Module]) -> None:
    """The arguments that calls are checked against are those of the pinned version's source, in their order; its
    decoder's forward pass takes by name what the kit, and the stub, give it."""
    loaded = function(source("loader.py"), "from_pretrained", "FastLanguageModel")
    patched = function(source("llama.py"), "patch_peft_model", "FastLlamaModel")
    assert arguments(loaded) == SIGNATURES["from_pretrained"]
    assert arguments(patched) == SIGNATURES["patch_peft_model"]
    forward = arguments(function(source("llama.py"), "LlamaModel_fast_forward"))
    assert {"input_ids", "inputs_embeds", "attention_mask", "use_cache"} <= set(forward)
    assert set(inspect.signature(_fast_forward).parameters) <= set(forward)


def test_the_tested_version_is_the_one_that_is_installed() -> None:
    """pyproject.toml pins the version whose signatures are recorded; the stub refuses all other arguments."""
    assert f"unsloth=={unsloth.VERSION}" == PINNED
    assert f'"{PINNED}"' in (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")


def test_the_stub_has_the_traps_of_the_source(source: Callable[[str], ast.Module]) -> None:
    """What the stub does differently from transformers is in the pinned version's source."""
    llama = source("llama.py")
    forward = function(llama, "LlamaModel_fast_forward")
    in_training = [n for n in ast.walk(forward) if isinstance(n, ast.If) and "self.training" in ast.unparse(n.test)]
    assert any("attention_mask = None" in map(ast.unparse, node.body) for node in in_training)
    for where, statement in (
        (forward, "past_key_values_length = past_key_values[0][0].shape[2]"),
        (forward, "use_sliding_window = idx % 2 == 0"),
        (function(llama, "LlamaDecoderLayer_fast_forward"), "outputs = (hidden_states,)"),
        (function(llama, "from_pretrained", "FastLlamaModel"), "tokenizer.padding_side = 'left'"),
        (
            function(llama, "patch_peft_model", "FastLlamaModel"),
            "mlp_module.forward = types.MethodType(_apply_lora_mlp, mlp_module)",
        ),
    ):
        assert statement in [ast.unparse(node) for node in ast.walk(where) if isinstance(node, ast.Assign)], statement


# --- the same results -------------------------------------------------------------------------------------------------


def test_the_stub_has_the_traps(both: Callable[..., tuple[Model, Model]]) -> None:
    """The stub behaves as unsloth: left padding is silently wrong in training, layers return tuples, a cache object
    raises."""
    _, fast = both()
    rows = [row[:8] for row in ROWS]
    right = pad([rows[0][:4], rows[1]], 2)
    left = {"input_ids": right.inputs["input_ids"].clone(), "attention_mask": right.inputs["attention_mask"].flip(1)}
    left["input_ids"][0] = left["input_ids"][0].roll(4)
    decoder = fast.network.get_base_model().model
    with torch.no_grad():
        alone = decoder(input_ids=torch.tensor([rows[0][:4]])).last_hidden_state[0, -1]
        decoder.train()
        assert_far(decoder(**left).last_hidden_state[0, -1], alone)
        assert_close(decoder(**right.inputs).last_hidden_state[0, 3], alone)
        assert isinstance(
            decoder.layers[0](
                torch.zeros(1, 2, 64),
                position_embeddings=decoder.rotary_emb(torch.zeros(1, 2, 64), torch.arange(2)[None]),
            ),
            tuple,
        )
        with pytest.raises(TypeError, match="not subscriptable"):
            decoder(input_ids=torch.tensor([rows[0]]), past_key_values=object())


def test_the_stub_has_the_traps_of_a_second_pass_and_of_length(
    tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph gives other gradients the second time; a maximum beyond the window gives other states."""
    install(monkeypatch)
    ids, found = torch.tensor([ROWS[0]]), []
    for longest in (512, 8192):
        monkeypatch.setattr(
            configuration, "in_folder", lambda folder, longest=longest: {"max_position_embeddings": longest}
        )
        decoder = loading.load(tiny_folder("llama"), "cpu", torch.float32, False, UNSLOTH).network.model
        weight = decoder.layers[0].mlp.up_proj.weight.requires_grad_(True)
        states = decoder(input_ids=ids).last_hidden_state
        first, second = (torch.autograd.grad(states.sum(), weight, retain_graph=True)[0] for _ in range(2))
        assert first.norm() > 0 == second.norm()
        found.append(states.detach())
    assert_far(*found)


@pytest.mark.parametrize("four_bit", [False, True], ids=["float32", "NF4"])
@pytest.mark.parametrize("architecture", FAMILIES)
def test_states_and_gradients_are_those_of_transformers(
    both: Callable[..., tuple[Model, Model]], architecture: str, four_bit: bool
) -> None:
    """Last-token states at a middle layer and the adapter gradients below it, for rows of different lengths, in
    training."""
    found: list[tuple[Tensor, list[Tensor]]] = []
    for model in both(architecture, four_bit):
        parameters = train_only(model, ADAPTER, range(3))
        model.network.train()
        states = prompt_states(model.network, model.batch(ROWS), 2)
        states.tanh().sum().backward()
        found.append((states.detach(), take_gradients(parameters)))
    (states, gradients), (fast_states, fast_gradients) = found
    assert_close(fast_states, states)
    assert_close(fast_gradients, gradients, 1e-4)


@pytest.mark.parametrize("above", [-1, 1], ids=["all layers", "above layer 1"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_safety_sft_takes_the_same_steps(
    both: Callable[..., tuple[Model, Model]], architecture: str, above: int
) -> None:
    """Losses of two epochs are those of transformers."""
    rows = [Conversation(p, f"Answer {i} is here.") for i, p in enumerate(PROMPTS)]
    config = SafetySFTConfig(above, epochs=2, batch_size=3, learning_rate=1e-2)
    losses = [
        losses_of(Loop(SafetySFT("stage2", model, ADAPTER, rows, config, seed=0)).run().metrics)
        for model in both(architecture)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_answers_are_the_same_without_a_cache(both: Callable[..., tuple[Model, Model]], architecture: str) -> None:
    """Greedy answers and refusal scores, in a batch and as a stream, with the adapter and without."""
    plain, fast = both(architecture)
    plain.openings = fast.openings = OPENINGS
    rows = encode_prompts(plain.tokenizer, PROMPTS, plain.window)
    expected, found = (answer(model, rows, 5) for model in (plain, fast))
    assert [a.text for a in found] == [a.text for a in expected]
    assert [a.refusal_log_odds for a in found] == pytest.approx([a.refusal_log_odds for a in expected], abs=1e-3)
    with stock(plain), stock(fast):
        assert [a.text for a in answer(fast, rows, 5)] == [a.text for a in answer(plain, rows, 5)]
    activate(fast, ADAPTER)
    growing = [Growing(rows[0], 5)]
    together = GrowingTogether(fast, growing)
    while not growing[0].ended:
        together.step()
    assert tuple(growing[0].ids) == answer(fast, rows[:1], 5)[0].ids


def test_a_dial_is_fitted_to_what_goes_into_down_proj(both: Callable[..., tuple[Model, Model]]) -> None:
    """Although unsloth's kernel calls none of the maps, and so no hook on them; afterwards it is in its place."""

    def kernel(mlp: Any, states: Tensor) -> Tensor:
        inner = mlp.act_fn(mlp.gate_proj.forward(states)) * mlp.up_proj.forward(states)
        return cast(Tensor, mlp.down_proj.forward(inner))  # a module's own forward calls no hook

    plain, fast = both()
    kernels = {layer.mlp: types.MethodType(kernel, layer.mlp) for layer in decoder_of(fast.network).layers}
    for mlp, its in kernels.items():
        mlp.forward = its
    kinds = [1.0] * len(ROWS)
    for found, expected in zip(*(read_inputs(model, 1, ROWS, kinds) for model in (fast, plain)), strict=True):
        assert_close(found.inputs[-1], expected.inputs[-1])  # at a row's end; packed rows share their beginning
    assert all(mlp.forward is its for mlp, its in kernels.items())


def test_nothing_trains_that_was_not_chosen(both: Callable[..., tuple[Model, Model]]) -> None:
    """Loading and patching leave nothing trainable, a second adapter neither, and the tokenizer pads on the right."""
    _, fast = both()
    assert fast.tokenizer.padding_side == "right"
    assert not any(p.requires_grad for p in fast.network.parameters())
    add_adapter(fast, "second", rank=4, seed=1)
    assert not any(p.requires_grad for p in fast.network.parameters())
    chosen = train_only(fast, "second", range(2))
    trains = [name for name, p in fast.network.named_parameters() if p.requires_grad]
    assert len(trains) == len(chosen) == 2 * 14
    assert all(".second." in name and ("layers.0." in name or "layers.1." in name) for name in trains)


def test_rows_stay_within_the_window_of_gemma2(both: Callable[..., tuple[Model, Model]]) -> None:
    """Cut behind an even layer, Gemma 2's layers above change places and with that what they see, in rows longer than
    the window: such rows are not taken. Within it the layers above give what they give in the whole model."""
    plain, fast = both("gemma2", sliding_window=8)
    assert (plain.window, fast.window) == (512, 8)
    for length, agrees in ((8, True), (16, False)):
        batch = plain.batch(random_rows([length]))
        with torch.no_grad():
            below = states_at_layer(plain.network, batch, 2)[None]
            above, fast_above = (states_above(model.network, batch, below, 2) for model in (plain, fast))
        (assert_close if agrees else assert_far)(fast_above, above)
    with pytest.raises(UserError, match="the limit is 8"):
        encode_prompts(fast.tokenizer, PROMPTS, fast.window)


def test_steering_needs_the_other_backend(both: Callable[..., tuple[Model, Model]]) -> None:
    """The message names the backend that steering needs."""
    _, fast = both()
    fast.steering = lambda rows: {}
    with pytest.raises(UserError, match="steered answers need --backend transformers"):
        answer(fast, ROWS, 1)


def test_a_whole_run_ends_as_with_transformers(
    tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both stages, the comparison, the measurement and the report: the same losses and the same answers."""
    rows, found = save_rows(tmp_path / "rows"), []
    install(monkeypatch)
    monkeypatch.setattr(safety_sft, "OBSERVATIONS", 1)  # without a cache they take longer than the steps
    for choice in (TRANSFORMERS, UNSLOTH):
        monkeypatch.setattr(unsloth, "choose", lambda *args, choice=choice: choice)
        run = tmp_path / choice.name
        done = run_here(flags(tiny_folder("llama"), rows, run, contrastive_steps=4, sft_epochs=1, answer_tokens=3))
        assert done.code == 0, done.err
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
        found.append((losses_of(metrics), report["methods"]["dcr"]["overall"]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-3)
    assert found[1][1] == found[0][1]
    assert len(found[0][0]) > LAYERS
