"""Replace what names or admits a person by a placeholder that says only its kind."""

from collections.abc import Callable, Iterable

from sslm.data.cleaning.redact.accounts import cards, ibans
from sslm.data.cleaning.redact.addresses import emails, ips
from sslm.data.cleaning.redact.keys import keys
from sslm.data.cleaning.redact.phones import phones
from sslm.system.errors import UserError

KINDS: dict[str, Callable[[str], tuple[str, int]]] = {
    "keys": keys,
    "email": emails,
    "iban": ibans,
    "card": cards,
    "ip": ips,
    "phone": phones,
}
"""Kind -> what replaces it, in the order in which they work: digits of a card number are no phone number."""


def redactor(kinds: Iterable[str]) -> Callable[[str], tuple[str, dict[str, int]]]:
    """Make a function that replaces values of these kinds by [KEY], [EMAIL], [IBAN], [CARD], [IP], [PHONE].

    It gives the new text and kind -> number of values, and keeps none of them. What it replaced it leaves alone the
    next time.

    Args:
        kinds: names of KINDS, in any order.

    Raises:
        UserError: there is no such kind.

    >>> redactor(["email", "phone"])("Mary: mary@example.org, +44 20 7946 0958")
    ('Mary: [EMAIL], [PHONE]', {'email': 1, 'phone': 1})
    """
    wanted = set(kinds)
    if unknown := sorted(wanted - set(KINDS)):
        raise UserError(f"{unknown[0]}: no kind of value to redact; there are {', '.join(KINDS)}")
    steps = [(kind, replaced) for kind, replaced in KINDS.items() if kind in wanted]

    def redact(text: str) -> tuple[str, dict[str, int]]:
        counts = {}
        for kind, replaced in steps:
            text, count = replaced(text)
            if count:
                counts[kind] = count
        return text, counts

    return redact
