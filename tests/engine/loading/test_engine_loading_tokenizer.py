"""Tokenizers against those of transformers."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from engine.errors import ModelError, RequestError
from engine.loading.files import open_model
from tests.engine.tiny import make_tiny_model

# What transformers makes of these texts with the tokenizer of the same GGUF file, which takes it long to load. They
# have no digit behind two white space characters, and none but 0..9: there, transformers ignores that the file asks
# for digits to be split off first.
GOLDEN = json.loads((Path(__file__).parent / "smollm2_tokens.json").read_text())
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": 'Say "<b>é</b>"'},
    {"role": "assistant", "content": "é"},
    {"role": "user", "content": "Again?\n"},
]


@pytest.fixture(scope="module")
def smollm2():
    return open_model("smollm2-135m-instruct").load_tokenizer()


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    return open_model(str(tiny_folder)).load_tokenizer()


@pytest.mark.parametrize("sample", GOLDEN, ids=lambda sample: ascii(sample["text"])[:30])
def test_smollm2_encodes_like_transformers(smollm2, sample):
    assert smollm2.encode(sample["text"]) == sample["ids"]


def test_smollm2_keeps_each_digit_apart(smollm2):
    """Before all else, so that white space before a digit is one piece."""
    for text in ("a\n\n|1|2|b", "x| |½|²", "٣|٤"):
        apart = [token for piece in text.split("|") for token in smollm2.encode(piece)]
        assert smollm2.encode(text.replace("|", "")) == apart


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs", "Cc"])))  # it lacks the bytes of others
def test_smollm2_decodes_what_it_encoded(smollm2, text):
    assert smollm2.decode(smollm2.encode(text)) == text


def test_smollm2_chat(smollm2):
    text = smollm2.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert smollm2.encode_chat([{"role": "user", "content": "Hi"}]) == smollm2.encode(text)
    assert smollm2.eos_token_ids == {2}
    assert smollm2.vocab_size == 49152


def test_special_tokens_are_not_text(smollm2):
    assert smollm2.decode([*smollm2.encode("yes"), 2, 0]) == "yes"


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_folder_tokenizer_is_that_of_transformers(tiny, tiny_folder, text):
    reference = _reference(tiny_folder)
    assert tiny.encode(text) == reference.encode(text)
    assert tiny.decode(tiny.encode(text)) == reference.decode(reference.encode(text), skip_special_tokens=True)


_references = {}


def _reference(folder):
    return _references.setdefault(folder, AutoTokenizer.from_pretrained(folder))


def test_half_a_character_is_decoded_as_such(tiny):
    whole = tiny.encode("é🙂")
    assert tiny.decode(whole[:-1]).startswith("é\ufffd")


TEMPLATES = {
    "plain": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "blocks": "{% for m in messages %}\n  {% if m.role == 'user' %}\nU {{ m.content | trim }}\n  {% endif %}\n"
    "{% endfor %}",
    "special": "{{ bos_token }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}",
    "json": "{% for m in messages %}{{ m | tojson }}{{ m | tojson(indent=2) }}{% endfor %}",
    "loop": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "prompt": "{% if add_generation_prompt %}GO{% else %}WAIT{% endif %}{% if tools %}T{% endif %}",
    "macro": "{% macro f(x) %}[{{ x }}]{% endmacro %}{% set ns = namespace(n=0) %}"
    "{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ f(ns.n) }}{% endfor %}",
    "date": "{{ strftime_now('%Y') }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [False, True])
def test_templates_render_as_in_transformers(tmp_path, name, prompt):
    folder = make_tiny_model(tmp_path)
    (folder / "chat_template.jinja").write_text(TEMPLATES[name])
    ours, reference = open_model(str(folder)).load_tokenizer(), AutoTokenizer.from_pretrained(folder)
    expected = reference.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=prompt)
    assert ours.apply_chat_template(CONVERSATION, add_generation_prompt=prompt) == expected


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].content + None }}", "concatenate"),
        ("{{ messages.clear() }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ nothing.at.all }}", "undefined"),
    ],
)
def test_a_template_that_refuses_makes_a_request_error(tmp_path, template, reason):
    folder = make_tiny_model(tmp_path)
    (folder / "chat_template.jinja").write_text(template)
    tokenizer = open_model(str(folder)).load_tokenizer()
    with pytest.raises(RequestError, match=f"chat template refuses this conversation: .*{reason}") as caught:
        tokenizer.encode_chat(CONVERSATION)
    assert caught.value.status == 400


def test_no_template(tmp_path):
    folder = make_tiny_model(tmp_path)
    _edit(folder / "tokenizer_config.json", chat_template=None)
    with pytest.raises(RequestError, match="no chat template"):
        open_model(str(folder)).load_tokenizer().encode_chat(CONVERSATION)


def test_named_templates(tmp_path):
    folder = make_tiny_model(tmp_path)
    named = [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]
    _edit(folder / "tokenizer_config.json", chat_template=named)
    assert open_model(str(folder)).load_tokenizer().apply_chat_template(CONVERSATION) == "yes"


def test_a_wrong_template_or_tokenizer_is_a_model_error(tmp_path):
    folder = make_tiny_model(tmp_path)
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ModelError, match="chat template is wrong"):
        open_model(str(folder)).load_tokenizer()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        open_model(str(folder)).load_tokenizer()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        open_model(str(folder)).load_tokenizer()


def test_end_of_text_from_every_place(tmp_path):
    folder = make_tiny_model(tmp_path, eos_token_id=[7, 8])
    (folder / "generation_config.json").write_text('{"eos_token_id": 9}')
    _edit(folder / "tokenizer_config.json", eos_token={"content": "<|endoftext|>"})
    assert open_model(str(folder)).load_tokenizer().eos_token_ids == {7, 8, 9, 0}


def _edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
