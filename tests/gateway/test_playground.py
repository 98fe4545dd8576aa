"""The playground as its users have it: in a browser, by mouse, keyboard and screen reader."""

import io
import re
import shutil
import subprocess
import threading
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from fakes.triton_server import PATIENCE_S, FakeTriton, RefusalError, chunk, final, samples_of, says
from gateway_server import GatewayServer, running_gateway, settings
from qwen3_tts_gateway.routes.playground import FILES
from recordings import encoded, humming, written

BROWSERS = ("chromium", "google-chrome")
SAMPLE_RATE = 24_000
PHONE = {"width": 360, "height": 740}
KEY = "the-right-key"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of this module alone: while Playwright's loop runs, no test of another module could run one."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.fail(
            f"none of {', '.join(BROWSERS)} is on the PATH; on Debian: apt-get install chromium",
            pytrace=False,
        )
    flags = [
        "--no-sandbox",
        "--autoplay-policy=no-user-gesture-required",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
    ]
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path, args=flags) as one:
        yield one


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open the playground in a session of its own: `visit(gateway, color_scheme="dark")`."""
    contexts = []

    def open_page(gateway: GatewayServer, script: str = "", **facts: Any) -> Page:
        contexts.append(browser.new_context(**facts))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        if script:
            page.add_init_script(script)
        page.goto(f"{gateway.url}/playground")
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def page(visit: Callable[..., Page], gateway: GatewayServer) -> Page:
    """The playground of an open gateway, its lists filled."""
    page = visit(gateway)
    expect(page.get_by_label("Speaker", exact=True)).to_have_value("Ryan")
    return page


@pytest.fixture
def locked_gateway(fake_triton: FakeTriton) -> Iterator[GatewayServer]:
    """One that asks for `KEY`."""
    with running_gateway(settings(triton_grpc_port=fake_triton.port, api_keys=(KEY,))) as running:
        yield running


class Paced:
    """A script that says a chunk, and the rest once it is `released`."""

    def __init__(self, num_chunks: int = 3) -> None:
        self.released = threading.Event()
        self._num_chunks = num_chunks

    def __call__(self, call: Any) -> Iterator[Any]:
        yield chunk(0)
        self.released.wait(PATIENCE_S)
        for index in range(1, self._num_chunks):
            yield chunk(index, finish_reason="stop" if index == self._num_chunks - 1 else "")
        yield final()


def endless(call: Any) -> Iterator[Any]:
    """A script that speaks until the caller has gone."""
    yield chunk(0)
    call.wait_until_gone()


def speak(page: Page) -> None:
    page.get_by_role("button", name="Speak", exact=True).click()


def spoken(page: Page) -> None:
    """Speak, and listen to the end."""
    speak(page)
    expect(state(page)).to_contain_text("Done")


def state(page: Page) -> Locator:
    return page.locator("#state")


def complaint(page: Page) -> Locator:
    """What is told beside the buttons."""
    return page.locator("#complaint")


def code(page: Page) -> str:
    return page.locator("#snippet").text_content() or ""


def canvas(page: Page) -> str:
    return str(page.evaluate("document.getElementById('waveform').toDataURL()"))


def downloaded(page: Page) -> bytes:
    with page.expect_download() as download:
        page.get_by_role("link", name="Download WAV").click()
    return Path(download.value.path()).read_bytes()


def samples_in(wav: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(wav)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, SAMPLE_RATE)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def chunks_as_int16(num_chunks: int) -> np.ndarray:
    return np.concatenate([samples_of(index) * 0x8000 for index in range(num_chunks)]).astype(np.int16)


def clone(page: Page, recording: bytes, name: str = "me.wav") -> None:
    """Choose a file as the voice."""
    page.get_by_role("radio", name="Cloned").check()
    page.get_by_label("Recording of").set_input_files(
        files=[{"name": name, "mimeType": "application/octet-stream", "buffer": recording}]
    )


def save_voice(page: Page, name: str) -> None:
    page.get_by_text("Save this voice", exact=True).click()
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("The speaker has agreed").check()
    page.get_by_role("button", name="Save voice").click()


def show_everything(page: Page) -> None:
    """With a recording, a saved voice, and every panel at once."""
    clone(page, written(humming(1.0)))
    page.get_by_label("Without a transcript").check()
    save_voice(page, "anna")
    expect(page.locator("#keep-state")).to_contain_text("Saved as anna")
    page.evaluate("document.querySelectorAll('.panel').forEach((panel) => (panel.hidden = false))")


# Speaking


def test_sound_plays_and_figures_show_while_the_rest_is_still_being_spoken(
    page: Page, fake_triton: FakeTriton
) -> None:
    fake_triton.script = paced = Paced()
    speak(page)
    expect(state(page)).to_have_text("Speaking…")
    expect(page.locator("#received")).to_have_text("0.08 s")
    expect(page.locator("#first-audio")).to_have_text(re.compile(r"\d+ ms"))
    expect(page.locator("#real-time-factor")).to_have_text(re.compile(r"\d+\.\d\d"))
    expect(page.get_by_role("link", name="Download WAV")).to_be_hidden()
    paced.released.set()
    expect(state(page)).to_have_text("Done: 0.24 s of speech")
    expect(page.locator("#received")).to_have_text("0.24 s")


def test_what_was_spoken_can_be_downloaded_to_the_last_sample(page: Page) -> None:
    spoken(page)
    np.testing.assert_array_equal(samples_in(downloaded(page)), chunks_as_int16(3))


def test_no_sample_is_lost_where_the_network_cuts_one_in_two(
    visit: Callable[..., Page], gateway: GatewayServer
) -> None:
    page = visit(gateway, script=CUT_EVERY_333_BYTES)
    spoken(page)
    np.testing.assert_array_equal(samples_in(downloaded(page)), chunks_as_int16(3))


CUT_EVERY_333_BYTES = """
const whole = window.fetch;
window.fetch = async (...request) => {
    const response = await whole(...request);
    if (!request[0].endsWith("/speech")) return response;
    const bytes = new Uint8Array(await response.arrayBuffer());
    const start = (body) => {
        for (let i = 0; i < bytes.length; i += 333) body.enqueue(bytes.slice(i, i + 333));
        body.close();
    };
    return new Response(new ReadableStream({ start }), response);
};
"""


def test_the_waveform_says_what_it_shows(page: Page) -> None:
    expect(page.get_by_role("img", name="No sound yet")).to_be_visible()
    spoken(page)
    expect(page.get_by_role("img", name="Waveform of 0.24 s of speech")).to_be_visible()


def test_the_waveform_is_drawn(page: Page) -> None:
    empty = canvas(page)
    spoken(page)
    assert canvas(page) != empty


def test_what_was_spoken_can_be_replayed_without_asking_again(page: Page, fake_triton: FakeTriton) -> None:
    fake_triton.script = says(12)
    spoken(page)
    page.get_by_role("button", name="Replay").click()
    expect(state(page)).to_have_text("Replaying…")
    expect(state(page)).to_have_text("Done: 0.96 s of speech")
    assert len(fake_triton.calls) == 1


def test_stop_ends_the_speaking_on_the_server(page: Page, fake_triton: FakeTriton) -> None:
    fake_triton.script = endless
    speak(page)
    expect(page.locator("#received")).to_have_text("0.08 s")
    page.get_by_role("button", name="Stop").click()
    expect(state(page)).to_have_text("Stopped; 0.08 s were received")
    assert fake_triton.cancelled.wait(PATIENCE_S)
    assert len(samples_in(downloaded(page))) == 1920


def test_who_speaks_anew_stops_what_was_being_spoken(page: Page, fake_triton: FakeTriton) -> None:
    fake_triton.script = endless
    speak(page)
    expect(state(page)).to_have_text("Speaking…")
    fake_triton.script = says(3)
    spoken(page)
    assert fake_triton.cancelled.wait(PATIENCE_S)
    assert len(samples_in(downloaded(page))) == 3 * 1920


@pytest.mark.parametrize("modifier", ["Control", "Meta"])
def test_keys_speak_and_stop_from_within_the_text(page: Page, fake_triton: FakeTriton, modifier: str) -> None:
    fake_triton.script = endless
    page.get_by_label("Text", exact=True).press(f"{modifier}+Enter")
    expect(state(page)).to_have_text("Speaking…")
    page.keyboard.press("Escape")
    expect(state(page)).to_contain_text("Stopped")
    assert fake_triton.cancelled.wait(PATIENCE_S)


def test_nothing_moves_while_waiting_where_motion_is_to_be_reduced(
    visit: Callable[..., Page], gateway: GatewayServer, fake_triton: FakeTriton
) -> None:
    silence_over = threading.Event()

    def hesitates(call: Any) -> Iterator[Any]:
        silence_over.wait(PATIENCE_S)
        yield from says(1)(call)

    fake_triton.script = hesitates
    page = visit(gateway, reduced_motion="reduce")
    speak(page)
    expect(state(page)).to_have_text("Waiting for the first sound…")
    first = canvas(page)
    page.evaluate("new Promise((resolve) => setTimeout(resolve, 200))")
    assert canvas(page) == first
    silence_over.set()


# What is asked for


def test_a_built_in_speaker_speaks_as_the_form_says(page: Page, fake_triton: FakeTriton) -> None:
    page.get_by_label("Text", exact=True).fill("Guten Morgen.")
    page.get_by_label("Speaker", exact=True).select_option("Vivian")
    page.get_by_label("Style").fill("softly")
    page.get_by_label("Language").select_option("English")
    page.get_by_label("Seed").fill("-7")
    page.get_by_label("Speed").fill("0.5")
    spoken(page)
    call = fake_triton.calls[0]
    assert call.request.model_name == "qwen3_tts_custom_voice"
    assert [call.string(name) for name in ("text", "speaker", "instruct", "language")] == [
        "Guten Morgen.",
        "Vivian",
        "softly",
        "English",
    ]
    assert call.array("seed").item() == -7
    assert len(samples_in(downloaded(page))) == pytest.approx(3 * 1920 / 2, rel=0.1)


def test_the_lists_offer_speakers_openais_names_and_languages(page: Page) -> None:
    assert page.locator("#speaker > option").all_text_contents() == ["Ryan", "Vivian"]
    assert "coral" in page.locator("#speaker optgroup option").all_text_contents()
    assert page.locator("#language option").all_text_contents() == ["As the text is", "Chinese", "English"]
    expect(page.get_by_text("a man in a hurry; native in English")).to_be_visible()


def test_a_designed_voice_is_described_in_words(page: Page, fake_triton: FakeTriton) -> None:
    page.get_by_role("radio", name="Designed").check()
    page.get_by_label("Description of the voice").fill("a warm old storyteller")
    spoken(page)
    assert fake_triton.calls[0].request.model_name == "qwen3_tts_voice_design"
    assert fake_triton.calls[0].string("instruct") == "a warm old storyteller"


def test_a_file_is_cloned_as_it_is(page: Page, fake_triton: FakeTriton) -> None:
    recording = written(humming(2.0))
    clone(page, recording)
    page.get_by_label("Transcript", exact=True).fill("What I say in it.")
    spoken(page)
    heard = fake_triton.questions[-1]
    assert heard.inputs["ref_audio"][4:] == recording
    assert heard.string("ref_text") == "What I say in it."
    assert fake_triton.calls[0].request.model_name == "qwen3_tts_base"


def test_a_file_of_a_format_the_server_lacks_is_sent_as_wav(page: Page, fake_triton: FakeTriton) -> None:
    clone(page, encoded(humming(2.0, rate=48_000), 48_000, "libopus", "webm"), "me.webm")
    page.get_by_label("Without a transcript").check()
    spoken(page)
    heard = fake_triton.questions[-1]
    assert heard.array("x_vector_only").item()
    assert len(samples_in(heard.inputs["ref_audio"][4:])) == pytest.approx(2 * SAMPLE_RATE, rel=0.02)


def test_who_has_a_microphone_records_a_voice(page: Page, fake_triton: FakeTriton) -> None:
    page.get_by_role("radio", name="Cloned").check()
    page.get_by_role("button", name="Record", exact=True).click()
    page.get_by_role("button", name="Stop recording, 0:02 of 0:30").click()
    expect(page.get_by_role("button", name="Listen")).to_be_visible()
    page.get_by_label("Without a transcript").check()
    spoken(page)
    recorded = samples_in(fake_triton.questions[-1].inputs["ref_audio"][4:])
    assert len(recorded) > SAMPLE_RATE
    assert np.abs(recorded).max() > 0  # the fake microphone beeps


def test_a_recording_can_be_listened_to_and_removed(page: Page) -> None:
    clone(page, written(humming(1.0)))
    page.get_by_role("button", name="Listen").click()
    page.get_by_role("group", name="The recording").get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Listen")).to_be_visible()
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("group", name="The recording")).to_be_hidden()
    expect(page.get_by_role("button", name="Record", exact=True)).to_be_focused()


@pytest.mark.triton
def test_the_real_server_is_heard_speaking(visit: Callable[..., Page], real_gateway: GatewayServer) -> None:
    page = visit(real_gateway)
    expect(page.get_by_label("Speaker", exact=True)).not_to_have_value("")
    page.get_by_label("Seed").fill("1")
    speak(page)
    expect(page.get_by_role("link", name="Download WAV")).to_be_visible(timeout=60_000)
    samples = samples_in(downloaded(page))
    assert len(samples) % 1920 == 0
    assert samples.any()
    expect(page.locator("#received")).to_have_text(re.compile(r"\d+\.\d+ s"))


# Saved voices


def test_a_voice_is_saved_chosen_and_deleted(page: Page, fake_triton: FakeTriton) -> None:
    clone(page, written(humming(2.0)))
    page.get_by_label("Transcript", exact=True).fill("What I say in it.")
    save_voice(page, "anna")
    expect(page.locator("#keep-state")).to_contain_text("Saved as anna")

    page.get_by_role("radio", name="Saved voice", exact=True).check()
    expect(page.get_by_role("radio", name="anna with transcript")).to_be_checked()
    spoken(page)
    assert fake_triton.calls[0].string("voice") == "anna"

    page.get_by_role("button", name="Delete anna").click()
    page.get_by_role("dialog", name="Delete anna?").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("anna was deleted.")).to_be_visible()
    expect(page.get_by_text("None yet.")).to_be_visible()
    assert fake_triton.answers["voices"].voices == {}


def test_a_voice_is_kept_by_who_thinks_better_of_deleting_it(page: Page, fake_triton: FakeTriton) -> None:
    clone(page, written(humming(2.0)))
    page.get_by_label("Without a transcript").check()
    save_voice(page, "anna")
    expect(page.locator("#keep-state")).to_contain_text("Saved as anna")
    page.get_by_role("radio", name="Saved voice", exact=True).check()
    page.get_by_role("button", name="Delete anna").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("radio", name="anna timbre only")).to_be_visible()
    assert "anna" in fake_triton.answers["voices"].voices


def test_consent_is_kept_with_the_voice_and_without_it_nothing_is(
    page: Page, fake_triton: FakeTriton
) -> None:
    clone(page, written(humming(2.0)))
    page.get_by_label("Without a transcript").check()
    page.get_by_text("Save this voice", exact=True).click()
    page.get_by_label("Name", exact=True).fill("anna")
    page.get_by_role("button", name="Save voice").click()
    expect(page.get_by_text("only if its speaker has agreed")).to_be_visible()
    expect(page.get_by_label("The speaker has agreed")).to_be_focused()
    page.get_by_label("The speaker has agreed").check()
    page.get_by_role("button", name="Save voice").click()
    expect(page.locator("#keep-state")).to_contain_text("Saved as anna")
    assert "has agreed" in fake_triton.answers["voices"].voices["anna"]["metadata"]["consent"]


def test_a_name_that_is_taken_is_refused_beside_it(page: Page) -> None:
    clone(page, written(humming(2.0)))
    page.get_by_label("Without a transcript").check()
    save_voice(page, "coral")
    expect(page.locator("#keep-complaint")).to_contain_text("an alias; choose another")
    expect(page.get_by_label("Name", exact=True)).to_have_attribute("aria-invalid", "true")


# What goes wrong


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("Built-in", "There is nothing to say yet"),
        ("Designed", "Describe the voice first"),
        ("Cloned", "There is no voice yet"),
    ],
)
def test_what_is_missing_is_said_before_the_server_is_asked(
    page: Page, fake_triton: FakeTriton, task: str, words: str
) -> None:
    page.get_by_role("radio", name=task).check()
    if task == "Built-in":
        page.get_by_label("Text", exact=True).fill(" ")
    speak(page)
    expect(complaint(page)).to_contain_text(words)
    expect(page.locator("[aria-errormessage=complaint]")).to_be_focused()
    assert not fake_triton.calls


def test_a_seed_that_is_none_is_refused_and_forgiven_once_mended(page: Page) -> None:
    page.get_by_label("Seed").fill("often")
    speak(page)
    expect(complaint(page)).to_contain_text("The seed is a whole number")
    page.get_by_label("Seed").fill("7")
    expect(page.get_by_label("Seed")).not_to_have_attribute("aria-invalid", "true")
    spoken(page)
    expect(complaint(page)).to_be_hidden()


def test_what_the_server_refuses_is_told_at_the_control(page: Page) -> None:
    page.get_by_label("Text", exact=True).fill("a" * 4097)
    speak(page)
    expect(complaint(page)).to_have_text("Input has 4097 characters; at most 4096 are spoken at once.")
    expect(page.get_by_label("Text", exact=True)).to_have_attribute("aria-errormessage", "complaint")


def test_a_gateway_with_keys_asks_for_one_and_takes_it(
    visit: Callable[..., Page], locked_gateway: GatewayServer
) -> None:
    page = visit(locked_gateway)
    expect(page.get_by_text("This server asks for an API key")).to_be_visible()
    page.get_by_label("API key").fill(KEY)
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_text("This server asks for an API key")).to_be_hidden()
    assert "English" in page.locator("#language option").all_text_contents()
    spoken(page)


def test_a_wrong_key_is_told_beside_the_buttons(
    visit: Callable[..., Page], locked_gateway: GatewayServer
) -> None:
    page = visit(locked_gateway)
    page.get_by_label("API key").fill("a-wrong-key")
    speak(page)
    expect(complaint(page)).to_contain_text("The API key is not accepted: the API key is not known here")
    expect(state(page)).to_have_text("Nothing was spoken")
    expect(page.get_by_label("API key")).to_have_attribute("aria-invalid", "true")


def test_a_key_lasts_as_long_as_the_tab(visit: Callable[..., Page], locked_gateway: GatewayServer) -> None:
    page = visit(locked_gateway)
    page.get_by_label("API key").fill(KEY)
    spoken(page)
    page.reload()
    spoken(page)
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]


def test_a_triton_that_is_down_is_told_and_asked_again(
    visit: Callable[..., Page], unreachable_triton: GatewayServer
) -> None:
    page = visit(unreachable_triton)
    expect(page.locator("#lists-complaint")).to_contain_text("behind the gateway cannot be reached")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    speak(page)
    expect(complaint(page)).to_contain_text("behind the gateway cannot be reached. Try again in 5 s.")


@pytest.fixture
def unreachable_triton() -> Iterator[GatewayServer]:
    """A gateway that has nobody behind it."""
    with running_gateway(settings(triton_grpc_port=1)) as running:
        yield running


def test_a_gateway_that_has_gone_is_told(visit: Callable[..., Page], fake_triton: FakeTriton) -> None:
    with running_gateway(settings(triton_grpc_port=fake_triton.port)) as gateway:
        page = visit(gateway)
        expect(page.get_by_label("Speaker", exact=True)).to_have_value("Ryan")
    speak(page)
    expect(complaint(page)).to_contain_text("The gateway cannot be reached.")


def test_speech_that_breaks_off_is_told_and_what_came_of_it_stays(
    page: Page, fake_triton: FakeTriton
) -> None:
    def breaks_off(call: Any) -> Iterator[Any]:
        yield chunk(0)
        heard.wait(PATIENCE_S)
        raise RefusalError(grpc.StatusCode.INTERNAL, "the engine stumbled")

    heard = threading.Event()
    fake_triton.script = breaks_off
    speak(page)
    expect(page.locator("#received")).to_have_text("0.08 s")
    heard.set()
    expect(complaint(page)).to_contain_text("The speech broke off")
    expect(state(page)).to_have_text("Broke off after 0.08 s")
    assert len(samples_in(downloaded(page))) == 1920


def test_a_full_server_says_when_to_try_again(page: Page, fake_triton: FakeTriton) -> None:
    def refuses(call: Any) -> Iterator[Any]:
        raise RefusalError(grpc.StatusCode.RESOURCE_EXHAUSTED, "16 speak already")
        yield

    fake_triton.script = refuses
    speak(page)
    expect(complaint(page)).to_contain_text("no room for one more speaker. Try again in 1 s.")


def test_a_microphone_that_may_not_be_used_is_told_beside_it(
    visit: Callable[..., Page], gateway: GatewayServer
) -> None:
    refusing = (
        'navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("", "NotAllowedError"); }'
    )
    page = visit(gateway, script=refusing)
    page.get_by_role("radio", name="Cloned").check()
    page.get_by_role("button", name="Record", exact=True).click()
    expect(page.locator("#recording-complaint")).to_contain_text("may not use the microphone")


@pytest.mark.parametrize(
    ("recording", "words"),
    [
        (b"no sound at all", "This is no recording of a common format"),
        (written(humming(0.5)), "The recording lasts 0.5 s; 1 to 30 s are needed."),
        (written(humming(31.0)), "The recording lasts 31.0 s; 1 to 30 s are needed."),
    ],
    ids=["no sound", "too short", "too long"],
)
def test_a_file_that_cannot_be_cloned_is_refused_beside_it(page: Page, recording: bytes, words: str) -> None:
    clone(page, recording)
    expect(page.locator("#recording-complaint")).to_contain_text(words)
    expect(page.get_by_role("group", name="The recording")).to_be_hidden()


# The same request in code


def test_the_python_code_asks_for_the_same(
    page: Page, fake_triton: FakeTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("me.wav").write_bytes(written(humming(2.0)))
    clone(page, Path("me.wav").read_bytes())
    page.get_by_label("Text", exact=True).fill('She said: "$HOME is\\where" …\n– ünïcode 😀')
    page.get_by_label("Transcript", exact=True).fill("What I say in it.")
    page.get_by_label("Seed").fill("7")
    spoken(page)
    page.get_by_role("radio", name="Python").check()
    exec(code(page), {})
    assert fake_triton.calls[0].inputs == fake_triton.calls[1].inputs
    assert samples_in(Path("speech.wav").read_bytes()).any()


@pytest.mark.parametrize("task", ["Built-in", "Cloned"])
def test_the_shell_code_asks_for_the_same(
    page: Page, fake_triton: FakeTriton, gateway: GatewayServer, tmp_path: Path, task: str
) -> None:
    (tmp_path / "it's me.wav").write_bytes(written(humming(2.0)))
    if task == "Cloned":
        clone(page, (tmp_path / "it's me.wav").read_bytes(), "it's me.wav")
    page.get_by_label("Text", exact=True).fill('She said: "$HOME is\\where" `date`\n– ünïcode 😀')
    if task == "Cloned":
        page.get_by_label("Transcript", exact=True).fill("$1 \\ `2`")
    spoken(page)
    # curl itself is not everywhere: what it would be given is what counts.
    subprocess.run(["bash", "-c", f"curl() {{ cat > body.json; }}\n{code(page)}"], cwd=tmp_path, check=True)
    headers = {"Content-Type": "application/json"}
    body = (tmp_path / "body.json").read_bytes()
    httpx.post(f"{gateway.url}/v1/audio/speech", content=body, headers=headers).raise_for_status()
    assert fake_triton.calls[0].inputs == fake_triton.calls[1].inputs


def test_the_code_names_this_server_and_never_the_key(
    visit: Callable[..., Page], locked_gateway: GatewayServer
) -> None:
    page = visit(locked_gateway)
    page.get_by_label("API key").fill(KEY)
    for language in ("curl", "Python"):
        page.get_by_role("radio", name=language).check()
        assert locked_gateway.url in code(page)
        assert "YOUR_API_KEY" in code(page)
        assert KEY not in code(page)


def test_the_code_can_be_copied(page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == code(page)


# For everybody


def test_every_control_has_a_name(page: Page) -> None:
    show_everything(page)
    roles = {"button", "textbox", "combobox", "radio", "checkbox", "slider", "link", "spinbutton", "dialog"}
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node["name"]["value"])
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in roles
    ]
    assert len(named) > 20
    assert [role for role, name in named if not name.strip()] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_edges_stand_out(visit: Callable[..., Page], gateway: GatewayServer, scheme: str) -> None:
    page = visit(gateway, color_scheme=scheme, reduced_motion="reduce")
    spoken(page)
    page.get_by_label("Seed").fill("often")
    speak(page)
    expect(complaint(page)).to_be_visible()
    show_everything(page)
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts["texts"]) > 30
    assert [text for text in contrasts["texts"] if text["ratio"] < 4.5] == []
    assert [edge for edge in contrasts["edges"] if edge["ratio"] < 3] == []
    assert contrasts["wave"] >= 3


# WCAG 2.2's contrast of every text that is shown (1.4.3) and of every field's edge (1.4.11).
CONTRASTS = """
() => {
    const rgb = (colour) => (colour.match(/[\\d.]+/g) ?? [0, 0, 0, 0]).map(Number);
    const linear = (value) => value <= 10.3 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4;
    const luminance = (colour) => {
        const [r, g, b] = colour.map(linear);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (one, other) => {
        const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
    const ground = (element) => {
        for (let e = element; e; e = e.parentElement) {
            const colour = rgb(getComputedStyle(e).backgroundColor);
            if (colour[3] !== 0) return colour;
        }
        return [255, 255, 255];
    };
    const isShown = (e) => e.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    const isOff = (e) => e.disabled || e.ariaDisabled === "true";
    const texts = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
        if (!text || !isShown(element) || isOff(element)) continue;
        texts.push({ text, ratio: ratio(rgb(getComputedStyle(element).color), ground(element)) });
    }
    const fields = "input:not([type=radio], [type=file], [type=range]), select, textarea";
    const edges = [...document.querySelectorAll(fields)].filter((e) => isShown(e) && !isOff(e)).map((e) => ({
        id: e.id, ratio: ratio(rgb(getComputedStyle(e).borderTopColor), ground(e.parentElement)),
    }));
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = "var(--wave-heard)";
    const wave = ratio(rgb(getComputedStyle(probe).color), ground(document.body));
    probe.remove();
    return { texts, edges, wave };
}
"""


def test_a_phone_shows_everything_without_scrolling_sideways(
    visit: Callable[..., Page], gateway: GatewayServer
) -> None:
    page = visit(gateway, viewport=PHONE, has_touch=True, is_mobile=True)
    spoken(page)
    page.get_by_label("Seed").fill("often")
    speak(page)
    show_everything(page)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_whatever_is_touched_is_44_pixels_high(visit: Callable[..., Page], gateway: GatewayServer) -> None:
    page = visit(gateway, viewport=PHONE, has_touch=True, is_mobile=True)
    spoken(page)
    show_everything(page)
    small = page.evaluate(
        """() => [...document.querySelectorAll("a, button, input, select, textarea, summary")]
            .filter((e) => e.checkVisibility())
            .filter((e) => [e, e.closest("label") ?? e].every((e) => e.getBoundingClientRect().height < 44))
            .map((e) => e.id || e.textContent)"""
    )
    assert small == []


def test_all_is_reached_by_keyboard_in_the_order_it_is_read(page: Page) -> None:
    page.get_by_label("API key").focus()
    order = []
    for _ in range(9):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.name"))
    assert order == ["text", "task", "speaker", "style", "language", "seed", "speed", "speak", "stop"]


def test_states_are_announced_and_troubles_interrupt(page: Page) -> None:
    expect(page.get_by_role("status").filter(has_text="Ready")).to_be_visible()
    page.get_by_label("Text", exact=True).fill("")
    speak(page)
    expect(page.get_by_role("alert").filter(has_text="nothing to say")).to_be_visible()


# As a page


def test_nobody_else_is_asked_for_anything_and_the_console_stays_empty(
    visit: Callable[..., Page], gateway: GatewayServer, browser: Browser
) -> None:
    asked: list[str] = []
    messages: list[str] = []
    page = visit(gateway)
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.reload()
    spoken(page)
    show_everything(page)
    page.get_by_role("button", name="Listen").click()
    expect(page.get_by_role("button", name="Listen")).to_be_visible()
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((gateway.url, f"blob:{gateway.url}"))] == []
    assert messages == []


def test_the_page_may_run_nothing_but_its_own_scripts(http: httpx.Client) -> None:
    policy = http.get("/playground").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "*" not in policy


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_file_is_served_as_what_it_is(http: httpx.Client, name: str) -> None:
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    answer = http.get(f"/playground/{name}")
    assert answer.headers["Content-Type"].split(";")[0] == kinds[Path(name).suffix]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fapp.py", "%2e%2e/app.py"])
def test_nothing_else_is_served(http: httpx.Client, name: str) -> None:
    assert http.get(f"/playground/{name}").status_code == 404


def test_a_slash_too_many_leads_to_the_page(http: httpx.Client) -> None:
    answer = http.get("/playground/", follow_redirects=True)
    assert answer.url.path == "/playground"
    assert answer.status_code == 200
