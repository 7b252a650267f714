"""Open corpora: text, prepared corpora here or at a URL, token files of other tools."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sslm.config import DataConfig, SourceConfig
from sslm.data import foreign
from sslm.data.corpus import prepare, remote
from sslm.data.corpus import tokenizer as tokenizers
from sslm.data.corpus.documents import open_source
from sslm.data.corpus.embedded import EMBEDDED
from sslm.data.corpus.shards import Corpus, is_corpus, open_corpus
from sslm.data.corpus.tokenizer import TokenizerChoice, TokenRules, TrainBPE
from sslm.system.errors import UserError
from sslm.system.files import is_whole
from sslm.system.terminal import preparation_progress

DEFAULT_TOKENIZER = TrainBPE(2048)


def open_corpora(
    sources: Sequence[SourceConfig], asked: TokenizerChoice | None, data: DataConfig, cache_dir: Path
) -> tuple[list[Corpus], str | None]:
    """Open all corpora of a run, and find the folder or name of the one tokenizer that made them.

    There is none if they are ids without one, and none was asked for.

    Raises:
        UserError: bad text, or tokenizers that do not match.
    """
    corpora: list[Corpus] = []
    for source in sources:
        first = corpora[0] if corpora and corpora[0].tokenizer_sha256 else None
        choice = str(first.tokenizer_folder) if first else asked
        corpora.append(_open_any(source.path, choice, data, cache_dir))
    paths = [str(source.path) for source in sources]
    tokenizer = _common_tokenizer(paths, corpora, asked)
    for path, corpus in zip(paths, corpora, strict=True):
        if tokenizer is not None and not corpus.tokenizer_sha256:
            foreign.check_vocabulary(corpus, path, tokenizer, tokenizers.num_ids(tokenizers.load(tokenizer)))
    return corpora, tokenizer


def _open_any(path: str | None, tokenizer: TokenizerChoice | None, data: DataConfig, cache_dir: Path) -> Corpus:
    """Open one corpus; text is prepared into the cache first, with this tokenizer or the default."""
    if path is None or path == EMBEDDED:
        return _prepared(None, tokenizer, data, cache_dir)
    if remote.is_remote(path):
        limit = None if data.cache_gb is None else int(data.cache_gb * 1e9)
        return remote.open_remote_corpus(path, cache_dir, limit)
    if is_corpus(path):
        corpus = open_corpus(path, check_sizes=data.on_bad_shard == "fail")
        if corpus.labelled is not None:
            what = f"a corpus of labelled examples ({corpus.labelled.task}), not of text"
            raise UserError(f"{path}: is {what}; give text, or the objective that it was made for")
        return corpus
    if foreign.recognise(path, data.text_field):
        end_id = data.end_id
        if end_id is None and isinstance(tokenizer, str):
            end_id = tokenizers.end_of_document(tokenizers.load(tokenizer))
        progress = partial(preparation_progress, f"Reading {path}")
        return foreign.open_foreign(path, cache_dir, end_id=end_id, text_field=data.text_field, progress=progress)
    return _prepared(path, tokenizer, data, cache_dir)


def _prepared(path: str | None, tokenizer: TokenizerChoice | None, data: DataConfig, cache_dir: Path) -> Corpus:
    sha256 = prepare.remembering_hash(cache_dir)
    source = open_source(path, data.text_field, data.document_separator, sha256)
    known = tokenizers.loaded(tokenizer or DEFAULT_TOKENIZER)
    rules = TokenRules(data.special_tokens, data.bos)
    progress = partial(preparation_progress, f"Preparing {source.name}")
    return prepare.prepare_cached(source, known, cache_dir, rules, progress)


def _common_tokenizer(paths: list[str], corpora: list[Corpus], asked: TokenizerChoice | None) -> str | None:
    """Find the folder or name of all corpora's tokenizer, or None if neither they nor the user name one."""
    tokenised = [(path, corpus) for path, corpus in zip(paths, corpora, strict=True) if corpus.tokenizer_sha256]
    if not tokenised:
        if isinstance(asked, TrainBPE):
            raise UserError(
                f"--data.tokenizer {asked}: there are only ids, no text to train one on; leave the flag out"
            )
        return asked
    first_path, first = tokenised[0]
    if asked is not None and not _made(first, asked):
        raise UserError(
            f"{first_path}: was prepared with another tokenizer than {asked}; leave --data.tokenizer out, or "
            f"prepare the text again: sslm prepare TEXT --tokenizer {asked} --out DIR"
        )
    for path, corpus in tokenised[1:]:
        if corpus.tokenizer_sha256 != first.tokenizer_sha256:
            again = f"prepare it again with --tokenizer {first.tokenizer_folder}"
            raise UserError(f"{path}: was prepared with another tokenizer than {first_path}; {again}")
    _check_folder(first)
    if isinstance(asked, str) and Path(asked).exists():
        return asked  # it may have tokens appended
    return str(first.tokenizer_folder)


def _made(corpus: Corpus, asked: TokenizerChoice) -> bool:
    """Whether a corpus was prepared with a tokenizer, or with one that lacks the tokens appended to it."""
    if isinstance(asked, TrainBPE):
        return corpus.tokenizer == str(asked)
    if corpus.tokenizer == asked and not Path(asked).exists():
        return True
    loaded = tokenizers.load(asked)
    return corpus.tokenizer_sha256 in {tokenizers.identity(loaded, end) for end in (None, corpus.vocab_size)}


def _check_folder(corpus: Corpus) -> None:
    """Check that a corpus' folder has the tokenizer that made it, or one that gives the same ids."""
    folder = corpus.tokenizer_folder
    if corpus.tokenizer_files and all(is_whole(folder / name, sha256) for name, _, sha256 in corpus.tokenizer_files):
        return  # quicker than to load it
    if tokenizers.identity(tokenizers.load(folder)) != corpus.tokenizer_sha256:
        raise UserError(f"{folder}: is not the tokenizer this corpus was prepared with; prepare it again")
