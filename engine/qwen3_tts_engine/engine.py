"""The engine: one thread that owns the device and speaks a frame of everyone in flight, step by step."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from qwen3_tts_engine import metrics as families
from qwen3_tts_engine.codec_stream import CodecStream
from qwen3_tts_engine.config import EngineConfig
from qwen3_tts_engine.device import Graphs
from qwen3_tts_engine.errors import Cancelled, ConfigError, EngineFailed, Overloaded, SpeechError
from qwen3_tts_engine.memory import SlotMemory, choose_slots, give_back_freed_memory
from qwen3_tts_engine.metrics import Metrics, NoMetrics
from qwen3_tts_engine.model.checkpoint import Checkpoint, resolve
from qwen3_tts_engine.model.codec_decoder import CodecDecoder
from qwen3_tts_engine.model.config import SpeechConfig
from qwen3_tts_engine.model.kv_cache import CacheLost
from qwen3_tts_engine.model.layers import attention_kernels
from qwen3_tts_engine.model.precision import choose_dtype, expect_int8
from qwen3_tts_engine.model.prompt import PromptWriter
from qwen3_tts_engine.model.text import TextTokenizer
from qwen3_tts_engine.profile import PROFILES
from qwen3_tts_engine.request import FRAMES_PER_SECOND, SAMPLE_RATE, SpeechRequest, VoicePrompt
from qwen3_tts_engine.runner import ModelRunner, resident_positions
from qwen3_tts_engine.scheduler import Due, Move, Plan, Scheduler
from qwen3_tts_engine.sequence import AudioSink, Chunk, Sequence, frame_cap

logger = logging.getLogger(__name__)

SILENCE = np.zeros(0, np.float32)
GONE_POLL_S = 0.01  # how often somebody waiting at the door is asked whether they are still there
IDLE_S = 1.0  # without anybody to speak for, after which the system may have back what speaking took
WARM_UP_FRAMES = 16
REHEARSED_FRAMES = 4
REHEARSALS = 3


class Engine:
    """Speaks many utterances at once.

    Any thread may `prepare` and `submit`; everything else happens on the engine's own thread, which `start`
    begins and `close` ends. Tests leave it unstarted and call `step` themselves.
    """

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint,
        device: torch.device,
        clock: Callable[[], float] = time.monotonic,
        graphs: Graphs | None = None,
    ) -> None:
        dtype = choose_dtype(config.dtype, device, checkpoint.config.talker, clock)
        self.config = config
        self.device = device
        self.speech_config = checkpoint.config
        self.defaults = checkpoint.generation_defaults()
        self.metrics: Metrics = NoMetrics()
        self._clock = clock
        self._prompts = PromptWriter(
            checkpoint.config, TextTokenizer(checkpoint.path), config.max_text_tokens
        )
        if config.weights == "int8":
            expect_int8(device)
        weights = checkpoint.talker_weights(dtype, device, int8_layers=config.weights == "int8")
        codec_weights = checkpoint.codec_weights(getattr(torch, config.codec_dtype), device)
        decoder = CodecDecoder(codec_weights, checkpoint.codec_config)
        codec_weights.expect_taken()
        talker = checkpoint.config.talker
        graphs = Graphs.on(device) if graphs is None else graphs
        slot = SlotMemory.of(talker, dtype, decoder.blank_past(1), resident_positions(graphs))
        self.slots = choose_slots(config, slot, talker, device, checkpoint.talker_bytes(dtype, device))
        attention = attention_kernels(config.flash_attention, device, dtype)
        self.runner = ModelRunner(weights, checkpoint.config, self.slots, attention, graphs)
        weights.expect_taken()
        self.codec = CodecStream(decoder, self.slots, device, graphs)
        self.scheduler = Scheduler(self.slots, PROFILES[config.profile], talker.codec_eos_token_id)

        self._capacity = self.slots + config.waiting_room
        self._door = threading.Condition()  # guards the four below
        self._arrivals: deque[Sequence] = deque()
        self._announced = 0  # requests that were not settled yet
        self._inside = 0  # sequences submitted and not yet released
        self._closing = False
        self._thread: threading.Thread | None = None

    @classmethod
    def load(
        cls,
        config: EngineConfig,
        task: str,
        base: Path,
        triton_device: str = "cpu",
        clock: Callable[[], float] = time.monotonic,
        graphs: Graphs | None = None,
    ) -> Engine:
        """An engine for the checkpoint the configuration names.

        Args:
            config: what the operator set.
            task: the kind the checkpoint must be of: custom_voice, voice_design or base.
            base: where relative checkpoint paths start.
            triton_device: what `device: auto` stands for.
            clock: tells the seconds; when a listener runs dry is a matter of it.
            graphs: who records steps; None: the device itself, if it can.

        Raises:
            ConfigError: for a checkpoint that is missing, broken, or of another kind.
        """
        tokenizer = resolve(config.speech_tokenizer, base) if config.speech_tokenizer else None
        checkpoint = Checkpoint(resolve(config.checkpoint, base), tokenizer)
        checkpoint.expect_task(task)
        device = choose_device(triton_device if config.device == "auto" else config.device)
        logger.info("loading %s on %s", checkpoint.path, device)
        return cls(config, checkpoint, device, clock, graphs)

    # --- any thread -------------------------------------------------------------------------------------

    def prepare(self, request: SpeechRequest, sink: AudioSink) -> Sequence:
        """Check a request and lay out its prompt; takes no resource.

        Raises:
            InvalidRequest: when this checkpoint cannot speak it.
        """
        prompt = self._prompts.write(request)
        room = self.speech_config.talker.max_position_embeddings - len(prompt)
        return Sequence(
            request=request,
            prompt=prompt,
            sink=sink,
            cap=frame_cap(request.max_frames, prompt.num_text_tokens, min(self.config.max_frames, room)),
            seed=secrets.randbits(63) if request.seed is None else request.seed,
            arrived_s=self._clock(),
        )

    def announce(self, num_requests: int) -> None:
        """Requests have left Triton's queue and will be read; each is `settle`d when it is in, or refused."""
        with self._door:
            self._announced += num_requests

    def settle(self) -> None:
        with self._door:
            self._announced -= 1
            self._door.notify_all()

    def wait_for_room(self) -> None:
        """Block while there is somebody at the door; the backlog then stays in Triton's own queue."""
        with self._door:
            self._door.wait_for(lambda: self._announced + self._inside <= self._capacity or self._closing)

    def expect(self, num_sequences: int) -> None:
        """Count those about to be submitted as waiting."""
        self.metrics.add(families.WAITING, num_sequences)

    def submit(self, sequence: Sequence) -> None:
        """Let an expected sequence in; blocks while slots and waiting room are full.

        Raises:
            Cancelled: when its caller leaves before there is room.
            Overloaded: when the engine is closing.
        """
        try:
            self._enter(sequence)
        except SpeechError:
            self.metrics.add(families.WAITING, -1)
            raise

    def start(self, metrics: Metrics) -> None:
        """Begin to serve; from now on `step` is the engine thread's."""
        self.metrics = metrics
        self.metrics.add(families.SLOTS, self.slots)
        self._thread = threading.Thread(target=self._serve, name="speech-engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Refuse newcomers, finish everyone who is in, stop the thread."""
        with self._door:
            self._closing = True
            self._door.notify_all()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self.metrics.add(families.SLOTS, -self.slots)

    # --- the engine thread ------------------------------------------------------------------------------

    def step(self) -> None:
        """One frame of everyone."""
        self._take_arrivals()
        self._drop_the_cancelled()
        plan = self.scheduler.schedule()
        if not plan.rows:
            return
        self.runner.advance(plan)
        plan = self._welcome(plan)
        codes = self.runner.speak(plan.rows).numpy()
        self.scheduler.commit(plan, codes)
        self._deliver(self.scheduler.due(self._clock()))
        self.metrics.add(families.FRAMES, sum(codes[:, 0] != self.scheduler.eos))

    def warm_up(self) -> None:
        """Speak a few frames to nobody, so that the first caller does not pay for first times."""
        if self.device.type == "cpu":  # before anything is compiled, which is for a number of threads
            choose_num_threads(lambda: self._rehearse(REHEARSED_FRAMES, voices=4), self._clock)
        self.runner.record()
        self.codec.warm_up(PROFILES[self.config.profile].ramp)
        self._rehearse(WARM_UP_FRAMES, voices=1)

    @property
    def num_inside(self) -> int:
        """Utterances submitted and not yet over."""
        with self._door:
            return self._inside

    @property
    def is_serving(self) -> bool:
        """Whether there is a thread that speaks."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_idle(self) -> bool:
        return self.num_inside == 0

    def _rehearse(self, num_frames: int, voices: int) -> None:
        words = _first_words(self.speech_config, min(num_frames, self.config.max_frames))
        for _ in range(min(voices, self.slots)):
            self.submit(self.prepare(words, _Nobody()))
        while not self.is_idle:
            self.step()

    def _serve(self) -> None:
        while self._wait_for_work():
            started = self._clock()
            try:
                self.step()
            except Exception as error:
                logger.exception("a step failed; %d utterances are lost", len(self.scheduler.running))
                self._fail_everyone(EngineFailed(f"the engine failed: {error}"))
            self.metrics.observe(families.STEP, self._clock() - started)

    def _wait_for_work(self) -> bool:
        """Sleep while there is nobody to speak for; False when there never will be."""
        if not self._is_wanted(within_s=IDLE_S):
            give_back_freed_memory()
            self._is_wanted()
        return self.num_inside > 0

    def _is_wanted(self, within_s: float | None = None) -> bool:
        """Wait for somebody to come, or for the end."""
        with self._door:
            return self._door.wait_for(lambda: self._inside > 0 or self._closing, within_s)

    def _enter(self, sequence: Sequence) -> None:
        with self._door:
            while self._inside >= self._capacity and not self._closing and not sequence.sink.cancelled:
                self._door.wait(GONE_POLL_S)
            if sequence.sink.cancelled:
                raise Cancelled("the caller left before there was a slot")
            if self._closing:
                raise Overloaded("the model is shutting down")
            self._inside += 1
            self._arrivals.append(sequence)
            self._door.notify_all()

    def _take_arrivals(self) -> None:
        with self._door:
            while self._arrivals:
                self.scheduler.add(self._arrivals.popleft())

    def _drop_the_cancelled(self) -> None:
        for sequence in self.scheduler.cancelled():
            self._release(sequence, Cancelled("the caller left"))

    def _welcome(self, plan: Plan) -> Plan:
        """Read the newcomers' prompts; where that fails, for want of memory say, it costs them alone."""
        if not plan.newcomers:
            return plan
        try:
            self._seat(plan.newcomers)
            self.runner.prefill(plan.newcomers)
        except CacheLost:
            raise
        except Exception as error:
            if not plan.running:
                raise
            logger.exception("%d newcomers could not begin", len(plan.newcomers))
            self.metrics.add(families.FAILURES)
            for sequence in reversed(plan.newcomers):  # they have the last slots: nobody has to move
                self._dismiss(sequence, EngineFailed(f"the utterance could not begin: {error}"))
            return Plan(plan.running, [])
        return plan

    def _seat(self, newcomers: list[Sequence]) -> None:
        for sequence in newcomers:
            sequence.seated_s = self._clock()
            self.metrics.add(families.WAITING, -1)
            self.metrics.add(families.ACTIVE_SLOTS)
            self.codec.reset(sequence.slot)
            voice = sequence.request.voice
            if voice is not None and voice.ref_codes is not None:
                self.codec.remember(sequence.slot, voice.ref_codes)

    def _deliver(self, due: list[list[Due]]) -> None:
        """Voice what is due, each group's before the next is decoded, and let go of those who are done."""
        for together in due:
            samples = self._voice(together)
            for chunk in together:
                self._write(chunk.sequence, samples.get(chunk.sequence.slot, SILENCE))
        for chunk in chain.from_iterable(due):
            if chunk.sequence.finish_reason:
                self._finish(chunk.sequence)

    def _voice(self, chunks: list[Due]) -> dict[int, np.ndarray]:
        """Samples by slot; of chunks without a frame there are none."""
        frames = {it.sequence.slot: it.sequence.take_pending(it.num_frames) for it in chunks if it.num_frames}
        return self.codec.decode(frames)

    def _write(self, sequence: Sequence, samples: np.ndarray) -> None:
        now_s = self._clock()
        if sequence.is_first_heard:
            self.metrics.observe(families.FIRST_AUDIO, now_s - sequence.arrived_s)
        if len(samples) and sequence.playback.has_run_dry(now_s):
            self.metrics.add(families.UNDERRUNS)
        sequence.write(samples, now_s)
        self.metrics.add(families.AUDIO_SECONDS, len(samples) / SAMPLE_RATE)

    def _finish(self, sequence: Sequence) -> None:
        spoken_s = sequence.num_frames / FRAMES_PER_SECOND
        self.metrics.observe(families.REAL_TIME_FACTOR, (self._clock() - sequence.arrived_s) / spoken_s)
        self.metrics.add(families.FINISHES, 1, sequence.finish_reason or "")
        self._release(sequence)

    def _release(self, sequence: Sequence, error: SpeechError | None = None) -> None:
        """Let a sequence go, and close the gap it leaves."""
        move = self._dismiss(sequence, error)
        if move:
            self.runner.move(move.source, move.target, move.sequence.position)
            self.codec.move(move.source, move.target)
        self.runner.forget(max((s.position for s in self.scheduler.running), default=0))

    def _dismiss(self, sequence: Sequence, error: SpeechError | None) -> Move | None:
        """Free the slot and the place at the door, and tell the caller; touches no device."""
        self.metrics.add(families.WAITING if sequence.seated_s is None else families.ACTIVE_SLOTS, -1)
        move = self.scheduler.release(sequence)
        with self._door:
            self._inside -= 1
            self._door.notify_all()
        sequence.sink.close(error)
        return move

    def _fail_everyone(self, error: EngineFailed) -> None:
        """Last slot first: nobody has to move on a device that may be broken."""
        self.metrics.add(families.FAILURES)
        for sequence in reversed(list(self.scheduler.running)):
            self._dismiss(sequence, error)


class _Nobody:
    """A sink that drops what it is given."""

    cancelled = False
    is_live = True

    def write(self, chunk: Chunk) -> None: ...

    def close(self, error: SpeechError | None = None) -> None: ...


def _first_words(config: SpeechConfig, num_frames: int) -> SpeechRequest:
    """Something this checkpoint can say."""
    silent = VoicePrompt(
        np.zeros(config.talker.hidden_size, np.float32), np.zeros((4, 16), np.int64), "Ready."
    )
    return SpeechRequest(
        "Ready.",
        instruct="A calm voice." if config.tts_model_type == "voice_design" else None,
        voice=silent if config.tts_model_type == "base" else None,
        max_frames=num_frames,
        seed=0,
    )


def choose_device(name: str) -> torch.device:
    """The device of that name, or the CPU, with a warning, when there is no GPU to use.

    Raises:
        ConfigError: for a name that is no device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}: {error}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        logger.warning("device %s is asked for and there is no GPU; speaking on the CPU", name)
        return torch.device("cpu")
    return device


def choose_num_threads(rehearse: Callable[[], None], clock: Callable[[], float]) -> None:
    """Compute on one thread unless all are faster: waking them can cost a small model more than it gains."""
    given = torch.get_num_threads()
    times_s: dict[int, list[float]] = {1: [], given: []}
    for _ in range(REHEARSALS):
        for num_threads, times in times_s.items():
            torch.set_num_threads(num_threads)
            started = clock()
            rehearse()
            times.append(clock() - started)
    best = min(times_s, key=lambda num_threads: min(times_s[num_threads]))
    torch.set_num_threads(best)
    logger.info("computing on %d of %d threads", best, given)
