"""What redaction finds: values planted in sentences, and look-alikes; its speed on text that has none.

    pip install phonenumbers python-stdnum
    python benchmarks/redaction.py [--text FILE]

Phone numbers are made by Google's rules for all countries (phonenumbers), check digits by python-stdnum: none by sslm.
"""

import argparse
import hashlib
import ipaddress
import random
import string
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import phonenumbers
from stdnum import iban, isbn, luhn

from sslm.data.cleaning.redact import KINDS, redactor

FRAMES = ("{}", "Write to {} today.", "({})", "a, {}, b", "see:\n{}\nand on", "“{}”", "x {} – y", "It is {}!")
EACH = 2000
ALPHANUMERIC = string.ascii_letters + string.digits


def digits(rng: random.Random, number: int) -> str:
    return "".join(rng.choices(string.digits, k=number))


def emails(rng: random.Random) -> Iterator[str]:
    while True:
        first, last = (
            rng.choice(("mary", "li", "o'brien", "jürgen", "anna-lena", "иван", "x", "dos.santos")) for _ in "12"
        )
        domain = rng.choice(("example.org", "mail.example.co.uk", "bücher.example", "пример.рф", "a-b.museum", "x.io"))
        yield f"{first}{rng.choice('._-+')}{last}{rng.choice(('', digits(rng, 2)))}@{domain}"


def phones(rng: random.Random, form: int) -> Iterator[str]:
    kinds = (phonenumbers.PhoneNumberType.FIXED_LINE, phonenumbers.PhoneNumberType.MOBILE)
    while True:
        region = rng.choice(sorted(phonenumbers.SUPPORTED_REGIONS))
        if (number := phonenumbers.example_number_for_type(region, rng.choice(kinds))) is None:
            continue
        tail = 10 ** rng.randrange(1, 5)
        number.national_number += rng.randrange(tail) - number.national_number % tail
        if phonenumbers.is_valid_number(number):
            yield phonenumbers.format_number(number, form)


def ips(rng: random.Random) -> Iterator[str]:
    while True:
        four, six = ipaddress.IPv4Address(rng.getrandbits(32)), ipaddress.IPv6Address(1 << 125 | rng.getrandbits(124))
        yield from (str(each) for each in (four, six) if each.is_global and not each.is_multicast)


def ibans(rng: random.Random) -> Iterator[str]:
    lengths = {
        "DE": 18,
        "FR": 23,
        "NL": 14,
        "ES": 20,
        "IT": 23,
        "PL": 24,
        "BE": 12,
        "NO": 11,
        "CH": 17,
        "GB": 18,
        "MT": 27,
    }
    while True:
        country, length = rng.choice(list(lengths.items()))
        body = "".join(rng.choices(string.digits, k=length))
        compact = f"{country}{iban.calc_check_digits(f'{country}00{body}')}{body}"
        yield rng.choice((compact, iban.format(compact)))


def cards(rng: random.Random) -> Iterator[str]:
    while True:
        first, length = rng.choice(
            (("4", 16), ("51", 16), ("2221", 16), ("6011", 16), ("3528", 16), ("37", 15), ("36", 14))
        )
        body = first + digits(rng, length - 1 - len(first))
        number = body + luhn.calc_check_digit(body)
        groups = (4, 4, 4, 4) if length == 16 else (4, 6, 5)
        starts = [sum(groups[:place]) for place in range(len(groups))]
        spaced = [number[start : start + size] for start, size in zip(starts, groups, strict=True)]
        yield rng.choice((number, " ".join(spaced), "-".join(spaced)))


def keys(rng: random.Random) -> Iterator[str]:
    while True:
        token = "".join(rng.choices(ALPHANUMERIC, k=64))
        yield rng.choice(
            (
                f"AKIA{token[:16].upper()}",
                f"ghp_{token[:36]}",
                f"github_pat_{token[:22]}_{token[:59]}",
                f"xoxb-{digits(rng, 12)}-{digits(rng, 12)}-{token[:24]}",
                f"AIza{token[:35]}",
                f"sk_live_{token[:24]}",
                f"sk-proj-{token[:48]}",
                f"sk-ant-api03-{token}",
                f"hf_{token[:34]}",
                f"eyJhbGciOiJIUzI1NiJ9.eyJ{token[:40]}.{token[:43]}",
                f"-----BEGIN PRIVATE KEY-----\n{token}\n{token}\n-----END PRIVATE KEY-----",
            )
        )


def look_alikes(rng: random.Random) -> Iterator[str]:
    while True:
        year, month, day = rng.randrange(1700, 2030), rng.randrange(1, 13), rng.randrange(1, 29)
        body = digits(rng, 12)
        yield rng.choice(
            (
                f"{year}-{month:02}-{day:02}",
                f"{day:02}.{month:02}.{year}",
                f"{month}/{day}/{year} {rng.randrange(24):02}:{rng.randrange(60):02}",
                f"{year}–{year + rng.randrange(9)}",
                f"{year}{month:02}{day:02}",
                f"v{rng.randrange(9)}.{rng.randrange(99)}.{rng.randrange(99)}",
                f"version {rng.randrange(9)}.{rng.randrange(99)}.{rng.randrange(99)}.{rng.randrange(99)}",
                f"{rng.randrange(1, 20)}.{rng.randrange(1, 20)}.{rng.randrange(1, 20)}.{rng.randrange(1, 20)}",
                f"192.168.{rng.randrange(256)}.{rng.randrange(256)}",
                f"${rng.randrange(10**9):,}.{rng.randrange(100):02}",
                f"{rng.randrange(10**9):,}",
                f"{rng.random()}",
                f"{rng.randrange(10**10)}",
                isbn.format("978" + body[:9] + isbn.ean.calc_check_digit("978" + body[:9])),
                str(uuid.UUID(int=rng.getrandbits(128))),
                hashlib.sha256(body.encode()).hexdigest(),
                f"{digits(rng, 4)}-{digits(rng, 4)}",
                f"DE{digits(rng, 20)}",
                f"@{body[:3]}name",
                f"https://example.org/{digits(rng, 16)}",
                f"pp. {rng.randrange(1000)}-{rng.randrange(1000)}, vol. {rng.randrange(99)} ({year})",
            )
        )


def found(values: Iterator[str], placeholder: str, rng: random.Random, before: str = "") -> float:
    """Share of planted values of which nothing but the placeholder is left."""
    redact, right = redactor(KINDS), 0
    for _ in range(EACH):
        frame = rng.choice(FRAMES).replace("{}", before + "{}")
        right += redact(frame.replace("{}", next(values)))[0] == frame.replace("{}", placeholder)
    return right / EACH


def speed(text: str, redact: Callable[[str], object]) -> float:
    """MB of text a second, the best of five times."""
    times = []
    for _ in range(5):
        start = time.process_time()
        redact(text)
        times.append(time.process_time() - start)
    return len(text.encode()) / min(times) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, help="measure the speed on this")
    arguments = parser.parse_args()
    rng, form = random.Random(0), phonenumbers.PhoneNumberFormat
    rows = [
        ("email", emails(rng), "[EMAIL]", ""),
        ("phone, international", phones(rng, form.INTERNATIONAL), "[PHONE]", ""),
        ("phone, national, after 'tel. '", phones(rng, form.NATIONAL), "[PHONE]", "tel. "),
        ("phone, national", phones(rng, form.NATIONAL), "[PHONE]", ""),
        ("ip", ips(rng), "[IP]", ""),
        ("iban", ibans(rng), "[IBAN]", ""),
        ("card", cards(rng), "[CARD]", ""),
        ("keys", keys(rng), "[KEY]", ""),
    ]
    for name, values, placeholder, before in rows:
        print(f"| {name} | {100 * found(values, placeholder, rng, before):.1f} % |")
    redact, values = redactor(KINDS), look_alikes(rng)
    texts = [rng.choice(FRAMES).replace("{}", next(values)) for _ in range(10 * EACH)]
    wrong = [(text, new) for text in texts if (new := redact(text)[0]) != text]
    print(f"look-alikes replaced: {len(wrong)} of {len(texts)}", *wrong[:10], sep="\n")
    if arguments.text:
        text = arguments.text.read_text()
        for kind in KINDS:
            print(f"{kind}: {speed(text, redactor([kind])):.0f} MB/s")
        print(f"all: {speed(text, redact):.0f} MB/s")


if __name__ == "__main__":
    main()
