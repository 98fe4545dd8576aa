"""Speech for a conversation, over a WebSocket: text goes in while it is written, audio comes out meanwhile.

Shapes: vllm-omni's `/v1/audio/speech/stream`, which LiveKit's Baseten plugin speaks, too.

    caller: session.config, then input.text … input.done for each utterance, and session.close behind the last
    server: audio.start, binary frames, audio.done for each sentence; session.done for each utterance; error

`response.cancel` is ours, for a listener who interrupts: whatever is being spoken breaks off, what is left to
be spoken is dropped, and `response.cancelled` names the last utterance that this has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import anyio
from fastapi import APIRouter, Depends, WebSocket, WebSocketDisconnect, status
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from starlette.requests import HTTPConnection
from starlette.types import Message

from qwen3_tts_gateway.answering import error_object
from qwen3_tts_gateway.caller import Gate, caller_of
from qwen3_tts_gateway.errors import (
    KNOWN_ERRORS,
    GatewayError,
    InvalidInput,
    ShuttingDown,
    TooLarge,
    invalid_input,
    reply_to,
)
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.keys import Key
from qwen3_tts_gateway.observing import FAILED, GONE, Account
from qwen3_tts_gateway.recordings import Reference
from qwen3_tts_gateway.routes.openai import SpeechBody, speech_of
from qwen3_tts_gateway.speech import Speech, checked_text
from qwen3_tts_gateway.splitting import Granularity, Splitter

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1", tags=["OpenAI"])

SUBPROTOCOL = "qwen3-tts"
KEY_PREFIX = "key."

MOST_MESSAGE_BYTES = 4 << 20
MOST_TEXT_BYTES = 128 << 10
"""Of text that waits to be spoken, in all utterances."""
MOST_UTTERANCES = 256
"""That may wait to be spoken; keepalives are utterances, too."""


@dataclass(frozen=True)
class Patience:
    """How long a caller is waited for, in seconds.

    Attributes:
        config_s: until the session is configured.
        idle_s: for the next message, while nothing is being spoken.
        take_s: to take what is sent; a slot that others could use waits meanwhile.
    """

    config_s: float = 10.0
    idle_s: float = 30.0
    take_s: float = 30.0


PATIENCE = Patience()


class SessionConfig(SpeechBody):
    """How to speak from now on: a body of `/v1/audio/speech`, whose input each sentence is in turn."""

    type: Literal["session.config"]
    input: str = ""
    response_format: str = "wav"
    stream_audio: bool = False
    # vllm-omni speaks an utterance as a whole by default. LiveKit's plugin leaves it to the server, and wants
    # to hear the first sentence before the last one is written.
    split_granularity: Granularity = "sentence"
    word_timestamps: Literal[False] = False


class InputText(BaseModel):
    type: Literal["input.text"]
    text: str


class InputDone(BaseModel):
    type: Literal["input.done"]


class ResponseCancel(BaseModel):
    type: Literal["response.cancel"]


class SessionClose(BaseModel):
    type: Literal["session.close"]


Command = SessionConfig | InputText | InputDone | ResponseCancel | SessionClose
_COMMANDS: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="type")])
_TYPES = "session.config, input.text, input.done, response.cancel, session.close"
_GOODBYE = "this gateway is being stopped; connect again"


class Unreadable(InvalidInput):
    """A message that is no JSON text.

    Attributes:
        close_code: if there is no going on without it.
    """

    def __init__(self, message: str, close_code: int) -> None:
        super().__init__(message)
        self.close_code = close_code


class Over(Exception):
    """The conversation is to end.

    Attributes:
        code: for the close frame, as RFC 6455 has them.
        error: to be told before.
    """

    def __init__(self, code: int, reason: str = "", error: Exception | None = None) -> None:
        super().__init__(reason or str(error or ""))
        self.code = code
        self.error = error


@dataclass(frozen=True)
class Manner:
    """How utterances are spoken.

    Attributes:
        speech: all but the text.
        is_streamed: audio is sent as it comes, rather than a sentence at a time.
    """

    speech: Speech
    is_streamed: bool
    granularity: Granularity


@dataclass
class Turn:
    """One utterance of the session: what comes until `input.done`, spoken sentence by sentence.

    Attributes:
        num_sentences: spoken so far, and being spoken.
    """

    index: int
    manner: Manner
    sentences: Splitter
    num_sentences: int = 0


def _key_of(websocket: WebSocket) -> Key:
    """Who is calling; browsers can send no headers of their own, and put the key among the subprotocols."""
    offered = (name for name in websocket.scope["subprotocols"] if name.startswith(KEY_PREFIX))
    if key := next(offered, "").removeprefix(KEY_PREFIX):
        headers = [(b"x-api-key", key.encode(errors="replace")), *websocket.scope["headers"]]
        return caller_of(HTTPConnection({**websocket.scope, "headers": headers}), "synth")
    return caller_of(websocket, "synth")


@router.websocket("/audio/speech/stream", dependencies=[Depends(_key_of)])
async def converse(websocket: WebSocket, gate: Gate) -> None:
    """Speak what is being written, over and over."""
    offered = websocket.scope["subprotocols"]
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
    await Conversation(websocket, gate, PATIENCE).hold()


class Conversation:
    """One session.

    It waits for the next message, for the end of the sentence that is being spoken and for the gateway's,
    whichever comes first; everything else happens in between, so that nothing here happens twice at once.
    """

    def __init__(self, websocket: WebSocket, gate: Gateway, patience: Patience) -> None:
        self._websocket = websocket
        self._gate = gate
        self._patience = patience
        self._manner: Manner | None = None
        self._turns: deque[Turn] = deque()  # not spoken to their end; text may still come for the last
        self._num_turns = 0
        self._has_said_goodbye = False
        self._hearing: asyncio.Task[Message] | None = None
        self._speaking: asyncio.Task[None] | None = None
        self._closing_time: asyncio.Task[Any] | None = None
        self._is_last_call = False

    async def hold(self) -> None:
        """Listen and speak until either side has had enough; nothing goes on afterwards."""
        try:
            await self._go_on()
        except Over as over:
            await self._end(over)
        except WebSocketDisconnect:
            pass
        except Exception:
            log.exception("a conversation failed")
            await self._end(
                Over(status.WS_1011_INTERNAL_ERROR, "something went wrong; the server's log knows what")
            )
        finally:
            log.info(
                "conversation ended",
                extra={"key": self._websocket.state.key, "utterances": self._num_turns},
            )

    async def _go_on(self) -> None:
        self._closing_time = asyncio.create_task(self._gate.shutdown.has_begun.wait())
        try:
            while True:
                await self._speak_on()
                if message := await self._next_message():
                    await self._follow(message)
        finally:
            await _cancelled(self._hearing, self._speaking, self._closing_time)

    async def _next_message(self) -> Message | None:
        """None: something else happened before one came."""
        if self._hearing is None:
            self._hearing = asyncio.create_task(self._websocket.receive())
        awaited = (self._hearing, self._speaking, self._closing_time)
        tasks = [task for task in awaited if task is not None]
        limit_s = self._patience.idle_s if self._manner else self._patience.config_s
        done, _ = await asyncio.wait(
            tasks, timeout=None if self._speaking else limit_s, return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            raise self._impatience(limit_s)
        if self._closing_time is not None and self._closing_time.done():
            self._closing_time = None
            await self._call_last()
        if self._speaking is not None and self._speaking.done():
            spoken, self._speaking = self._speaking, None
            spoken.result()  # which raises what nobody has foreseen
        if not self._hearing.done():
            return None
        heard, self._hearing = self._hearing, None
        return heard.result()

    async def _speak_on(self) -> None:
        """Begin the next sentence, if it is there; take leave of utterances that have none left.

        Raises:
            Over: the caller has asked for the end, and was told all that was complete; or may not speak any
                more; or the gateway leaves.
        """
        while self._turns and self._speaking is None:
            turn = self._turns[0]
            if sentence := turn.sentences.pop():
                speaking = self._speak(turn, turn.num_sentences, sentence, self._caller())
                self._speaking = asyncio.create_task(speaking)
                turn.num_sentences += 1
            elif turn.sentences.has_ended:
                self._turns.popleft()
                await self._tell(
                    "session.done", utterance_index=turn.index, total_sentences=turn.num_sentences
                )
            else:
                break  # the rest is still being written
        if self._has_said_goodbye and self._speaking is None:
            raise Over(status.WS_1000_NORMAL_CLOSURE)
        if self._is_last_call and not self._turns:
            raise Over(status.WS_1012_SERVICE_RESTART, _GOODBYE)

    async def _call_last(self) -> None:
        """Keep to the utterance that is being spoken or written; whatever waits behind it is refused."""
        self._is_last_call = True
        refused = [*self._turns][1:]
        self._turns = deque([*self._turns][:1])
        for turn in refused:
            await self._tell_error(ShuttingDown(_GOODBYE), utterance_index=turn.index)

    async def _speak(self, turn: Turn, index: int, sentence: str, key: Key) -> None:
        place = {"utterance_index": turn.index, "sentence_index": index}
        sound = turn.manner.speech.sound
        has_failed = False
        await self._tell(
            "audio.start",
            **place,
            sentence_text=sentence,
            format=sound.format,
            sample_rate=sound.heard_rate,
        )
        account = Account(self._websocket.scope)
        try:
            async with aclosing(self._audio(turn, sentence, key)) as pieces:
                async for piece in pieces:
                    account.add(len(piece))
                    await self._give(self._websocket.send_bytes(piece))
            account.end(status.HTTP_200_OK)
        except KNOWN_ERRORS as error:
            has_failed = True
            account.end(reply_to(error).status)
            await self._tell_error(error, **place)
        except Exception as error:
            account.end(GONE if isinstance(error, WebSocketDisconnect) else FAILED)
            raise
        finally:
            account.end(GONE)  # or cut off: whoever has heard enough
        await self._tell("audio.done", **place, total_bytes=account.num_bytes, error=has_failed)

    async def _audio(self, turn: Turn, sentence: str, key: Key) -> AsyncGenerator[bytes, None]:
        text = checked_text(sentence, self._gate.settings.max_characters, param="text")
        utterance = self._gate.narrator.utterance(replace(turn.manner.speech, text=text), key)
        if not turn.manner.is_streamed:
            yield await utterance.whole()
            return
        async with aclosing(utterance.pieces()) as pieces:
            async for piece in pieces:
                yield piece

    async def _follow(self, message: Message) -> None:
        """Do as a message says, or say why not; only a session that is not configured yet ends by that."""
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"])
        try:
            await self._carry_out(_command(message))
        except KNOWN_ERRORS as error:
            if self._manner is None:
                raise Over(_close_code(error), error=error) from None
            await self._tell_error(error)

    async def _carry_out(self, command: Command) -> None:
        if isinstance(command, SessionClose):
            self._has_said_goodbye = True
        elif isinstance(command, SessionConfig):
            await self._configure(command)
        elif self._manner is None:
            raise InvalidInput(f"type is {command.type!r}; session.config must come first", param="type")
        elif isinstance(command, InputText):
            self._add(command.text, self._manner)
        elif isinstance(command, InputDone):
            self._latest_turn(self._manner).sentences.end()
        else:
            await self._cancel(self._manner)

    async def _configure(self, config: SessionConfig) -> None:
        if self._turns and not self._turns[-1].sentences.has_ended:
            raise InvalidInput("session.config came within an utterance; send input.done first", param="type")
        body = config.model_copy(update={"input": "-"})
        speech = await speech_of(body, self._gate)
        if isinstance(speech.voice, Reference):  # once, and not for each sentence
            speech = replace(speech, voice=await self._gate.narrator.open(speech.voice, self._caller()))
        self._manner = Manner(speech, config.stream_audio, config.split_granularity)

    def _add(self, text: str, manner: Manner) -> None:
        if not text:
            return
        self._latest_turn(manner).sentences.add(text)
        if sum(turn.sentences.num_waiting_bytes for turn in self._turns) > MOST_TEXT_BYTES:
            too_large = TooLarge(
                f"more than {MOST_TEXT_BYTES >> 10} KiB of text wait to be spoken", param="text"
            )
            raise Over(status.WS_1009_MESSAGE_TOO_BIG, error=too_large)

    async def _cancel(self, manner: Manner) -> None:
        """With nothing to cancel, it is an utterance of its own, as an `input.done` without text is."""
        await _cancelled(self._speaking)
        self._speaking = None
        last = self._turns[-1] if self._turns else self._latest_turn(manner)
        self._turns.clear()
        await self._tell("response.cancelled", utterance_index=last.index)

    def _latest_turn(self, manner: Manner) -> Turn:
        """The one that text comes for; it begins with this, if need be."""
        if not self._turns or self._turns[-1].sentences.has_ended:
            if self._is_last_call:
                raise ShuttingDown(_GOODBYE)
            if len(self._turns) == MOST_UTTERANCES:
                too_many = InvalidInput(f"{MOST_UTTERANCES} utterances wait to be spoken; wait, too")
                raise Over(status.WS_1008_POLICY_VIOLATION, error=too_many)
            self._caller()  # an utterance may have no text, and keep the session alive
            self._turns.append(Turn(self._num_turns, manner, Splitter(manner.granularity)))
            self._num_turns += 1
        return self._turns[-1]

    def _caller(self) -> Key:
        """Asked for each sentence: a session, and an utterance, may last longer than a key."""
        try:
            return _key_of(self._websocket)
        except GatewayError as error:
            raise Over(status.WS_1008_POLICY_VIOLATION, error=error) from None

    def _impatience(self, limit_s: float) -> Over:
        if self._manner is None:
            late = InvalidInput(f"session.config did not come within {limit_s:g} s")
            return Over(status.WS_1008_POLICY_VIOLATION, error=late)
        return Over(status.WS_1001_GOING_AWAY, f"no message came for {limit_s:g} s")

    async def _end(self, over: Over) -> None:
        with suppress(WebSocketDisconnect):
            if over.error is not None:
                await self._tell_error(over.error)
            reason = str(over).encode()[:123].decode(errors="ignore")  # what fits into a close frame
            await self._give(self._websocket.close(over.code, reason))

    async def _tell_error(self, error: Exception, **place: int) -> None:
        """The event's own type stands in the place of OpenAI's; the code says more."""
        await self._tell("error", **error_object(error), **place)

    async def _tell(self, kind: str, **facts: Any) -> None:
        await self._give(self._websocket.send_json({**facts, "type": kind}))

    async def _give(self, sending: Coroutine[Any, Any, None]) -> None:
        """Raises WebSocketDisconnect also if the caller takes nothing: no close frame would get through."""
        try:
            with anyio.fail_after(self._patience.take_s):
                await sending
        except TimeoutError:
            raise WebSocketDisconnect(status.WS_1006_ABNORMAL_CLOSURE) from None


def _command(message: Message) -> Command:
    """What a caller's message says.

    Raises:
        InvalidInput: nothing that is known here; the session can go on.
        Over: it is too long to be read.
    """
    text = message.get("text")
    if text is None:
        raise Unreadable("messages are JSON text; this one is binary", status.WS_1003_UNSUPPORTED_DATA)
    if len(text.encode()) > MOST_MESSAGE_BYTES:
        too_large = TooLarge(f"the message is longer than {MOST_MESSAGE_BYTES >> 20} MiB")
        raise Over(status.WS_1009_MESSAGE_TOO_BIG, error=too_large)
    try:
        return _COMMANDS.validate_json(text)
    except ValidationError as error:
        raise _invalid_message(error) from None


def _invalid_message(error: ValidationError) -> InvalidInput:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return Unreadable(first["msg"], status.WS_1007_INVALID_FRAME_PAYLOAD_DATA)
    if first["type"].startswith("union_tag"):
        return InvalidInput(f"type must be one of {_TYPES}", param="type")
    return invalid_input(first, first["loc"][1:], whole="message")  # behind the type of the message


def _close_code(error: Exception) -> int:
    """How a session ends that cannot begin."""
    if isinstance(error, Unreadable):
        return error.close_code
    is_ours = reply_to(error).status >= 500
    return status.WS_1011_INTERNAL_ERROR if is_ours else status.WS_1008_POLICY_VIOLATION


async def _cancelled(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks and see them to their end.

    Once may not be enough: up to Python 3.11, `asyncio.wait_for` forgets that it was cancelled if what it
    waits for comes in the same instant.
    """
    begun = [task for task in tasks if task is not None]
    while alive := [task for task in begun if not task.done()]:
        for task in alive:
            task.cancel()
        await asyncio.wait(alive, timeout=1)
    await asyncio.gather(*begun, return_exceptions=True)  # or asyncio complains that nobody asked
