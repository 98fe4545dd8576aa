"""A directory that is read-only, full, damaged, or left in the middle of a save."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from qwen3_tts_engine.errors import EngineFailed, NotFound
from qwen3_tts_engine.voices.store import open_store

WORDS = "This is what I sound like."
NOBODY = 65534
LONGEST_SAVE_S = 0.02

# For each line it reads: a process that saves newer and newer voices until it is killed.
SAVERS = """
import os, sys
from itertools import count
import numpy as np
from qwen3_tts_engine.request import VoicePrompt
from qwen3_tts_engine.voices.store import Voice, open_store

def voice(n):
    prompt = VoicePrompt(np.full(2048, n, np.float32), np.full((300, 16), n % 2048), "What I sound like.")
    return Voice("grandpa", prompt, "2025-03-04T05:06:07+00:00", "a base model", {"n": n})

for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        store = open_store(sys.argv[1])
        for n in count(store.get("grandpa").metadata["n"] + 1):
            store.save(voice(n))
            if n % 5 == 0:
                print(os.getpid(), flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""

# Saves until the disk is full, which is a limit on the size of a file here.
SAVE_WITHOUT_ROOM = """
import resource, sys
import numpy as np
from qwen3_tts_engine.errors import EngineFailed
from qwen3_tts_engine.request import VoicePrompt
from qwen3_tts_engine.voices.store import Voice, open_store

store = open_store(sys.argv[1])
voice = Voice("grandpa", VoicePrompt(np.ones(2048, np.float32)), "2025-03-04T05:06:07+00:00", "a base model")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    store.save(voice)
except EngineFailed as error:
    print(error)
"""


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "voices"


@pytest.fixture
def store(directory):
    return open_store(str(directory))


def files(directory: Path) -> dict[str, bytes]:
    """Everything in a store, by its place in it."""
    return {
        str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()
    }


def only(directory: Path, folder: str) -> Path:
    [file] = (directory / folder).iterdir()
    return file


# --- killed -----------------------------------------------------------------------------------------------


@pytest.fixture
def savers(directory) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-c", SAVERS, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.stdin.close()


def kill_while_saving(savers: subprocess.Popen, delay_s: float) -> None:
    print(file=savers.stdin, flush=True)
    pid = int(savers.stdout.readline())
    time.sleep(delay_s)
    os.kill(pid, signal.SIGKILL)
    while savers.stdout.readline() != "gone\n":
        pass


def test_whoever_is_killed_while_saving_leaves_the_old_voice_or_the_new_one(
    directory, store, savers, make_voice, assert_same_voice
):
    store.save(grandma := make_voice("grandma", ref_text=WORDS))
    store.save(make_voice("grandpa", size=2048, metadata={"n": 0}))
    dice, last, were_caught = random.Random(7), 0, 0
    for _ in range(50):
        kill_while_saving(savers, dice.uniform(0, LONGEST_SAVE_S))
        were_caught += len(files(directory)) > 5  # two voices of two files each, and the lock
        reopened = open_store(str(directory))
        voice = reopened.get("grandpa")
        assert voice.metadata["n"] > last
        last = voice.metadata["n"]
        np.testing.assert_array_equal(voice.prompt.speaker_embedding, np.full(2048, last))
        assert_same_voice(reopened.get("grandma"), grandma)
        assert [summary.name for summary in reopened.list()] == ["grandma", "grandpa"]
        assert len(files(directory)) == 5, "opening has removed what was left over"
    assert were_caught > 0, "nobody was killed in the middle"


# --- read-only --------------------------------------------------------------------------------------------


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def read_only() -> Iterator[Path]:
    """Where anyone may look, and nobody may write once `make_read_only` was called."""
    directory = Path(tempfile.mkdtemp(prefix="voices-"))
    directory.chmod(0o755)
    yield directory
    make_writable(directory)
    shutil.rmtree(directory)


def make_read_only(directory: Path) -> None:
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


def make_writable(directory: Path) -> None:
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_directory_that_is_read_only_is_read_and_says_so_when_it_should_be_written(
    read_only, make_voice, assert_same_voice
):
    open_store(str(read_only)).save(old := make_voice(seed=1))
    make_read_only(read_only)
    before = files(read_only)
    with as_nobody():
        store = open_store(str(read_only))
        assert_same_voice(store.get("grandpa"), old)
        with pytest.raises(
            EngineFailed, match="voice store cannot write: voice 'grandpa' was not saved: Perm"
        ):
            store.save(make_voice(seed=2))
        with pytest.raises(EngineFailed, match="cannot write: voice 'grandpa' was not deleted: Permission"):
            store.delete("grandpa")
    assert files(read_only) == before


def test_an_empty_read_only_directory_is_an_empty_store(read_only, make_voice):
    make_read_only(read_only)
    with as_nobody():
        store = open_store(str(read_only))
        assert store.list() == []
        with pytest.raises(EngineFailed, match="'grandpa' was not saved: Permission denied"):
            store.save(make_voice())


def test_a_directory_that_vanished_says_so(directory, store, make_voice):
    shutil.rmtree(directory)
    directory.write_text("a file in its place")
    with pytest.raises(EngineFailed, match="'grandpa' was not saved: Not a directory"):
        store.save(make_voice())
    with pytest.raises(EngineFailed, match="cannot be listed: Not a directory"):
        store.list()
    with pytest.raises(EngineFailed, match="cannot read voice 'grandpa': Not a directory"):
        store.get("grandpa")


# --- full -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "room", [pytest.param(0, id="at once"), pytest.param(4096, id="in the middle of the object")]
)
def test_a_disk_that_runs_full_keeps_what_was_saved(directory, store, make_voice, assert_same_voice, room):
    store.save(old := make_voice(seed=1))
    before = files(directory)
    command = [sys.executable, "-c", SAVE_WITHOUT_ROOM, str(directory), str(room)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == "the voice store cannot write: voice 'grandpa' was not saved: File too large\n"
    assert files(directory) == before
    assert_same_voice(open_store(str(directory)).get("grandpa"), old)


# --- damaged ----------------------------------------------------------------------------------------------


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def overwrite(file: Path) -> None:
    file.write_bytes(os.urandom(200))


@pytest.fixture(params=[cut_short, overwrite, Path.unlink], ids=["cut short", "overwritten", "lost"])
def damage(request):
    return request.param


@pytest.fixture
def one_damaged(directory, store, make_voice, damage):
    """A store of two voices, of which grandpa's object is damaged."""
    store.save(make_voice("grandpa", ref_text=WORDS))
    damage(only(directory, "objects"))
    store.save(make_voice("grandma", ref_text=WORDS))
    return store


def test_a_damaged_voice_is_told_from_a_sound_one(one_damaged, make_voice, assert_same_voice):
    with pytest.raises(EngineFailed, match=r"holds voice 'grandpa' damaged: .*; save it again, or delete it"):
        one_damaged.get("grandpa")
    assert_same_voice(one_damaged.get("grandma"), make_voice("grandma", ref_text=WORDS))
    assert [summary.name for summary in one_damaged.list()] == ["grandma", "grandpa"]


def test_a_damaged_voice_may_be_saved_again(one_damaged, make_voice, assert_same_voice):
    one_damaged.save(voice := make_voice("grandpa", seed=5))
    assert_same_voice(one_damaged.get("grandpa"), voice)


def test_a_damaged_voice_may_be_deleted(one_damaged):
    one_damaged.delete("grandpa")
    assert [summary.name for summary in one_damaged.list()] == ["grandma"]
    with pytest.raises(NotFound):
        one_damaged.get("grandpa")


@pytest.fixture
def entry_damaged(directory, store, make_voice):
    """A store of two voices, of which grandpa's entry is damaged."""
    store.save(make_voice("grandpa", ref_text=WORDS))
    cut_short(only(directory, "names"))
    store.save(make_voice("grandma", ref_text=WORDS))
    return store


def test_a_damaged_entry_does_not_hide_the_other_voices(entry_damaged, caplog):
    assert [summary.name for summary in entry_damaged.list()] == ["grandma"]
    assert "damaged" in caplog.text
    with pytest.raises(EngineFailed, match="holds voice 'grandpa' damaged"):
        entry_damaged.get("grandpa")


def test_a_voice_whose_entry_is_damaged_may_be_saved_again(entry_damaged, make_voice, assert_same_voice):
    entry_damaged.save(voice := make_voice("grandpa", seed=5))
    assert_same_voice(entry_damaged.get("grandpa"), voice)


def test_a_voice_whose_entry_is_damaged_may_be_deleted(entry_damaged):
    entry_damaged.delete("grandpa")
    with pytest.raises(NotFound):
        entry_damaged.get("grandpa")


def test_no_object_is_swept_away_while_a_damaged_entry_may_stand_for_it(directory, entry_damaged):
    before = files(directory)
    open_store(str(directory))
    assert files(directory) == before


def test_files_of_others_are_left_alone(directory, store, make_voice):
    store.save(make_voice())
    for folder in ("names", "objects"):
        (directory / folder / ".DS_Store").write_text("not ours")
    assert len(open_store(str(directory)).list()) == 1
    assert (directory / "objects" / ".DS_Store").exists()
