"""C4's rules (Raffel et al. 2020, JMLR 21/140, section 2.2, arXiv:1910.10683): lines are removed, then pages dropped.

Lines of policies, citations and words of 1,000 characters are in its published code (tensorflow_datasets,
text/c4_utils.py), not in the paper. The list of bad words is not shipped, and so not looked for. Removing
spans of three sentences that occur more than once is not a rule on one page.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sslm.config.setting import NOT_NEGATIVE, setting
from sslm.data.cleaning.rules.characters import SENTENCE_ENDS
from sslm.data.cleaning.rules.judged import Failure, Judged, Rule

CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
PHRASES = ("lorem ipsum", "javascript", "{", *POLICIES)
CLOSING = r"""["'”’»」』)\]]*"""
SENTENCE_END = re.compile(rf"""[{re.escape(SENTENCE_ENDS)}]+["'”’»」』)\]]*""")
LATIN_ENDS = ".?!"
"""Marks that end a sentence only before white space; those of other scripts need none."""


@dataclass(frozen=True)
class C4(Rule):
    """Lines that are no sentences are removed from a page; one with placeholder text, code or too few sentences goes.

    Words are what stands between white space, and sentences end at a full stop, question or exclamation mark before
    white space, with abbreviations taken for sentences (C4 used nltk's Punkt). The rules are made for English: of
    Chinese, Japanese or Thai all lines are removed, unless end_marks has their marks and min_words_per_line is null.

    Numbers are those of the published paper and its code. datatrove has 5 sentences and 3 words a line, as the paper's
    first version, counts words before citations are removed, and takes ' for an end mark.
    """

    prefix = "c4"

    max_word_length: int | None = setting(1000, NOT_NEGATIVE)
    """Remove lines that have a longer word, in characters (c4_utils)."""
    remove_citations: bool = True
    """Remove [1], [edit] and [citation needed], as Wikipedia has them, from lines (c4_utils)."""
    end_marks: str | None = '.?!"'
    """Keep only lines that end in one of these characters, and not in ... (section 2.2)."""
    min_words_per_line: int | None = setting(5, NOT_NEGATIVE)
    """Remove lines with fewer words (section 2.2)."""
    drop_lorem_ipsum: bool = True
    """Drop pages if a line has "lorem ipsum", in any case (section 2.2)."""
    remove_javascript: bool = True
    """Remove lines with the word Javascript, in any case (section 2.2)."""
    drop_curly_brackets: bool = True
    """Drop pages if a line has {, as code does (section 2.2)."""
    remove_policies: bool = True
    """Remove lines with "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies" or "use
    cookies", in any case (section 2.2; the phrases: c4_utils)."""
    min_sentences: int | None = setting(3, NOT_NEGATIVE)
    """Drop pages with fewer sentences in the lines that are left (section 2.2)."""

    def judge(self, texts: Sequence[str]) -> list[Judged]:
        return [self._judged(text) for text in texts]

    def _judged(self, text: str) -> Judged:
        lowered, kept = text.lower(), []
        may_have_phrase = "[" in text or any(phrase in lowered for phrase in PHRASES)  # a citation may stand inside one
        for whole in text.splitlines():
            line = self._sentences(whole)
            if line is None:
                continue
            if may_have_phrase:
                lowered = line.lower()
                if self.drop_lorem_ipsum and "lorem ipsum" in lowered:
                    return Judged(text, Failure("c4.drop_lorem_ipsum", 1, 0))
                if self.remove_javascript and "javascript" in lowered:
                    continue
                if self.drop_curly_brackets and "{" in line:
                    return Judged(text, Failure("c4.drop_curly_brackets", 1, 0))
                if self.remove_policies and any(policy in lowered for policy in POLICIES):
                    continue
            kept.append(line)
        least = self.min_sentences
        if least is not None and sum(map(fewest_sentences, kept)) < least:
            found = sum(map(num_sentences, kept))
            if found < least:
                return Judged(text, Failure("c4.min_sentences", found, least))
        return Judged("\n".join(kept).strip(), None)

    def _sentences(self, line: str) -> str | None:
        """Return a line without citations; None if it is to be removed whatever it says."""
        line = line.strip()
        longest = self.max_word_length
        if longest is not None and len(line) > longest and max(map(len, line.split())) > longest:
            return None
        if self.remove_citations and "[" in line:
            line = CITATION.sub("", line)
        if self.end_marks is not None and (not line.endswith(tuple(self.end_marks)) or line.endswith("...")):
            return None
        least = self.min_words_per_line
        return line if least is None or len(line.split(None, least - 1)) >= least else None


def fewest_sentences(line: str) -> int:
    """A number of sentences that a line has at least, found more quickly."""
    return 1 + line.count(". ") + line.count("? ") + line.count("! ")


def num_sentences(line: str) -> int:
    """Count the sentences of a line, of which it has at least one; what has no end is one, too.

    >>> num_sentences('He said "Yes!" Is 3.5 enough? 好。不好！ No'), num_sentences("…")
    (5, 1)
    """
    found = start = 0
    for end in SENTENCE_END.finditer(line):
        if end[0][0] not in LATIN_ENDS or not line[end.end() : end.end() + 1].strip():
            found += 1
            start = end.end()
    return max(found + bool(line[start:].strip()), 1)
