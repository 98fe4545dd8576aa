"""What an operator may trade for what: every profile is a whole, and nothing else is to turn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """How the engine divides a step among those who speak and those who come.

    Args:
        ramp: frames in the 1st, 2nd, … chunk; the last one repeats. No chunk but an utterance's last has
            another length: chunks of one length are decoded together.
        lead_frames: how early a listener who would run dry gets what there is, in the time of so many frames.
        codec_frames: frames voiced in one step, if no more were spoken in it.
        prefill_tokens: prompt tokens read between two frames.
    """

    ramp: tuple[int, ...]
    lead_frames: int
    codec_frames: int
    prefill_tokens: int


# A small first chunk is heard early; larger ones later cost the codec less per frame (its weights are read
# once a chunk), while the listener's buffer, which holds what has been sent, grows faster than it drains.
# What the profiles trade is measured by perf/simulate.py; why there are three, docs/decisions/0012 tells.
PROFILES = {
    "latency": Profile((1, 2, 4, 8), lead_frames=3, codec_frames=24, prefill_tokens=128),
    "balanced": Profile((1, 2, 4, 8, 12), lead_frames=2, codec_frames=48, prefill_tokens=512),
    "throughput": Profile((1, 2, 4, 8, 16, 24), lead_frames=2, codec_frames=96, prefill_tokens=2048),
}
