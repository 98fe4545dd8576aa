"""Saved voices written to one file and read from it, and what such a file must be."""

import hashlib
import io
import json
import stat
import zipfile

import grpc
import numpy as np
import pytest

from fakes.triton_server import MODEL_INPUTS, RefusalError, Shelf, hears, says, triton
from qwen3_tts_client import ClonedVoice, EngineFailed, InvalidRequest, UnknownVoice
from qwen3_tts_client.archive import MAX_FILE_BYTES
from qwen3_tts_client.cli import main

GRANDPA = ClonedVoice(b"RIFF grandpa, as he was", "Once upon a time.")
TIMBRE = ClonedVoice(b"RIFF grandma", x_vector_only=True)


@pytest.fixture
def shelves():
    """Where two servers keep their voices."""
    return Shelf(), Shelf()


@pytest.fixture
async def archive(meeting, shelves, tmp_path):
    """Two voices of the first server's in a file."""
    async with meeting(answers={"create_voice": hears, "voices": shelves[0]}) as (_, tts):
        await tts.voices.save("grandpa", GRANDPA, metadata={"consent": "他同意了"})
        await tts.voices.save("grandma", TIMBRE)
        assert await tts.voices.export_to(tmp_path / "voices.zip") == ["grandpa", "grandma"]
    return tmp_path / "voices.zip"


@pytest.fixture
def elsewhere(meeting, shelves):
    """The second server; `elsewhere()` is a client's block."""
    return lambda: meeting(answers={"create_voice": hears, "voices": shelves[1]})


def all_of(shelf):
    tensors = {name: [array.tobytes() for array in prompt.values()] for name, prompt in shelf.prompts.items()}
    return shelf.voices, tensors


async def test_imported_voices_are_all_that_was_exported(archive, elsewhere, shelves):
    async with elsewhere() as (_, tts):
        assert await tts.voices.import_from(archive) == ["grandpa", "grandma"]
    assert all_of(shelves[1]) == all_of(shelves[0])


async def test_only_the_voices_asked_for_are_exported(meeting, shelves, archive, elsewhere):
    async with meeting(answers={"voices": shelves[0]}) as (_, tts):
        assert await tts.voices.export_to(archive, ["grandma", "grandma"]) == ["grandma"]
    async with elsewhere() as (_, tts):
        assert await tts.voices.import_from(archive) == ["grandma"]


async def test_no_voices_are_an_archive_too(meeting, tmp_path):
    async with meeting() as (_, tts):
        assert await tts.voices.export_to(tmp_path / "none.zip") == []
        assert await tts.voices.import_from(tmp_path / "none.zip") == []


async def test_a_name_nobody_saved_leaves_the_old_archive_as_it_was(meeting, archive, shelves):
    before = archive.read_bytes()
    async with meeting(answers={"voices": shelves[0]}) as (_, tts):
        with pytest.raises(UnknownVoice, match="no voice is saved as 'nobody'"):
            await tts.voices.export_to(archive, ["grandpa", "nobody"])
    assert archive.read_bytes() == before
    assert list(archive.parent.iterdir()) == [archive]


class Forgetful(Shelf):
    """One of its voices is deleted as soon as all have been listed."""

    def list(self, call):
        voices = super().list(call)
        del self.voices["grandpa"]
        return voices


async def test_a_voice_deleted_meanwhile_is_left_out(meeting, tmp_path):
    async with meeting(answers={"create_voice": hears, "voices": Forgetful()}) as (_, tts):
        for name, voice in (("grandpa", GRANDPA), ("grandma", TIMBRE)):
            await tts.voices.save(name, voice)
        assert await tts.voices.export_to(tmp_path / "voices.zip") == ["grandma"]


class Moth(Shelf):
    def describe(self, call):
        raise RefusalError(grpc.StatusCode.INTERNAL, "the voice store holds voice 'grandpa' damaged")


async def test_a_damaged_voice_fails_the_export_by_name(meeting, tmp_path):
    async with meeting(answers={"create_voice": hears, "voices": Moth()}) as (_, tts):
        await tts.voices.save("grandpa", GRANDPA)
        with pytest.raises(EngineFailed, match="holds voice 'grandpa' damaged"):
            await tts.voices.export_to(tmp_path / "voices.zip")
    assert list(tmp_path.iterdir()) == []


def test_an_archive_is_for_its_owner_only(archive):
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600


async def test_one_name_that_is_taken_refuses_them_all(archive, elsewhere, shelves):
    async with elsewhere() as (_, tts):
        await tts.voices.save("grandma", GRANDPA)
        before = all_of(shelves[1])
        with pytest.raises(InvalidRequest, match="there are voices of these names already: 'grandma';"):
            await tts.voices.import_from(archive)
        assert all_of(shelves[1]) == before
        await tts.voices.import_from(archive, replace=True)
    assert all_of(shelves[1]) == all_of(shelves[0])


class Choosy(Shelf):
    def restore(self, call):
        if call.string("name") == "grandma":
            raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, "made by a model of another size")
        return super().restore(call)


async def test_a_voice_the_server_refuses_is_named_and_so_is_what_came_before(meeting, archive):
    shelf = Choosy()
    told = "voice 'grandma': made by a model of another size; 1 before it have been imported"
    async with meeting(answers={"voices": shelf}) as (server, tts):
        with pytest.raises(InvalidRequest, match=told) as caught:
            await tts.voices.import_from(archive)
        assert caught.value.request_id == server.questions[-1].request.id
    assert list(shelf.voices) == ["grandpa"]


def rewritten(archive, **changes):
    """The archive with other contents in some files, `f0_json` being `0.json`; None leaves one out."""
    with zipfile.ZipFile(archive) as zipped:
        files = {name: zipped.read(name) for name in zipped.namelist()}
    for key, content in changes.items():
        files[key.removeprefix("f").replace("_", ".")] = content
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in files.items():
            if content is not None:
                zipped.writestr(name, content)


def manifest(archive):
    with zipfile.ZipFile(archive) as zipped:
        return json.loads(zipped.read("manifest.json"))


def with_manifest(archive, change):
    told = manifest(archive)
    change(told)
    rewritten(archive, manifest_json=json.dumps(told))


def disown(archive, **changes):
    """The archive's second voice changed by someone who knows how to hash."""
    with zipfile.ZipFile(archive) as zipped:
        about = json.loads(zipped.read("1.json")) | changes
    content = json.dumps(about).encode()
    told = manifest(archive)
    told["voices"][1]["json"] = hashlib.sha256(content).hexdigest()
    rewritten(archive, f1_json=content, manifest_json=json.dumps(told))


def cut_short(archive):
    archive.write_bytes(archive.read_bytes()[:-30])


def flip_a_byte(archive):
    content = bytearray(archive.read_bytes())
    content[60] ^= 1
    archive.write_bytes(content)


def written_in_the_future(archive):
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 99  # the version of ZIP that it takes to read the first file
    archive.write_bytes(content)


def compressed_otherwise(archive):
    content = bytearray(archive.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 10] = zipfile.ZIP_BZIP2  # of the last file, the manifest
    archive.write_bytes(content)


def begun_before_itself(archive):
    content = bytearray(archive.read_bytes())
    content[-6] ^= 0x40  # where the list of files is
    archive.write_bytes(content)


def pickled(archive):
    buffer = io.BytesIO()
    np.save(buffer, np.array([object], dtype=object), allow_pickle=True)
    rewritten(archive, f1_safetensors=buffer.getvalue())


DAMAGES = {
    "no zip": (lambda archive: archive.write_text("voices?"), "File is not a zip file"),
    "cut short": (cut_short, "File is not a zip file"),
    "a flipped bit": (flip_a_byte, "voice 'grandpa': "),
    "a newer zip": (written_in_the_future, "its list of files: zip file version 9.9"),
    "another compression": (compressed_otherwise, "manifest.json is compressed in another way than ours"),
    "files before the first byte": (begun_before_itself, ""),
    "unfinished": (
        lambda a: rewritten(a, manifest_json=None),
        "manifest.json: .*no item named 'manifest.json'",
    ),
    "a newer version": (
        lambda a: with_manifest(a, lambda told: told.update(version=2)),
        "its version is 2; this client reads 1",
    ),
    "a manifest that is none": (lambda a: rewritten(a, manifest_json="[]"), "manifest.json: "),
    "a manifest too deep": (lambda a: rewritten(a, manifest_json="[" * 100_000), "manifest.json: "),
    "a voice too few": (
        lambda a: with_manifest(a, lambda told: told["voices"].pop()),
        "the archive's files are not those of its 1 voices",
    ),
    "a file more": (lambda a: rewritten(a, **{"../../x": b"!"}), "files are not those of its 2 voices"),
    "a voice twice": (
        lambda a: with_manifest(a, lambda told: told["voices"][1].update(name="grandpa")),
        "it names a voice twice",
    ),
    "another name": (
        lambda a: with_manifest(a, lambda told: told["voices"][1].update(name="aunt")),
        "voice 'aunt': its description is of 'grandma'",
    ),
    "another description": (lambda a: rewritten(a, f1_json=b"{}"), "its json is not what was written"),
    "other tensors": (pickled, "voice 'grandma': its safetensors is not what was written"),
    "fields nobody knows": (lambda a: disown(a, mood="grumpy"), "its description has the fields name, "),
    "a name that is none": (lambda a: disown(a, name=["x"]), "its description has the fields name, "),
    "frames that are not there": (
        lambda a: disown(a, x_vector_only=False, ref_text="Hm."),
        "disagree about reference frames",
    ),
    "more than any voice": (
        lambda a: rewritten(a, f1_json=b" " * (MAX_FILE_BYTES + 1)),
        "1.json has more than 1048576 bytes",
    ),
}


@pytest.mark.parametrize(("damage", "complaint"), DAMAGES.values(), ids=DAMAGES.keys())
async def test_a_damaged_archive_is_refused_before_anything_is_saved(
    archive, elsewhere, shelves, damage, complaint
):
    damage(archive)
    async with elsewhere() as (server, tts):
        with pytest.raises(InvalidRequest, match=f"is no archive of voices that can be read: .*{complaint}"):
            await tts.voices.import_from(archive, replace=True)
        assert server.questions == []
    assert shelves[1].voices == {}


async def test_a_file_that_is_not_there_is_an_os_error(meeting, tmp_path):
    async with meeting() as (_, tts):
        with pytest.raises(FileNotFoundError, match=r"nothing\.zip"):
            await tts.voices.import_from(tmp_path / "nothing.zip")
        with pytest.raises(FileNotFoundError):
            await tts.voices.export_to(tmp_path / "nowhere" / "voices.zip")


def test_the_command_line_exports_and_imports(archive, shelves, capsys):
    with triton(says(1), models=tuple(MODEL_INPUTS), answers={"voices": shelves[0]}) as server:
        target = archive.with_name("grandma.zip")
        assert main(["voices", "export", str(target), "grandma", "--url", server.url]) == 0
        assert capsys.readouterr().err == f"{target}: 1 voice\n"
        assert main(["voices", "import", str(archive), "--url", server.url]) == 1
        assert "there are voices of these names already: 'grandpa', 'grandma'" in capsys.readouterr().err
        assert main(["voices", "import", str(archive), "--replace", "--url", server.url]) == 0
        assert capsys.readouterr().err == "imported 2 voices\n"
