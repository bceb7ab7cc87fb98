"""Real engines tell which prompts they hold, in keys that come of the requests' bytes alone."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from hashlib import blake2b

import httpx
import pytest
from engine_process import EngineProcess

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
HEADERS = {"Authorization": "Bearer s3cret"}
FLAGS = ("--port", "0", "--metrics-port", "0", "--max-model-len", "640", "--num-gpu-blocks-override", "40")
TIMEOUT_S = 20.0


@pytest.fixture
def start(tiny_folder, tmp_path):
    """Starts engines with a token, which end with the test."""
    token = tmp_path / "token"
    token.write_text("s3cret")
    with ExitStack() as stack:

        def start(*flags):
            command = ("--model", str(tiny_folder), "--served-model-name", "tiny", *FLAGS, *flags)
            engine = stack.enter_context(EngineProcess(*command, env={"PDCTL_TOKEN_FILE": str(token)}))
            return engine.ready()

        yield start


def keys(value):
    """The definition, in the words of docs/engine-server.md."""
    names, key = [], b""
    for start in range(0, len(value) - 255, 256):
        key = blake2b(key + value[start : start + 256], digest_size=8).digest()
        names.append(key.hex())
    return names


def text(word):
    """A prompt's JSON, not written as most clients would."""
    return f'"{word} \\u00e9 and {word * 150}"'.encode()


class Events:
    """What a reader of an engine's events knows."""

    def __init__(self, lines):
        self._lines = lines
        self.known = []
        self.removed = set()
        self.next()

    def next(self):
        line = json.loads(next(self._lines))
        if line["reset"]:
            assert line["chunk_bytes"] == 256
            self.known = []
        assert set(line["removed"]) <= set(self.known)
        self.known = [key for key in self.known if key not in line["removed"]] + line["stored"]
        self.removed |= set(line["removed"])

    def until(self, holds):
        """Read on until it holds; the signs of life bound the wait."""
        for _ in range(20):
            if holds(self):
                return
            self.next()
        raise AssertionError(f"known: {self.known}, removed: {self.removed}")

    def read_to_end(self):
        """Read what is left; a stream that is cut off raises."""
        assert all(line.endswith("}") for line in self._lines)


@contextmanager
def events(engine):
    with httpx.stream("GET", engine.url + "/kv_events", headers=HEADERS, timeout=TIMEOUT_S) as response:
        assert response.status_code == 200
        yield Events(response.iter_lines())


def snapshot(engine):
    with events(engine) as reader:
        return reader.known


def post(engine, path, field, value, **more):
    body = b'{"%b": %b , %b' % (field.encode(), value, json.dumps({"max_tokens": 2, **more}).encode()[1:])
    answer = httpx.post(engine.url + path, content=body, timeout=TIMEOUT_S)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_prompt_is_held_under_its_own_bytes_until_it_is_evicted(start):
    engine = start()
    value = b'[ {"role":"user",  "content": %b}\n]' % text("one ")
    with events(engine) as reader:
        assert reader.known == []
        post(engine, CHAT, "messages", value)
        assert len(keys(value)) >= 2
        reader.until(lambda reader: reader.known == keys(value))
        cached = post(engine, CHAT, "messages", value)["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached > 0
        assert snapshot(engine) == keys(value)

        other = text("two ")
        post(engine, TEXT, "prompt", other)
        reader.until(lambda reader: set(keys(other)) <= set(reader.known))
        for word in ("six ", "ten "):
            post(engine, TEXT, "prompt", text(word))
        reader.until(lambda reader: set(keys(value)) <= reader.removed)
        assert not set(snapshot(engine)) & set(keys(value))
        post(engine, CHAT, "messages", value)
        reader.until(lambda reader: set(keys(value)) <= set(reader.known))

        engine.signal(signal.SIGTERM)
        reader.read_to_end()
        assert engine.ended()[0] == 0


def test_both_engines_of_a_pair_hold_what_they_have_served(start):
    prefill, decode = start("--splitwise-role", "prefill"), start("--splitwise-role", "decode")
    for count, spelling in enumerate((text("one "), text("one ").replace(b"\\u00e9", "é".encode()))):
        more = {
            "request_id": f"pair-{count}",
            "disaggregate_info": {
                "prefill_ip": "127.0.0.1",
                "prefill_port": prefill.ports["api"],
                "decode_ip": "127.0.0.1",
                "decode_connector_port": decode.ports["pd-comm"],
            },
        }
        before = set(snapshot(prefill))
        with ThreadPoolExecutor() as threads:
            leg = threads.submit(post, prefill, TEXT, "prompt", spelling, **more)
            post(decode, TEXT, "prompt", spelling, **more)
            leg.result(TIMEOUT_S)
        assert set(snapshot(prefill)) == set(snapshot(decode)) == before | set(keys(spelling))
