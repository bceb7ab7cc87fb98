"""Where an answer begins: with nothing, or where the stream of the same request broke on another engine."""

import asyncio

from engine.scheduler.request import FinishReason, Token
from engine.server.detokenizer import ChoiceText, Decode
from engine.server.job import Job
from engine.server.protocol import Invalid

_INLINE_TOKENS = 128  # this many take about a millisecond; a thread's round trip takes a tenth of that


async def begin(job: Job, decode: Decode) -> list[ChoiceText]:
    """Return the texts of the job's choices, as far as the client has them. Raises Invalid."""
    if not job.resumed:
        return [ChoiceText(decode, job.stops) for _ in range(job.request.sampling.n)]
    if len(job.resumed) <= _INLINE_TOKENS:
        return [replay(job, job.resumed, decode)]
    return [await asyncio.to_thread(replay, job, job.resumed, decode)]


def replay(job: Job, token_ids: list[int], decode: Decode) -> ChoiceText:
    """Take a choice through the tokens generated elsewhere: its client has all text that comes of them."""
    choice = ChoiceText(decode, job.stops)
    for place, token_id in enumerate(token_ids):
        if choice.finish_reason is not None:
            raise Invalid(
                f"resume.token_ids: the answer ends ({choice.finish_reason}) with token {place} of {len(token_ids)}",
                param="resume",
            )
        choice.push(Token(job.request.request_id, 0, token_id, _finish_reason(job, token_id, place + 1)))
    return choice


def _finish_reason(job: Job, token_id: int, count: int) -> FinishReason | None:
    """Why the core ends a sequence with this token, the answer's count-th."""
    sampling = job.request.sampling
    if token_id in sampling.stop_token_ids:
        return FinishReason.STOP
    return FinishReason.LENGTH if sampling.max_tokens == 0 and count == len(job.resumed or ()) else None
