"""When a listener runs dry: what was handed out, played at the speed of speech."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Playback:
    """A listener's player, who plays what has come, waits in silence when nothing is left, and plays on.

    Every time is one of the clock whose time the caller passes in.

    Args:
        dry_s: when everything handed out has been played; before the first audio, since when they wait.
            Infinite for who wants the utterance whole and never waits for a part of it.
    """

    dry_s: float
    started_s: float | None = None  # when they were handed the first audio

    def slack_s(self, now_s: float) -> float:
        """For how long there is something to play; negative: for how long there has been silence."""
        return self.dry_s - now_s

    def has_run_dry(self, now_s: float) -> bool:
        """Whether they began to listen and sit in silence."""
        return self.started_s is not None and self.dry_s < now_s

    def hear(self, audio_s: float, now_s: float) -> None:
        """Be handed the next chunk."""
        if self.started_s is None:
            self.started_s = now_s
        self.dry_s = max(self.dry_s, now_s) + audio_s
