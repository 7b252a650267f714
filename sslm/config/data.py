"""Settings of the text."""

from dataclasses import dataclass
from typing import Literal

from sslm.config.augment import Augment, parse_augment
from sslm.config.setting import NOT_NEGATIVE, POSITIVE, Section, setting


@dataclass(frozen=True)
class SourceConfig(Section):
    """One source of a mixture."""

    prefix = "data.sources"

    path: str | None = setting(is_path=True)
    """Text or a prepared corpus, in the forms of data.train; embedded: the documentation inside this Python."""
    weight: int | float | str = 1
    """Weight relative to the other sources: a number, or size^EXPONENT of its tokens (size^0.7)."""
    name: str | None = None
    """Name in metrics; default: the path's last part, up to a dot."""
    max_epochs: float = 4.0
    """Warn if the run reads the source more often (up to 4 times, repeats are worth about as much as new text:
    Muennighoff et al. 2023, arXiv:2305.16264)."""
    augment: str | None = None
    """Noise in this source's text, as data.augment has it; none: none; default: that of data.augment."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment is not None:
            augment = parse_augment(self.augment, f"--data.sources {self.name or self.path}: augment")
            object.__setattr__(self, "augment", augment.setting)


@dataclass(frozen=True)
class StageConfig(Section):
    """Weights of a mixture from some point of the run on."""

    at_tokens: int
    """Tokens of the run after which these weights apply."""
    weights: dict[str, int | float | str]
    """Source name -> weight; a source left out is not read."""


@dataclass(frozen=True)
class DataConfig(Section):
    """Where the text comes from."""

    prefix = "data"

    train: str | None = setting(None, is_path=True)
    """Training text: a file or glob (.txt, .jsonl, .parquet; also .gz, .zst), a folder of these, a Hugging Face dataset
    (hub name, NAME:CONFIG, or saved folder), a prepared corpus (a folder, or its URL: s3://, gs://, https://, hf://),
    or token ids of other tools (Megatron, nanoGPT, llm.c, .npy, Parquet); default: this Python's documentation."""
    val: str | None = setting(None, is_path=True)
    """Held-out text to validate on, in the same forms; default: a part of the training text, which is then left out of
    training."""
    sources: list[SourceConfig] | None = None
    """A mixture instead of data.train: a list of {path: …, weight: …, name: …}; weight is a number, or size^0.7."""
    stages: list[StageConfig] | None = None
    """New weights of the sources later in the run: a list of {at_tokens: …, weights: {NAME: …}}."""
    augment: str | None = None
    """Noise in the training text: names, each with the share of documents (crop, join, lowercase, uppercase,
    no_punctuation, typography), words (typos, ocr) or tokens (token_dropout, token_swap, token_repeat, token_insert)
    that get it, such as 'typos 0.02, token_dropout 0.05'."""
    packing: Literal["concat", "best_fit"] = "concat"
    """concat: join documents and cut them at seq_len; best_fit: keep documents whole if they fit, and pad."""
    document_mask: bool = False
    """Keep attention (or an LSTM's state) inside each document, where a sequence holds several."""
    text_field: str = "text"
    """Field that holds the text, in .jsonl, .parquet and datasets; of labelled data, also in .csv and .tsv."""
    pair_field: str | None = None
    """Labelled data: field of a second text, to be read together with the first; default: there is none."""
    label_field: str | None = None
    """Labelled data: field of what is to be predicted (of CoNLL's columns a number or name); default: label."""
    label_separator: str | None = None
    """Labelled data: what stands between several labels of a row (--objective.multi_label true); default: a row has
    them in a list."""
    source_field: str = "source"
    """Labelled data: field of the text to turn into another (text_to_text)."""
    target_field: str = "target"
    """Labelled data: field of the text to write (text_to_text)."""
    document_separator: str | None = None
    """Regular expression that separates the documents of a .txt; default: a file is one document."""
    end_id: int | None = None
    """Token id that ends a document, for files of token ids without document boundaries (nanoGPT, llm.c, 1-D .npy);
    default: the end-of-document token of the tokenizer, if there is one."""
    special_tokens: Literal["plain", "parse"] = "plain"
    """Names of special tokens that stand in the text (<|endoftext|>, [MASK]): plain text, or parsed as these tokens."""
    bos: Literal["template", "never"] = "template"
    """template: begin each document with the BOS token if the tokenizer's template does so; never: don't."""
    tokenizer: str | None = setting(None, is_path=True)
    """Tokenizer: a folder, a hub name, or bpe:SIZE to train a byte-level BPE; default: that of --model.pretrained or of
    the prepared corpus, else bpe:2048."""
    cache_dir: str | None = setting(None, may_change=True, is_path=True)
    """Folder for corpora that a run prepares itself; default: the user's cache folder."""
    cache_gb: float | None = setting(None, POSITIVE, may_change=True)
    """Largest size of the remote shards in the cache folder, in gigabytes; default: no limit."""
    block_shards: int | None = setting(None, POSITIVE)
    """Number of shards to shuffle together; default: all of a local corpus, 4 of a remote one (of which the cache holds
    twice as many)."""
    on_bad_shard: Literal["fail", "substitute"] = setting("fail", may_change=True)
    """If a shard is damaged or can't be read. fail: end the run and name it; substitute: read other shards instead, and
    record it."""
    num_workers: int = setting(0, NOT_NEGATIVE, may_change=True)
    """Loader processes per device; 0 reads in the training process, which is usually fastest."""
    val_sequences: int = setting(1024, POSITIVE, may_change="if named")
    """Largest number of held-out sequences in a validation, spread evenly over the held-out text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        augment = parse_augment(self.augment)
        object.__setattr__(self, "augment", augment.setting if augment else None)

    @property
    def augments(self) -> list[Augment]:
        """The noise of each source, or of the only one."""
        sources = self.sources or [SourceConfig(self.train)]
        return [parse_augment(self.augment if source.augment is None else source.augment) for source in sources]
