"""When the next piece of audio leaves, and how long it is: decided by what its listener has left to play."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from qwen3_tts_engine.profile import Profile
from qwen3_tts_engine.request import FRAMES_PER_SECOND

FRAME_S = 1 / FRAMES_PER_SECOND


def chunk_frames(ramp: tuple[int, ...], chunks_sent: int) -> int:
    """How many frames the next chunk waits for, if its listener can."""
    return ramp[min(chunks_sent, len(ramp) - 1)]


def longest_chunk(ramp: tuple[int, ...], frames: int) -> int:
    """The longest chunk that so many frames fill; 0 for none."""
    return max((length for length in ramp if length <= frames), default=0)


def cannot_wait(slack_s: float, pace_s: float, profile: Profile) -> bool:
    """Whether a listener would run dry before one of the next frames could be voiced.

    A voice that is slower than its listener lets them run dry whatever its chunks are: then the longer ones,
    which cost least, leave the fewest gaps.

    Args:
        slack_s: for how long the listener has something to play.
        pace_s: how long a frame takes.
    """
    return pace_s < FRAME_S and slack_s < profile.lead_frames * pace_s


def due_frames(pending_frames: int, chunks_sent: int, slack_s: float, pace_s: float, profile: Profile) -> int:
    """How many of the frames not yet voiced make up the next chunk; 0 while it waits for more."""
    wanted = chunk_frames(profile.ramp, chunks_sent)
    if pending_frames < wanted and not cannot_wait(slack_s, pace_s, profile):
        return 0
    return longest_chunk(profile.ramp, min(pending_frames, wanted))


def within(budget: int, ramp: tuple[int, ...], wanted: Iterable[int]) -> Iterator[int]:
    """What each gets of a budget of frames, in the order given; at its end a shorter chunk, then none."""
    for frames in wanted:
        granted = longest_chunk(ramp, min(frames, budget))
        budget -= granted
        yield granted
