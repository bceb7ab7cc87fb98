"""An engine core that says what a test tells it to, and a tokenizer whose tokens are bytes."""

import threading

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engine.errors import RequestError
from engine.scheduler.request import FinishReason, Token
from engine.scheduler.stats import CoreStats

EOS = 256
TIMEOUT_S = 10

_BYTES = Tokenizer(
    models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
)
_BYTES.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
_BYTES.decoder = decoders.ByteLevel()


class ByteTokenizer:
    eos_token_ids = frozenset({EOS})
    vocab_size = 257

    def encode(self, text):
        return _BYTES.encode(text).ids

    def encode_chat(self, turns):
        if turns[0]["content"] == "template error":
            raise RequestError("the chat template refuses this conversation")
        return self.encode("".join(f"<{turn['role']}>{turn['content']}" for turn in turns))

    def decode(self, ids):
        return _BYTES.decode([i for i in ids if i != EOS])


class FakeCore:
    """Generates ``answer`` for every choice, one token of each a step, in a thread per request."""

    def __init__(self, on_tokens, tokenizer):
        self.answer = "Hello, world!"
        self.pause_after = None  # steps; then a request waits until it is aborted or resumed
        self._resumed = False
        self._changed = threading.Condition()
        self.requests = []
        self.aborted = []
        self.submitted = threading.Event()
        self.abort_seen = threading.Event()
        self.refusal = None
        self.cached_tokens = 0
        self.busy_s = 0.0
        self._on_tokens = on_tokens
        self._tokenizer = tokenizer
        self._threads = []

    @property
    def aborted_requests(self):
        """The ids by which the clients know what was aborted."""
        return [core_id.partition("/")[0] for core_id in self.aborted]

    def check(self, request):
        pass

    def submit(self, request, *, hold=False):
        if self.refusal:
            raise self.refusal
        self.requests.append(request)
        thread = threading.Thread(target=self._generate, args=(request,))
        self._threads.append(thread)
        thread.start()
        self.submitted.set()

    def abort(self, request_id):
        with self._changed:
            self.aborted.append(request_id)
            self._changed.notify_all()
        self.abort_seen.set()

    def resume(self):
        with self._changed:
            self._resumed = True
            self._changed.notify_all()

    def stop(self):
        self.resume()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def stats(self):
        return CoreStats(
            running=3,
            waiting=2,
            held=5,
            reserved=6,
            blocks_total=100,
            blocks_free=75,
            prompt_tokens=50,
            local_compute=30,
            local_cache_hit=16,
            kv_transfer=4,
            generated_tokens=9,
            preemptions=1,
        )

    def _generate(self, request):
        ids = [*self._tokenizer.encode(self.answer), EOS]
        for step, token_id in enumerate(ids):
            if step == self.pause_after:
                self._pause(request.request_id)
            if request.request_id in self.aborted:
                return
            reason = self._reason(request, step, token_id)
            tokens = [Token(request.request_id, i, token_id, reason) for i in range(request.sampling.n)]
            self._on_tokens([tokens[0]._replace(cached_tokens=self.cached_tokens), *tokens[1:]])
            if reason:
                return

    def _pause(self, request_id):
        with self._changed:
            self._changed.wait_for(lambda: self._resumed or request_id in self.aborted, TIMEOUT_S)

    def _reason(self, request, step, token_id):
        if token_id in request.sampling.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if step + 1 == request.sampling.max_tokens or token_id == EOS else None
