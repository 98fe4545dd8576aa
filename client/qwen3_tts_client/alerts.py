"""Each alert of docker/prometheus/alerts.yml: what it means, what to do, and whether it looks like it now.

A test holds names, limits and metrics to alerts.yml, and the words to docs/runbook.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qwen3_tts_client.metrics import Watch

Measure = Callable[[Watch], dict[str, float]]


@dataclass(frozen=True)
class Alert:
    """What somebody is woken for.

    Attributes:
        meaning: what is wrong when it fires.
        remedy: what to do about it.
        measured: its value by who has it, such as a model; nothing where nobody did what it is about.
        limit: it is for values above this.
        reading: the value in words, of `who` and `value`.
    """

    name: str
    meaning: str
    remedy: str
    measured: Measure
    limit: float
    reading: str

    def told(self, values: Mapping[str, float]) -> str:
        """Values in words, such as those of `measured`."""
        readings = [self.reading.format(who=who, value=value) for who, value in values.items()]
        return ", ".join(readings)

    def above(self, values: Mapping[str, float]) -> dict[str, float]:
        """Those it would fire for, were they to last."""
        return {who: value for who, value in values.items() if value > self.limit}


def _share(part: Mapping[str, float], whole: Mapping[str, float]) -> dict[str, float]:
    return {who: part.get(who, 0.0) / whole[who] for who in whole if whole[who] > 0}


def _nobody_serves(watch: Watch) -> dict[str, float]:
    return {"": 0.0 if watch.answers else 1.0}


def _no_gateway(watch: Watch) -> dict[str, float]:
    """One that answers. That none does cannot be told from none being meant to be there."""
    return dict.fromkeys(watch.now("qwen3_tts_gateway_requests_in_flight"), 0.0)


def _held_without_a_frame(watch: Watch) -> dict[str, float]:
    held = watch.now("qwen3_tts_active_slots", "model", "instance")
    frames = watch.growth("qwen3_tts_frames_total", "model", "instance")
    return {who: 0.0 if frames.get(who) else held[who] for who in held}


def _outcome(outcome: str) -> Measure:
    requests = "qwen3_tts_requests_total"
    return lambda watch: _share(
        watch.growth(requests, "model", outcome=outcome), watch.growth(requests, "model")
    )


def _status(status: str) -> Measure:
    """Of those who ask for something else than how it is."""
    answers, route = "qwen3_tts_gateway_requests_total", "(?!/health|/metrics).*"
    return lambda watch: _share(
        watch.growth(answers, status=status, route=route), watch.growth(answers, route=route)
    )


def _quantile(share: float, histogram: str) -> Measure:
    return lambda watch: watch.quantile(share, histogram, "model")


def _underruns(watch: Watch) -> dict[str, float]:
    return _share(
        watch.growth("qwen3_tts_underruns_total", "model"),
        watch.growth("qwen3_tts_audio_seconds_total", "model"),
    )


def _repairs(watch: Watch) -> dict[str, float]:
    """Since the supervisor began: an hour is too long to watch."""
    none_yet = watch.now("qwen3_tts_repairs_under_way")
    return watch.now("qwen3_tts_repairs_total", "what", "instance") or dict.fromkeys(none_yet, 0.0)


def _limits_store_failures(watch: Watch) -> dict[str, float]:
    return watch.growth("qwen3_tts_gateway_limits_store_failures_total", "instance")


def _slots_taken(watch: Watch) -> dict[str, float]:
    return _share(watch.now("qwen3_tts_active_slots", "model"), watch.now("qwen3_tts_slots", "model"))


def _queue(watch: Watch) -> dict[str, float]:
    waited_us = watch.growth("nv_inference_queue_duration_us", "model", model="qwen3_tts_.+")
    taken = watch.growth("nv_inference_request_success", "model", model="qwen3_tts_.+")
    return {model: us / 1e6 for model, us in _share(waited_us, taken).items()}


def _runaways(watch: Watch) -> dict[str, float]:
    ends = "qwen3_tts_finish_total"
    return _share(watch.growth(ends, "model", reason="runaway"), watch.growth(ends, "model"))


_ALERTS = (
    Alert(
        "NobodyServes",
        meaning="Prometheus reaches no Triton.",
        remedy=(
            "Do callers get audio? Then it is Prometheus: its targets page, and the network policy that "
            "lets it in. If not: are the replicas there, and what do their logs end with? A first start "
            "downloads the weights and takes minutes. Roll back what was changed last."
        ),
        measured=_nobody_serves,
        limit=0,
        reading="Tritons that were asked and do not answer: {value:g}",
    ),
    Alert(
        "NoGateway",
        meaning="Prometheus reaches no gateway.",
        remedy=(
            "Do callers get answers? Then it is Prometheus, as with `NobodyServes`. If not: what do the "
            "gateways' logs end with? A key file or a setting that cannot be read ends a start with a line "
            "that names it. Those at Triton's own ports hear nothing of it."
        ),
        measured=_no_gateway,
        limit=0,
        reading="a gateway answers",
    ),
    Alert(
        "NoAudio",
        meaning="An engine holds utterances and makes no frame.",
        remedy=(
            "The supervisor ends this by itself within two minutes; `Repairs` follows. Still there after "
            "that: restart the replica, and keep its log, whose last lines name the step. On a GPU look "
            "for Xid errors in `dmesg`."
        ),
        measured=_held_without_a_frame,
        limit=0,
        reading="{who} holds {value:g} utterances without making a frame",
    ),
    Alert(
        "Failures",
        meaning="More than 1 % of a model's requests break: a step of its engine, or the voice store.",
        remedy=(
            "The log of the model names which. Store: is Redis or the volume there, and has it room? "
            "Memory of the device: fewer slots (docs/memory.md). One replica only: restart it. All of "
            "them since a release: roll back."
        ),
        measured=_outcome("failed"),
        limit=0.01,
        reading="{value:.1%} of {who}'s requests failed",
    ),
    Alert(
        "GatewayErrors",
        meaning=(
            "The gateway answers more than 1 % of its callers with an error that is not theirs; 503 is "
            "not counted."
        ),
        remedy=(
            "Its log has each request with a status of 500 and above, by `request_id`. 502 is its key: "
            "`TRITON_API_KEY` must be Triton's. 500 is a fault of the engine's, which has `Failures`, or "
            "a bug of the gateway's with its traceback beside."
        ),
        measured=_status("5(?!03).."),
        limit=0.01,
        reading="{value:.1%} of the gateway's answers",
    ),
    Alert(
        "SlowerThanRealTime",
        meaning="One utterance in ten is spoken slower than it plays: listeners run dry.",
        remedy=(
            "Is the device slower than it was: another process on it, its clock, its temperature? "
            "Otherwise there are too many utterances at once for it: more replicas now, fewer slots "
            "(`slots`) later."
        ),
        measured=_quantile(0.9, "qwen3_tts_real_time_factor"),
        limit=1,
        reading="{who} takes {value:.2f} s for a second of audio",
    ),
    Alert(
        "Underruns",
        meaning="Listeners run dry more than once in ten seconds of audio.",
        remedy=(
            "As `SlowerThanRealTime`; where that is silent, single chunks come late: long prompts between "
            "them. More replicas, or the profile `latency`."
        ),
        measured=_underruns,
        limit=0.1,
        reading="{who}'s listeners ran dry {value:.2f} times in a second of audio",
    ),
    Alert(
        "Repairs",
        meaning=(
            "Something of one replica was brought back more than twice within the hour. It mends itself, "
            "and something breaks it again."
        ),
        remedy=(
            "The supervisor's lines in the replica's log say when and why: `died` (`dmesg` for the "
            "kernel's out-of-memory killer), `silent` and `stuck` (the device), `failing` (the model's log)."
        ),
        measured=_repairs,
        limit=2,
        reading="{who}: {value:g} times since the supervisor's start",
    ),
    Alert(
        "Overloaded",
        meaning=(
            "The gateway turns away more than 2 % of its callers: Triton's queue is full, or no Triton is "
            "there (`NobodyServes`)."
        ),
        remedy=(
            "More replicas. Until then, find the busiest key in `qwen3_tts_gateway_key_requests_total`, "
            "revoke it, and create it again with a lower `--requests-per-minute` or `--max-streams`."
        ),
        measured=_status("503"),
        limit=0.02,
        reading="{value:.1%} of the gateway's answers",
    ),
    Alert(
        "NobodyIsLimited",
        meaning="A gateway's `LIMITS_STORE` fails, and as long as it does nobody is limited there.",
        remedy=(
            "The gateway's log says how it fails. Is Redis there, does a network policy let the gateway in, "
            "is the password of both the same, has it memory left (`maxmemory`)? Callers notice nothing, "
            "and limits hold again within seconds once Redis answers; if somebody floods the server "
            "meanwhile, revoke the key."
        ),
        measured=_limits_store_failures,
        limit=0,
        reading="the limits' store failed {value:g} times for {who}",
    ),
    Alert(
        "SlotsFull",
        meaning="A model has no free slot, and newcomers wait.",
        remedy=(
            "Has the autoscaler reached its most, or is its new replica pending for want of a device? "
            "More replicas, or more slots where the device has the memory and speaks faster than real "
            "time."
        ),
        measured=_slots_taken,
        limit=0.95,
        reading="{value:.0%} of {who}'s slots are taken",
    ),
    Alert(
        "LongQueue",
        meaning=(
            "Callers wait more than 2 s in Triton's queue, on average; after 60 s they are turned away, "
            "and `Overloaded` comes next."
        ),
        remedy="As `SlotsFull`, which it follows.",
        measured=_queue,
        limit=2,
        reading="{who}'s callers waited {value:.1f} s",
    ),
    Alert(
        "SlowFirstAudio",
        meaning=(
            "One utterance in twenty waits more than 1 s for its first chunk, and the queue is no part of "
            "that."
        ),
        remedy=(
            "Long reference recordings or texts that others bring, a replica that has just started, or "
            "a device that is slower than usual. The profile `latency` favours first chunks."
        ),
        measured=_quantile(0.95, "qwen3_tts_time_to_first_audio_seconds"),
        limit=1,
        reading="{who}'s first chunk took {value:.2f} s",
    ),
    Alert(
        "CallersLeave",
        meaning="More than half of a model's callers leave before the end.",
        remedy=(
            "A proxy whose timeout is shorter than an utterance, or that buffers until the end? A client "
            "that gives up early? If first audio is slow as well, that is why. Voice assistants that are "
            "interrupted a lot are no fault: raise the threshold."
        ),
        measured=_outcome("cancelled"),
        limit=0.5,
        reading="{value:.0%} of {who}'s callers left",
    ),
    Alert(
        "Runaways",
        meaning="Voices lose their way and are cut: more than 2 % of a model's utterances.",
        remedy=(
            "Which key, in the gateway's log? Usually a temperature that is too high, a recording that is "
            "noisy or whose transcript is another text's, or a language that is not the text's."
        ),
        measured=_runaways,
        limit=0.02,
        reading="{value:.1%} of {who}'s utterances",
    ),
)

ALERTS = {alert.name: alert for alert in _ALERTS}
"""By name, in the order of alerts.yml."""
