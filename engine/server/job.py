"""A checked request in the engine's terms."""

import hashlib
import secrets
import time
import uuid
from dataclasses import dataclass

from engine.errors import RequestError
from engine.scheduler.request import Request, SamplingParams
from engine.server.protocol import ChatRequest, CompletionRequest, DisaggregateInfo, Invalid, Resume, StreamOptions
from engine.server.state import Backend

_GREEDY_BELOW = 1e-5  # a temperature this low divides logits beyond float32's range, and is greedy anyway


@dataclass(frozen=True, slots=True)
class Job:
    """What one HTTP request asks for."""

    request: Request  # its prompt: the client's, then what is resumed; its max_tokens: what is left
    core_id: str  # the core's name for it
    answer_id: str  # the client's name for its answer
    created: int  # when the answer began, in seconds since the epoch
    prompt_tokens: int  # of the client's prompt
    resumed: list[int] | None  # what another engine has generated, and its client has got; None: nothing was begun
    stops: list[str]
    model: str  # the name to answer with
    peers: DisaggregateInfo | None
    prefill_on_decode: bool
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    arrived: float  # time.monotonic()


def job_of(
    body: ChatRequest | CompletionRequest,
    prompt: list[int],
    max_tokens: int | None,
    backend: Backend,
    model: str,
    arrived: float,
) -> Job:
    """Fill in the defaults; ``max_tokens`` None: all that fit. Raises RequestError where the prompt does not fit."""
    _check_tokens(prompt, backend.vocab_size)
    _check_resume(body, backend.vocab_size)
    request_id = body.request_id or uuid.uuid4().hex
    resume = body.resume or Resume(request_id, int(time.time()), [])
    answer_tokens = _fit(max_tokens, len(prompt), backend.max_model_len)
    left = _left(answer_tokens, len(prompt), len(resume.token_ids), backend.max_model_len)
    options = body.stream_options or StreamOptions()
    return Job(
        request=Request(request_id, prompt + resume.token_ids, _sampling(body, backend, resume.id, left)),
        core_id=_core_id(request_id, body.disaggregate_info),
        answer_id=resume.id,
        created=resume.created,
        prompt_tokens=len(prompt),
        resumed=body.resume.token_ids if body.resume else None,
        stops=body.stop_strings,
        model=model,
        peers=body.disaggregate_info,
        prefill_on_decode=bool(body.prefill_on_decode),
        stream=bool(body.stream),
        include_usage=bool(options.include_usage or options.continuous_usage_stats),
        continuous_usage=bool(options.continuous_usage_stats),
        return_token_ids=bool(body.return_token_ids),
        arrived=arrived,
    )


def _core_id(request_id: str, peers: DisaggregateInfo | None) -> str:
    """Unique, so that the last tokens of an aborted request are never those of the next one with its id.

    Where the prompt comes from a peer, both engines must call the request the same; stale tokens are dropped there.
    """
    return request_id if peers else f"{request_id}/{secrets.token_hex(8)}"


def _check_tokens(prompt: list[int], vocab_size: int) -> None:
    highest = max(prompt, default=0)
    if highest >= vocab_size:
        raise RequestError(
            f"the prompt has token {highest}, but this model has embeddings for 0..{vocab_size - 1} only"
        )


def _fit(wanted: int | None, num_prompt: int, max_model_len: int) -> int:
    room = max_model_len - num_prompt
    if num_prompt < 1:
        raise RequestError("the prompt is empty: it has no token")
    if room < 1:
        raise RequestError(
            f"this model's context length is {max_model_len} tokens; the prompt has {num_prompt}, "
            "which leaves no room for an answer: shorten the prompt",
            code="context_length_exceeded",
        )
    return room if wanted is None else min(wanted, room)


def _check_resume(body: ChatRequest | CompletionRequest, vocab_size: int) -> None:
    if body.resume is None:
        return
    if not body.stream or (body.n or 1) > 1:
        raise Invalid("resume: only a stream (stream: true) of one choice (n: 1) can be resumed", param="resume")
    highest = max(body.resume.token_ids, default=0)
    if highest >= vocab_size:
        raise Invalid(
            f"resume.token_ids: {highest} is not a token id of this model (0..{vocab_size - 1})", param="resume"
        )


def _left(answer_tokens: int, num_prompt: int, num_resumed: int, max_model_len: int) -> int:
    """How many tokens are still to be generated; 0: the answer has ended by its length."""
    if num_prompt + num_resumed > max_model_len:
        raise RequestError(
            f"this model's context length is {max_model_len} tokens; the prompt has {num_prompt} and what is resumed "
            f"{num_resumed}: resume on an engine with a longer one",
            code="context_length_exceeded",
        )
    if num_resumed > answer_tokens:
        raise Invalid(
            f"resume.token_ids has {num_resumed} tokens, but max_tokens allows {answer_tokens}", param="resume"
        )
    return answer_tokens - num_resumed


def _sampling(
    body: ChatRequest | CompletionRequest, backend: Backend, answer_id: str, max_tokens: int
) -> SamplingParams:
    eos = frozenset() if body.ignore_eos else backend.tokenizer.eos_token_ids
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=_temperature(body.temperature),
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(body.top_k or 0, 0),
        seed=_seed(body.seed, answer_id),
        n=body.n or 1,
        stop_token_ids=frozenset(body.stop_token_ids or ()) | eos,
    )


def _temperature(value: float | None) -> float:
    if value is None:
        return 1.0
    return 0.0 if value < _GREEDY_BELOW else value


def _seed(value: int | None, answer_id: str) -> int:
    """All engines that work at an answer must sample alike: without a seed it comes of the id that they share."""
    if value is None:
        value = int.from_bytes(hashlib.blake2b(answer_id.encode(), digest_size=8).digest())
    return value & (2**63 - 1)
