"""When the next piece of audio leaves: at once for the first frame, then in growing chunks."""

from __future__ import annotations

# Frames in the 1st, 2nd, … chunk; the last one repeats. A small first chunk is heard early; larger ones
# later cost the codec less per frame (its weights are read once a chunk), while the listener's buffer,
# which holds what has been sent, grows faster than it drains.
RAMP = (1, 2, 4, 8, 12)


def chunk_frames(chunks_sent: int) -> int:
    """How many frames the next chunk waits for."""
    return RAMP[min(chunks_sent, len(RAMP) - 1)]


def is_due(pending_frames: int, chunks_sent: int) -> bool:
    """Whether the frames not yet voiced make up the next chunk."""
    return pending_frames >= chunk_frames(chunks_sent)
