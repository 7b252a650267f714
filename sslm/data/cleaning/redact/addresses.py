"""Addresses of e-mail (RFC 5322, the usual part of it) and of the internet protocol."""

import ipaddress
import re

from sslm.data.cleaning.redact.substitute import before, substitute

DOMAIN = re.compile(
    r"[@＠](?!\dx\.)"  # icon@2x.png
    r"(?:[\w-]{1,63}[.．。]){1,8}(?:xn--[\w-]{1,59}|[^\W\d_]{2,63})(?![\w@＠-])"
)
LOCAL_BACKWARDS = re.compile(r"[\w.%+'-]*[\w%+]")
LONGEST_LOCAL = 254

IPV4 = re.compile(r"[0-9][0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![\w-]|\.\w)", re.ASCII)
IPV6 = re.compile(r"[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![\w:])", re.ASCII)
NO_ADDRESS = re.compile(
    r"(?:[\w-]|[a-z]/|(?:ver|version|release|build|revision|firmware|driver|section|chapter|§)[\W_]{1,3}|\.)\Z", re.I
)
"""What stands before four numbers that are no address: v1.2.3.40, Tool/1.2.3.40, section 1.2.3.40."""


def emails(text: str) -> tuple[str, int]:
    """Replace e-mail addresses, those with letters of other scripts included.

    >>> emails("Write to mary.o'hara+news@post.example.org, not to @mary.")
    ('Write to [EMAIL], not to @mary.', 1)
    """
    pieces, done = [], 0
    for domain in DOMAIN.finditer(text):  # each @ is seen once, and what stands before it read backwards
        start = domain.start()
        local = LOCAL_BACKWARDS.match(text[max(start - LONGEST_LOCAL, done) : start][::-1])
        if local and not (local[0] == "tig" and text.startswith(":", domain.end())):  # git@host:path
            pieces += [text[done : start - len(local[0])], "[EMAIL]"]
            done = domain.end()
    return "".join([*pieces, text[done:]]), len(pieces) // 2


def ips(text: str) -> tuple[str, int]:
    """Replace public addresses; private, loopback and documentation's name nobody, and stay.

    >>> ips("81.2.69.142 and 2a00:1450:4001::200e, not 192.168.0.1 nor version 10.4.20.1")
    ('[IP] and [IP], not 192.168.0.1 nor version 10.4.20.1', 2)
    """
    found = 0
    if text.count(".") > 2:
        text, found = substitute(IPV4, _ipv4, text)
    if text.count(":") > 1:
        text, more = substitute(IPV6, _ipv6, text)
        found += more
    return text, found


def _ipv4(match: re.Match[str]) -> str | None:
    is_small = all(int(octet) < 32 for octet in match[0].split("."))  # one address of 4,096, most versions and sections
    return None if is_small or NO_ADDRESS.search(before(match, 14)) else _placeholder(match[0])


def _ipv6(match: re.Match[str]) -> str | None:
    return None if re.search(r"[\w:.]\Z", before(match)) else _placeholder(match[0])


def _placeholder(address: str) -> str | None:
    try:
        value = ipaddress.ip_address(address)
    except ValueError:
        return None
    return "[IP]" if value.is_global and not value.is_multicast else None
