"""What a tokenizer that is to be trained is like: its kind, its size, and how it splits and spells a text."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from sslm.system.errors import UserError, short

if TYPE_CHECKING:  # heavy, and whoever parses flags needs neither
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT, UNKNOWN = "<|endoftext|>", "<unk>"
OF_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""Special tokens of WordPiece, in BERT's order."""
MOST_ENTRIES = 1 << 21
"""Entries of the largest tokenizer: the trainer takes memory for all of them before it begins."""
PREFIX = "##"
"""What WordPiece writes before a piece that goes on with a word."""
BYTE = "<0x{:02X}>"
"""Name of a byte's token, where the others are characters."""
GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How GPT-2 and GPT-4 (cl100k_base) split a text into words."""

Kind = Literal["bpe", "unigram", "wordpiece"]
Spelling = Literal["level", "fallback", "none"]
"""Whether tokens are bytes; or characters, and bytes stand for those that it doesn't know; or <unk> does."""
Split = Literal["gpt2", "gpt4", "digits", "bert"]
"""Where a text is cut into words: `digits` as GPT-2 does with each digit alone, `bert` at white space and marks."""
KINDS, SPELLINGS, SPLITS = get_args(Kind), get_args(Spelling), get_args(Split)


@dataclass(frozen=True)
class Design:
    """What a tokenizer is to be like; UserError if there is none such."""

    kind: Kind
    size: int
    """Entries, special tokens included: at most so many."""
    spelling: Spelling
    split: Split
    special_tokens: tuple[str, ...] = ()
    """Names of special tokens beside those that the kind has."""

    def __post_init__(self) -> None:
        if self.kind == "wordpiece" and self.spelling != "none":
            rule = "WordPiece has [UNK] for what it doesn't know; leave it out, or take --kind bpe or unigram"
            raise UserError(f"--bytes {self.spelling}: {rule}")
        if (self.kind == "wordpiece") != (self.split == "bert") and self.split != "digits":
            allowed = "bert or digits" if self.kind == "wordpiece" else "gpt2, gpt4 or digits"
            raise UserError(f"--pre_tokenizer {self.split}: with --kind {self.kind} give {allowed}")
        for name in self.special_tokens:
            if not (name.strip() and name.isprintable()) or self.first_tokens.count(name) > 1:
                expected = "expected names of printable characters that are not blank, each once"
                raise UserError(f"--special_tokens {short(name)!r}: {expected}")
        if self.size > MOST_ENTRIES:
            raise UserError(f"--size {short(str(self.size))}: expected at most {MOST_ENTRIES:,} entries, such as 32000")
        least = self.num_fixed + (self.spelling != "level")  # bytes alone write any text
        if self.size < least:
            has = f"{self.num_fixed} of them are special tokens and bytes"
            raise UserError(f"--size {self.size}: {has}; give at least {least}, such as 32000")

    @property
    def usual_tokens(self) -> tuple[str, ...]:
        """Special tokens of its kind: a model of its spelling may ask for <unk>."""
        if self.kind == "wordpiece":
            return OF_BERT
        needs_unknown = self.spelling == "none" or (self.kind, self.spelling) == ("unigram", "fallback")
        return (END_OF_TEXT, UNKNOWN) if needs_unknown else (END_OF_TEXT,)

    @property
    def first_tokens(self) -> list[str]:
        """The first entries: special tokens, then those of the bytes of byte fallback."""
        in_bytes = [BYTE.format(byte) for byte in range(256)] if self.spelling == "fallback" else []
        return [*self.usual_tokens, *self.special_tokens, *in_bytes]

    @property
    def num_fixed(self) -> int:
        return len(self.first_tokens) + (256 if self.spelling == "level" else 0)

    @property
    def pre_tokenizer(self) -> Any:
        """The part that splits a text into words, whose characters stand for bytes if tokens do."""
        from tokenizers import Regex, pre_tokenizers

        parts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if self.split == "digits" else []
        if self.kind == "wordpiece":
            parts.append(pre_tokenizers.BertPreTokenizer())
        elif self.split == "gpt4" or self.spelling != "level":
            parts.append(pre_tokenizers.Split(Regex(GPT4 if self.split == "gpt4" else GPT2), "isolated"))
        if self.spelling == "level":
            with_regex = self.split != "gpt4"
            parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=with_regex))
        return parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)

    @property
    def normalizer(self) -> Any:
        """The part that cleans a text first: BERT's for WordPiece, which keeps case and accents; None for others."""
        from tokenizers import normalizers

        return normalizers.BertNormalizer(lowercase=False, strip_accents=False) if self.kind == "wordpiece" else None

    @property
    def decoder(self) -> Any:
        from tokenizers import decoders

        if self.kind == "wordpiece":
            return decoders.WordPiece(prefix=PREFIX)
        if self.spelling == "level":
            return decoders.ByteLevel()
        return decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])

    def assembled(self, model: Any) -> "PreTrainedTokenizerFast":
        """Put a whole tokenizer together around its trained model."""
        from tokenizers import Tokenizer as Backend
        from tokenizers.processors import TemplateProcessing
        from transformers import PreTrainedTokenizerFast

        backend = Backend(model)
        if self.normalizer is not None:
            backend.normalizer = self.normalizer
        backend.pre_tokenizer, backend.decoder = self.pre_tokenizer, self.decoder
        backend.add_special_tokens([*self.usual_tokens, *self.special_tokens])
        if self.kind != "wordpiece":
            unknown = {"unk_token": UNKNOWN} if UNKNOWN in self.usual_tokens else {}
            named: dict[str, Any] = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, **unknown}
            return PreTrainedTokenizerFast(tokenizer_object=backend, **named)
        ends = [(name, OF_BERT.index(name)) for name in ("[CLS]", "[SEP]")]
        backend.post_processor = TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
        named = {f"{name[1:-1].lower()}_token": name for name in OF_BERT}
        return PreTrainedTokenizerFast(tokenizer_object=backend, **named)
