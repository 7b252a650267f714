"""What a report says, before it is a page or Markdown: sections of bars, curves, tables and examples."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sslm.data.cleaning.report.diversity import diversity, vocabulary_overlap
from sslm.data.cleaning.sample import Sampled
from sslm.data.cleaning.tally import DROPPED, KEPT, NEAR, READ, Example, Tally
from sslm.system.terminal import bytes_in_words, count

MOST_BARS = 15
FERTILITY_CHARS = 1 << 20
"""Characters of a language that are tokenised."""


@dataclass(frozen=True)
class Bar:
    """A labelled length."""

    label: str
    value: float
    words: str
    """The value as people read it."""


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    title: str
    text: str = ""
    """What is seen here, in a sentence or two."""
    bars: Sequence[Bar] = ()
    curve: Sequence[tuple[float, float]] = ()
    axes: tuple[str, str] = ("", "")
    rows: Sequence[Sequence[str]] = ()
    """A table, its titles first."""
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict)


@dataclass(frozen=True)
class Contents:
    """All of a report."""

    title: str
    figures: Sequence[tuple[str, str]]
    """(figure, what it counts)."""
    sections: Sequence[Section]


def contents_of(name: str, tally: Tally, sample: Sequence[Sampled], tokenizer: str | None) -> Contents:
    """Put a report together.

    Args:
        name: title.
        tokenizer: folder or name of one whose fertility is told; None if none is.
    """
    documents, num_bytes, words = (tally.tables[what] for what in ("documents", "bytes", "words"))
    figures = [
        (f"{documents[READ]:,}", "documents read"),
        (f"{documents[KEPT]:,}", f"documents kept ({_share(documents[KEPT], documents[READ])})"),
        (bytes_in_words(num_bytes[KEPT]), f"of text kept ({_share(num_bytes[KEPT], num_bytes[READ])})"),
        (count(words[KEPT]), f"words kept ({_share(words[KEPT], words[READ])})"),
    ]
    if tokens := tally.tables.get("tokens"):
        figures.append((count(tokens[KEPT]), f"tokens kept ({_share(tokens[KEPT], tokens.total())})"))
    sections = [section for section in _sections(tally, sample, tokenizer) if section is not None]
    return Contents(name, figures, sections)


def _sections(tally: Tally, sample: Sequence[Sampled], tokenizer: str | None) -> Iterator[Section | None]:
    yield _dropped(tally)
    yield _bars("Documents that were changed", tally, "changed", "How many texts each edit changed.")
    yield _bars("Replaced by placeholders", tally, "redacted", "How many of each kind; what stood there is not kept.")
    yield _lengths(tally)
    yield _shares("Languages", tally, "languages", "Kept documents, by the language that was detected.")
    yield _shares("Scripts", tally, "scripts", "Letters of the kept text, by their script.")
    yield _shares("Sources", tally, "sources", "Kept documents, by the file that they are from.")
    yield _shares("Domains", tally, "domains", "Documents read, by the host of their url.")
    yield _clusters(tally)
    yield _diversity(sample)
    yield _overlap(sample)
    if tokenizer is not None:
        yield _fertility(sample, tokenizer)
    yield _perplexity(tally)
    yield _odd(tally)
    yield _near(tally)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _dropped(tally: Tally) -> Section:
    documents, unit = tally.tables["documents"], "tokens" if "tokens" in tally.tables else "words"
    reasons = sorted((key for key in documents if key.startswith(DROPPED)), key=lambda key: (-documents[key], key))
    shares = {key: _share(documents[key], documents[READ]) for key in reasons}
    amounts = {key: f"{documents[key]:,} · {shares[key]} · {count(tally.tables[unit][key])} {unit}" for key in reasons}
    bars = [Bar(key.removeprefix(DROPPED), documents[key], amounts[key]) for key in reasons]
    text = "Each document counts once, under the first reason that dropped it." if bars else "Nothing was dropped."
    examples = {reason.removeprefix(DROPPED): tally.examples[reason.removeprefix(DROPPED)] for reason in reasons}
    return Section("Dropped", text, bars, examples=examples)


def _shares(title: str, tally: Tally, table: str, text: str) -> Section | None:
    """Like `_bars`, with each key's share of all."""
    return _bars(title, tally, table, text, lambda number, total: f"{number:,} · {_share(number, total)}")


def _bars(
    title: str, tally: Tally, table: str, text: str, words: Callable[[int, int], str] = lambda number, _: f"{number:,}"
) -> Section | None:
    """Make bars of a table's most frequent keys; None if it is empty.

    Args:
        words: tells (a key's number, that of all).
    """
    found = sorted(tally.tables[table].items(), key=lambda item: (-item[1], item[0])) if table in tally.tables else []
    if not found:
        return None
    total = sum(number for _, number in found)
    bars = [Bar(key, number, words(number, total)) for key, number in found[:MOST_BARS]]
    if rest := found[MOST_BARS:]:
        more = sum(number for _, number in rest)
        text += f" {len(rest):,} others have {more:,} ({_share(more, total)}) together."
    return Section(title, text, bars)


def _lengths(tally: Tally) -> Section | None:
    lengths = tally.tables.get("lengths")
    if not lengths:
        return None
    powers = range(int(min(lengths)), int(max(lengths)) + 1)
    bars = [Bar(_between(power), lengths[f"{power:02d}"], f"{lengths[f'{power:02d}']:,}") for power in powers]
    return Section("Lengths", "Kept documents, by their number of words.", bars)


def _between(power: int) -> str:
    low, high = 1 << power, (2 << power) - 1
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _clusters(tally: Tally) -> Section | None:
    clusters = tally.tables.get("clusters")
    if not clusters:
        return None
    powers = sorted(clusters, key=int)
    bars = [Bar(_between(int(power)), clusters[power], f"{clusters[power]:,}") for power in powers]
    return Section("Duplicates", "Groups of documents that are the same or nearly, by how many were dropped.", bars)


def _diversity(sample: Sequence[Sampled]) -> Section | None:
    if not sample:
        return None
    found = diversity([one.text for one in sample])
    entropy = ", ".join(f"{n}-grams {bits:.2f}" for n, bits in found.entropy.items())
    rows = [
        ("measure", "value"),
        ("words", f"{found.words:,}"),
        ("different words", f"{found.types:,}"),
        ("entropy [bits a word]", entropy or "–"),
        ("compression", f"{found.compression:.2f} : 1"),
    ]
    text = f"Of {len(sample):,} documents chosen by hash. The steeper the curve, the more new words one brings."
    axes = ("words read", "different words")
    return Section("Diversity", text, curve=found.growth, axes=axes, rows=rows)


def _overlap(sample: Sequence[Sampled]) -> Section | None:
    by_source: defaultdict[str, list[str]] = defaultdict(list)
    for one in sample:
        by_source[one.source].append(one.text)
    largest = dict(sorted(by_source.items(), key=lambda item: (-len(item[1]), item[0]))[:6])
    if len(largest) < 2:
        return None
    rows = [(f"{a} / {b}", f"{share:.0%}") for (a, b), share in vocabulary_overlap(largest).items()]
    text = "Of the most frequent words of two sources, the share that both have."
    return Section("Vocabulary overlap", text, rows=[("sources", "overlap"), *rows])


def _fertility(sample: Sequence[Sampled], tokenizer: str) -> Section:
    """Tell how many tokens words take, by language; words without spaces between them are told by characters."""
    from sslm.data.corpus.tokenizer import load  # brings transformers, if it is asked for
    from sslm.data.fertility import fertility

    by_language: defaultdict[str, list[str]] = defaultdict(list)
    for one in sample:
        by_language[one.language or "all"].append(one.text)
    loaded = load(tokenizer, "--tokenizer ")
    rows = [("language", "documents", "tokens a word", "tokens a character", "bytes a token", "unknown")]
    for language, texts in sorted(by_language.items(), key=lambda item: (-len(item[1]), item[0]))[:MOST_BARS]:
        found = fertility(((text, True) for text in texts), loaded, FERTILITY_CHARS)
        per_word = "–" if found.tokens_per_word is None else f"{found.tokens_per_word:.2f}"
        figures = f"{found.tokens_per_char:.3f}", f"{found.bytes_per_token:.2f}", f"{found.unknown_share:.2%}"
        rows.append((language, f"{len(texts):,}", per_word, *figures))
    return Section("Fertility", f"Of {tokenizer}, in the documents chosen by hash.", rows=rows)


def _perplexity(tally: Tally) -> Section | None:
    found = tally.tables.get("perplexity")
    if not found:
        return None
    powers = range(int(min(found)), int(max(found)) + 1)
    bars = [Bar(_between(power), found[f"{power:02d}"], f"{found[f'{power:02d}']:,}") for power in powers]
    return Section("Perplexity", "Documents by their perplexity under the model that was given.", bars)


def _odd(tally: Tally) -> Section | None:
    odd, kinds = tally.tables.get("consistency"), tally.tables.get("fields")
    if not odd and (not kinds or len(kinds) < 2):
        return None
    bars = [Bar(what, number, f"{number:,}") for what, number in Counter(odd).most_common()]
    rows = [
        (kind or "(no other fields)", f"{number:,}") for kind, number in (kinds or Counter()).most_common(MOST_BARS)
    ]
    text = "What contradicts itself or varies among documents; nothing was dropped for it."
    examples = {what: tally.examples[what] for what in (odd or {}) if tally.examples.get(what)}
    return Section("Consistency", text, bars, rows=[("fields of a document", "documents"), *rows], examples=examples)


def _near(tally: Tally) -> Section | None:
    found = {reason.removeprefix(NEAR): there for reason, there in tally.examples.items() if reason.startswith(NEAR)}
    text = "Kept documents that a threshold a tenth stricter would have dropped."
    return Section("Nearly dropped", text, examples=found) if found else None
