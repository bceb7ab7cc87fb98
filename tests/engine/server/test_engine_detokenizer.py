import random

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engine.scheduler.request import FinishReason, Token
from engine.server.detokenizer import ChoiceText, Detokenizer, StopMatcher

ALPHABET = pre_tokenizers.ByteLevel.alphabet()
BYTES = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(sorted(ALPHABET))}, merges=[]))
BYTES.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES.decoder = decoders.ByteLevel()

texts = st.text(alphabet="ab \n", max_size=30)
stop_strings = st.lists(st.text(alphabet="ab \n", min_size=1, max_size=5), min_size=1, max_size=4)


def encode(text):
    return BYTES.encode(text).ids


def pieces_of(detokenizer, ids):
    return [detokenizer.push(token) for token in ids] + [detokenizer.flush()]


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=40))
def test_pieces_joined_are_the_text(text):
    pieces = pieces_of(Detokenizer(BYTES.decode), encode(text))
    assert "".join(pieces) == text


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=40))
def test_no_piece_holds_half_a_character(text):
    assert all("\ufffd" not in piece for piece in pieces_of(Detokenizer(BYTES.decode), encode(text)))


@given(st.lists(st.integers(0, 255), max_size=40))
def test_no_byte_is_lost_among_bytes_that_are_no_characters(ids):
    assert "".join(pieces_of(Detokenizer(BYTES.decode), ids)) == BYTES.decode(ids)


def test_bytes_that_are_no_character_do_not_wait_for_ever():
    continuation = encode("€")[1]  # a UTF-8 continuation byte alone
    detokenizer = Detokenizer(BYTES.decode)
    pieces = [detokenizer.push(continuation) for _ in range(100)]
    assert sum(map(len, pieces)) >= 90
    assert "".join([*pieces, detokenizer.flush()]) == "\ufffd" * 100


def first_to_end(text, stops):
    """The reference: read the text a character at a time until it ends with a stop string."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


def run_matcher(pieces, stops):
    matcher, out = StopMatcher(stops), []
    for piece in pieces:
        text, stopped = matcher.push(piece)
        out.append(text)
        if stopped:
            return "".join(out), True
    return "".join([*out, matcher.flush()]), False


@given(texts, stop_strings, st.integers(0, 10**6))
def test_stop_matcher_cuts_at_the_first_stop_whatever_the_pieces(text, stops, seed):
    cuts = sorted(random.Random(seed).choices(range(len(text) + 1), k=5))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert run_matcher(pieces, stops) == first_to_end(text, stops)


@given(texts, stop_strings)
def test_text_that_went_out_never_contains_or_begins_a_stop_that_follows(text, stops):
    expected, _ = first_to_end(text, stops)
    matcher, out = StopMatcher(stops), ""
    for char in text:
        emitted, stopped = matcher.push(char)
        out += emitted
        assert expected.startswith(out)
        if stopped:
            break


@given(texts, stop_strings)
def test_stop_matcher_holds_no_more_than_it_must(text, stops):
    matcher, out = StopMatcher(stops), ""
    for i, char in enumerate(text):
        emitted, stopped = matcher.push(char)
        out += emitted
        if stopped:
            return
        held = text[len(out) : i + 1]
        assert not held or any(stop.startswith(held) for stop in stops)


def tokens(text, last=None):
    ids = encode(text)
    return [Token("r", 0, token, last if i == len(ids) - 1 else None) for i, token in enumerate(ids)]


def text_of(choice, toks):
    out = ""
    for token in toks:
        out += choice.push(token)
        if choice.finish_reason:
            return out, choice.finish_reason
    return out, None


def test_choice_ends_with_the_cores_reason():
    assert text_of(ChoiceText(BYTES.decode, []), tokens("héllo", FinishReason.LENGTH)) == ("héllo", "length")


def test_end_of_sequence_token_has_no_text():
    choice = ChoiceText(BYTES.decode, [])
    assert text_of(choice, tokens("okX", FinishReason.STOP)) == ("ok", "stop")
    assert choice.num_tokens == 3


def test_stop_string_ends_a_choice_before_it():
    choice = ChoiceText(BYTES.decode, ["STOP"])
    assert text_of(choice, tokens("one STOP two")) == ("one ", "stop")
    assert choice.num_tokens == len("one STOP")


def test_held_text_goes_out_at_the_end():
    assert text_of(ChoiceText(BYTES.decode, ["STOP"]), tokens("so ST", FinishReason.LENGTH)) == ("so ST", "length")


def test_a_stop_string_in_the_last_token_wins_over_length():
    assert text_of(ChoiceText(BYTES.decode, ["b"]), tokens("aab", FinishReason.LENGTH)) == ("aa", "stop")


def test_an_unfinished_character_is_shown_at_the_end():
    ids = encode("€")[:2]
    toks = [Token("r", 0, ids[0], None), Token("r", 0, ids[1], FinishReason.LENGTH)]
    text, reason = text_of(ChoiceText(BYTES.decode, ["zz"]), toks)
    assert "\ufffd" in text
    assert reason == "length"
