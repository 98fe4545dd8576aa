"""Random-weight Qwen3-TTS checkpoints in the published layout, small enough to build in a test.

    python -m qwen3_tts_engine.tiny checkpoints/tiny

`qwen_tts.Qwen3TTSModel.from_pretrained` loads each of them as it is: they have the real architecture, the
real codec ids and the real files, so what runs on them runs on a published checkpoint. They babble for two
seconds or so and stop by themselves. Those of a published shape never stop: give them a frame cap.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import torch

from qwen3_tts_engine.tiny.codec import write_codec
from qwen3_tts_engine.tiny.files import make_readable, write_json
from qwen3_tts_engine.tiny.shape import PUBLISHED_0B6, PUBLISHED_1B7, SHAPES, SMALL, TINY, Shape, Transformer
from qwen3_tts_engine.tiny.talker import write_talker
from qwen3_tts_engine.tiny.tokenizer import write_tokenizer

__all__ = [
    "CHECKPOINTS",
    "PUBLISHED_0B6",
    "PUBLISHED_1B7",
    "SHAPES",
    "SMALL",
    "TINY",
    "Shape",
    "Transformer",
    "build",
    "build_all",
]

RECIPE = 1
SEED = 1234
MARKER = "tiny.json"


@dataclass(frozen=True)
class Checkpoint:
    model_type: str
    has_projection: bool = True

    def resize(self, shape: Shape) -> Shape:
        return shape if self.has_projection else shape.without_projection()


CHECKPOINTS = {
    "custom_voice": Checkpoint("custom_voice"),
    "custom_voice_0b6": Checkpoint("custom_voice", has_projection=False),
    "voice_design": Checkpoint("voice_design"),
    "base": Checkpoint("base"),
}


def build_all(
    out: Path,
    seed: int = SEED,
    shape: Shape = TINY,
    *,
    names: Iterable[str] = tuple(CHECKPOINTS),
    force: bool = False,
) -> list[Path]:
    return [build(out, name, seed, shape, force=force) for name in names]


def build(out: Path, name: str, seed: int = SEED, shape: Shape = TINY, *, force: bool = False) -> Path:
    """Write `out/name`, unless the same recipe, seed and shape already did, and return its path.

    The directory appears complete or not at all.
    """
    checkpoint, path = CHECKPOINTS[name], out / name
    marker = {"recipe": RECIPE, "seed": seed, "shape": asdict(checkpoint.resize(shape))}
    if force or read_marker(path) != marker:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out, prefix=f".{name}-") as scratch:
            fresh = Path(scratch) / "fresh"
            write_checkpoint(fresh, name, seed, shape)
            write_json(fresh / MARKER, marker)
            make_readable(fresh)
            if path.exists():
                path.rename(Path(scratch) / "stale")
            fresh.rename(path)
    return path


def write_checkpoint(out: Path, name: str, seed: int, shape: Shape) -> None:
    checkpoint = CHECKPOINTS[name]
    shape = checkpoint.resize(shape)
    out.mkdir()
    control_ids = write_tokenizer(out, shape.tokenizer_vocab)
    with one_thread():
        write_talker(out, checkpoint.model_type, control_ids, shape, generator(f"{seed} {name}"))
        # Checkpoints of one seed share their codec, as the published ones do.
        write_codec(out / "speech_tokenizer", shape, generator(f"{seed} codec"))


def generator(label: str) -> torch.Generator:
    return torch.Generator().manual_seed(crc32(label.encode()))


def read_marker(path: Path) -> object:
    marker = path / MARKER
    return json.loads(marker.read_text()) if marker.exists() else None


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums come out the same on any number of cores; and on matrices this small, threads only wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
