import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdctl.bench.dataset import DatasetError, Prompt, SyntheticDataset, load_prompts


@given(st.integers(1, 300), st.integers(), st.integers(-5, 1000))
def test_synthetic_prompts_have_the_length_and_depend_on_seed_and_index_only(length, seed, index):
    prompt = SyntheticDataset(length, 8, seed).prompt(index)
    assert len(prompt.text.split()) == length
    assert prompt == SyntheticDataset(length, 8, seed).prompt(index)
    assert prompt.output_tokens == 8


def test_no_two_synthetic_prompts_share_a_beginning():
    beginnings = {
        tuple(SyntheticDataset(length, 8, seed).prompt(index).text.split()[:6])
        for length in (64, 65, 800)
        for seed in range(3)
        for index in range(-10, 100)
    }
    assert len(beginnings) == 3 * 3 * 110


def test_plain_lines_are_prompts_and_come_around_again(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text('first one\n\n{"prompt": "not parsed here"}\n')
    dataset = load_prompts(path, 9)
    assert [dataset.prompt(index) for index in range(3)] == [
        Prompt("first one", 9),
        Prompt('{"prompt": "not parsed here"}', 9),
        Prompt("first one", 9),
    ]


def test_jsonl_lines_may_set_their_output_tokens(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "output_tokens": 3, "other": 1}\n')
    assert load_prompts(path, 9).prompts == (Prompt("a", 9), Prompt("b", 3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no prompt"),
        ("\n  \n", "no prompt"),
        ('{"prompt": "a"}\n{"prompt": ', "jsonl:2: not JSON"),
        ('{"text": "a"}', 'jsonl:1: each line must be an object with a "prompt"'),
        ('["a"]', "jsonl:1: each line must be an object"),
        ('{"prompt": "a", "output_tokens": 0}', "jsonl:1: .* not 0"),
        ('{"prompt": "a", "output_tokens": true}', "jsonl:1: .* not True"),
    ],
)
def test_unusable_files_are_named_with_their_line(tmp_path, content, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    with pytest.raises(DatasetError, match=message):
        load_prompts(path, 9)


def test_a_prompt_may_hold_what_only_unicode_takes_for_a_line_end(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a\u2028b"}\r\n{"prompt": "c"}\n', encoding="utf-8", newline="")
    dataset = load_prompts(path, 8)
    assert [dataset.prompt(index).text for index in range(2)] == ["a\u2028b", "c"]


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="nowhere"):
        load_prompts(tmp_path / "nowhere.txt", 9)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="binary"):
        load_prompts(tmp_path / "binary", 9)
