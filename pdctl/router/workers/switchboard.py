"""The supervisor's end of the bus: passes on what workers tell, remembers what a new one must know, gathers figures."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from pdctl.router.figures.prometheus import merged
from pdctl.router.upstream.pool import address
from pdctl.router.workers.bus import (
    Answers,
    Ask,
    CaughtUp,
    Drained,
    Joined,
    Message,
    Registered,
    Removed,
    Tell,
    Told,
    encode,
)

_PATIENCE = 1.5  # seconds for the workers to answer


class Worker(Protocol):
    """A worker as seen from here."""

    number: int
    joined: bool  # takes what others tell

    def tell(self, message: bytes) -> None:
        """Send it an encoded message."""


@dataclass(slots=True)
class _Engine:
    """What a new worker has to be told of an engine."""

    registered: bytes | None = None  # the message
    seen: float = 0.0  # when it came
    drained: bool = False
    removed: float | None = None  # when an operator removed it, or it tried to come back


@dataclass(slots=True)
class _Question:
    asker: Worker
    number: int  # the asker's
    figures: bool
    waiting: set[int]  # workers
    answered: int = 0
    answers: dict[int, bytes] = field(default_factory=dict)


class Switchboard:
    """Create and use it in a running event loop."""

    def __init__(self, heartbeat_timeout: float, fixed: Iterable[str]) -> None:
        """`fixed`: the keys of engines that send no heartbeats."""
        self._loop = asyncio.get_running_loop()
        self._timeout = heartbeat_timeout
        self._fixed = frozenset(fixed)
        self._engines: dict[str, _Engine] = {}
        self._numbers = count(1)
        self._questions: dict[int, _Question] = {}
        self._figures: dict[int, bytes] = {}  # that each worker told last
        self._buried = b""  # what dead workers told last, together

    def take(self, sender: Worker, message: Message, data: bytes, workers: Iterable[Worker]) -> None:
        """Do what a worker's message asks for; `data` is the message as it came."""
        match message:
            case Joined():
                self._catch_up(sender)
            case Ask(number, figures):
                self._ask(sender, number, figures, workers)
            case Told(number, figures):
                self._told(sender.number, number, figures)
            case _:
                self._remember(message, data)
                for worker in workers:
                    if worker.joined and worker is not sender:
                        worker.tell(data)

    def died(self, worker: Worker) -> None:
        """Expect nothing of a worker any more; what it counted still counts."""
        worker.joined = False
        last = self._figures.pop(worker.number, b"")
        if last:
            self._buried = merged(self._buried, last) if self._buried else last
        for key, question in tuple(self._questions.items()):
            if question.asker is worker:
                del self._questions[key]
            elif worker.number in question.waiting:
                question.waiting.discard(worker.number)
                self._finish_if_complete(key, question)

    def prune(self) -> None:
        """Forget engines that are gone. Called every few seconds."""
        now = self._loop.time()
        for key, engine in tuple(self._engines.items()):
            if key not in self._fixed and now - max(engine.seen, engine.removed or 0.0) > self._timeout:
                del self._engines[key]

    def _remember(self, message: Message, data: bytes) -> None:
        now = self._loop.time()
        match message:
            case Registered(registration):
                engine = self._engine(address(registration.host_ip, registration.port))
                if now - engine.seen > self._timeout:
                    engine.drained = False  # the workers have forgotten it in between
                engine.registered, engine.seen, engine.removed = data, now, None
            case Drained(key, draining):
                self._engine(key).drained = draining
            case Removed(key):
                self._engines[key] = _Engine(removed=now)
            case _:
                pass

    def _engine(self, key: str) -> _Engine:
        return self._engines.setdefault(key, _Engine())

    def _catch_up(self, worker: Worker) -> None:
        self.prune()
        for key, engine in self._engines.items():
            if engine.removed is not None:
                worker.tell(encode(Removed(key)))
                continue
            if engine.registered is not None:
                worker.tell(engine.registered)
            if engine.drained:
                worker.tell(encode(Drained(key, True)))
        worker.tell(encode(CaughtUp()))
        worker.joined = True

    def _ask(self, asker: Worker, number: int, figures: bytes | None, workers: Iterable[Worker]) -> None:
        if figures is not None:
            self._figures[asker.number] = figures
        asked = [worker for worker in workers if worker.joined and worker is not asker]
        key = next(self._numbers)
        question = _Question(asker, number, figures is not None, {worker.number for worker in asked})
        self._questions[key] = question
        for worker in asked:
            worker.tell(encode(Tell(key, question.figures)))
        self._loop.call_later(_PATIENCE, self._finish, key)
        self._finish_if_complete(key, question)

    def _told(self, worker: int, key: int, figures: bytes) -> None:
        if figures:
            self._figures[worker] = figures
        question = self._questions.get(key)
        if question is None or worker not in question.waiting:
            return
        question.waiting.discard(worker)
        question.answered += 1
        if figures:
            question.answers[worker] = figures
        self._finish_if_complete(key, question)

    def _finish_if_complete(self, key: int, question: _Question) -> None:
        if not question.waiting:
            self._finish(key)

    def _finish(self, key: int) -> None:
        question = self._questions.pop(key, None)
        if question is None:
            return
        last_known: list[bytes] = []
        if question.figures:
            told = question.answers.keys() | {question.asker.number}
            last_known = [figures for worker, figures in self._figures.items() if worker not in told]
            last_known += [self._buried] if self._buried else []
        answers = Answers(question.number, question.answered, [*question.answers.values()], last_known)
        question.asker.tell(encode(answers))
