"""What never happens: a pickle that is unpickled, code of a model that runs, a port that others reach, a token that is
written down."""

import ast
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from small_runs import flags, run_here
from tiny_models import ADAPTER, add_random_adapter, load_tiny

from dcr_lite.errors import UserError
from dcr_lite.export.command import export_gguf, export_merged, open_finished
from dcr_lite.export.merge import Merged
from dcr_lite.method.checkpoint import restore_checkpoint
from dcr_lite.model.adapters import load_adapter
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.loading import Model
from dcr_lite.run.discernment import FILE, Discernments
from dcr_lite.run.opening import load_base, open_model
from dcr_lite.run.stored_states import load_states
from dcr_lite.settings import ModelSettings

ROOT = Path(__file__).parent.parent
SOURCES = [*(ROOT / "dcr_lite").rglob("*.py"), *(ROOT / "recipes").glob("*.py"), ROOT / "app.py"]


# --- no pickle --------------------------------------------------------------------------------------------------------

PICKLES = {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
RUN_CODE = {"eval", "exec", "compile", "__import__"}


def calls(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, keywords) of every call in a file: the name as it is written, constant keywords as their values."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            given = {k.arg: getattr(k.value, "value", ...) for k in node.keywords if k.arg}
            yield ast.unparse(node.func), given


def test_nothing_in_the_code_unpickles_or_runs_text() -> None:
    """torch.load reads weights only, every load of a model or a tokenizer says no to remote code and models to the old
    form of weights, no library of pickles is used beyond the name of its error, and no text is run as code."""
    loads = 0
    for path in SOURCES:
        for name, given in calls(path):
            assert name not in RUN_CODE, path
            assert given.get("allow_pickle") is not True, path
            assert given.get("shell") is not True, path
            if name == "torch.load":
                assert given.get("weights_only") is True, path
            if name.endswith(".from_pretrained") and name != "PeftModel.from_pretrained":  # it takes no such argument
                loads += 1
                assert given.get("trust_remote_code") is False, (path, name)
                if "FastLanguageModel" in name:
                    continue  # it takes no such argument: the folder is looked at before (test_unsloth.py)
                assert "Model" not in name or given.get("use_safetensors") is True or "gguf_file" in given, path
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            imported = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            imported += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for module in PICKLES & {name.split(".")[0] for name in imported}:
                used = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
                assert {n for n in used if n.startswith(f"{module}.")} <= {"pickle.UnpicklingError"}, path
    assert loads >= 11  # a guard: they are found


class Malicious:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def poison(path: Path, mark: Path, zipped: bool) -> None:
    """Write a pickle that acts, in the form of torch's files or alone."""
    if zipped:
        torch.save({"weights": Malicious(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Malicious(mark)))


def of_checkpoint(path: Path, run: Path, model: Path) -> None:
    network = load_tiny(model)
    add_random_adapter(network)
    restore_checkpoint(path, network, ADAPTER, torch.optim.SGD([torch.zeros(1, requires_grad=True)]))


def of_states(path: Path, run: Path, model: Path) -> None:
    class Folder:
        layer_states = path

    load_states(Folder())  # type: ignore[arg-type]


def of_base(path: Path, run: Path, model: Path) -> None:
    load_base(ModelSettings(model=str(path.parent)))


def of_adapter(path: Path, run: Path, model: Path) -> None:
    load_adapter(load_tiny(model), "a", path.parent)


# Where a pickle can lie, and what then reads that folder.
PLACES: dict[str, tuple[str, Callable[[Path, Path, Path], Any]]] = {
    "a stage's checkpoint": ("stage1.pt", of_checkpoint),
    "states after stage 1": ("layer_states.safetensors", of_states),
    "a read-out": (f"adapter/{FILE}", lambda path, run, model: Discernments.load(path.parent)),
    "an adapter": ("adapter/adapter_model.safetensors", of_adapter),
    "an adapter of the old form": ("adapter/adapter_model.bin", of_adapter),
    "an opened adapter of the old form": ("adapter/adapter_model.bin", lambda path, *_: open_model(str(path.parent))),
    "a model": ("model/model.safetensors", of_base),
    "a model of the old form": ("model/pytorch_model.bin", of_base),
    "a model with an adapter in it": ("model/adapter_model.bin", of_base),
    "a base to merge": ("model/model.safetensors", lambda path, run, model: Merged(path.parent, run / "adapter")),
    "an adapter to merge": ("adapter/adapter_model.safetensors", lambda path, run, model: Merged(model, path.parent)),
}
REFUSED = (UserError, pickle.UnpicklingError, SafetensorError)


@pytest.mark.parametrize("zipped", [True, False], ids=["torch's form", "alone"])
@pytest.mark.parametrize("place", PLACES)
def test_a_pickle_never_acts(place: str, zipped: bool, tiny: Path, demo_run: Path, tmp_path: Path) -> None:
    """Wherever a pickle lies in place of a file that is read, or beside it in the form of old weights, it is refused in
    a sentence and does nothing."""
    name, read = PLACES[place]
    mark = tmp_path / "acted"
    shutil.copytree(tiny, tmp_path / "model")
    shutil.copytree(demo_run / "adapter", tmp_path / "adapter")
    if name.endswith("adapter_model.bin"):
        (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    if place == "a model with an adapter in it":
        shutil.copy(demo_run / "adapter" / "adapter_config.json", tmp_path / "model")
    if name.endswith("pytorch_model.bin"):
        (tmp_path / "model" / "model.safetensors").unlink()
    poison(tmp_path / name, mark, zipped)
    with pytest.raises(REFUSED):
        read(tmp_path / name, demo_run, tiny)
    assert not mark.exists()
    raw = (tmp_path / name).read_bytes()
    torch.load(io.BytesIO(raw), weights_only=False) if zipped else pickle.loads(raw)
    assert mark.exists()  # a guard: unpickled, it acts


def test_weights_of_the_old_form_beside_new_ones_are_not_read(tiny: Path, tmp_path: Path) -> None:
    """A model folder with both forms is loaded, from safetensors alone."""
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    poison(model / "pytorch_model.bin", tmp_path / "acted", zipped=True)
    assert load_base(ModelSettings(model=str(model), precision="float32"))[0].network is not None
    assert not (tmp_path / "acted").exists()


# --- no code of a model -----------------------------------------------------------------------------------------------


def with_code(folder: Path, file: str, mark: Path) -> Path:
    """A folder whose configuration ``file`` points to a module in it that makes a folder when it is imported."""
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Evil: pass\n")
    config = json.loads((folder / file).read_text())
    if file == "config.json":
        config |= {"model_type": "evil", "auto_map": dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.Evil")}
    else:
        config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / file).write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_model_folder_is_never_run(
    file: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model or a tokenizer with code of its own is refused in a sentence. Nobody is asked: a "yes" in the standard
    input runs nothing."""
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "y")
    model = with_code(Path(shutil.copytree(tiny, tmp_path / "model")), file, tmp_path / "acted")
    with pytest.raises(UserError, match=r"cannot be loaded as a chat model.*"):
        load_base(ModelSettings(model=str(model), precision="float32"))
    assert not asked
    assert not (tmp_path / "acted").exists()


def test_code_in_an_adapters_folder_is_never_run(
    demo_run: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter whose configuration names a module, or its tokenizer, imports nothing."""
    monkeypatch.setattr("builtins.input", lambda question="": "y")
    adapter = Path(shutil.copytree(demo_run / "adapter", tmp_path / "adapter"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'acted')!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config |= {"megatron_config": {"a": 1}, "megatron_core": "evil"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no plain LoRA adapter"):
        load_adapter(load_tiny(tiny), "a", adapter)
    report = json.loads((demo_run / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps(report))
    shutil.copy(demo_run / "adapter" / "adapter_config.json", adapter)
    with_code(adapter, "tokenizer_config.json", tmp_path / "acted")
    for export in (export_merged, export_gguf):
        with pytest.raises(UserError, match="tokenizer cannot be loaded"):
            export(open_finished(tmp_path))
    assert not (tmp_path / "acted").exists()
    assert not (tmp_path / "merged").exists()


ESCAPES = (
    "{{ cycler.__init__.__globals__.os.mkdir(mark) }}",
    "{{ lipsum.__globals__['os'].mkdir(mark) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__()[0] }}",
    "{{ messages.append(messages) }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{% include '/etc/passwd' %}",
    "{{ 1 / 0 }}",
    "{{ 'a' * 10 ** 15 }}",
    "{% for i in range(10 ** 9) %}{% endfor %}",
    "{{ raise_exception('no') }}",
    "{% if %}",
)


@pytest.mark.parametrize("template", ESCAPES)
def test_a_chat_template_stays_in_its_sandbox(template: str, tiny_model: Callable[..., Model], tmp_path: Path) -> None:
    """A template that reaches for the interpreter, or fails, ends in a sentence that names the model."""
    model = tiny_model("llama")
    model.tokenizer.chat_template = template.replace("mark", repr(str(tmp_path / "acted")))
    with pytest.raises(UserError, match="its chat template fails"):
        encode_prompts(model.tokenizer, ["Hello"], 512)
    assert not (tmp_path / "acted").exists()


# --- nothing beyond this machine --------------------------------------------------------------------------------------


def listening(port: int) -> set[str]:
    import psutil

    found = psutil.Process().net_connections(kind="inet")
    return {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN and c.laddr.port == port}


@pytest.mark.parametrize("environment", [{}, {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SHARE": "true"}])
def test_the_demo_listens_on_loopback_alone(
    environment: dict[str, str], opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket is bound to 127.0.0.1 and no public link opens, also where Gradio's variables ask for more: they may
    have been set for another program. Only --share opens a link."""
    from dcr_lite.demo.blocks import build, launch

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tunnels: list[Any] = []
    monkeypatch.setattr("gradio.networking.setup_tunnel", lambda *given, **more: tunnels.append(given))
    page = build(opened)
    _, url, shared = launch(page, prevent_thread_lock=True, quiet=True)
    try:
        assert listening(page.server_port) == {"127.0.0.1"}
        assert url == f"http://127.0.0.1:{page.server_port}/"
        assert not shared
        assert not tunnels
        assert page.share is False
    finally:
        page.close()


def test_the_demo_serves_no_file_of_this_machine(url: str, demo_run: Path, tmp_path: Path) -> None:
    """The endpoint of files gives none of the run, its answers, the system or this folder, by whatever path."""
    import httpx

    private = [demo_run / "settings.json", demo_run / "answers" / "dcr.jsonl", Path("/etc/passwd"), ROOT / "app.py"]
    relative = [os.path.relpath(path) for path in private]
    for path in [*map(str, private), *relative, *(f"file://{path}" for path in private), "/proc/self/environ"]:
        answer = httpx.get(f"{url}gradio_api/file={path}")
        assert answer.status_code in (403, 404), path


@pytest.mark.parametrize("name", ["../../../x.csv", "/etc/cron.d/x", "..\\..\\x.csv", "a\0b.csv", "%2e%2e%2fx.csv"])
def test_an_upload_stays_in_its_folder(name: str, url: str) -> None:
    """Whatever an uploaded file is called, it lies in a folder of its own among the uploads."""
    import httpx
    from gradio.utils import get_upload_folder

    (path,) = httpx.post(f"{url}gradio_api/upload", files={"files": (name, b"prompt\nHi\n")}).json()
    assert Path(path).parent.parent == Path(get_upload_folder())
    assert Path(path).resolve() == Path(path)


def test_an_upload_has_a_limit(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger upload than the server takes is refused before it is stored whole."""
    import httpx

    from dcr_lite.demo import blocks

    assert blocks.MAX_UPLOAD == "100mb"
    answer = httpx.post(f"{url}gradio_api/upload", files={"files": ("a.csv", bytes(106_000_000))}, timeout=60)
    assert answer.status_code == 413


# --- tokens -----------------------------------------------------------------------------------------------------------

TOKEN = "hf_" + "canary" * 6


def test_a_token_is_written_nowhere(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a token in the environment, no file of a run, an export or a card holds it, and no message does."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"), raising=False)
    run = tmp_path / "run"
    small = {"contrastive_steps": 2, "sft_epochs": 1, "instructions": 4, "refusals": 2, "baseline_refusals": 2}
    said = [
        run_here(flags(tiny, rows, run, **small)),
        run_here(flags(tiny, rows, run)),
        run_here(flags("a/b", rows, tmp_path / "r")),
    ]
    assert [one.code for one in said] == [0, 1, 1]
    export_merged(open_finished(run))
    export_gguf(open_finished(run))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"report.md", "settings.json", "README.md"} <= {path.name for path in written}
    assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
    told = [text for one in said for text in (one.out, one.err)] + list(capfd.readouterr())
    assert not any(TOKEN in text for text in told)
