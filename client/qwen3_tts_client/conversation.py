"""What is asked of a server step by step, told once: the two clients differ only in how they wait.

    def listing() -> Conversation[list[str]]:
        answer = yield Question("RepositoryIndex", service_pb2.RepositoryIndexRequest())
        return [model.name for model in answer.models]

A conversation yields what it needs and is sent what came of it; a `SpeechError` is raised where it asked.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """A unary call of Triton's gRPC service; its answer comes within `timeout_s`, by default the client's."""

    rpc: str
    request: Any
    timeout_s: float | None = None


@dataclass(frozen=True)
class Pause:
    """Time to let the server get on with it."""

    seconds: float


Conversation: TypeAlias = Generator[Question | Pause, Any, T]


@dataclass(frozen=True)
class End(Generic[T]):
    """What came of a conversation."""

    value: T


def advance(
    conversation: Conversation[T], answer: Any = None, error: BaseException | None = None
) -> Question | Pause | End[T]:
    """What it needs next, once it was given an answer, or the error that came in its place."""
    try:
        return conversation.send(answer) if error is None else conversation.throw(error)
    except StopIteration as end:
        return End(end.value)
