"""Exports of a finished run: folders and files that are whole or absent, and a page on the Hub."""

import inspect
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import httpx
import huggingface_hub
import pytest
from command_line import run_command
from finished_runs import MakeRun
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dcr_lite import cli
from dcr_lite.data.paper_data import INSTRUCTIONS, REFUSALS, SEEMINGLY_TOXIC, TOXIC, VERSION
from dcr_lite.data.rows import Pair
from dcr_lite.data.sources import SMOLLM2
from dcr_lite.errors import UserError, sentence
from dcr_lite.export import command
from dcr_lite.export.command import FinishedRun, export_gguf, export_merged, open_finished
from dcr_lite.export.flags import FLAGS
from dcr_lite.export.hub import push
from dcr_lite.export.merge import Merged
from dcr_lite.files import SHIPPED, load_json, write_json
from dcr_lite.run.caution import set_caution
from dcr_lite.run.joined import Joined
from dcr_lite.run.model_card import Form, model_card
from dcr_lite.settings import SHIPPED_FILES

FILES = {name: path.name for name, path in SHIPPED_FILES.items()}


@pytest.mark.parametrize("make", [export_merged, export_gguf])
def test_memory_and_disk_are_asked_first(
    make: Callable[..., Path], make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little of either is an error with both numbers before anything is written."""
    run, _ = make_run()
    before = sorted(run.path.rglob("*"))
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1))
        with pytest.raises(UserError, match=r"MB free and [0-9,]+ MB needed"):
            make(run)
    monkeypatch.setattr(command.psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(UserError, match=r"GB of memory are free and [0-9.]+ GB needed"):
        make(run)
    assert sorted(run.path.rglob("*")) == before


@pytest.mark.parametrize("make", [export_merged, export_gguf])
def test_nothing_is_overwritten(make: Callable[..., Path], make_run: MakeRun, tmp_path: Path) -> None:
    """An existing file stays as it is, and so does a folder without a name. A file in place of a folder is an error
    with a cure."""
    run, _ = make_run()
    (tmp_path / "mine").write_text("mine")
    for out in (tmp_path / "mine", Path(), Path("/")):
        with pytest.raises(UserError, match=f"^{re.escape(str(out))} exists already"):
            make(run, out)
    with pytest.raises(OSError, match="File exists") as caught:
        make(run, tmp_path / "mine" / "x")
    assert sentence(caught.value, "go on") == (
        f"{tmp_path / 'mine'}: File exists. It is a file in place of a folder: choose another place, then go on."
    )
    assert (tmp_path / "mine").read_text() == "mine"


def test_an_export_that_is_stopped_leaves_nothing(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted export leaves no folder or file that looks like a model, and the next one works."""
    run, _ = make_run()
    tensor = Merged.tensor

    def stop(merged: Merged, name: str) -> Tensor:
        if "layers.2" in name:
            raise KeyboardInterrupt
        return tensor(merged, name)

    with monkeypatch.context() as patched:
        patched.setattr(Merged, "tensor", stop)
        for make in (export_merged, export_gguf):
            with pytest.raises(KeyboardInterrupt):
                make(run)
    assert [
        p.name for p in run.path.rglob("*") if "partial" in p.name or p.name == "merged" or p.suffix == ".gguf"
    ] == []
    assert export_merged(run).exists()
    assert export_gguf(run).exists()


def test_a_base_that_has_moved_is_asked_for_by_its_flag(make_run: MakeRun, tmp_path: Path) -> None:
    """A run copied from another machine: the folder that its base lay in there is not here."""
    run, _ = make_run()
    there = run.report["model"]
    run = FinishedRun(run.path, run.report | {"model": str(tmp_path / "elsewhere")})
    with pytest.raises(UserError, match=r"no such folder.*\. Give --base the folder of the run's base model\.$"):
        export_merged(run)
    assert (export_merged(run, base=there) / "model.safetensors").exists()


def test_merged_weights_know_where_a_turn_ends(make_run: MakeRun, tmp_path: Path) -> None:
    """Generation ends at the token that the run's tokenizer ends turns with, and at the base's own ends."""
    run, model = make_run()
    base = Path(shutil.copytree(run.report["model"], tmp_path / "base"))
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "top_p": 0.9}))
    made = json.loads((export_merged(run, base=str(base)) / "generation_config.json").read_text())
    assert made["eos_token_id"] == [model.tokenizer.eos_token_id, 0]
    assert made["top_p"] == 0.9


# --- the Hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for the Hub's client that takes only calls which the real one takes, and a token."""
    api = create_autospec(huggingface_hub.HfApi, instance=True)
    api.endpoint = "https://huggingface.co"
    api.model_info.return_value.card_data = huggingface_hub.ModelCardData(license="apache-2.0")
    api.model_info.return_value.private = True
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    return api


@pytest.fixture
def public_run(make_run: MakeRun) -> FinishedRun:
    """A run of a model that others have by its name."""
    run, _ = make_run()
    return FinishedRun(run.path, run.report | {"model": SMOLLM2})


def pushed(hub: Any) -> dict[str, str | bytes]:
    """What the one commit held, by its name on the page."""
    hub.create_commit.assert_called_once()
    operations = hub.create_commit.call_args.args[1]
    return {operation.path_in_repo: operation.path_or_fileobj for operation in operations}


def test_the_card_is_complete(public_run: FinishedRun) -> None:
    """Each card has front matter that the Hub reads, the before-and-after table, the data, the licence and the
    limits."""
    forms: dict[Form, tuple[str, str]] = {
        "adapter": ("peft", "adapter"),
        "merged": ("transformers", "finetune"),
        "gguf": ("gguf", "quantized"),
    }
    for form, (library, relation) in forms.items():
        text = model_card(public_run.report, form, licence="apache-2.0", place="me/x")
        head = huggingface_hub.ModelCard(text).data.to_dict()
        assert head["license"] == "apache-2.0"
        assert (head["base_model"], head["base_model_relation"]) == (SMOLLM2, relation)
        assert head["library_name"] == library
        for part in ("Before and after", "Use", "Training data", "Licence", "Limits"):
            assert f"## {part}\n" in text
        for model in ("stock model", "safety SFT alone", "DCR"):
            assert f"| {model} |" in text
        assert "rows of its own" in text
        assert str(public_run.path) not in text
    settings = public_run.report["settings"] | {"pairs": str(SHIPPED / "pairs.jsonl")}
    assert "shipped with dcr-lite" in model_card(public_run.report | {"settings": settings}, "adapter")


def test_a_model_in_the_cache_of_the_hub_has_its_name_there(make_run: MakeRun, hub: Any) -> None:
    """In the card, in the names of what is exported and in the adapter that is pushed, with the licence of its page, on
    another machine too; never the digest that its folder is called by."""
    run, _ = make_run()
    cached = "/home/me/.cache/huggingface/hub/models--Owner--Some-1B/snapshots/0123456789abcdef0123"
    run = FinishedRun(run.path, run.report | {"model": cached})
    assert (run.name, run.served_name) == ("Some-1B-DCR", "some-1b-dcr")
    push(run, "me/aligned")
    hub.model_info.assert_any_call("Owner/Some-1B")
    files = pushed(hub)
    card = str(files["README.md"], "utf-8")  # type: ignore[arg-type]  # a card is given as bytes
    head = huggingface_hub.ModelCard(card).data.to_dict()
    assert (head["base_model"], head["license"]) == ("Owner/Some-1B", "apache-2.0")
    assert "\n# Some-1B, aligned with DCR\n" in card
    assert "0123456789abcdef" not in card
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "Owner/Some-1B"


def test_a_card_says_what_speaks_against_the_model(
    public_run: FinishedRun, hub: Any, tiny_folder: Callable[..., Path]
) -> None:
    """Of merged weights, of GGUF files and on the Hub, as text; without anything it says nothing."""
    set_caution(public_run.path, "Safety fell: see [mend.md].")
    base = str(tiny_folder("llama"))
    push(public_run, "me/aligned")
    cards = [str(pushed(hub)["README.md"], "utf-8")]  # type: ignore[arg-type]  # a card is given as bytes
    cards += [(export_merged(public_run, base=base) / "README.md").read_text(encoding="utf-8")]
    cards += [export_gguf(public_run, base=base).with_name("README.md").read_text(encoding="utf-8")]
    for card in cards:
        assert "\n\n**Safety fell: see \\[mend.md\\].**\n\n## Before and after" in card
    assert "**" not in model_card(public_run.report, "adapter")


def test_the_card_of_a_run_on_public_sets_names_them(public_run: FinishedRun) -> None:
    """A run on the full data, wherever it was made, names each set with its licence, says what they forbid, and lists
    them where the Hub looks for them; a run on shipped rows says nothing of the kind."""
    files = {name: f"/home/me/.cache/dcr-lite/data/{VERSION}/{file}" for name, file in FILES.items()}
    settings = public_run.report["settings"] | files
    text = model_card(public_run.report | {"settings": settings}, "adapter")
    for one in (TOXIC, SEEMINGLY_TOXIC, INSTRUCTIONS, REFUSALS):
        assert f"[{one.name}](https://huggingface.co/datasets/{one.name}), {one.licence}" in text
    assert "rows of its own" not in text
    assert "shipped with dcr-lite" in text
    licence = text.split("## Licence")[1].split("##")[0]
    assert "non-commercial" in licence
    assert INSTRUCTIONS.name in licence
    assert REFUSALS.name in licence
    assert TOXIC.name not in licence
    head = huggingface_hub.ModelCard(text).data.to_dict()
    assert head["datasets"] == [TOXIC.name, SEEMINGLY_TOXIC.name, INSTRUCTIONS.name, REFUSALS.name]

    shipped = {name: f"/usr/lib/python3/site-packages/dcr_lite/data/shipped/{file}" for name, file in FILES.items()}
    text = model_card(public_run.report | {"settings": settings | shipped}, "adapter")
    assert text.count("(shipped with dcr-lite, Apache-2.0)") == 3
    assert "non-commercial" not in text
    assert "datasets:" not in text
    assert "mended" not in text


def test_the_card_of_a_mended_model_tells_the_users_pairs_from_the_shipped_ones(public_run: FinishedRun) -> None:
    """It says that the model was mended; its name is the run's, so that no export of the usual run, or of another
    mended one, has the same. A report from before they were counted apart has the user's pairs among the others."""
    settings = public_run.report["settings"] | {"pairs": str(SHIPPED / "pairs.jsonl")}
    counts = public_run.report["data"] | {"pairs": 2955, "joined_pairs": 48}
    text = model_card(public_run.report | {"settings": settings, "data": counts}, "merged")
    assert "github.com/dcr-lite/dcr-lite): mended with prompts of the user's own, by contrastive refinement" in text
    assert (
        "2955 pairs of a toxic and a seemingly toxic prompt (shipped with dcr-lite, Apache-2.0);\n"
        "48 pairs with prompts of the user's own, which are not published" in text
    )
    assert "of the user's own." not in text
    text = model_card(public_run.report | {"data": counts | {"joined_refusals": 3}}, "merged")
    assert ") for stage 2,\nand refusals of 3 prompts of the user's own." in text
    names = [(public_run.name, public_run.served_name)]
    Joined([], []).save(public_run.path)
    names.append((public_run.name, public_run.served_name))
    assert names == [("SmolLM2-135M-Instruct-DCR", "smollm2-135m-instruct-dcr"), ("run-DCR", "run-dcr")]
    Joined([Pair("a", "b")] * 8, []).save(public_run.path)
    before = load_json(public_run.path / "report.json")
    old = {name: n for name, n in before["data"].items() if name != "joined_pairs"} | {"pairs": 2963}
    write_json(before | {"data": old}, public_run.path / "report.json")
    data = open_finished(public_run.path).report["data"]
    assert (data["pairs"], data["joined_pairs"]) == (2955, 8)


def test_what_was_exported_is_pushed(public_run: FinishedRun, hub: Any, tiny_folder: Callable[..., Path]) -> None:
    """Merged weights and GGUF files are pushed from where they were exported to, publicly if asked."""
    file = export_gguf(public_run, base=str(tiny_folder("llama")))
    with pytest.raises(UserError, match=r"me/aligned-gguf is private already\. Leave --public out"):
        push(public_run, "me/aligned-gguf", "gguf", public=True)
    hub.model_info.return_value.private = False
    with pytest.raises(
        UserError, match=r"me/aligned-gguf is public already, and a push without --public would publish"
    ):
        push(public_run, "me/aligned-gguf", "gguf")
    hub.create_commit.assert_not_called()
    push(public_run, "me/aligned-gguf", "gguf", public=True)
    assert pushed(hub).keys() == {file.name, "README.md"}
    assert hub.create_repo.call_args.kwargs["private"] is False
    with pytest.raises(UserError, match=r"holds nothing to push\. First: dcr-lite export .* --to merged"):
        push(public_run, "me/aligned", "merged")


@pytest.mark.parametrize("form", ["merged", "gguf"])
def test_an_export_from_before_the_dial_was_turned_is_not_pushed(
    form: Form, public_run: FinishedRun, hub: Any, tiny_folder: Callable[..., Path]
) -> None:
    """Its weights would stand under a card of other ones. A damaged export is named as well."""
    export, base = (export_merged if form == "merged" else export_gguf), str(tiny_folder("llama"))
    made = export(public_run, base=base)
    weights = made if made.is_file() else made / "model.safetensors"
    file = public_run.adapter / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(
        UserError, match=rf"{weights.name} is of an adapter from before the dial .* export again: .* --to {form}"
    ):
        push(public_run, "me/aligned", form)
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(UserError, match=rf"{weights.name}.* export again"):
        push(public_run, "me/aligned", form)
    hub.create_repo.assert_not_called()
    shutil.rmtree(made) if made.is_dir() else made.unlink()
    export(public_run, base=base)
    push(public_run, "me/aligned", form)


def test_the_card_beside_gguf_files_is_of_the_newest(
    public_run: FinishedRun, tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kit's own is written anew, and stays where the export fails; another stays always."""
    base = str(tiny_folder("llama"))
    card = export_gguf(public_run, base=base).with_name("README.md")
    turned = FinishedRun(public_run.path, public_run.report | {"seed": 77})
    with monkeypatch.context() as patched:
        patched.setattr(command, "write_gguf", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            export_gguf(turned, base=base, file_type="q8_0")
    assert card.read_text() == model_card(public_run.report, "gguf")
    export_gguf(turned, base=base, file_type="q8_0")
    assert card.read_text() == model_card(turned.report, "gguf")
    card.write_text("mine")
    export_gguf(turned, card.with_name("third.gguf"), base)
    assert card.read_text() == "mine"


def test_an_adapter_of_a_folder_is_not_pushed_alone(make_run: MakeRun, hub: Any) -> None:
    """Nobody else could load it: the error says to push merged weights."""
    run, _ = make_run()
    with pytest.raises(UserError, match=r"a folder that nobody else has.*--form merged"):
        push(run, "me/aligned")
    hub.create_repo.assert_not_called()


def test_a_push_needs_a_name_and_a_connection(public_run: FinishedRun, hub: Any) -> None:
    """Without them it ends in one line with a cure; a base without a page is no error."""
    for error, said in (
        (HFValidationError("no"), r"^me/x: not a name on the Hub \(owner/name\)$"),
        (httpx.ConnectError("no route"), r"^me/x cannot be pushed to: the Hub does not answer: run the same command"),
    ):
        hub.create_repo.side_effect = error
        with pytest.raises(UserError, match=said):
            push(public_run, "me/x")
    hub.create_repo.side_effect = None
    missing = httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co/api/models/owner/base"))
    created = hub.model_info.return_value

    def known(name: str) -> Any:
        if name == "me/x":
            return created
        raise RepositoryNotFoundError("404", response=missing)

    hub.model_info.side_effect = known
    push(public_run, "me/x")
    assert b"license:" not in pushed(hub)["README.md"]  # type: ignore[operator]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """export(*argv) -> the exit status of dcr-lite export."""
    return lambda *argv: run_command(monkeypatch, "export", *argv)


def test_the_command_makes_each(
    make_run: MakeRun, export: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """``--to merged``, ``--to gguf`` and ``--to ollama`` write into the run folder and say where."""
    run, _ = make_run()
    assert export(run.path, "--to", "merged") == 0
    assert export(run.path, "--to", "gguf", "--file-type", "q8_0") == 0
    assert export(run.path, "--to", "ollama") == 0
    said = capsys.readouterr().out
    modelfile = run.path / "ollama" / "Modelfile"
    assert f"next:    ollama create {run.name.lower()} -f {modelfile}\n" in said
    for made in (run.path / "merged", run.path / "gguf" / f"{run.name}-q8_0.gguf", modelfile):
        assert f"written: {made}" in said
        assert made.exists()


@pytest.mark.parametrize("argv", [["--to", "merged"], ["--to", "gguf"], ["--to", "hub", "--repo", "me/x"]])
def test_no_run_is_an_error(
    argv: list[str], tmp_path: Path, export: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is no run, or no finished one, is a one-line error with exit status 1."""
    assert export(tmp_path / "none", *argv) == 1
    assert export(tmp_path, *argv) == 1
    said = capsys.readouterr().err
    assert "none: no such run folder" in said
    assert "holds no finished run" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("hub", "--to hub needs --repo owner/name"),
        (
            "merged --file-type bf16",
            "--file-type has no effect with --to merged, only with --to gguf or --to ollama. Leave it out.",
        ),
        (
            "hub --repo me/x --file-type q8_0",
            "--file-type has no effect with --to hub, only with --to gguf or --to ollama",
        ),
        (
            "hub --repo me/x --base b",
            "--base has no effect with --to hub, only with --to merged or --to gguf or --to ollama",
        ),
        ("merged --repo me/x", "--repo has no effect with --to merged, only with --to hub"),
        ("gguf --form gguf", "--form has no effect with --to gguf, only with --to hub"),
        ("gguf --public", "--public has no effect with --to gguf, only with --to hub"),
        ("vllm --out x", "--out has no effect with --to vllm"),
        ("space --base b", "--base has no effect with --to space"),
    ],
)
def test_a_flag_without_effect_is_an_error(
    argv: str, said: str, tmp_path: Path, export: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """A flag that the chosen export does not take is an error before the run is opened, and so is a push without a
    name."""
    assert export(tmp_path, "--to", *argv.split()) == 1
    assert said in capsys.readouterr().err


def test_every_flag_of_the_command_is_checked() -> None:
    """Each flag of dcr-lite export belongs to all exports or is listed with those that take it."""
    flags = set(inspect.signature(cli.export).parameters) - {"run", "to"}
    assert flags == set().union(*FLAGS.values())
