"""Small vocabularies to test with."""

from pathlib import Path
from typing import Any

import numpy as np

from sslm.data.stream.vocabulary import Vocabulary


def bare(size: int = 200, prefix: tuple[int, ...] = (2,), suffix: tuple[int, ...] = (3,)) -> Vocabulary:
    """Ids 0–4 are special: padding, end, [CLS], [SEP], mask; from 100 on a token goes on with a word."""
    no, kinds = np.zeros(size, bool), np.zeros(size, np.uint8)
    special = no.copy()
    special[:5] = True
    return Vocabulary(
        end=1,
        prefix=np.array(prefix, np.int64),
        suffix=np.array(suffix, np.int64),
        mask=4,
        pad=0,
        sentinels=np.empty(0, np.int64),
        special=special,
        begins_word=np.arange(size) < 100,
        first_kind=kinds,
        last_kind=kinds,
        ends_sentence=no,
    )


TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps.",
    "Der Hund schläft; die Katze auch. Übermorgen gehen wir nach München!",
    "it 's a charming and often affecting journey",
    'She said "hello" to Mr. O\'Neil in New York.',
    "一只猫坐在垫子上。 🙂 naïve café",
]


def save_tokenizer(kind: str, folder: Path) -> Path:
    """Train a small tokenizer as BERT, RoBERTa, GPT-2 or T5 have it, with its template, and save it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = {
        "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        "gpt2": ["<|endoftext|>"],
        "t5": ["<pad>", "</s>", "<unk>"],
    }[kind]
    if kind == "bert":
        backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
        names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
        template = ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    elif kind == "t5":
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
        )
        names = dict(zip(("pad_token", "eos_token", "unk_token"), special, strict=True))
        template = ("$A </s>", "$A </s> $B </s>")
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        order = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
        names = dict(zip(order, special, strict=False)) | {"eos_token": "</s>"}
        template = ("<s> $A </s>", "<s> $A </s> </s> $B </s>")
        if kind == "gpt2":
            names, template = {"bos_token": special[0], "eos_token": special[0]}, ("", "")
    backend.train_from_iterator(TEXTS, trainer)
    if any(template):
        ids = [(token, backend.token_to_id(token)) for token in special]
        backend.post_processor = processors.TemplateProcessing(single=template[0], pair=template[1], special_tokens=ids)
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if kind == "bert" else ["input_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **names)
    tokenizer.save_pretrained(folder)
    return folder
