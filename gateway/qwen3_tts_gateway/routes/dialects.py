"""How other servers put what `SpeechBody` says, in our own words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from qwen3_tts_gateway.errors import InvalidInput

# Of an entry of `references`: vllm-omni and Higgs Audio say `audio_path`, Fish Speech `audio`.
_RECORDING = ("audio_path", "audio", "audio_url", "ref_audio")
_TRANSCRIPT = ("text", "ref_text")


def without_nulls(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Clients with types send every field they know, null where nothing was said."""
    return {name: value for name, value in fields.items() if value is not None}


def translated(body: Mapping[str, Any], extra: Collection[str]) -> dict[str, Any]:
    """A body that says in fields of its own what `references` and `extra_params` say.

    Args:
        extra: what `extra_params` may hold; a field of the same name beside it goes before it.

    Raises:
        InvalidInput: they cannot be read, or say what no field can.
    """
    fields = without_nulls(body)
    if "extra_params" in fields:
        fields = _extra(fields["extra_params"], extra) | fields
    if "references" in fields:
        fields |= _reference(fields["references"], fields)
    return fields


def id_of(voice: Any) -> Any:
    """OpenAI's custom voices come as `{"id": …}`, whatever else is told of them."""
    return voice["id"] if isinstance(voice, dict) and "id" in voice else voice


def _extra(given: Any, known: Collection[str]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise InvalidInput("extra_params is not an object", param="extra_params")
    if unknown := sorted(set(given) - set(known)):
        raise InvalidInput(
            f"extra_params has {', '.join(map(repr, unknown[:5]))}; it may have {', '.join(sorted(known))}",
            param="extra_params",
        )
    return without_nulls(given)


def _reference(given: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The one recording that is given, and what is said in it."""
    if not isinstance(given, list) or len(given) != 1 or not isinstance(given[0], dict):
        raise InvalidInput(
            "references must be a list with one object, such as "
            '[{"audio_path": "data:audio/wav;base64,…", "text": "…"}]; a voice is cloned from one recording',
            param="references",
        )
    reference = without_nulls(given[0])
    found = {
        "ref_audio": next((reference[name] for name in _RECORDING if name in reference), None),
        "ref_text": next((reference[name] for name in _TRANSCRIPT if name in reference), None),
    }
    if found["ref_audio"] is None:
        raise InvalidInput(f"references.0 has none of {', '.join(_RECORDING)}", param="references")
    for name, value in without_nulls(found).items():
        if fields.get(name, value) != value:
            raise InvalidInput(f"references and {name} contradict each other", param="references")
    return without_nulls(found)
