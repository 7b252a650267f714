"""Values that name or admit a person go; what only looks like one stays."""

import random
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslm.data.cleaning.redact import KINDS, redactor
from sslm.data.cleaning.redact.accounts import IBAN_LENGTHS, has_iban_checksum, has_luhn_checksum
from sslm.system.errors import UserError

TOKEN = "aB3" * 40
GONE = {
    "email": [
        "mary@example.org",
        "mary.o'hara+news@post.example.co.uk",
        "jürgen@bücher.example",
        "почта@пример.рф",
        "x@xn--bcher-kva.example",
        "ｍａｒｙ＠ｅｘａｍｐｌｅ．ｃｏｍ",
        "A_1%b@a-b.museum",
    ],
    "phone": [
        "+49 30 901820",
        "+49 (0)30 / 90 18 20",
        "+1 555-234-5678",
        "+1 (555) 234 5678",
        "+861381234567",
        "+33 1 23 45 67 89",
        "0049 30 901820",
        "(555) 234-5678",
        "555-234-5678",
        "555.234.5678",
        "1-800-555-0199",
        "030 901820",
        "0171/1234567",
        "(030) 901 820",
        "020 7946 0958",
        "01 23 45 67 89",
        "01.23.45.67.89",
        "03-1234-5678",
        "(11) 91234-5678",
        "138 1234 5678",
        "＋44 20 7946 0958",
        "+٤٤ ٢٠ ٧٩٤٦ ٠٩٥٨",
    ],
    "ip": ["81.2.69.142", "8.8.8.80", "2a00:1450:4001:82a::200e", "2606:4700:4700:0:0:0:0:1111"],
    "iban": [
        "DE89 3704 0044 0532 0130 00",
        "GB82WEST12345698765432",
        "NO93 8601 1117 947",
        "FR14-2004-1010-0505-0001-3M02-606",
    ],
    "card": [
        "4111 1111 1111 1111",
        "5555-5555-5555-4444",
        "378282246310005",
        "3782 822463 10005",
        "6011000990139424",
        "30569309025904",
        "3530111333300000",
        "２２２３００３１２２００３２２２",
    ],
    "keys": [
        "AKIA" + "Z2" * 8,
        "ghp_" + TOKEN[:36],
        "github_pat_" + TOKEN[:22],
        "glpat-" + TOKEN[:20],
        "xoxb-1234567890-" + TOKEN[:24],
        "AIza" + TOKEN[:35],
        "sk_live_" + TOKEN[:24],
        "sk-proj-" + TOKEN[:48],
        "sk-ant-api03-" + TOKEN[:40],
        "hf_" + TOKEN[:34],
        "npm_" + TOKEN[:36],
        "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
        f"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n{TOKEN}\n-----END RSA PRIVATE KEY-----",
    ],
}
STAYS = {
    "email": ["@mary", "a@b", "icon@2x.png", "lodash@4.17.21", "git@github.com:a/b.git", "x @ y.example"],
    "phone": [
        "1914-1918",
        "2024-01-15 10:30:00",
        "01/02/2024 10",
        "15.01.2024",
        "978-3-16-148410-0",
        "0-306-40615-2",
        "3.14159265358979",
        "0.123456789",
        "$1,234,567.89",
        "1 000 000 000",
        "+20 000 000",
        "v1.2.3.4567",
        "ISSN 1234-5678",
        "12,555-234-5678",
        "UUID 550e8400-e29b-41d4-a716-446655440000",
        "tel 1914-1918",
        "Boston, MA 02110-1301",
        "gtk+3.0 (3.24.12-1)",
        "6.2+20210905-1",
        "906.403 7787",
        "x + 98172489",
        "00 01 02 03 04 05 06 07",
        "04 05 06 07 08 09",
        "news/0104/010417",
        "a call.\n\n20001007",
        "tel 20001007",
        "78, 046110 2008",
        "call on 2024-01-15 10:30",
        "ring on 15.01.2024 10:30",
        "GPL-2.0 2020-2024",
    ],
    "ip": [
        "192.168.0.1",
        "127.0.0.1",
        "10.0.0.12",
        "192.0.2.10",
        "1.2.3.4",
        "dpkg (1.15.8.10)",
        "224.0.0.251",
        "v81.2.69.142",
        "version 81.2.69.142",
        "Chrome/91.0.4.124",
        "1.22.333.4444",
        "81.2.69.142.5",
        "999.2.69.142",
        "01.02.03.04",
        "2001:db8::1",
        "fe80::1",
        "std::vector",
        "2024:10:15",
        "2a00::1::2",
    ],
    "iban": [
        "DE90 3704 0044 0532 0130 00",
        "DE89 3704 0044 0532 0130",
        "ZZ89 3704 0044 0532 0130 00",
        "GB82WEST123456987654321",
    ],
    "card": [
        "4111 1111 1111 1112",
        "9111111111111111",
        "0.4111111111111111",
        "id-4111111111111111",
        "detail/4111111111111111",
        "411111111111",
    ],
    "keys": [
        "risk-free and desk-bound",
        "token: word",
        '{"token": "word"}',
        "password: required",
        "The secret: love",
        "password = get_password()",
        "token = tokenizer.encode(text1)",
        "api_key = os.environ['API_KEY1']",
        "https://example.org:8080/a@b",
        "https://<user>:<password>@host",
        "Bearer of bad news",
        "a = b1c2d3e4f5",
        "-----BEGIN PUBLIC KEY-----",
    ],
}
FRAMES = ["{}", "see {}.", "({})", "a,\n{}\nb", "{}, {}", "“{}”", "x: {}; y"]
LARGE = 100_000


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in GONE.items() for value in values])
def test_a_value_goes_wherever_it_stands(kind: str, value: str) -> None:
    for frame in FRAMES:
        number = frame.count("{}")
        gone = frame.replace("{}", f"[{kind.upper().rstrip('S')}]")
        assert redactor([kind])(frame.replace("{}", value)) == (gone.replace("[KEYS]", "[KEY]"), {kind: number})
        text, counts = redactor(KINDS)(frame.replace("{}", value))
        assert (text, counts) == (gone, {kind: number})


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in STAYS.items() for value in values])
def test_what_only_looks_like_one_stays(kind: str, value: str) -> None:
    for frame in ("{}", "see {}.", "({})"):
        text = frame.replace("{}", value)
        assert redactor([kind])(text) == (text, {})


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ('password = "hunter"', 'password = "[KEY]"'),
        ("DB_PASSWORD=s3cr3t!", "DB_PASSWORD=[KEY]"),
        ('{"api_key": "abcd1234efgh"}', '{"api_key": "[KEY]"}'),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPx", "aws_secret_access_key = [KEY]"),
        ("os.environ['TOKEN'] = 'abcd1234efgh'", "os.environ['TOKEN'] = '[KEY]'"),
        ("Authorization: Basic dXNlcjpwYXNzd29yZA==", "Authorization: Basic [KEY]"),
        ("postgres://me:pa55@db.example.org/x", "postgres://[KEY]@db.example.org/x"),
        ("tel 5551234 or mobile: 98765 43210", "tel [PHONE] or mobile: [PHONE]"),
        ("Phone number is 5551234567.", "Phone number is [PHONE]."),
        ("Room 12 555-234-5678, +1 555-234-5678 555-234-5679", "Room 12 [PHONE], [PHONE] [PHONE]"),
        ("http://81.2.69.142:8080/ and 81.2.69.0/24", "http://[IP]:8080/ and [IP]/24"),
        ("mailto:mary@example.org?subject=x", "mailto:[EMAIL]?subject=x"),
        ("IBAN DE89370400440532013000 BIC COBADEFFXXX", "IBAN [IBAN] BIC COBADEFFXXX"),
        ("4111 1111 1111 1111 12/27", "[CARD] 12/27"),
        (f"-----BEGIN PRIVATE KEY-----\n{TOKEN}\n{TOKEN}\nand on", "[KEY]\nand on"),
    ],
)
def test_only_the_value_goes(text: str, redacted: str) -> None:
    assert redactor(KINDS)(text)[0] == redacted


PARTS = [
    *(value for values in GONE.values() for value in values),
    *(value for values in STAYS.values() for value in values),
]
PARTS += [
    " ",
    "\n",
    ", ",
    "@",
    "+",
    "0",
    "tel ",
    "password=",
    "://",
    "[EMAIL]",
    "[KEY]",
    "(",
    ".",
    "-",
    ":",
    "é",
    "\ud83d",
]


@given(st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=8).map("\n".join))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    redact = redactor(KINDS)
    once, _ = redact(text)
    assert redact(once) == (once, {})


@given(st.lists(st.sampled_from(PARTS) | st.text(max_size=3), max_size=8).map("".join))
def test_what_is_counted_is_what_was_replaced(text: str) -> None:
    once, counts = redactor(KINDS)(text)
    for kind, placeholder in zip(KINDS, ("[KEY]", "[EMAIL]", "[IBAN]", "[CARD]", "[IP]", "[PHONE]"), strict=True):
        assert once.count(placeholder) <= text.count(placeholder) + counts.get(kind, 0)
    assert (once == text) == (not counts)


def random_iban(country: str, rng: random.Random) -> str:
    body = "".join(rng.choices(string.digits + string.ascii_uppercase, k=IBAN_LENGTHS[country] - 4))
    return next(iban for check in range(2, 99) if has_iban_checksum(iban := f"{country}{check:02}{body}"))


def test_check_digits_find_each_wrong_digit_and_each_swap() -> None:
    rng = random.Random(0)
    for country in IBAN_LENGTHS:
        iban = random_iban(country, rng)
        assert redactor(["iban"])(f"to {iban} now") == ("to [IBAN] now", {"iban": 1})
        place = rng.randrange(4, len(iban) - 1)
        wrong = iban[:place] + rng.choice(string.digits.replace(iban[place], "")) + iban[place + 1 :]
        assert redactor(["iban"])(wrong)[1] == {}
    for _ in range(50):
        card = rng.choices(range(10), k=15)
        (check,) = (last for last in range(10) if has_luhn_checksum([*card, last]))
        place = rng.randrange(15)
        wrong = [*card, check]
        wrong[place] = (wrong[place] + rng.randrange(1, 10)) % 10
        assert not has_luhn_checksum(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_takes_longer_than_its_length_explains(kind: str) -> None:
    units = [
        "1",
        "a@",
        "+1 ",
        "@",
        "a.",
        "a@a.",
        "1.",
        "0 ",
        "(0",
        "+",
        "4111 ",
        "DE89 ",
        "A1",
        "1.1.1.",
        "2001:",
        "::",
    ]
    units += [
        "-----BEGIN PRIVATE KEY-----",
        "password='",
        "token:",
        "://a:",
        "Bearer a",
        "eyJ",
        "eyJaaaaaaaa.",
        "sk-a1",
    ]
    units += ["tel 1", "5551234567 ", "555-123-4567 ", "(11) ", "\u0661", "9" * 15 + " ", "A", "２", "é@é.", "www.a@b."]
    redact = redactor([kind])
    for unit in units:
        before = time.process_time()
        redact(unit * (LARGE // len(unit)))
        assert time.process_time() - before < 1, unit


def test_an_unknown_kind_is_one_sentence() -> None:
    with pytest.raises(
        UserError, match=r"^names: no kind of value to redact; there are keys, email, iban, card, ip, phone"
    ):
        redactor(["email", "names"])
