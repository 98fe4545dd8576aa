"""Which parts a text is spoken in, and that it does not matter how the text arrives."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_tts_gateway.splitting import Splitter


def parts_of(text, granularity="sentence"):
    """Those of a text that came at once, and ended."""
    splitter = Splitter(granularity)
    splitter.add(text)
    splitter.end()
    return drained(splitter)


def drained(splitter):
    return [*iter(splitter.pop, None)]


@pytest.mark.parametrize(
    "sentences",
    [
        ["Hello.", "How are you?", "Fine!"],
        ["What?!", "No!!!", "Yes."],
        ["你好。", "今天天气怎么样？", "很好！"],
        ["こんにちは。", "元気ですか？", "はい！"],
        ["안녕하세요.", "네.", "잘 지내요?"],
        ["Hola.", "¿Qué tal?", "¡Bien!"],
        ["Это я.", "Привет!"],
    ],
)
def test_a_sentence_ends_with_its_punctuation(sentences):
    space = "" if sentences[0].endswith("。") else " "
    assert parts_of(space.join(sentences)) == sentences


@pytest.mark.parametrize(
    "sentence",
    [
        "Pi is 3.14 and e is 2.72.",
        "Bring fruit, e.g. apples, i.e. something sweet.",
        "The U.S. Army met Dr. Smith at 5 p.m. on Main St. today.",
        "J. S. Bach wrote it.",
        "See No. 5 and fig. 3 for more.",
        "Apples, pears, etc. are fruit.",
        "Ihr Termin ist am 3. Mai um 10 Uhr, z. B. bei Fr. Meier, d. h. hier.",
        "M. Dupont a dit bonjour à Mlle. Martin.",
        "Open example.com or v1.2.3 now.",
        "1. Buy milk.",
        "Wait... what is that?",
        "Well… maybe.",
        "我……我不知道。",
        '"Stop!" he said.',
        "« Bonjour !\u00a0» dit-il.",
        "3.5倍！",
    ],
)
def test_a_sentence_stays_in_one_piece(sentence):
    assert parts_of(sentence) == [sentence]


@pytest.mark.parametrize(
    "sentences",
    [
        ['She said "Go."', "Then she left."],
        ["„Hallo!“", "Er ging."],
        ["(It was late.)", "We left."],
        ["**Listen.**", "This matters."],
        ["It is late…", "We leave."],
        ["Oh...", "Never mind."],
        ["So do I.", "Then we agree."],
        ["No.", "I would not."],
        ["It was in 2024.", "Then it ended."],
    ],
)
def test_quotes_and_brackets_stay_with_the_sentence_they_close(sentences):
    assert parts_of(" ".join(sentences)) == sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["他说：“你好。”", "然后走了。"],
        ["「行くぞ！」", "彼は言った。"],
        ["真的吗？！", "是的。"],
        ["他笑了。", "“再见。”"],
        ["你好.", "今天很好!", "是吗?", "是"],
    ],
)
def test_east_asian_sentences_need_no_space_between_them(sentences):
    assert parts_of("".join(sentences)) == sentences


def test_a_blank_line_ends_what_has_no_punctuation():
    assert parts_of("A title\r\n\r\nThe text\nwraps here.\n \nMore") == [
        "A title",
        "The text\nwraps here.",
        "More",
    ]


def test_without_punctuation_the_whole_is_one_sentence():
    assert parts_of("no punctuation at all") == ["no punctuation at all"]


def test_clauses_end_at_commas_too_but_not_within_numbers():
    text = "Well, it costs 1,000 dollars; at 10:30, that is. 你好，世界；好：是。"
    assert parts_of(text, "clause") == [
        *("Well,", "it costs 1,000 dollars;", "at 10:30,", "that is."),
        *("你好，", "世界；", "好：", "是。"),
    ]


def test_without_splitting_the_text_is_one_part_however_many_sentences_it_has():
    assert parts_of(" One. Two.\n\nThree. ", "none") == ["One. Two.\n\nThree."]


def test_what_has_neither_letter_nor_digit_is_not_a_part():
    assert parts_of("... !? Hi. ... ♪ ") == ["Hi."]
    assert parts_of("… 。！") == []
    assert parts_of("\n \n", "none") == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("Hello. ", "Hello."), ("Hello! W", "Hello!"), ("你好。我", "你好。"), ('"Hi." Y', '"Hi."')],
)
def test_a_sentence_is_given_away_before_the_next_one_is_complete(text, sentence):
    splitter = Splitter("sentence")
    splitter.add(text)
    assert splitter.pop() == sentence
    assert splitter.pop() is None


def test_a_sentence_that_was_given_away_is_not_waiting_any_more():
    splitter = Splitter("sentence")
    splitter.add("Grüße! Bis dann")
    assert splitter.num_waiting_bytes == len("Grüße! Bis dann".encode())
    assert splitter.pop() == "Grüße!"
    assert splitter.num_waiting_bytes == len(" Bis dann")


@pytest.mark.parametrize("text", ["Hello", "Hello.", "3.", "你好。", "Dr. ", "Wait... ", '"Hi." '])
def test_what_may_go_on_is_waited_for(text):
    splitter = Splitter("sentence")
    splitter.add(text)
    assert splitter.pop() is None


TEXTS = st.text() | st.text("aB1I .．!?…,;:\"'”“»)\n\t\u00a0。！，」好Dr")


@given(TEXTS, st.sampled_from(["none", "sentence", "clause"]), st.data())
def test_it_does_not_matter_in_which_bits_the_text_arrives(text, granularity, data):
    splitter, parts = Splitter(granularity), []
    rest = text
    while rest:
        size = data.draw(st.integers(1, 3))
        splitter.add(rest[:size])
        rest = rest[size:]
        parts += drained(splitter)
    splitter.end()
    assert parts + drained(splitter) == parts_of(text, granularity)
    assert splitter.num_waiting_bytes == 0


@given(TEXTS, st.sampled_from(["none", "sentence", "clause"]))
def test_no_letter_is_lost_and_none_is_said_twice(text, granularity):
    spoken = "".join(parts_of(text, granularity))
    assert [*filter(str.isalnum, spoken)] == [*filter(str.isalnum, text)]


@pytest.mark.parametrize("unit", [".", "a", "! ", "a.b", "\n", '"', ". . ", "a... ", "。", "，", "x\t"])
def test_no_text_is_slow_to_split_even_letter_by_letter(unit):
    splitter = Splitter("clause")
    began_s = time.process_time()
    for letter in (unit * 20_000)[:20_000]:
        splitter.add(letter)
        splitter.pop()
    assert time.process_time() - began_s < 2
