"""A Modelfile's template writes what the model's own chat template writes, or is not written; answers end where the
model's do."""

import json
from pathlib import Path
from typing import Any

import pytest
from _ollama import read_modelfile, render, render_messages
from finished_runs import MakeRun
from llama_cpp import llama_cpp
from thinking_templates import FAMILIES
from tiny_models import build_base_tokenizer, build_tokenizer

from dcr_lite.errors import UserError
from dcr_lite.export import ollama
from dcr_lite.export.chat_turns import chat_turns
from dcr_lite.export.gguf import adds_first_token
from dcr_lite.export.go_template import go_template, literal
from dcr_lite.export.ollama import export_ollama, stop_tokens
from dcr_lite.model.chat import FORMATS, encode_conversations, encode_prompts, set_format
from dcr_lite.model.dates import fix_day
from dcr_lite.model.thinking import answer_at_once

SAID = ["How do I kill a process?", 'Say {{ "hi" }} and """bye""".', "naïve 東京 🙂\n\nand a second line"]
ANSWERED = ["With kill.", "{{ .System }}"]
SYSTEM = 'You are "brief".'

# In the structure of the families' own templates.
LLAMA31 = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n"
    "Today Date: 26 Jul 2024\\n\\n' + system_message + '<|eot_id|>' }}"
    "{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + m['content']|trim"
    " + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first = messages[0]['content'] + '\\n\\n' -%}"
    "{%- set rest = messages[1:] -%}{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}"
    "{%- for m in rest -%}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('in turns') }}"
    "{%- endif -%}{%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}"
    "{{ '<start_of_turn>' + role + '\\n' + (first if loop.first else '') + m['content'] | trim }}"
    "{{ '<end_of_turn>\\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
)
GEMMA2 = (  # which knows no system message
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)
MISTRAL = (  # the system message stands in the last prompt
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set rest = messages[1:] %}"
    "{%- else %}{%- set rest = messages %}{%- endif %}{{- bos_token }}{%- for m in rest %}{%- if m['role'] == 'user' %}"
    "{%- if loop.last and system is defined %}{{- '[INST] ' + system + '\\n\\n' + m['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + m['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + m['content']|trim + eos_token }}{%- endif %}{%- endfor %}"
)
MISTRAL_SMALL = (  # a system message of its own, with the day in it, in a block that other Mistral models do not have
    "{%- set today = strftime_now('%Y-%m-%d') %}"
    "{%- set usual = 'You are Mistral Small 3.\\nThe date is ' + today + '.\\n\\n(e.g. \"Where?\" => \"Here.\")' %}"
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set rest = messages[1:] %}{%- else %}{%- set system = usual %}{%- set rest = messages %}{%- endif %}"
    "{{- '[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' }}{%- for m in rest %}{%- if m['role'] == 'user' %}"
    "{{- '[INST]' + m['content'] + '[/INST]' }}{%- elif m['role'] == 'assistant' %}{{- m['content'] + eos_token }}"
    "{%- else %}{{- raise_exception('Only user and assistant') }}{%- endif %}{%- endfor %}"
)
PHI4_MINI = (  # a token for each role, nothing between the turns, and an end of the whole where no answer is asked for
    "{% for m in messages %}{% if m['role'] == 'system' and 'tools' in m and m['tools'] is not none %}"
    "{{ '<|system|>' + m['content'] + '<|tool|>' + m['tools'] + '<|/tool|><|end|>' }}{% else %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
OLMO3 = (  # the usual system message says that there are no functions; one that is given stands alone
    "{%- set given = messages|selectattr('role', 'equalto', 'system')|list|length > 0 -%}{%- if not given -%}"
    "{{- '<|im_start|>system\\nYou are a helpful function-calling AI assistant. ' -}}{%- if not tools -%}"
    "{{- 'You do not currently have access to any functions. <functions></functions><|im_end|>\\n' -}}{%- endif -%}"
    "{%- endif -%}{%- for m in messages -%}{%- if m['role'] == 'assistant' -%}"
    "{{- '<|im_start|>assistant\\n' + m['content'] + ('<|im_end|>\\n' if not loop.last else eos_token) -}}{%- else -%}"
    "{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' -}}{%- endif -%}"
    "{%- if loop.last and add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}{%- endfor -%}"
)
FAMILY_TEMPLATES = {
    "llama3": LLAMA31, "gemma": GEMMA, "mistral": MISTRAL, "gemma 2": GEMMA2, "mistral Small": MISTRAL_SMALL,
    "chatml Phi-4-mini": PHI4_MINI, "chatml OLMo 3": OLMO3,
}  # fmt: skip
TOKENS = {PHI4_MINI: ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]}  # beside those of the base tokenizer
STOPS = {
    "own": {"<|im_end|>", "<|im_start|>"},
    "llama3": {"<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"},
    "gemma": {"<eos>", "<start_of_turn>", "<end_of_turn>"},
    "mistral": {"</s>", "[INST]", "[/INST]"},
    "gemma 2": {"<eos>", "<start_of_turn>", "<end_of_turn>"},
    "mistral Small": {"</s>", "[INST]", "[/INST]"},
    "chatml Phi-4-mini": {"<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"},
    "chatml OLMo 3": {"<|endoftext|>", "<|im_start|>", "<|im_end|>"},
    **{name: {"<|endoftext|>", "<|im_start|>", "<|im_end|>"} for name in ("Qwen3", "SmolLM3", "GLM")},
}


def tokenizer_of(family: str) -> Any:
    """A tokenizer with the special tokens and the chat template of a family: its own, or the kit's for base models."""
    name, _, which = family.partition(" ")
    if name == "own":
        return build_tokenizer()
    tokenizer = build_base_tokenizer("chatml" if name in FAMILIES else name)
    if name in FAMILIES:
        tokenizer.chat_template = FAMILIES[name].template
    elif which == "kit":
        set_format(tokenizer, name)
    else:
        tokenizer.chat_template = FAMILY_TEMPLATES[family]
        tokenizer.add_special_tokens({"additional_special_tokens": TOKENS.get(tokenizer.chat_template, [])})
    fix_day(tokenizer)
    answer_at_once(tokenizer)
    return tokenizer


def conversations() -> list[list[dict[str, str]]]:
    """One to three prompts, each without and with a system message."""
    found = []
    for count in (1, 2, 3):
        turns = [{"role": "user", "content": SAID[0]}]
        for said, answered in zip(SAID[1:count], ANSWERED, strict=False):
            turns += [{"role": "assistant", "content": answered}, {"role": "user", "content": said}]
        found += [turns, [{"role": "system", "content": SYSTEM}, *turns]]
    return found


FAMILY_NAMES = [
    "own",
    *FAMILY_TEMPLATES,
    *(f"{name} kit" for name in FORMATS),
    "Qwen3",
    "SmolLM3",
    "GLM",
]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_template_writes_what_the_models_own_writes(family: str) -> None:
    """For each family, conversations of one to three prompts, with and without a system message, quotation marks and
    braces in what is said, are written letter by letter as transformers writes them."""
    tokenizer = tokenizer_of(family)
    template = go_template(chat_turns(tokenizer))
    for messages in conversations():
        try:
            expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception:  # the family refuses a system message: it stands before the first prompt instead
            assert messages[0]["role"] == "system"
            system, first, *rest = messages
            first = {"role": "user", "content": f"{system['content']}\n\n{first['content']}"}
            expected = tokenizer.apply_chat_template([first, *rest], tokenize=False, add_generation_prompt=True)
        assert render_messages(template, messages) == expected


def test_a_conversation_that_was_cut_or_is_to_be_continued() -> None:
    """Ollama drops messages from the front when they are too many, and an answer without its prompt goes with them; an
    answer at the end is continued, not closed."""
    tokenizer = tokenizer_of("llama3")
    template = go_template(chat_turns(tokenizer))
    asked = {"role": "user", "content": SAID[0]}
    begun = {"role": "assistant", "content": "Sure, "}
    prompt = tokenizer.apply_chat_template([asked], tokenize=False, add_generation_prompt=True)
    assert render_messages(template, [{"role": "assistant", "content": "cut"}, asked]) == prompt
    assert render_messages(template, [asked, begun]) == prompt + "Sure, "


@pytest.mark.parametrize("family", list(STOPS))
def test_answers_end_where_the_models_do(family: str) -> None:
    """The stop tokens are the model's end and those that open or close turns, among them the one that every answer was
    trained to end with."""
    tokenizer = tokenizer_of(family)
    stops = stop_tokens(tokenizer, chat_turns(tokenizer), [tokenizer.eos_token_id])
    assert set(stops) == STOPS[family]
    ((_, answer),) = encode_conversations(tokenizer, ["Hi"], ["Sure."], 512)
    assert any(tokenizer.convert_ids_to_tokens(token) in stops for token in answer)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}", "conversation of"),
        ("{% for m in messages %}{{ m.content ~ m.content }}{% endfor %}", "twice"),
        (
            "{% if messages|length > 2 %}{{ raise_exception('one at a time') }}{% endif %}{{ messages[0].content }}",
            "fails",
        ),
        ("{% for m in messages %}{% if loop.revindex < 6 %}{{ m.content }},{% endif %}{% endfor %}", "conversation of"),
    ],
)
def test_a_template_that_cannot_be_told_is_refused(template: str, why: str, make_run: MakeRun) -> None:
    """A template that numbers turns, repeats texts, fails or forgets is refused in a sentence with the way out, before
    anything is written."""
    run, _ = make_run()
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(run.adapter)
    with pytest.raises(UserError, match=rf"cannot be written for Ollama \(.*{why}.*llama-server"):
        export_ollama(run)
    assert not list(run.path.glob("ollama*"))


@pytest.mark.parametrize("text", ["plain\n", 'a "quote"', "{", "a}}b{{c", '"""', "\x07\u200b\r\ttab", "back\\slash\n{"])
def test_any_text_survives_the_template_and_the_modelfile(text: str, tmp_path: Path) -> None:
    """Braces, quotation marks, backslashes and characters that cannot be seen come out as they went in."""
    file = tmp_path / "Modelfile"
    template = f"{literal(text)}{{{{ .System }}}}{literal(text)}"
    file.write_text(
        ollama.MODELFILE.format(name="x", file="x", template=f'"""{template}"""', parameters='PARAMETER stop "a b"')
    )
    assert render(read_modelfile(file).template, {"System": "!"}) == f"{text}!{text}"


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["own", *FAMILY_TEMPLATES, "Qwen3", "SmolLM3"])
def test_llama_cpp_reads_the_tokens_that_were_trained_with(family: str, make_run: MakeRun) -> None:
    """What Ollama sends to llama.cpp, a prompt in the Modelfile's template, is there the row of token ids that the run
    trained and measured with: the first token is neither missing nor doubled."""
    tokenizer = tokenizer_of(family)
    run, _ = make_run(vocab_size=len(tokenizer) + 5)
    tokenizer.save_pretrained(run.adapter)
    found = read_modelfile(export_ollama(run))
    assert found.source == f"./{run.name}-q8_0.gguf"
    with llama_cpp(run.path / "ollama" / found.source) as served:
        for prompt in ("Hi", SAID[0], SAID[2]):
            text = render_messages(found.template, [{"role": "user", "content": prompt}])
            assert [served.tokens(text, add_special=True)] == encode_prompts(tokenizer, [prompt], 512)


def test_a_first_token_that_chats_begin_without_is_not_added(make_run: MakeRun) -> None:
    """Where the tokenizer puts a first token before plain texts and the chat template writes none, llama.cpp adds none
    either, in its own server too."""
    tokenizer = tokenizer_of("mistral")
    tokenizer.chat_template = MISTRAL.replace("{{- bos_token }}", "")
    assert tokenizer("Hi")["input_ids"][0] == tokenizer.bos_token_id
    assert not adds_first_token(tokenizer)
    run, _ = make_run(vocab_size=len(tokenizer) + 5)
    tokenizer.save_pretrained(run.adapter)
    with llama_cpp(export_ollama(run).parent / f"{run.name}-q8_0.gguf") as served:
        (expected,) = encode_prompts(tokenizer, ["Hi"], 512)
        assert served.tokens("[INST] Hi[/INST]", add_special=True) == expected
        assert served.prompt_tokens("Hi") == len(expected)


def test_a_model_that_can_think_is_asked_without(make_run: MakeRun) -> None:
    """The Modelfile's template has the empty block; the file holds no other template, with which Ollama would let the
    model think."""
    tokenizer = tokenizer_of("Qwen3")
    run, _ = make_run(vocab_size=len(tokenizer) + 5)
    tokenizer.save_pretrained(run.adapter)
    modelfile = export_ollama(run)
    text = render_messages(read_modelfile(modelfile).template, [{"role": "user", "content": "Hi"}])
    assert text.endswith("<think>\n\n</think>\n\n")
    assert "chat_template" not in gguf_keys(modelfile.with_name(f"{run.name}-q8_0.gguf"))
    card = modelfile.with_name("README.md").read_text(encoding="utf-8")
    assert "the chat template is in the Modelfile and not in the GGUF file" in card
    assert b"\r" not in modelfile.read_bytes()


def test_sampling_is_the_makers(make_run: MakeRun) -> None:
    """Temperature and its like are those of the model's generation_config.json; without any, the most probable token is
    taken, as the run measured. Nothing of it is left to Ollama's defaults."""
    run, _ = make_run()
    base = Path(run.report["model"])
    (config := base / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    found = read_modelfile(export_ollama(run))
    assert [p for p in found.parameters if p[0] != "stop"] == [("temperature", "0"), ("repeat_penalty", "1.0")]
    assert found.stops == ["<|im_end|>", "<|endoftext|>", "<|im_start|>"]
    config.write_text(json.dumps({"do_sample": True, "temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.05}))
    parameters = dict(read_modelfile(export_ollama(run, run.path / "second")).parameters)
    config.unlink()
    assert "min_p" not in parameters
    assert {name: float(parameters[name]) for name in ("temperature", "top_k", "top_p", "repeat_penalty")} == {
        "temperature": 0.7, "top_k": 50, "top_p": 0.8, "repeat_penalty": 1.05,
    }  # fmt: skip


def test_a_setting_of_zero_is_the_makers_too() -> None:
    """top_k 0 takes all tokens; of what the maker does not state only what Ollama would set otherwise is written."""
    assert ollama._sampling({"do_sample": True, "top_k": 0, "min_p": 0.05, "top_p": None}) == [
        ("temperature", 1.0), ("top_k", 0), ("top_p", 1.0), ("min_p", 0.05), ("repeat_penalty", 1.0),
    ]  # fmt: skip


def test_an_export_for_ollama_is_whole_or_absent(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped while the file is written, it leaves nothing; done, it is never overwritten."""
    run, _ = make_run()

    def stop(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ollama, "export_gguf", stop)
        with pytest.raises(KeyboardInterrupt):
            export_ollama(run)
    assert not list(run.path.glob("ollama*"))
    export_ollama(run)
    assert {file.name for file in (run.path / "ollama").iterdir()} == {
        "Modelfile",
        "README.md",
        f"{run.name}-q8_0.gguf",
    }
    with pytest.raises(UserError, match=r"ollama exists already\. Remove it, or choose another place with --out"):
        export_ollama(run, file_type="bf16")


def gguf_keys(file: Path) -> str:
    from gguf import GGUFReader

    return " ".join(GGUFReader(file).fields)
