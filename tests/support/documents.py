"""Small sources of documents to test with."""

from sslm.data.corpus.documents import Source


def no_report(documents: int, tokens: int, share: float | None = None) -> None:
    pass


def source_of(texts: list[str]) -> Source:
    return Source("test", [{"test": texts}], lambda: iter([(text, True) for text in texts]))
