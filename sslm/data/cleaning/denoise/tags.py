"""Markup: HTML's tags, entities, comments and scripts; wikis' templates, tables and links; Markdown's targets.

Of Markdown the rest stays: headings, lists, emphasis, tables and code are text that people read as it is.
"""

import re
from html import unescape
from html.entities import name2codepoint

from sslm.data.cleaning.denoise.code import QUOTED, outside

_BLOCKS = """
    address article aside blockquote body br caption center dd details div dl dt fieldset figcaption figure footer form
    h1 h2 h3 h4 h5 h6 head header hr html li main nav ol option p pre section select summary table tbody tfoot thead
    title tr ul
"""
_INLINE = """
    a abbr acronym b bdi bdo big button cite code del dfn em embed font i iframe img input ins kbd label legend link
    mark meta noscript nobr object q rp rt ruby s samp small source span strike strong sub sup svg td textarea th time
    tt u var video wbr
"""
BLOCKS = frozenset(_BLOCKS.split())
ELEMENTS = "|".join(sorted({*BLOCKS, *_INLINE.split()}))
EMPTY = frozenset({"br", "hr", "wbr"})
"""Elements that have neither end nor attributes."""
OPEN_ENDED = frozenset({"dd", "dt", "li", "option", "p", "td", "th", "tr"})
"""Elements whose end may be left out."""
ATTRIBUTE = (
    r"""\s{1,9}(?:[A-Za-z_:@][\w:.@-]{0,60}\s{0,3}=\s{0,3}(?:"[^"<>]{0,4000}"|'[^'<>]{0,4000}'|[^\s"'<>=`]{1,2000})"""
    r"|(?:allowfullscreen|async|autoplay|checked|controls|defer|disabled|hidden|loop|muted|nowrap|required|selected)\b)"
)
TAG = re.compile(rf"<(/?)({ELEMENTS})((?:{ATTRIBUTE}){{0,40}}+)\s{{0,9}}/?>", re.IGNORECASE)
ENDS = re.compile(r"</([A-Za-z][A-Za-z0-9]{0,12})\s{0,9}>")
# Bodies end where the next one begins, too, so that none is read twice.
HIDDEN = re.compile(
    r"<!--(?:[^<-]|-(?!->)|<(?!!--))*+-->|<!DOCTYPE[^<>]{0,500}>|<\?xml[^<>]{0,200}\?>"
    r"|<(script|style)\b[^<>]{0,2000}>(?:[^<]|<(?!/?\1\b))*+</\1\s{0,9}>",
    re.IGNORECASE,
)
NAMED = {name for name, point in name2codepoint.items() if point < 0x180 or 0x2000 <= point <= 0x2122} | {"apos"}
"""Entities of letters, punctuation and currencies; `&sum;` and others of mathematics may be C."""
ENTITY = re.compile(r"(?<!= )&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|([A-Za-z][A-Za-z0-9]{1,7}));")

IMAGE = re.compile(r"!\[([^\[\]\n]{0,500})\]\((?:[^()\s]|\([^()\s]{0,200}\)){1,2000}+(?: \"[^\"\n]{0,300}\")?\)")
LINK = re.compile(
    r"\[([^\[\]\n]{1,500})\]\((?:https?://|mailto:|/|#|\.{1,2}/)(?:[^()\s]|\([^()\s]{0,200}\)){0,2000}+"
    r"(?: \"[^\"\n]{0,300}\")?\)"
)

TEMPLATE = re.compile(r"\{\{[^{}]{0,10000}\}\}")
WIKI_TABLE = re.compile(r"\{\|(?:[^{|]|\|(?!\})|\{(?!\|))*+\|\}")
REFERENCE = re.compile(r"<ref\b[^<>]{0,500}/>|<ref\b[^<>]{0,500}>[^<]{0,5000}</ref>", re.IGNORECASE)
WIKI_LINK = re.compile(r"\[\[([A-Za-z:À-\uffff][^\[\]\n]{0,1000})\]\]")
FILE = re.compile(
    r":?(?:file|image|category|datei|bild|kategorie|fichier|catégorie|archivo|categoría)\s?:", re.IGNORECASE
)
HEADING = re.compile(r"(?m)^={2,6}([^=\n]+)={2,6}[ \t]*$")
DEPTH = 4
"""Templates within templates, and links within captions."""


def markup(text: str) -> str:
    """Remove HTML, wiki markup, and the targets of Markdown's images and links; what people read of them stays.

    Only HTML's own elements are tags, and only if their attributes are spelled as such; one without attributes needs
    its end somewhere in the text. So `if a < b and c > d`, `vector<int>` and `List<A>` stay. Wiki markup is looked for
    in texts with a [[link]] and a {{template}}, a == heading == or '''bold''' words.

    >>> markup("<p class=x>2 &lt; <b>3</b><!-- no --></p> ![a cat](cat.png) [here](https://example.org)")
    '\\n2 < 3\\n a cat here'
    """
    ended = {name.lower() for name in ENDS.findall(text)} if "</" in text else set()

    def without_tag(tag: re.Match[str]) -> str:
        return _in_place_of(tag) if _is_markup(tag, ended) else tag[0]

    def edit(piece: str) -> str:
        if "[[" in piece and any(sign in piece for sign in ("{{", "'''", "\n==")):
            piece = _without_wiki(piece)
        if "<" in piece:
            piece = TAG.sub(without_tag, HIDDEN.sub("", piece))
        if "](" in piece:
            piece = LINK.sub(r"\1", IMAGE.sub(r"\1", piece))
        return ENTITY.sub(_character, piece) if "&" in piece else piece

    return outside(QUOTED, edit, text)


def _is_markup(tag: re.Match[str], ended: set[str]) -> bool:
    slash, name, attributes = tag[1], tag[2].lower(), tag[3]
    if slash or attributes or name in EMPTY or name in ended:
        return True
    before = tag.string[max(tag.start() - 1, 0) : tag.start()]
    return name in OPEN_ENDED and (bool(ended) or before in ("", "\n", ">"))


def _in_place_of(tag: re.Match[str]) -> str:
    name = tag[2].lower()
    return "\n" if name in BLOCKS else " " if name in ("td", "th") else ""


def _character(entity: re.Match[str]) -> str:
    return unescape(entity[0]) if entity[1] is None or entity[1] in NAMED else entity[0]


def _without_wiki(text: str) -> str:
    if WIKI_LINK.search(text) is None:
        return text
    text = REFERENCE.sub("", text)
    for _ in range(DEPTH):
        text = WIKI_LINK.sub(_words_of_link, TEMPLATE.sub("", text))
    text = HEADING.sub(lambda heading: heading[1].strip(), WIKI_TABLE.sub("", text))
    return re.sub("'{2,5}", "", text)


def _words_of_link(link: re.Match[str]) -> str:
    return "" if FILE.match(link[1]) else link[1].rpartition("|")[2]
