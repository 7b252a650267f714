"""Augmentation as it is typed: `typos 0.02, token_dropout 0.05` is noise's names, each with the share that gets it."""

from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from math import fsum

from sslm.system.errors import UserError, nearest, short

MOST_DROPPED = 0.5
"""More would leave nothing to read."""
TOKENS = ("token_dropout", "token_swap", "token_repeat", "token_insert")
EXCLUSIVE = (("lowercase", "uppercase"), TOKENS)
"""Of each of these groups, a document or a token gets one noise at most: their shares sum to at most 1."""


@dataclass(frozen=True)
class Augment:
    """Shares of documents, words and tokens that get each kind of noise, in the order in which it is made."""

    crop: float = 0.0
    """Documents of which a run of half to all of their tokens stays."""
    join: float = 0.0
    """Documents that become one with the document before them: no end between them, and no mask."""
    lowercase: float = 0.0
    """Documents in lower case."""
    uppercase: float = 0.0
    """Documents in capitals."""
    no_punctuation: float = 0.0
    """Documents without marks, as speech is written down."""
    typography: float = 0.0
    """Documents whose quotes, apostrophes and dashes are all typographic, or all plain."""
    typos: float = 0.0
    """Words with a typing error: another key, two letters in each other's place, one left out, or one doubled."""
    ocr: float = 0.0
    """Words in which letters are read as others that look like them: rn for m, 1 for l."""
    token_dropout: float = 0.0
    """Tokens that are left out."""
    token_swap: float = 0.0
    """Tokens that change places with a neighbour."""
    token_repeat: float = 0.0
    """Tokens that stand twice."""
    token_insert: float = 0.0
    """Tokens after which another one of the same window is put in."""

    def __bool__(self) -> bool:
        return any(asdict(self).values())

    @property
    def setting(self) -> str:
        """The noise in the order in which it is made, as it could be typed."""
        return ", ".join(f"{name} {share!r}" for name, share in asdict(self).items() if share) or "none"

    @property
    def words(self) -> dict[str, float]:
        """The noise that is made in text, for which a tokenizer is needed."""
        names = ("lowercase", "uppercase", "no_punctuation", "typography", "typos", "ocr")
        return {name: share for name in names if (share := getattr(self, name))}

    @property
    def of_tokens(self) -> bool:
        """Whether there is noise on single tokens."""
        return any(getattr(self, name) for name in TOKENS)


def parse_augment(text: str | None, flag: str = "--data.augment") -> Augment:
    """Parse the value of data.augment, or of a source's augment; null and none are no noise.

    Raises:
        UserError: it says something else.

    >>> parse_augment("typos .02, crop 0.1").setting
    'crop 0.1, typos 0.02'
    """
    names = [field.name for field in fields(Augment)]
    given: dict[str, float] = {}
    for part in [] if text is None or text.strip() == "none" else text.split(","):
        name, *rest = part.split() or ["without a name"]
        share = 0.0
        with suppress(ValueError):
            share = float(" ".join(rest))
        if name not in names:
            there_are = f"{nearest(name, names)}; there are {', '.join(names)}"
            raise UserError(f"{flag} {short(text)}: there is no noise {short(name)}{there_are}")
        most = MOST_DROPPED if name == "token_dropout" else 1
        if not 0 < share <= most:
            expected = f"expected a share above 0 and at most {most} after {name}, such as '{name} 0.05'"
            raise UserError(f"{flag} {short(text)}: {expected}")
        if name in given:
            raise UserError(f"{flag} {short(text)}: {name} is given twice; give it once")
        given[name] = share
    for group in EXCLUSIVE:
        if (total := fsum(given.get(name, 0) for name in group)) > 1:
            raise UserError(
                f"{flag} {short(text)}: the shares of {', '.join(group)} sum to {total:g}; expected at most 1"
            )
    return Augment(**given)
