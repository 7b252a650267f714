"""Phone numbers: international ones (ITU-T E.164), and national ones that are written as such.

Digits with spaces or dashes between them are candidates. One is a phone number if a word such as "tel" stands before
it, or by its shape: +49 …, (555) 123-4567, 555-123-4567, 030 123456, 01 23 45 67 89, (11) 91234-5678, 138 1234 5678.
"""

import re

from sslm.data.cleaning.redact.substitute import before, substitute

GAP = r"[ \u00a0\u202f.‐‑–/()-]"
CANDIDATE = re.compile(rf"[+＋(\d](?:{GAP}{{0,3}}\d){{6,}}+")
"""All digits that stand near each other: as many as there are, so that none is looked at twice."""

FREE = r"(?<![\d/.‐‑–-])"
SHAPE = re.compile(
    rf"{FREE}(?:[+＋]1[ .-]?|1[ .-])?(?:\([2-9][0-8]\d\) ?[2-9]\d\d[ .-]|[2-9][0-8]\d([.-])[2-9]\d\d\1)\d{{4}}"
    r"(?!\d|[.-]\d)"
    rf"|(?:[+＋]\(?|{FREE}00(?=\d\d ))(?P<international>\d(?:{GAP}{{0,3}}\d){{6,14}})(?!\d)"
    rf"|{FREE}(?<!\d )0[1-9]([ .-])\d\d\3\d\d\3\d\d\3\d\d(?![ .-]?\d)"
    rf"|{FREE}(?P<trunk>(?!\d{{5}}-\d{{4}}(?!\d)|\d{{5,6}} (?:19|20)\d\d(?!\d))"  # a postal code, a page and a year
    r"(?:\(0[1-9]\d{0,4}\) ?|0[1-9]\d{1,4}(?:[ /-]| [/–-] )|0[1-9][ -](?=\d{3}))"
    r"\d{2,8}(?:[ -]\d{2,8}){0,4})(?!\d|[/.-]\d)"
    r"|(?:^|(?<=^\())\(\d\d\d?\) ?\d{3,5}[ .-]?\d{4}(?!\d|[.-]\d)"
    rf"|{FREE}1[3-9]\d([ -])\d{{4}}\5\d{{4}}(?!\d|[.-]\d)"
)
DATE = re.compile(
    r"\d\d?([/. -])\d\d?\1(?:19|20)\d\d|(?:19|20)\d\d([/. -])\d\d?\2\d\d?(?!\d)"
    r"|(?:19|20)\d\d[01]\d[0-3]\d\Z|(?:1\d|20)\d\d ?[‐‑–/-] ?(?:1\d|20)\d\d\Z"
)
CUE = re.compile(
    r"(?:(?<!\[)\b(?:tel|tele?phones?|phones?|mobile|cell|call|fax|whats ?app|telefon|tele?fono|tél|téléphone|teléfono"
    r"|móvil|mobil|handy|portable|ring|dial|sms|тел|телефон)\b|电话|手机|電話|携帯)[^\w\n]{0,3}"
    r"(?:(?:no|nr|n°|number|numbers|nummer|numéro|us|me|him|her|is|at|on|now)\b\W{1,3}){0,3}\Z",
    re.IGNORECASE,
)
_TWO_DIGITS = """
    20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 84 86 90 91
    92 93 94 95 98
"""
_THREE_DIGITS = "21 22 23 24 25 26 29 35 37 38 42 50 59 67 68 69 80 85 87 88 96 97 99"
CALLING_CODES = {*_TWO_DIGITS.split(), *_THREE_DIGITS.split()}
"""The first two digits of all country codes but +1 and +7 (ITU-T E.164, list of 2016)."""


def phones(text: str) -> tuple[str, int]:
    """Replace phone numbers.

    >>> phones("+44 20 7946 0958, (555) 123-4567, phone: 5551234; 1914-1918, 2024-01-15, 978-3-16-148410-0")
    ('[PHONE], [PHONE], phone: [PHONE]; 1914-1918, 2024-01-15, 978-3-16-148410-0', 3)
    """
    found = 0

    def numbers_in(match: re.Match[str]) -> str | None:
        nonlocal found
        if not _stands_alone(match):
            return None
        if _is_announced(match):
            found += 1
            return "([PHONE]" if match[0].count("(") > match[0].count(")") else "[PHONE]"
        new, more = substitute(SHAPE, _phone, match[0])
        found += more
        return new

    new, _ = substitute(CANDIDATE, numbers_in, text)
    return new, found


def _stands_alone(match: re.Match[str]) -> bool:
    """Whether the digits are no part of a word, an amount, or a decimal."""
    if re.search(r"[\w~+]\Z" if match[0][0] in "+＋(" else r"[\w$€£¥.,/]\Z", before(match)):
        return False
    after = match.string[match.end() : match.end() + 2]
    return not (after[:1].isalnum() or after[:1] in ("_", "%") or (after[:1] == "," and after[1:].isdecimal()))


def _is_announced(match: re.Match[str]) -> bool:
    """Whether a word before the number says what it is."""
    number = match[0]
    if not 7 <= sum(map(str.isdecimal, number)) <= 15 or DATE.match(number):
        return False
    return CUE.search(before(match, 40)) is not None


def _phone(match: re.Match[str]) -> str | None:
    digits = "".join(str(int(char)) for char in match[0] if char.isdecimal())
    if international := match["international"]:
        return "[PHONE]" if _is_international(digits.removeprefix("00"), international) else None
    if match["trunk"] and (not 9 <= len(digits) <= 12 or DATE.match(match[0])):
        return None
    return "[PHONE]"


def _is_international(digits: str, written: str) -> bool:
    if digits[0] in "17":  # North America; Russia and Kazakhstan
        return len(digits) == 11 and digits[1] > "1"
    is_amount = digits.endswith("000") and re.fullmatch(r"\d{1,3}(?:\W\d{3})+", written)
    return len(digits) >= 8 and not is_amount and digits[:2] in CALLING_CODES
