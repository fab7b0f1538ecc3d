"""A GGUF file is the merged model: to transformers, which reads it back, and to llama.cpp itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import MakeRun, divergence, logits, rounded
from gguf import GGUFReader
from gguf.quants import dequantize
from llama_cpp import llama_cpp
from safetensors.torch import save_file
from tiny_models import PROMPTS, assert_close, build_tokenizer, load_reference, random_rows
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from dcr_lite.errors import UserError
from dcr_lite.export import gguf_types
from dcr_lite.export.command import FinishedRun, export_gguf, export_merged, model_config
from dcr_lite.export.gguf import CUTS, PROBE, TAKEN_WHOLE
from dcr_lite.export.gguf_model import architecture_of, gguf_names
from dcr_lite.export.gguf_types import FileType, T, encode, lies_on_steps, type_of
from dcr_lite.export.merge import Merged
from dcr_lite.model.chat import encode_prompts, prompt_text
from dcr_lite.model.loading import Model

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
# As llama.cpp has built it into these architectures: where the layers without a window, or a rotary embedding, are.
BUILT_IN: dict[str, dict[str, Any]] = {
    "gemma3": {
        "num_hidden_layers": 6,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"],
        "sliding_window": 32,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        },
    },
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "olmo3": {"layer_types": [*["sliding_attention"] * 3, "full_attention"], "sliding_window": 32},
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    ("llama", {"vocab_size": 400}),  # more rows than tokens, as Qwen's embeddings have
    ("mistral", {}),
    ("qwen2", {}),
    ("qwen3", {"head_dim": 32}),
    ("gemma2", {"query_pre_attn_scalar": 16, "sliding_window": 512}),
    *BUILT_IN.items(),
    ("phi3", {}),  # its run is named after its folder, and so after Phi-3, whose tokens llama.cpp would look for
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


@pytest.mark.parametrize("file_type", ["bf16", "q8_0"])
@pytest.mark.parametrize(("architecture", "config"), VARIANTS)
def test_llama_cpp_computes_the_same(
    architecture: str, config: dict[str, Any], file_type: Any, make_run: MakeRun
) -> None:
    """llama.cpp itself gives every next token the probability that transformers gives it, on short rows and behind
    more than a hundred tokens, where rotary scaling, windows and softcapping show."""
    run, _ = make_run(architecture, **config)
    expected = rounded(load_reference(export_merged(run)))
    with llama_cpp(export_gguf(run, file_type=file_type)) as served:
        for row in random_rows([3, 20, 150]):
            theirs = served.log_probabilities(row, expected.config.vocab_size)
            assert theirs.isfinite().all()
            allowed = 1e-4 if file_type == "bf16" else 1e-2  # it multiplies in 16 bits, or in 8
            assert divergence(logits(expected, row)[-1:], theirs[None]) < allowed


# Wide enough for blocks of 256 weights; eight layers, so that the first, the last and every third between differ.
WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 8}


@pytest.mark.parametrize("tied", [False, True])
def test_mixtures_are_those_of_llama_quantize(tied: bool) -> None:
    """q4_k_m and q5_k_m: six bits for the output matrix, or the embedding where it serves as one, and for values and
    down projections of the first and the last eighth of the layers and every third between; types of smaller blocks
    where rows are no multiple of 256; vectors as they are."""

    def kinds(file_type: FileType, width: int) -> dict[str, str]:
        shapes = {"token_embd.weight": (400, width), "output_norm.weight": (width,)}
        shapes |= {} if tied else {"output.weight": (400, width)}
        for layer in range(8):
            for name in ("attn_q", "attn_v", "attn_qkv", "ffn_down"):
                shapes[f"blk.{layer}.{name}.weight"] = (width, width)
        return {name: type_of(name, shape, file_type, 8, tied).name for name, shape in shapes.items()}

    for file_type, width, usual, six in (
        ("q4_k_m", 512, "Q4_K", "Q6_K"), ("q5_k_m", 256, "Q5_K", "Q6_K"),
        ("q4_k_m", 896, "Q5_0", "Q8_0"), ("q5_k_m", 576, "Q5_1", "Q8_0"), ("q8_0", 576, "Q8_0", "Q8_0"),
    ):  # fmt: skip
        found = kinds(file_type, width)  # type: ignore[arg-type]
        assert found["output_norm.weight"] == "F32"
        assert found["token_embd.weight"] == (six if tied else usual)
        assert tied or found["output.weight"] == six
        for layer in range(8):
            assert found[f"blk.{layer}.attn_q.weight"] == usual
            more = six if layer in (0, 3, 6, 7) else usual
            for name in ("attn_v", "attn_qkv", "ffn_down"):  # Phi's fused map holds values
                assert found[f"blk.{layer}.{name}.weight"] == more
    assert kinds("q4_k_m", 40)["blk.0.attn_q.weight"] == "BF16"


def test_weights_out_of_a_file_of_the_type_keep_eight_bits_where_they_change(make_run: MakeRun, tmp_path: Path) -> None:
    """A base that was read out of a q4_k_m file comes back from q4_k_m as it was, whatever a small adapter has added:
    its changed matrices keep eight bits, and the file has the change. In q5_k_m they lie on no steps."""
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel (xllamacpp) is not installed here")
    run, _ = make_run(**WIDE)
    base = Path(shutil.copytree(run.report["model"], tmp_path / "base"))
    merged, config = Merged(base, None), model_config(base)
    tensors = {}
    for ours, theirs in gguf_names(merged, config, architecture_of(config)).items():
        kind = type_of(theirs, merged.shape(ours), "q4_k_m", config.num_hidden_layers, False)
        stored = encode(merged.tensor(ours), kind)
        tensors[ours] = torch.from_numpy(dequantize(stored, kind)).reshape(merged.shape(ours)).clone()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    for file_type, kept in (("q4_k_m", True), ("q5_k_m", False)):
        file = export_gguf(run, tmp_path / f"{file_type}.gguf", str(base), file_type)  # type: ignore[arg-type]
        kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors}
        assert {kind for name, kind in kinds.items() if "attn_q" in name} == {"Q8_0" if kept else "Q5_K"}
    assert not any(lies_on_steps(torch.randn(8, 256), kind) for kind in (T.Q4_K, T.Q5_K, T.Q6_K, T.Q5_0, T.Q8_0))


def test_llama_cpp_reads_what_its_quantiser_wrote(make_run: MakeRun) -> None:
    """Files of fewer bits are smaller and farther from the merged weights. llama.cpp computes from them what
    transformers computes from the same file, by rules of its own."""
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel (xllamacpp) is not installed here")
    run, _ = make_run(**WIDE)
    merged = load_reference(export_merged(run))
    row = random_rows([60])[0]
    expected = logits(merged, row)
    sizes, far = [], []
    for file_type in ("q8_0", "q5_k_m", "q4_k_m"):
        file = export_gguf(run, file_type=file_type)
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        sizes.append(file.stat().st_size)
        far.append(divergence(expected, logits(read, row)))
        with llama_cpp(file) as served:
            theirs = served.log_probabilities(row, read.config.vocab_size)
        assert divergence(logits(read, row)[-1:], theirs[None]) < 5e-2  # it multiplies in 8 bits, eight layers deep
    assert sizes == sorted(sizes, reverse=True)
    assert far == sorted(far)
    assert 1e-6 < far[0] < 0.1 * far[-1]


def test_without_the_quantiser_the_way_out_is_named(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where llama.cpp's wheel is missing, its file types are an error before anything is computed: how to get it, and
    what to do where there is none. The other types need it not."""
    run, _ = make_run()
    gguf_types._llama_cpp.cache_clear()
    monkeypatch.setattr(gguf_types, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"dcr-lite\[llama-cpp\].*Elsewhere export --file-type q8_0"):
        export_gguf(run, file_type="q4_k_m")
    assert not (run.path / "gguf").exists()
    assert export_gguf(run, file_type="q8_0").exists()
    monkeypatch.undo()
    gguf_types._llama_cpp.cache_clear()


TEXTS = [
    *PROMPTS,
    "In 12345 days I'LL pay $3.50 (or so); won't you?",
    "  two  spaces,\n\na blank line\tand a tab ",
    "naïve Gödel, 東京 and emoji 🙂",
    "HelloWorld, it's camelCase: parseHTML()/x // (don't)",
    "<|im_start|>user\nHow do I kill time?<|im_end|>\n",
]
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASES = (  # a word ends where a capital follows a small letter
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*%s|\p{{N}}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SHORT_FORMS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
BARE = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
PRE_TOKENIZERS = {
    "gpt-2": BYTES,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(GPT4 % "{1,3}"), "isolated"), BARE]),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(GPT4 % ""), "isolated"), BARE]),
    "gpt-4o": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(CASES % (SHORT_FORMS, SHORT_FORMS, "{1,3}")), "isolated"), BARE]
    ),
    "tekken": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(CASES % ("", "", "")), "isolated"), BARE]),
}


def byte_level_tokenizer(pre_tokenizer: Any, whole: bool = False) -> PreTrainedTokenizerFast:
    """Trained on TEXTS. whole: it takes a piece that is a token whole, and " qzj" is one to which no merges lead."""
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
    if whole:
        raw = json.loads(bpe.to_str())
        raw["model"]["vocab"]["Ġqzj"] = len(raw["model"]["vocab"])
        raw["model"]["ignore_merges"] = True
        bpe = Tokenizer.from_str(json.dumps(raw))
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
    tokenizer = byte_level_tokenizer(PRE_TOKENIZERS[cut], whole=cut in TAKEN_WHOLE)
    assert CUTS["|".join(piece for piece, _ in PRE_TOKENIZERS[cut].pre_tokenize_str(PROBE))] == cut
    with llama_cpp(export_gguf(with_tokenizer(make_run, tokenizer))) as served:
        for text in TEXTS:
            assert served.tokens(text) == tokenizer(text, add_special_tokens=False)["input_ids"], text
        assert len(tokenizer.tokenize(" qzj")) == (1 if cut in TAKEN_WHOLE else 4)


def test_a_cut_of_llama_3_that_merges_every_word_has_another_name(make_run: MakeRun) -> None:
    """OLMo 3 cuts as Llama 3 does, and merges words that are tokens: llama.cpp reads the same tokens."""
    tokenizer = byte_level_tokenizer(PRE_TOKENIZERS["llama-bpe"])
    raw = json.loads(tokenizer.backend_tokenizer.to_str())
    raw["model"]["vocab"]["Ġqzj"] = len(raw["model"]["vocab"])
    tokenizer.backend_tokenizer.model = models.BPE(raw["model"]["vocab"], list(map(tuple, raw["model"]["merges"])))
    assert len(tokenizer.tokenize(" qzj")) == 4
    with llama_cpp(export_gguf(with_tokenizer(make_run, tokenizer))) as served:
        for text in (*TEXTS, "a qzj"):
            assert served.tokens(text) == tokenizer(text, add_special_tokens=False)["input_ids"], text


def test_tokens_that_only_this_tokenizer_takes_whole_are_refused(make_run: MakeRun) -> None:
    """Where llama.cpp would merge a word that is a token from its parts, and no merges lead to it."""
    run = with_tokenizer(make_run, byte_level_tokenizer(PRE_TOKENIZERS["gpt-4o"], whole=True))
    with pytest.raises(UserError, match=r"llama\.cpp has no pre-tokenizer"):
        export_gguf(run)


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
    with pytest.raises(
        UserError, match=r"llama\.cpp has no pre-tokenizer that splits text like this one .*--to merged"
    ):
        export_gguf(run)
    assert not (run.path / "gguf").exists()


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
        ("lfm2", {}, "GGUF is not supported for lfm2"),
        ("ministral", {}, "GGUF is not supported for ministral"),
        ("qwen2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "scaling 'linear'"),
        ("gemma2", {"query_pre_attn_scalar": 9}, "attention scale"),
        ("smollm3", {}, "the order of layers"),
        ("olmo3", {}, "the order of layers"),
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
    """SmolLM2 as GGUF, read by llama.cpp, gives the next token the probabilities of its merged weights, answers right
    and ends its turn, from q8_0 too, which takes little more than half the room."""
    run, model = smollm2
    file = export_gguf(run, tmp_path / "smollm2.gguf")
    row = encode_prompts(model.tokenizer, PROMPTS[:1], model.window)[0]
    merged = AutoModelForCausalLM.from_pretrained(export_merged(run, tmp_path / "merged"), dtype=torch.float32)
    expected = logits(merged, row)[-1:]
    del merged
    small = export_gguf(run, tmp_path / "smaller.gguf", file_type="q8_0")
    assert small.stat().st_size < 0.56 * file.stat().st_size
    for made, allowed in ((file, 1e-2), (small, 3e-2)):  # it multiplies in 16 bits, or in 8
        with llama_cpp(made) as served:
            assert divergence(expected, served.log_probabilities(row, expected.shape[1])[None]) < allowed
            said = served.chat("What is the capital of France?", 60)
            assert "Paris" in said
            assert "<|im_" not in said
