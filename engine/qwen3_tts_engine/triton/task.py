"""Which task a request is for, told by what it brings along."""

from __future__ import annotations

from collections.abc import Collection

from qwen3_tts_engine.errors import InvalidRequest

TASKS = ("custom_voice", "voice_design", "base")
# What only the base models have a use for.
BASE_INPUTS = ("ref_audio", "voice", "speaker_embedding", "ref_codes")


def infer_task(task: str | None, given: Collection[str]) -> str:
    """The task asked for, or else the one the inputs speak of.

    Args:
        task: the `task` input, None when absent.
        given: names of the other inputs that are present.

    Raises:
        InvalidRequest: for an unknown task, or inputs that belong to another one.
    """
    if task is not None and task not in TASKS:
        raise InvalidRequest(f"task is {task[:80]!r}; it must be one of {', '.join(TASKS)}")
    of_base = [name for name in BASE_INPUTS if name in given]
    if task is None:
        task = _told_by(of_base, given)
    _refuse_contradictions(task, of_base, given)
    return task


def _told_by(of_base: list[str], given: Collection[str]) -> str:
    if of_base:
        return "base"
    return "voice_design" if "instruct" in given and "speaker" not in given else "custom_voice"


def _refuse_contradictions(task: str, of_base: list[str], given: Collection[str]) -> None:
    if task != "base" and of_base:
        raise InvalidRequest(
            f"{of_base[0]} is given and task is {task}; only base speaks with a recorded voice"
        )
    if task != "custom_voice" and "speaker" in given:
        raise InvalidRequest(f"speaker is given and task is {task}; only custom_voice has built-in speakers")
    if task == "base" and "instruct" in given:
        raise InvalidRequest("instruct is given and task is base; a recorded voice takes no instruction")
    if len(of_base) > 1 and of_base != ["speaker_embedding", "ref_codes"]:
        raise InvalidRequest(f"{' and '.join(of_base)} are given; they name more than one voice")
