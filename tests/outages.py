"""A whole system that is to be broken, and the proof that it mends itself without a trace."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import psutil

from callers import sound_alike
from calling import Callers, Speak, breaking, through_gateway, through_triton
from metrics_page import ACTIVE, WAITING, wait_for_metrics
from qwen3_tts_client import SpeechClient, SpeechError, VoicePrompt
from real_server import Footprint, System, wait_until

SPEAKING = "qwen3_tts_custom_voice"
RESTING = "qwen3_tts_base"
MODELS = (SPEAKING, RESTING, "voices")
SLOTS = "qwen3_tts_slots"
WORDS = "A voice is kept."
TRITON_API_KEY = "a-key-of-the-test"
STRAIGHT_AT_TRITON, THROUGH_THE_GATEWAY = (0, 1), (2, 3)  # the callers
HIDDEN_SIZE = 64  # of the tiny checkpoints
GRANDPA = VoicePrompt(np.linspace(-1, 1, HIDDEN_SIZE, dtype=np.float32), np.zeros((0, 16), np.int32), None)
SPOKEN = {"seed": 5, "max_frames": 10}
PATIENCE_S = 90
MOST_SPARE_FILES = 12  # connections that are kept open for the next request

# What files of the test's make happen in the model's process, at its next step.
BREAKABLE = """
from contextlib import suppress
from pathlib import Path

Whole = TritonPythonModel
MB = 1 << 20
SPARED_MB = 8  # what a step of short utterances may need


class TritonPythonModel(Whole):
    def initialize(self, args):
        super().initialize(args)
        faults, whole_step = Path({faults!r}), self.engine.step

        def asked(fault):
            if there_is := (faults / fault).exists():
                (faults / fault).unlink()
            return there_is

        def step():
            if asked("step_raises"):
                raise RuntimeError("no plankton left")
            if asked("memory_leaks"):
                self.leaked = all_memory()
            whole_step()

        self.engine.step = step


def all_memory():
    pieces = []
    with suppress(MemoryError):
        while True:
            pieces.append(bytearray(MB))
    return pieces[:-SPARED_MB]
"""


class Service:
    """The whole system with a saved voice, and callers on both ways in."""

    def __init__(self, system: System, faults: Path) -> None:
        self.system = system
        self._faults = faults
        with self.client() as tts:
            tts.voices.save("grandpa", GRANDPA)
            self._grandpa = tts.synthesize(WORDS, voice="grandpa", **SPOKEN).samples
        self._num_files = self.num_files()
        self._num_regions = len(self.footprint.regions())

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.system.config.grpc_port}"

    def client(self) -> SpeechClient:
        return SpeechClient(self.grpc_address, timeout_s=10, api_key=TRITON_API_KEY)

    def is_ready(self, model: str) -> bool:
        with self.client() as tts:
            return tts.is_ready(model)

    def break_next_step(self, fault: str) -> None:
        """Return once the model's process has come to it: see `BREAKABLE`."""
        (self._faults / fault).touch()
        wait_until(lambda: not (self._faults / fault).exists(), fault)

    @property
    def footprint(self) -> Footprint:
        """Of the tritonserver that runs now."""
        return Footprint(self.system.child("tritonserver").pid)

    def stub(self, model: str = SPEAKING) -> psutil.Process:
        [stub] = self.footprint.stubs_of(model)
        return stub

    def everybody(self) -> list[Speak]:
        straight, around = through_triton(self.system.config.grpc_port), through_gateway(self.system.url)
        return [straight, straight, around, around]

    def under_load(self, wait_s: float, back_s: float) -> AbstractContextManager[Callers]:
        """The block breaks something."""
        return breaking(*self.everybody(), wait_s=wait_s, back_s=back_s)

    def speaks_as_grandpa(self) -> bool:
        """Whether the saved voice is spoken with, and sounds as it did."""
        try:
            with self.client() as tts:
                return sound_alike(tts.synthesize(WORDS, voice="grandpa", **SPOKEN).samples, self._grandpa)
        except SpeechError:
            return False

    def assert_well(self) -> None:
        """As if nothing had happened: the voice is there, no process, region, slot or descriptor too many."""
        with self.client() as tts:
            assert [voice.name for voice in tts.voices.list()] == ["grandpa"]
        assert self.speaks_as_grandpa()
        assert {model: len(self.footprint.stubs_of(model)) for model in MODELS} == dict.fromkeys(MODELS, 1)
        wait_for_metrics(self.system.config, {ACTIVE: 0, WAITING: 0, SLOTS: 16})
        wait_until(lambda: len(self.footprint.regions()) == self._num_regions, "each has its regions")
        few = {name: number + MOST_SPARE_FILES for name, number in self._num_files.items()}
        assert all(number <= few[name] for name, number in self.num_files().items()), (self.num_files(), few)

    def num_files(self) -> dict[str, int]:
        """Descriptors, by process, of those that live on through most of the faults."""
        launcher, gateway = psutil.Process(self.system.process.pid), self.system.child("qwen3_tts_gateway")
        server = psutil.Process(self.footprint.group)
        processes = {"launcher": launcher, "gateway": gateway, "tritonserver": server}
        return {name: process.num_fds() for name, process in processes.items()}
