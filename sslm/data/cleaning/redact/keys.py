"""Keys, tokens and passwords: by their issuer's prefix, by their form, or by the name that they are given."""

import re

from sslm.data.cleaning.redact.substitute import Confirmed, before, substitute

PREFIXED = (
    ("AKIA", r"AKIA[A-Z0-9]{16}"),  # AWS
    ("ASIA", r"ASIA[A-Z0-9]{16}"),
    ("AIza", r"AIza[\w-]{35}"),  # Google
    ("ya29.", r"ya29\.[\w-]{20,500}"),
    ("GOCSPX-", r"GOCSPX-[\w-]{20,50}"),
    ("ghp_", r"ghp_[A-Za-z0-9]{36,255}"),  # GitHub
    ("gho_", r"gho_[A-Za-z0-9]{36,255}"),
    ("ghu_", r"ghu_[A-Za-z0-9]{36,255}"),
    ("ghs_", r"ghs_[A-Za-z0-9]{36,255}"),
    ("ghr_", r"ghr_[A-Za-z0-9]{36,255}"),
    ("github_pat_", r"github_pat_\w{22,255}"),
    ("glpat-", r"glpat-[\w-]{20,100}"),  # GitLab
    ("xox", r"xox[abeoprs]-[A-Za-z0-9-]{10,250}"),  # Slack
    ("xapp-", r"xapp-[A-Za-z0-9-]{20,250}"),
    ("hooks.slack.com/", r"hooks\.slack\.com/services/[\w/]{20,100}"),
    ("k_live_", r"[prs]k_live_[A-Za-z0-9]{16,250}"),  # Stripe
    ("k_test_", r"[prs]k_test_[A-Za-z0-9]{16,250}"),
    ("whsec_", r"whsec_[A-Za-z0-9+/=]{24,100}"),
    ("sk-", r"sk-(?=[\w-]{0,40}\d)[\w-]{20,250}"),  # OpenAI, Anthropic
    ("hf_", r"hf_[A-Za-z0-9]{30,100}"),  # Hugging Face
    ("npm_", r"npm_[A-Za-z0-9]{36}"),
    ("pypi-", r"pypi-[\w-]{50,250}"),
    ("SG.", r"SG\.[\w-]{16,64}\.[\w-]{16,64}"),  # SendGrid
    ("dop_v1_", r"dop_v1_[0-9a-f]{64}"),  # DigitalOcean
    ("eyJ", r"eyJ(?<![\w-]eyJ)[\w-]{8,5000}\.eyJ[\w-]{8,50000}(?:\.[\w-]{0,5000})?"),  # a JSON web token (RFC 7519)
)
"""How each issuer's tokens begin, and what they look like."""

PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?:[^-]|-(?!----))*+-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|(?:\s{0,4}[A-Za-z0-9+/=]{16,128})*+)"
)
"""A PEM block (RFC 7468); of one whose end is missing, its lines."""
CREDENTIALS = re.compile(r"(://)[^\s/:@\[\]<>{}$]{1,128}:[^\s/@\[\]<>{}$]{1,256}(?=@)")
"""User and password in a URL (RFC 3986)."""
AUTHORIZATION = re.compile(r"(Bearer +|Basic +)[A-Za-z0-9._~+/-]{16,5000}={0,2}(?!\w)", re.ASCII)
"""A header of HTTP (RFC 6750 and 7617)."""
NAME = re.compile(
    r"(?P<password>pass(?:word|wd|phrase|code)|passwd|pwd)[\"'`]?\]? {0,3}\Z"
    r"|(?:secret|token|api[_ -]?key|(?:access|secret|auth|account)[_-]?key)[\"'`]?\]? {0,3}\Z",
    re.IGNORECASE,
)
VALUE = re.compile(
    r"([=:][=>]? {0,3})"
    r"(?:(?P<quote>[\"'`])(?P<quoted>[^\s\"'`<>{}$\[\]()]{4,256})(?P=quote)"
    r"|(?P<bare>[A-Za-z0-9+/=_!@#%^&*~-]{6,256})(?![\w.(\[{<]))",
    re.ASCII,
)
"""What is given to a name; the name is looked for behind, as `=` and `:` are rarer than letters."""


def keys(text: str) -> tuple[str, int]:
    """Replace keys, tokens and passwords; the name that stands before one stays.

    >>> keys('password = "hunter22", see https://me:pw@host, Authorization: Bearer abcdefghij0123456789')
    ('password = "[KEY]", see https://[KEY]@host, Authorization: Bearer [KEY]', 3)
    """
    found = 0
    for starts, pattern, confirmed in ALL:
        if any(start in text for start in starts):
            text, more = substitute(pattern, confirmed, text)
            found += more
    return text, found


def _token(match: re.Match[str]) -> str | None:
    return None if re.search(r"[A-Za-z0-9]\Z", before(match)) else "[KEY]"


def _after_first_group(match: re.Match[str]) -> str:
    return f"{match[1]}[KEY]"


def _secret(match: re.Match[str]) -> str | None:
    quote, value = match["quote"] or "", match["quoted"] or match["bare"]
    has_digit = re.search(r"\d", value)
    if not (quote or has_digit) or (name := NAME.search(before(match, 24))) is None:
        return None
    is_random = has_digit and re.search("[A-Za-z]", value) and len(value) > 7
    return f"{match[1]}{quote}[KEY]{quote}" if name["password"] or is_random else None  # not "token: word"


ALL: tuple[tuple[tuple[str, ...], re.Pattern[str], Confirmed], ...] = (
    *(((start,), re.compile(pattern, re.ASCII), _token) for start, pattern in PREFIXED),
    (("PRIVATE KEY",), PRIVATE_KEY, lambda match: "[KEY]"),
    (("://",), CREDENTIALS, _after_first_group),
    (("Bearer ", "Basic "), AUTHORIZATION, _after_first_group),
    (("=", ":"), VALUE, _secret),
)
"""What a text must have, what is then looked for, and what stands in its place."""
