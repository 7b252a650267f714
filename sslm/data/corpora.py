"""Whatever was given -> an open corpus: text that is prepared first, a prepared corpus here or at a URL, ids of other tools."""

import json
from collections.abc import Sequence
from pathlib import Path

from sslm.config import DataConfig, SourceConfig
from sslm.data import foreign
from sslm.data.corpus import prepare, remote
from sslm.data.corpus import tokenizer as tokenizers
from sslm.data.corpus.documents import open_source
from sslm.data.corpus.embedded import EMBEDDED
from sslm.data.corpus.shards import Corpus, is_corpus, open_corpus
from sslm.system.errors import UserError
from sslm.system.files import is_whole
from sslm.system.terminal import preparation_progress

DEFAULT_TOKENIZER = "bpe:2048"


def open_corpora(
    given: Sequence[SourceConfig], tokenizer: str | None, data: DataConfig, cache_dir: Path
) -> tuple[list[Corpus], str | None]:
    """All corpora of a run, and where the one tokenizer is that made them: the one asked for, else the first corpus' own.

    Args:
        tokenizer: as `data.tokenizer` takes it; None: not asked for.

    Returns:
        The tokenizer is None for ids that came without one, where none was asked for.

    Raises:
        UserError: bad text, or tokenizers that do not match.
    """
    asked, corpora = tokenizer, []
    for source in given:
        corpora.append(open_given(source.path, tokenizer, data, cache_dir))
        if corpora[0].tokenizer_sha256:
            tokenizer = str(corpora[0].tokenizer_folder)
    own = next((corpus for corpus in corpora if corpus.tokenizer_sha256), None)
    if own is not None and asked is not None:
        _check_tokenizer(str(given[corpora.index(own)].path), own, asked)
    for source, corpus in zip(given, corpora, strict=True):
        if own is not None and corpus.tokenizer_sha256 not in ("", own.tokenizer_sha256):
            raise UserError(
                f"{source.path}: was prepared with another tokenizer than {given[corpora.index(own)].path}; prepare it again "
                f"with --tokenizer {own.tokenizer_folder}"
            )
    if own is not None:
        _check_folder(own)
        is_folder = asked is not None and not tokenizers.bpe_size(asked) and Path(asked).exists()
        tokenizer = asked if is_folder else str(own.tokenizer_folder)  # what was asked for may have tokens appended
    elif tokenizer is not None and tokenizers.bpe_size(tokenizer):
        raise UserError(
            f"--data.tokenizer {tokenizer}: there is no text to train one on, only ids; give the tokenizer that made them, "
            f"or leave the flag out"
        )
    for source, corpus in zip(given, corpora, strict=True):
        if tokenizer is not None and not corpus.tokenizer_sha256:
            foreign.check_vocabulary(corpus, str(source.path), tokenizer, len(tokenizers.load(tokenizer)))
    return corpora, tokenizer


def open_given(given: str | None, tokenizer: str | None, data: DataConfig, cache_dir: Path) -> Corpus:
    """One corpus; text is prepared into the cache first.

    Args:
        given: as `data.train` takes it; None: the embedded text.
        tokenizer: to prepare text with; None: the default.
    """
    if given is None or given == EMBEDDED:
        return _prepared(None, tokenizer, data, cache_dir)
    if remote.is_remote(given):
        limit = None if data.cache_gb is None else int(data.cache_gb * 1e9)
        return remote.open_remote_corpus(given, cache_dir, limit)
    if is_corpus(given):
        return open_corpus(given, check_sizes=data.on_bad_shard == "fail")
    if foreign.recognise(given, data.text_field):
        return foreign.open_foreign(
            given,
            cache_dir,
            end_id=_end_id(tokenizer, data),
            text_field=data.text_field,
            progress=lambda: preparation_progress(f"Reading {given}"),
        )
    return _prepared(given, tokenizer, data, cache_dir)


def _prepared(given: str | None, tokenizer: str | None, data: DataConfig, cache_dir: Path) -> Corpus:
    source = open_source(
        given,
        text_field=data.text_field,
        document_separator=data.document_separator,
        hash_file=prepare.remembering_hash(cache_dir),
    )
    tokenizer = tokenizer or DEFAULT_TOKENIZER
    known = tokenizer if tokenizers.bpe_size(tokenizer) else tokenizers.load(tokenizer)
    return prepare.prepare_cached(source, known, cache_dir, lambda: preparation_progress(f"Preparing {source.name}"))


def _end_id(tokenizer: str | None, data: DataConfig) -> int | None:
    """The id that ends documents: as given, else the tokenizer's."""
    if data.end_id is not None or tokenizer is None or tokenizers.bpe_size(tokenizer):
        return data.end_id
    return tokenizers.end_of_document(tokenizers.load(tokenizer))


def _check_tokenizer(given: str, corpus: Corpus, tokenizer: str) -> None:
    if tokenizers.bpe_size(tokenizer):
        matches = corpus.tokenizer == tokenizer
    else:
        is_same_name = corpus.tokenizer == tokenizer and not Path(tokenizer).exists()
        matches = is_same_name or _gives_its_ids(tokenizer, corpus)
    if not matches:
        raise UserError(
            f"{given}: was prepared with another tokenizer than {tokenizer}; leave --data.tokenizer out, or "
            f"prepare the text again: sslm prepare TEXT --tokenizer {tokenizer} --out DIR"
        )


def _gives_its_ids(tokenizer: str, corpus: Corpus) -> bool:
    """Also with tokens appended to it, as the tokenizer of a model has that was pretrained on this corpus."""
    loaded = tokenizers.load(tokenizer)
    return corpus.tokenizer_sha256 in (
        tokenizers.identity(loaded),
        tokenizers.identity(loaded, without_from=corpus.vocab_size),
    )


def _check_folder(corpus: Corpus) -> None:
    """See that a corpus' folder has the tokenizer that made it: its files, or one that gives the same ids."""
    folder = corpus.tokenizer_folder
    vouched = json.loads((corpus.folder / "index.json").read_text()).get("tokenizer_files")
    if vouched and all(is_whole(folder / name, file["sha256"]) for name, file in vouched.items()):
        return  # much quicker than to load it
    if tokenizers.identity(tokenizers.load(folder)) != corpus.tokenizer_sha256:
        raise UserError(f"{folder}: is not the tokenizer this corpus was prepared with; prepare it again")
