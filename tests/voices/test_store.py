"""What every store does, be it a directory, a Redis, or an object store."""

from pathlib import Path
from threading import Thread

import pytest

from qwen3_tts_engine.errors import ConfigError, InvalidRequest, NotFound
from qwen3_tts_engine.voices.store import open_store

WORDS = "This is what I sound like."


def test_a_new_store_is_empty(store):
    assert store.list() == []
    with pytest.raises(NotFound, match=r"^there is no voice named 'grandpa'$"):
        store.get("grandpa")
    with pytest.raises(NotFound, match=r"^there is no voice named 'grandpa'$"):
        store.delete("grandpa")


@pytest.mark.parametrize("ref_text", ["", WORDS])
def test_a_saved_voice_comes_back_as_it_was(store, make_voice, assert_same_voice, ref_text):
    voice = make_voice("爷爷", seed=1, ref_text=ref_text, metadata={"consent": "录音者同意", "age": 81})
    store.save(voice)
    assert_same_voice(store.get("爷爷"), voice)
    assert store.list() == [voice.summary]


def test_voices_are_listed_by_name(store, make_voice):
    for name in ("b", "a b", "a", "ж"):
        store.save(make_voice(name))
    assert [summary.name for summary in store.list()] == ["a", "a b", "b", "ж"]


def test_a_voice_saved_again_takes_the_old_ones_place(store, make_voice, assert_same_voice):
    store.save(make_voice(seed=1, ref_text=WORDS))
    store.save(new := make_voice(seed=2))
    assert_same_voice(store.get("grandpa"), new)
    assert store.list() == [new.summary]


def test_the_same_voice_may_be_saved_twice(store, make_voice, assert_same_voice):
    voice = make_voice(seed=1)
    store.save(voice)
    store.save(voice)
    assert_same_voice(store.get("grandpa"), voice)


def test_a_deleted_voice_is_gone_and_the_others_stay(store, make_voice):
    store.save(make_voice("grandpa"))
    store.save(make_voice("grandma"))
    store.delete("grandpa")
    assert [summary.name for summary in store.list()] == ["grandma"]
    for ask in (store.get, store.delete):
        with pytest.raises(NotFound):
            ask("grandpa")


def test_two_recordings_with_one_transcript_are_two_voices(store, make_voice, assert_same_voice):
    voices = [make_voice(f"voice {seed}", seed=seed, ref_text=WORDS) for seed in range(3)]
    for voice in voices:
        store.save(voice)
    for voice in voices:
        assert_same_voice(store.get(voice.name), voice)


def test_one_prompt_under_two_names_survives_the_loss_of_one(store, make_voice, assert_same_voice):
    first, second = make_voice("first", seed=1), make_voice("second", seed=1)
    store.save(first)
    store.save(second)
    store.delete("first")
    assert_same_voice(store.get("second"), second)


def test_an_accent_typed_either_way_finds_the_voice(store, make_voice):
    store.save(make_voice("Jose\u0301"))
    assert store.get("Jos\u00e9").name == "Jos\u00e9"
    store.delete("Jose\u0301")
    assert store.list() == []


@pytest.mark.parametrize("name", ["../grandpa", "names/x", "", "a\nb", ".."])
def test_a_name_no_voice_can_have_is_not_looked_for(store, name):
    for ask in (store.get, store.delete):
        with pytest.raises(InvalidRequest, match=r"^name is "):
            ask(name)


def test_two_servers_see_each_others_voices(url, make_voice, assert_same_voice):
    here, there = open_store(url), open_store(url)
    assert here.list() == there.list() == []
    here.save(ours := make_voice("ours", seed=1))
    there.save(theirs := make_voice("theirs", seed=2))
    assert here.list() == there.list() == [ours.summary, theirs.summary]
    assert_same_voice(there.get("ours"), ours)
    here.save(newer := make_voice("ours", seed=3))
    assert_same_voice(there.get("ours"), newer)
    there.delete("ours")
    assert here.list() == [theirs.summary]


def test_a_reader_gets_the_old_voice_or_the_new_one_while_others_save(url, make_voice):
    """Each save takes away the object that a reader may be about to read."""
    versions = [make_voice(seed=seed, metadata={"seed": seed}) for seed in range(2)]
    open_store(url).save(versions[0])

    def save_many() -> None:
        store = open_store(url)
        for i in range(60):
            store.save(versions[i % 2])

    writers = [Thread(target=save_many) for _ in range(2)]
    for writer in writers:
        writer.start()
    reader = open_store(url)
    while any(writer.is_alive() for writer in writers):
        voice = reader.get("grandpa")
        expected = versions[voice.metadata["seed"]].prompt.speaker_embedding
        assert (voice.prompt.speaker_embedding == expected).all()
        assert len(reader.list()) == 1
    for writer in writers:
        writer.join()


def test_a_bucket_that_removes_what_is_not_there_still_misses_a_voice(monkeypatch, make_voice):
    """S3 does: to it, a key that is gone is removed."""
    from fsspec.implementations.memory import MemoryFileSystem

    remove = MemoryFileSystem.rm_file
    monkeypatch.setattr(
        MemoryFileSystem, "rm_file", lambda self, path: remove(self, path) if self.exists(path) else None
    )
    store = open_store("memory://as-s3-does")
    store.save(make_voice())
    store.delete("grandpa")
    with pytest.raises(NotFound):
        store.delete("grandpa")


# --- addresses --------------------------------------------------------------------------------------------

NOWHERE = {
    "file://elsewhere/voices": "a file of the host 'elsewhere'; write file:///directory",
    "redis://127.0.0.1:port/0": "no address of a Redis",
    "redis://127.0.0.1/0?socket_timeout=soon": "no address of a Redis",
    "gopher://voices": "a gopher address nobody can open",
    "http://[voices": "no address of a voice store",
}


@pytest.mark.parametrize(("url", "message"), NOWHERE.items())
def test_an_address_that_leads_nowhere_is_refused_by_the_variables_name(url, message):
    with pytest.raises(ConfigError, match=rf"^VOICE_STORE .*{message}"):
        open_store(url)


def test_a_driver_that_is_not_installed_is_named(monkeypatch):
    from fsspec.registry import known_implementations

    monkeypatch.setitem(
        known_implementations, "attic", {"class": "no_such_package.Attic", "err": "install atticfs"}
    )
    with pytest.raises(ConfigError, match="VOICE_STORE is a attic address, whose driver is missing: install"):
        open_store("attic://voices")


def test_a_store_that_is_no_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("no directory")
    for path in ("file", "file/voices"):
        with pytest.raises(ConfigError, match=r"^VOICE_STORE leads to .*, which cannot be a directory: "):
            open_store(f"file://{tmp_path / path}")


def test_a_plain_path_is_a_directory_and_starts_where_it_is_told(tmp_path, make_voice):
    open_store("../voices", base=tmp_path / "model").save(make_voice())
    for same in (str(tmp_path / "voices"), f"file://{tmp_path}/voices", f"file://localhost{tmp_path}/voices"):
        assert len(open_store(same, base=Path("/nowhere")).list()) == 1
