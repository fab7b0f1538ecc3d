"""Models from a Hub and back to it: the real huggingface_hub against a server on this machine. Every case ends in the
right files or in a sentence that says what to do, and a second try heals it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hub_client import READS, WRITES, WRONG, Client, beside_a_hub, in_time_for
from hub_parts import Fault, Repository
from hub_server import Hub
from transformers import AutoModelForCausalLM

from dcr_lite.export.command import export_gguf, export_merged, open_finished
from dcr_lite.files import write_json

IMPORTED = (
    "dcr_lite.cli",
    "dcr_lite.export.command",
    "dcr_lite.export.hub",
    "dcr_lite.run.cards",
    "dcr_lite.run.opening",
    "transformers.models.llama.modeling_llama",
)
NAMES = (f"owner/model-{n}" for n in count())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, Client]]:
    with beside_a_hub(tmp_path_factory.mktemp("home"), *IMPORTED) as started:
        yield started


@pytest.fixture
def hub(both: tuple[Hub, Client]) -> Hub:
    """A Hub without faults, and without requests so far."""
    for kept in (both[0].faults, both[0].log, both[0].stored):
        kept.clear()
    return both[0]


@pytest.fixture
def client(both: tuple[Hub, Client]) -> Client:
    return both[1]


@pytest.fixture(scope="module")
def shards(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a tiny model in shards, and others that a repository holds."""
    folder = tmp_path_factory.mktemp("shards")
    for file in tiny.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(folder, max_shard_size="300KB")
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert len([name for name in files if name.endswith(".safetensors")]) == 3
    return files


@pytest.fixture
def model(hub: Hub, shards: dict[str, bytes]) -> str:
    """The name of that model, new to the client's cache."""
    name = next(NAMES)
    hub.models[name] = Repository(dict(shards))
    return name


def folder_of(done: Any) -> Path:
    """The folder that a call to locate returned."""
    assert done.error is None, done.error
    return Path(done.value[0])


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# --- fetching ---------------------------------------------------------------------------------------------------------


def test_a_model_in_shards_is_fetched_once(hub: Hub, client: Client, model: str, shards: dict[str, bytes]) -> None:
    """All shards and the tokenizer arrive as they are, other weights do not; transformers loads them, and from then on
    nothing is asked."""
    others = {"pytorch_model.bin": b"pickle", "consolidated.safetensors": b"once more", "README.md": b"# A model"}
    hub.models[model].files |= others
    folder = folder_of(client("locate", model))
    assert contents(folder) == shards
    hub.log.clear()
    assert folder_of(client("locate", model)) == folder
    assert client("load", folder).value > 100_000
    assert not hub.log


def test_an_adapter_is_fetched(hub: Hub, client: Client) -> None:
    """An adapter's two files are a whole snapshot: no weights of a model are missed."""
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}
    hub.models["owner/adapter"] = Repository(files)
    assert contents(folder_of(client("locate", "owner/adapter"))) == files


def test_a_part_in_the_cache_is_not_a_model(
    hub: Hub, client: Client, model: str, shards: dict[str, bytes], tiny: Path
) -> None:
    """--plan leaves config.json alone in the Hub's cache; a stopped or cleaned cache lacks a shard, or a link points
    nowhere. Each time the Hub is asked for what is missing, and with no Hub the error says so."""
    done = client("main", "train", "smollm2_135m", "--model", model, "--plan")
    assert done.value == 0, done.said
    assert hub.asked("GET .*config.json")
    assert not hub.asked("safetensors")
    folder = folder_of(client("locate", model))
    assert contents(folder) == shards
    for remove in (lambda file: file.unlink(), lambda file: file.resolve().unlink()):
        for name in ("model-00002-of-00003.safetensors", "tokenizer.json", "model.safetensors.index.json"):
            remove(folder / name)
            assert "neither a folder nor in the Hub's cache" in client("locate", model, HF_HUB_OFFLINE="1").sentence
            assert contents(folder_of(client("locate", model))) == shards


def test_the_check_knows_what_is_here(hub: Hub, client: Client, model: str) -> None:
    """dcr-lite check tells a model that is to be fetched, also where its config.json is here, from one that is whole
    in the Hub's cache, beside files that are never fetched."""
    hub.models[model].files["README.md"] = b"# A model"
    assert client("shape_of", model).error is None
    assert client("state_of", model, True).value == ["open", None]
    folder_of(client("locate", model))
    assert client("state_of", model, True).value == ["here", None]


@pytest.mark.parametrize(
    ("lacking", "said"),
    [("model", "weights in safetensors"), ("tokenizer", "tokenizer"), ("config", "config.json")],
)
def test_what_a_repository_lacks_is_named(hub: Hub, client: Client, model: str, lacking: str, said: str) -> None:
    """A repository without safetensors, tokenizer or config.json is refused before anything is downloaded."""
    repository = hub.models[model]
    repository.files = {name: content for name, content in repository.files.items() if not name.startswith(lacking)}
    assert client("locate", model).sentence == f"{model} has no {said} on the Hub: choose another model."
    assert not hub.asked("resolve")


INFO, HEAD, STORAGE = r"GET /api/models/[\w/-]+$", "HEAD .*00002", "GET /storage/"
FEWER = "the Hub asks for fewer requests (429): run the same command again in "
FAULTS = [
    (INFO, 429, FEWER + "some minutes"),
    (HEAD, 429, FEWER + "7 seconds"),
    (STORAGE, 429, FEWER + "9 seconds"),
    (INFO, 401, "the Hub does not accept the token: run `hf auth login` again, or set HF_TOKEN anew"),
    (INFO, 500, "the Hub has a fault of its own (500): run the same command again later"),
    (HEAD, 503, "the Hub has a fault of its own (503): run the same command again later"),
    (STORAGE, 500, "the Hub has a fault of its own (500): run the same command again later"),
    (INFO, "cut", "the connection broke off: run the same command again"),
    (STORAGE, "cut", "the connection broke off: run the same command again"),
    (STORAGE, "short", "the connection broke off: run the same command again"),
    (INFO, "page", "the Hub answered with something else than JSON; a proxy or a login page may be in between"),
    (STORAGE, "flip", "a file arrived damaged and was removed: run the same command again"),
    ("GET .*/config.json", "flip", "a file arrived damaged and was removed: run the same command again"),
    (INFO, "stall", "the Hub stopped answering: run the same command again later"),
    (HEAD, "stall", "the Hub stopped answering: run the same command again later"),
    (STORAGE, "stall", "the Hub stopped answering: run the same command again later"),
]


@pytest.mark.parametrize(("where", "what", "said"), FAULTS)
def test_a_fault_is_named_and_a_second_try_heals_it(
    hub: Hub, client: Client, model: str, shards: dict[str, bytes], where: str, what: int | str, said: str
) -> None:
    """Whatever the Hub does at whichever request, the command ends with the true cause; what is in the cache then does
    not stand in the way of the next try."""
    headers = {"7 seconds": {"Retry-After": "7"}, "9 seconds": {"RateLimit": '"api";r=0;t=9'}}
    hub.faults.append(Fault(where, what, headers=headers.get(said[-9:], {})))
    asked = client("locate", model, token=READS, **in_time_for(what))
    assert asked.sentence == f"{model} cannot be fetched: {said}."
    hub.faults.clear()
    assert contents(folder_of(client("locate", model, token=READS))) == shards


@pytest.mark.parametrize(("where", "what"), [(HEAD, 500), (STORAGE, 429)])
def test_a_passing_fault_is_waited_out(
    hub: Hub, client: Client, model: str, shards: dict[str, bytes], where: str, what: int | str
) -> None:
    """A fault of a file that passes after two requests costs a wait, not the command."""
    hub.faults.append(Fault(where, what, times=2, headers={"Retry-After": "3"}))
    assert contents(folder_of(client("locate", model))) == shards
    assert hub.faults[0].times == 0


def test_a_refused_connection_is_named(hub: Hub, client: Client, model: str) -> None:
    """A Hub, or its storage, where nothing listens; an HF_ENDPOINT that is no address is called so."""
    done = client("locate", model, HF_ENDPOINT="http://127.0.0.1:9")
    assert "and the Hugging Face Hub does not answer. Give --model a folder" in done.sentence
    assert "(127.0.0.1:9 does not answer)" in client("shape_of", model, HF_ENDPOINT="http://me:pw@127.0.0.1:9").sentence
    for none in ("", "huggingface.co", "https://", "ftp://127.0.0.1", "http://127.0.0.1:port", "http://[::1"):
        for call in ("locate", "shape_of"):
            assert "HF_ENDPOINT is no address: write it as" in client(call, model, HF_ENDPOINT=none).sentence
    storage, hub.storage = hub.storage, "http://localhost:9/storage"
    try:
        assert "the Hub does not answer: run the same command again" in client("locate", model).sentence
    finally:
        hub.storage = storage
    assert client("locate", model).error is None


def test_a_full_disk_is_named(hub: Hub, client: Client, model: str) -> None:
    """A model that the disk has no room for is refused before anything is downloaded, what the cache holds not counted;
    a cache that cannot be written is named."""
    shard = "model-00001-of-00003.safetensors"
    hub.models[model].sizes[shard] = 10**17
    assert "100,000,000,0" in client("locate", model).sentence
    assert client("locate", model).sentence.endswith(" MB needed. Free some disk.")
    assert not hub.asked("resolve")
    hub.models[model].sizes.clear()
    folder = folder_of(client("locate", model))
    hub.models[model].sizes[shard] = 10**17
    (folder / "tokenizer.json").unlink()
    assert folder_of(client("locate", model)) == folder
    other = next(NAMES)
    hub.models[other] = hub.models[model]
    hub.models[model].sizes.clear()
    client.home.joinpath("hub", f"models--{other.replace('/', '--')}").write_text("in the way of the folder")
    assert f"models--{other.replace('/', '--')}" in client("locate", other).sentence


# --- who may read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["locate", "shape_of"])
def test_a_gated_model_names_its_licence(hub: Hub, client: Client, model: str, call: str) -> None:
    """Without a token, and with one whose account has not accepted the licence, the error names the page and the way;
    afterwards the model is fetched. The same holds for config.json alone, behind --plan."""
    gated = hub.models[model]
    gated.gated = True
    page = f"accept its licence on {hub.address}/{model}"
    mirror = hub.address.replace("//", "//me:secret@")
    for endpoint in (hub.address, mirror):
        assert f"it is gated: {page}, then run `hf auth login`" in client(call, model, HF_ENDPOINT=endpoint).sentence
    said = client(call, model, token=READS).sentence
    assert f"it is gated, and this token may not read it: {page} with the token's account" in said
    gated.licensed.add(READS)
    assert client(call, model, token=READS).error is None


def test_the_plan_of_a_gated_model(hub: Hub, client: Client, model: str) -> None:
    """``--plan`` ends with that sentence and exit status 1."""
    hub.models[model].gated = True
    done = client("main", "train", "smollm2_135m", "--model", model, "--plan")
    assert done.value == 1
    assert "its config.json cannot be fetched (it is gated: accept its licence on" in done.said
    assert "Traceback" not in done.said


@pytest.mark.parametrize("call", ["locate", "shape_of"])
def test_a_model_that_is_not_there(hub: Hub, client: Client, model: str, call: str) -> None:
    """A wrong name and a private model without a token cannot be told apart, so both cures are named; a private one is
    read with a token."""
    cures = "the Hub has none of that name, or it is private: check the name, or run `hf auth login`"
    assert cures in client(call, "owner/nothing").sentence
    assert cures in client(call, "owner/nothing", token=READS).sentence
    hub.models[model].private = True
    assert cures in client(call, model).sentence
    assert client(call, model, token=READS).error is None


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (WRONG, "the Hub does not accept the token: run `hf auth login` again, or set HF_TOKEN anew"),
        (f"{READS}\x0b{WRONG}", "the token has characters that no token has: run `hf auth login` again"),
        (f"{READS}ö", "the token has characters that no token has: run `hf auth login` again"),
    ],
)
@pytest.mark.parametrize("call", ["locate", "shape_of"])
def test_a_wrong_token_is_named(client: Client, model: str, call: str, token: str, said: str) -> None:
    """A token that the Hub does not know, or that cannot be sent at all, which no message shows."""
    assert said in client(call, model, token=token).sentence


def test_no_token_leaves_the_hub(hub: Hub, client: Client, model: str) -> None:
    """The Hub gets the token, the host that it stores large files on does not."""
    client("locate", model, token=READS)
    assert {token for host, _, token in hub.log if host == "localhost"} == {None}
    assert {token for host, request, token in hub.log if host != "localhost" and request != "HEAD /"} == {READS}


# --- pushing ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(demo_run: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its answers, of a model that others have by its name, exported in both forms."""
    folder = Path(shutil.copytree(demo_run, tmp_path_factory.mktemp("run") / "tiny"))
    report = json.loads((folder / "report.json").read_text())
    write_json(report | {"model": "owner/base"}, folder / "report.json")
    config = folder / "adapter" / "adapter_config.json"
    write_json(json.loads(config.read_text()) | {"base_model_name_or_path": "owner/base"}, config)
    finished = open_finished(folder)
    export_merged(finished, base=str(tiny))
    export_gguf(finished, base=str(tiny))
    (folder / "adapter" / "notes.json").write_text("not the adapter's")
    assert (folder / "adapter" / "discernment.safetensors").exists()  # nor this, with texts of development pairs
    return folder


@pytest.fixture
def repo(hub: Hub, shards: dict[str, bytes]) -> str:
    """A name without a repository, beside the run's base."""
    hub.models["owner/base"] = Repository(dict(shards), card={"license": "apache-2.0"})
    return next(NAMES).replace("model", "pushed")


TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
PUSHED = {
    "adapter": {"adapter_model.safetensors", "adapter_config.json", *TOKENIZER},
    "merged": {"model.safetensors", "config.json", "generation_config.json", *TOKENIZER},
    "gguf": {"base-DCR-bf16.gguf"},
}


@pytest.mark.parametrize("form", PUSHED)
def test_a_push_holds_the_right_files(hub: Hub, client: Client, run: Path, repo: str, form: str) -> None:
    """The files of each form and a card arrive as they are, in one commit of a private repository, and again in the one
    that is there; none holds a token, a prompt that was answered, or an answer."""
    command = ("main", "export", run, "--to", "hub", "--repo", repo, "--form", form)
    for _ in range(2):
        done = client(*command, token=WRITES)
        assert (done.value, "pushed: " + f"{hub.address}/{repo}" in done.said) == (0, True), done.said
    pushed = hub.models[repo]
    assert pushed.private
    assert pushed.commits == [f"base-DCR, {form}"]
    assert pushed.files.keys() == {*PUSHED[form], "README.md"}
    assert all(pushed.files[name] == (run / form / name).read_bytes() for name in PUSHED[form])
    assert b"license: apache-2.0" in pushed.files["README.md"]
    assert form != "adapter" or f'from_pretrained("{repo}")'.encode() in pushed.files["README.md"]
    everything = b"".join(pushed.files.values()).decode(errors="replace")
    answered = [json.loads(line) for file in (run / "answers").glob("*.jsonl") for line in file.open()]
    assert len(answered) > 10
    for text in {WRITES, str(run), *(row[key] for row in answered for key in ("prompt", "response"))}:
        assert len(text) < 12 or text not in everything


def test_what_was_pushed_comes_back(hub: Hub, client: Client, run: Path, repo: str) -> None:
    """A private merged model is fetched by whoever has a token, and loads."""
    assert client("push", run, repo, "merged", token=WRITES).error is None
    folder = folder_of(client("locate", repo, token=READS))
    assert client("load", folder).value > 100_000


def test_a_push_needs_a_token_that_may_write(hub: Hub, client: Client, run: Path, repo: str) -> None:
    """No token, one that may only read, and one that nobody knows: nothing is made, and the error says what is needed;
    the same for a repository that is there already."""
    for _ in range(2):
        assert client("push", run, repo).sentence.startswith("no token for the Hugging Face Hub. Run `hf auth login`")
        said = client("push", run, repo, token=READS).sentence
        assert said.startswith(f"the Hub refused {repo}: You don't have the required permissions to write to {repo}")
        assert said.endswith("The token needs write access to it.")
        assert (
            "the Hub does not accept the token: run `hf auth login`" in client("push", run, repo, token=WRONG).sentence
        )
        assert repo not in hub.models or not hub.models[repo].files
        hub.models[repo] = Repository(private=True)  # as a push makes it


PUSH_FAULTS = [
    ("POST /api/repos/create", 500, "the Hub has a fault of its own (500)"),
    ("POST /api/validate-yaml", 503, "the Hub answered with something else than JSON"),  # read before its status
    ("POST .*/preupload/", 429, FEWER + "some minutes"),
    ("POST .*/batch", "page", "the Hub answered with something else than JSON"),
    ("PUT /storage/", 503, "the Hub has a fault of its own (503)"),
    ("POST .*/commit/", 500, "the Hub has a fault of its own (500)"),
    ("POST .*/commit/", "stall", "the Hub stopped answering"),
]


@pytest.mark.parametrize(("where", "what", "said"), PUSH_FAULTS)
def test_a_push_that_fails_changes_nothing(
    hub: Hub, client: Client, run: Path, repo: str, where: str, what: int | str, said: str
) -> None:
    """A fault at any request ends the push with its cause and the repository as it was; the next push is whole."""
    hub.faults.append(Fault(where, what))
    pushed = client("push", run, repo, token=WRITES, **in_time_for(what))
    assert f"{repo} cannot be pushed to: {said}" in pushed.sentence
    assert repo not in hub.models or not hub.models[repo].files
    hub.faults.clear()
    assert client("push", run, repo, token=WRITES).error is None
    assert hub.models[repo].files.keys() == {*PUSHED["adapter"], "README.md"}


def test_a_push_without_a_name_ends_at_once(tmp_path: Path) -> None:
    """``--to hub`` without --repo is a sentence before anything heavy is imported, let alone loaded."""
    program = (
        "import sys; from dcr_lite import cli\n"
        f"sys.argv = ['dcr-lite', 'export', {str(tmp_path)!r}, '--to', 'hub']\n"
        "try: cli.main()\n"
        "finally: print(sorted({'torch', 'transformers', 'peft', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (1, "error: --to hub needs --repo owner/name\n", "[]\n")
