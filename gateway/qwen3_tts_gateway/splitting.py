"""Text that arrives bit by bit, taken apart where a speaker would pause.

A wrong cut is heard as a pause within a sentence; a cut that is missed costs no more than some delay. So a
full stop that may belong to an abbreviation is taken for a part of it.
"""

from __future__ import annotations

import re
from typing import Literal

Granularity = Literal["none", "sentence", "clause"]

# Western punctuation ends something where white space follows; its East Asian kin stands for itself.
_WESTERN_CLOSERS = r"""[\"'”’“‘»«)\]}*_`]|[\u00a0\u202f]»"""  # “ closes in German; » after a space in French
_EASTERN_CLOSERS = r"""[\"'”’」』】）》〉〕］｝)]"""
_BLANK_LINE = r"(?P<line>\n[ \t\r]{0,16}\n?)"


def _pattern(western: str, eastern: str) -> re.Pattern[str]:
    """Whatever may end a part. Every repetition has its limit, as an undecided match is tried again."""
    return re.compile(
        rf"(?P<western>[{western}]{{1,16}})(?P<closers>(?:{_WESTERN_CLOSERS}){{0,8}})"
        rf"|(?P<eastern>[{eastern}][{eastern}{western}]{{0,15}})(?:{_EASTERN_CLOSERS}){{0,8}}"
        rf"|{_BLANK_LINE}"
    )


_PATTERNS: dict[Granularity, re.Pattern[str]] = {
    "none": re.compile(r"(?!)"),
    "sentence": _pattern(".．!?…", "。｡！？"),
    "clause": _pattern(".．!?…,;:", "。｡！？，；："),
}
_CLAUSE_MARKS = ",;:"

_WORD = re.compile(r"[^\W_]")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LAST_WORD = re.compile(r"[^\s\"'“‘«„(\[]*$")
_LONGEST_LOOK = 32  # characters back to a word's beginning, or ahead to the next one

# What never ends a sentence: titles, initials ("J. S. Bach"), letters with full stops ("U.S.", "e.g."), and
# numbers of one or two digits: those of lists, and German ordinals ("am 3. Mai").
_TITLE = re.compile(
    "mr|mrs|ms|mx|dr|prof|rev|hon|gen|col|maj|capt|cmdr|lt|sgt|gov|sen|rep|st|mt|vs|cf|approx|hr|fr|bzw|ca|vgl|"
    "evtl|ggf|inkl|zzgl|d|z|mlle|mgr|sr|sra|srta|dra|sig|dott|avv|ing|ул|им",
    re.IGNORECASE,
)
_LETTERS_OR_NUMBER = re.compile(r"[^\W\d_]|(?:[^\W\d_]{1,2}[.])+[^\W\d_]{1,2}|\d{1,2}")

# What ends one unless a number or a small letter follows: "No. 5", "apples, pears, etc. are fruit".
_OFTEN_WITHIN = re.compile(
    "no|nr|vol|pp|art|sec|ch|fig|eq|etc|inc|ltd|co|corp|jr|bros|al|dept|usw|usf|ecc|руб", re.IGNORECASE
)


class Splitter:
    """Gives a text's parts away, each as soon as it is surely complete.

    Which parts they are depends on the text alone, and not on the bits in which it arrived. Parts without a
    letter or a digit are left out: there is nothing to say in them.

    Attributes:
        has_ended: no more text will come; what is left is the last part.
        num_waiting_bytes: of text that was not given away yet, in UTF-8.
    """

    def __init__(self, granularity: Granularity) -> None:
        self.has_ended = False
        self.num_waiting_bytes = 0
        self._pattern = _PATTERNS[granularity]
        self._text = ""
        self._start = 0  # of the next part
        self._seen = 0  # as far as it surely does not end

    def add(self, text: str) -> None:
        self._text += text
        self.num_waiting_bytes += _num_bytes(text)

    def end(self) -> None:
        self.has_ended = True

    def pop(self) -> str | None:
        """The next part, if it is here."""
        part = self._next_part()
        self._forget_what_is_gone()
        return part

    def _next_part(self) -> str | None:
        while (end := self._find_end()) is not None:
            part = self._text[self._start : end].strip()
            self._start = self._seen = end
            if _WORD.search(part):
                return part
        return None

    def _forget_what_is_gone(self) -> None:
        """A session may last for hours, and be one utterance."""
        gone, self._text = self._text[: self._start], self._text[self._start :]
        self.num_waiting_bytes -= _num_bytes(gone)
        self._seen -= self._start
        self._start = 0

    def _find_end(self) -> int | None:
        """Where the next part ends; None: not within what is here."""
        while mark := self._pattern.search(self._text, self._seen):
            is_end = self._is_end(mark)
            if is_end or (is_end is None and self.has_ended):
                return mark.end()
            if is_end is None:
                self._seen = mark.start()
                return None
            self._seen = mark.end()
        self._seen = len(self._text)
        return self._seen if self.has_ended and self._start < self._seen else None

    def _is_end(self, mark: re.Match[str]) -> bool | None:
        """None: what comes next must tell."""
        if mark["line"] and mark["line"].endswith("\n", 1):
            return True
        if mark.end() == len(self._text):
            return None
        if mark["line"]:
            return False
        if mark["eastern"]:
            return True
        if not self._text[mark.end()].isspace():
            return self._is_unspaced(mark)
        if mark["western"][-1] in _CLAUSE_MARKS:
            return True
        word = self._word_before(mark) if mark["western"] == "." else ""
        if _never_ends(word):
            return False
        if mark["closers"] or _is_ellipsis(mark["western"]) or _may_go_on(word):
            return self._starts_anew(mark.end())
        return True

    def _is_unspaced(self, mark: re.Match[str]) -> bool:
        """Western punctuation, but for ellipses, in East Asian text: nobody puts a space after it there."""
        before = self._text[max(self._start, mark.start() - 1) : mark.start()]
        after = self._text[mark.end()]
        return bool(_UNSPACED.match(before) and _UNSPACED.match(after) and not _is_ellipsis(mark["western"]))

    def _word_before(self, mark: re.Match[str]) -> str:
        start = max(self._start, mark.start() - _LONGEST_LOOK)
        found = _LAST_WORD.search(self._text[start : mark.start()])
        return found[0] if found else ""

    def _starts_anew(self, position: int) -> bool | None:
        """Whether what follows looks like the beginning of a sentence: `"Stop!" he said` is one sentence."""
        ahead = self._text[position : position + _LONGEST_LOOK]
        first = ahead.lstrip()[:1]
        if not first and len(ahead) < _LONGEST_LOOK:
            return None
        return not (first.islower() or first.isdigit())


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _is_ellipsis(marks: str) -> bool:
    return marks.endswith(("…", ".."))


def _never_ends(word: str) -> bool:
    """A full stop behind this word is part of it."""
    is_word = word == "I" or _is_small_letter(word)
    return bool(_TITLE.fullmatch(word) or (not is_word and _LETTERS_OR_NUMBER.fullmatch(word)))


def _may_go_on(word: str) -> bool:
    return _is_small_letter(word) or bool(_OFTEN_WITHIN.fullmatch(word))


def _is_small_letter(word: str) -> bool:
    """Initials are capital; the others, and those that know no case, are words of their own somewhere."""
    return len(word) == 1 and word.isalpha() and not word.isupper()
