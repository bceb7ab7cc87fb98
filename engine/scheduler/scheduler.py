"""Continuous batching: which tokens of which sequences the next step computes, and in which blocks their KV lies."""

from collections.abc import Callable
from typing import NamedTuple

from engine.scheduler.batch import Batch, Chunk
from engine.scheduler.block_manager import BlockManager
from engine.scheduler.handoff import Prefilled, Reservation
from engine.scheduler.held_text import HeldText
from engine.scheduler.limits import Limits
from engine.scheduler.request import FinishReason, Request, Sequence, Token
from engine.scheduler.stats import CoreStats, Counters
from engine.scheduler.waiting import WaitingQueue

Grant = Callable[[Reservation], bool]  # told that the blocks are there; returns whether they are still wanted


class Outcome(NamedTuple):
    """What one step produced."""

    tokens: list[Token]
    prefilled: list[Prefilled]


class Scheduler:
    """Owns every request, sequence and block. Not thread-safe: the engine core's thread is its only user.

    A step is schedule(), the runner, complete(); everything else is called between steps. Sequences run oldest first;
    what waits is admitted strictly in order, and only while a free block for each running sequence is left over, so
    that they can grow. When they cannot, the youngest gives up its blocks and waits at the front to be computed anew.
    """

    def __init__(self, limits: Limits, *, prefix_caching: bool = True, on_end: Callable[[str], None]) -> None:
        limits.check()
        self._limits = limits
        self._max_length = limits.max_length
        self._on_end = on_end  # called when nothing of a request is left: its id may be used again
        self._blocks = BlockManager(limits.num_blocks, limits.block_size, prefix_caching=prefix_caching)
        self._waiting = WaitingQueue(self._blocks, limits.block_size)
        self._running: list[Sequence] = []  # oldest first; the first max_num_seqs of them take part in a step
        self._counters = Counters()
        self._sequences: dict[str, list[Sequence]] = {}  # by request: unfinished ones, or the one that is held
        self._announced: dict[str, int] = {}  # requests on hold: the tokens that Prefilled events have told of
        self._places: dict[str, tuple[Reservation, Grant]] = {}  # the waiting reservations
        self._reserved: dict[str, Reservation] = {}  # the granted reservations
        self._aborted: set[str] = set()  # of the granted reservations

    @property
    def held_text(self) -> HeldText:
        """What the prefix cache holds, in the words of the requests; any thread may watch it."""
        return self._blocks.held_text

    def submit(self, request: Request, *, hold: bool = False) -> None:
        """Queue a request that the limits allow, under an id that is not in use."""
        sequence = Sequence(request, 0, list(request.prompt))
        self._sequences[request.request_id] = [sequence]
        if hold:
            self._announced[request.request_id] = 0
        self._waiting.append(sequence)

    def reserve(self, reservation: Reservation, grant: Grant) -> None:
        """Queue for the blocks of a prompt that the limits allow, under an id that is not in use."""
        self._places[reservation.request_id] = reservation, grant
        self._waiting.append(reservation)

    def start_decode(self, request: Request, reservation: Reservation, first_tokens: list[int]) -> list[Token]:
        """Turn a granted reservation, its prompt's KV complete, into running sequences; return their first tokens."""
        if request.request_id in self._aborted:
            self.cancel_reservation(reservation)
            return []
        del self._reserved[request.request_id]
        cached, total = reservation.cached_tokens, len(request.prompt)
        self._counters.local_cache_hit += cached
        self._counters.kv_transfer += total - cached
        sequence = Sequence(request, 0, list(request.prompt), list(reservation.block_table), total, cached)
        self._blocks.commit(sequence.tokens, sequence.block_table, cached, total)
        self._blocks.note_text(request, sequence.block_table, 0, total)
        self._sequences[request.request_id] = [sequence]
        self._running.append(sequence)
        return self._extend(sequence, first_tokens)

    def cancel_reservation(self, reservation: Reservation) -> None:
        """Free a granted reservation's blocks, which nobody writes any more."""
        del self._reserved[reservation.request_id]
        self._aborted.discard(reservation.request_id)
        self._blocks.release(reservation.block_table)
        self._on_end(reservation.request_id)

    def abort(self, request_id: str) -> None:
        """End a request at any stage. Blocks that a transfer may use stay owned; see EngineCore.abort()."""
        if request_id in self._reserved:
            self._aborted.add(request_id)
        elif request_id in self._places:
            self._give_up_place(request_id)
        for sequence in tuple(self._sequences.get(request_id, ())):
            self._withdraw(sequence)
            if request_id not in self._announced or not sequence.block_table:
                self._drop(sequence)

    def release(self, request_id: str) -> None:
        """Free a held request's blocks, which nobody reads any more; end its computation if it is still going on."""
        if request_id not in self._announced:
            return
        for sequence in tuple(self._sequences[request_id]):
            self._withdraw(sequence)
            self._drop(sequence)

    def schedule(self) -> Batch | None:
        """Decide the next step; None where nothing can be computed until something is submitted, started or freed."""
        batch = Batch([])
        prompts = self._schedule_decodes(batch)
        budget = self._limits.max_batched_tokens - len(batch.chunks)
        for sequence in prompts:
            budget -= self._schedule_prompt(batch, sequence, budget)
        self._admit(batch, budget, len(self._running) + sum(self._choices(sequence) - 1 for sequence in prompts))
        return batch if batch.chunks else None

    def complete(self, batch: Batch, sampled: list[list[int]]) -> Outcome:
        """Take in what the runner sampled for each chunk of the step."""
        outcome = Outcome([], [])
        for (sequence, start, length, samples), tokens in zip(batch.chunks, sampled, strict=True):
            end = sequence.num_computed = start + length
            self._blocks.commit(sequence.tokens, sequence.block_table, start, end)
            if start < sequence.num_prompt:
                self._blocks.note_text(sequence.request, sequence.block_table, start, end)
            if sequence.request.request_id in self._announced:
                outcome.prefilled.append(self._hand_over(sequence, end, tokens if samples else None))
            elif samples:
                outcome.tokens.extend(self._extend(sequence, tokens))
        return outcome

    def stats(self) -> CoreStats:
        """Return the present state."""
        counters = self._counters
        return CoreStats(
            running=len(self._running),
            waiting=len(self._waiting),
            held=len(self._announced),
            reserved=len(self._reserved),
            blocks_total=self._limits.num_blocks,
            blocks_free=self._blocks.num_free,
            prompt_tokens=counters.prompt_tokens,
            local_compute=counters.local_compute,
            local_cache_hit=counters.local_cache_hit,
            kv_transfer=counters.kv_transfer,
            generated_tokens=counters.generated_tokens,
            preemptions=counters.preemptions,
        )

    def check(self) -> None:
        """Raise RuntimeError where a block is lost, or counted otherwise than owned. Looks at everything: for tests."""
        tables = [sequence.block_table for group in self._sequences.values() for sequence in group]
        tables += [reservation.block_table for reservation in self._reserved.values()]
        self._blocks.check(tables)

    def _schedule_decodes(self, batch: Batch) -> list[Sequence]:
        """Add the newest token of each sequence that decodes; return those whose prompts are still to be computed."""
        prompts = []
        running = self._running
        index = 0
        while index < len(running) and index < self._limits.max_num_seqs:  # a preemption shortens the list
            sequence = running[index]
            index += 1
            start = sequence.num_computed
            if start + 1 < len(sequence.tokens) or start < sequence.num_prompt:
                prompts.append(sequence)
            elif self._make_room(batch, sequence):
                batch.chunks.append(Chunk(sequence, start, 1, 1))
        return prompts

    def _make_room(self, batch: Batch, sequence: Sequence) -> bool:
        """Give the newest token's KV a place that no other sequence reads; False where the sequence was preempted."""
        table = sequence.block_table
        grows = sequence.num_computed == len(table) * self._limits.block_size
        while grows or self._blocks.is_shared(table[-1]):
            if self._blocks.num_free:
                self._add_block(batch, table, grows)
                return True
            # The youngest has no chunk in this step yet. At worst it is this sequence itself.
            victim = next(s for s in reversed(self._running) if s.request.request_id not in self._announced)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _add_block(self, batch: Batch, table: list[int], grows: bool) -> None:
        [block] = self._blocks.allocate(1)
        if grows:
            table.append(block)
            return
        batch.copies.append((table[-1], block))
        self._blocks.release(table[-1:])
        table[-1] = block

    def _preempt(self, sequence: Sequence) -> None:
        self._counters.preemptions += 1
        self._running.remove(sequence)
        self._blocks.release(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed = 0
        sequence.preempted = True
        self._waiting.put_first(sequence)

    def _schedule_prompt(self, batch: Batch, sequence: Sequence, budget: int) -> int:
        """Add as much of a prompt as the budget allows; return how many tokens."""
        start = sequence.num_computed
        length = min(budget, len(sequence.tokens) - start)
        if not length:
            return 0
        ends = start + length == len(sequence.tokens)
        batch.chunks.append(Chunk(sequence, start, length, self._choices(sequence) if ends else 0))
        self._counters.local_compute += length
        return length

    def _admit(self, batch: Batch, budget: int, taken: int) -> None:
        """Admit from the head of the queue until one has to wait; `taken` places in a step are taken."""
        while (item := self._waiting.head()) is not None:
            growing = taken + len(self._reserved)  # what is reserved will run, and needs room to grow too
            if isinstance(item, Reservation):
                if growing >= 2 * self._limits.max_num_seqs or not self._waiting.admit(growing):
                    return
                self._grant(item)
                continue
            choices = self._choices(item)
            if not budget or taken + choices > self._limits.max_num_seqs or not self._waiting.admit(growing):
                return
            taken += choices
            self._running.append(item)
            self._blocks.note_text(item.request, item.block_table, 0, item.num_computed)
            if not item.preempted:
                item.num_cached = item.num_computed
                self._counters.local_cache_hit += item.num_cached
            budget -= self._schedule_prompt(batch, item, budget)

    def _grant(self, reservation: Reservation) -> None:
        _, grant = self._places.pop(reservation.request_id)
        self._reserved[reservation.request_id] = reservation
        if not grant(reservation):
            self.cancel_reservation(reservation)

    def _choices(self, sequence: Sequence) -> int:
        """How many sequences there will be of this one when its computed tokens are all sampled."""
        return sequence.request.sampling.n if not sequence.num_generated else 1

    def _hand_over(self, sequence: Sequence, end: int, first_tokens: list[int] | None) -> Prefilled:
        request_id = sequence.request.request_id
        start = self._announced[request_id]
        self._announced[request_id] = end
        if first_tokens is not None:
            self._counters.prompt_tokens += sequence.num_prompt
            self._running.remove(sequence)
        return Prefilled(request_id, list(sequence.block_table), start, end, first_tokens)

    def _extend(self, sequence: Sequence, tokens: list[int]) -> list[Token]:
        """Append what was sampled: one token; at the end of a prompt, one for each choice."""
        if sequence.num_generated:
            [token] = tokens
            return [self._append(sequence, token)]
        return [self._append(choice, token) for choice, token in zip(self._fork(sequence), tokens, strict=True)]

    def _fork(self, sequence: Sequence) -> list[Sequence]:
        """Make a sequence for each choice of a request whose prompt is complete; they share its blocks."""
        self._counters.prompt_tokens += sequence.num_prompt
        request, table = sequence.request, sequence.block_table
        others = [
            Sequence(request, index, list(sequence.tokens), list(table), sequence.num_computed)
            for index in range(1, request.sampling.n)
        ]
        for _ in others:
            self._blocks.share(table)
        place = self._running.index(sequence) + 1
        self._running[place:place] = others
        self._sequences[request.request_id] += others
        return [sequence, *others]

    def _append(self, sequence: Sequence, token: int) -> Token:
        self._counters.generated_tokens += 1
        sequence.tokens.append(token)
        finish_reason = self._finish_reason(sequence, token)
        if finish_reason is not None:
            self._running.remove(sequence)
            self._drop(sequence)
        return Token(sequence.request.request_id, sequence.index, token, finish_reason, sequence.num_cached)

    def _finish_reason(self, sequence: Sequence, token: int) -> FinishReason | None:
        request, length = sequence.request, len(sequence.tokens)
        if token in request.sampling.stop_token_ids:
            return FinishReason.STOP
        if length - len(request.prompt) >= request.sampling.max_tokens or length >= self._max_length:
            return FinishReason.LENGTH
        return None

    def _give_up_place(self, request_id: str) -> None:
        reservation, _ = self._places.pop(request_id)
        self._waiting.discard(reservation)
        self._on_end(request_id)

    def _withdraw(self, sequence: Sequence) -> None:
        if not self._waiting.discard(sequence) and sequence in self._running:
            self._running.remove(sequence)

    def _drop(self, sequence: Sequence) -> None:
        """Forget a sequence that neither runs nor waits, and give back its blocks."""
        request_id = sequence.request.request_id
        self._blocks.release(sequence.block_table)
        sequence.block_table = []
        self._sequences[request_id].remove(sequence)
        if not self._sequences[request_id]:
            del self._sequences[request_id]
            self._announced.pop(request_id, None)
            self._on_end(request_id)
