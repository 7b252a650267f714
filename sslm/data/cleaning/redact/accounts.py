"""Numbers of accounts: IBANs (ISO 13616) and payment cards (ISO/IEC 7812), told from other numbers by check digits."""

import re

from sslm.data.cleaning.redact.substitute import before, substitute

_LENGTHS = """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24
    FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32
    LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24
    RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
"""
IBAN_LENGTHS = {each[:2]: int(each[2:]) for each in _LENGTHS.split()}
"""Country -> characters of its IBANs (SWIFT's registry)."""
IBAN = re.compile(r"[A-Z][A-Z][0-9][0-9](?:[ \u00a0-]?[A-Z0-9]){11,30}")

GAP = r"[ \u00a0-]?"
CARD = re.compile(
    rf"[2-6２-６]\d{{3}}({GAP})(?:\d{{4}}\1\d{{4}}\1\d{{1,4}}(?:\1\d{{3}})?|\d{{6}}\1\d{{4,5}})(?![\w-]|[.,]\d)"
)
ISSUERS = (
    (re.compile("4"), (13, 16, 19)),  # Visa
    (re.compile("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),  # Mastercard
    (re.compile("3[47]"), (15,)),  # American Express
    (re.compile("30[0-5]|309|3[689]"), (14, 16, 19)),  # Diners Club
    (re.compile("352[89]|35[3-8]"), (16, 17, 18, 19)),  # JCB
    (re.compile("6011|64[4-9]|65|62"), (16, 17, 18, 19)),  # Discover, UnionPay
    (re.compile("5018|5020|5038|5893|6304|6759|676[1-3]"), (13, 16, 19)),  # Maestro
)
"""First digits of an issuer's cards, and how long their numbers are."""


def ibans(text: str) -> tuple[str, int]:
    """Replace IBANs whose length is their country's and whose check digits are right.

    >>> ibans("DE89 3704 0044 0532 0130 00 BIC, DE90 3704 0044 0532 0130 00")
    ('[IBAN] BIC, DE90 3704 0044 0532 0130 00', 1)
    """
    return substitute(IBAN, _iban, text)


def _iban(match: re.Match[str]) -> str | None:
    """Take as many characters as the country's IBANs have: words in capitals may follow."""
    length = IBAN_LENGTHS.get(match[0][:2])
    ends = [place.end() for place in re.finditer("[A-Z0-9]", match[0])]
    if length is None or len(ends) < length or before(match).isalnum():
        return None
    compact = re.sub("[^A-Z0-9]", "", match[0])[:length]
    rest = match[0][ends[length - 1] :]
    after = rest[:1] or match.string[match.end() : match.end() + 1]
    return f"[IBAN]{rest}" if not after.isalnum() and has_iban_checksum(compact) else None


def has_iban_checksum(iban: str) -> bool:
    """Check ISO 7064's MOD 97-10: the country and check digits last, letters from 10 to 35, the remainder is 1.

    >>> has_iban_checksum("GB82WEST12345698765432"), has_iban_checksum("GB82WEST12345698765433")
    (True, False)
    """
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1


def cards(text: str) -> tuple[str, int]:
    """Replace card numbers whose first digits, length and check digit are an issuer's.

    >>> cards("4111 1111 1111 1111, 4111 1111 1111 1112, 378282246310005")
    ('[CARD], 4111 1111 1111 1112, [CARD]', 2)
    """
    return substitute(CARD, _card, text)


def _card(match: re.Match[str]) -> str | None:
    if re.search(r"[\w.,/-]\Z", before(match)):
        return None
    digits = [int(char) for char in match[0] if char.isdecimal()]
    number = "".join(map(str, digits))
    of_an_issuer = any(first.match(number) and len(number) in lengths for first, lengths in ISSUERS)
    return "[CARD]" if of_an_issuer and has_luhn_checksum(digits) else None


def has_luhn_checksum(digits: list[int]) -> bool:
    """Check Luhn's sum: every second digit from the right is doubled, and its digits added.

    >>> has_luhn_checksum([7, 9, 9, 2, 7, 3, 9, 8, 7, 1, 3]), has_luhn_checksum([7, 9, 9, 2, 7, 3, 9, 8, 7, 1, 4])
    (True, False)
    """
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0
