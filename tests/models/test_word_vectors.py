"""Word vectors: what of a file is read, which entries of a vocabulary get them, and what becomes of the embedding."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from sslm.data.corpus.tokenizer_training import train_bpe
from sslm.models.build import build, on_meta
from sslm.models.word_vectors import (
    check_vectors,
    dimension_of,
    initialise_embedding,
    load_vectors,
    projection,
    words_of,
)
from sslm.system.errors import UserError

EXAMPLE = "the 3 4\nThe 0 1\nRome 1 0\n"
WORDPIECE = {"[UNK]": 0, "the": 1, "##the": 2, "##ing": 3, "we": 4}


def written(folder: Path, text: str | bytes, name: str = "vectors.txt") -> Path:
    file = folder / name
    data = text if isinstance(text, bytes) else text.encode()
    file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return file


def byte_level(*words: str, **special: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of just these entries, Ġ written as a space."""
    vocabulary = {word.replace(" ", "Ġ"): number for number, word in enumerate(words)}
    backend = Backend(models.BPE(vocabulary, []))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def wordpiece() -> PreTrainedTokenizerFast:
    backend = Backend(models.WordPiece(WORDPIECE, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def llama(size: int = 2, tied: bool = False, vocab_size: int = 8) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )


def built(config: LlamaConfig) -> PreTrainedModel:
    return build(config, "AutoModelForCausalLM", 0)


def rows_of(model: PreTrainedModel) -> Tensor:
    return model.get_input_embeddings().weight.detach().clone()


# ------------------------------------------------------------------------------------------------ the worked example


def test_example_of_the_docstring(tmp_path: Path) -> None:
    tokenizer = byte_level(" the", "the", "The", " rome", "zz")
    ids, rows = load_vectors(written(tmp_path, EXAMPLE), words_of(tokenizer))
    assert dict(zip(ids, rows.tolist(), strict=True)) == {0: [3, 4], 2: [0, 1], 3: [1, 0]}


# ------------------------------------------------------------------------------------------------ the file


WORD = st.text(st.characters(codec="utf-8", exclude_characters="\n\r \ufffd"), min_size=1, max_size=5)
SPACED = st.lists(WORD, min_size=1, max_size=3).map(" ".join)


@given(
    first=WORD.filter(lambda word: not word.isdecimal()),
    others=st.lists(SPACED, max_size=6),
    dimension=st.integers(1, 4),
    header=st.booleans(),
    name=st.sampled_from(["vectors.txt", "vectors.txt.gz"]),
    end=st.sampled_from(["\n", " \n", "\r\n"]),
)
def test_what_was_written_is_read(
    tmp_path: Path, first: str, others: list[str], dimension: int, header: bool, name: str, end: str
) -> None:
    words = list(dict.fromkeys([first, *others]))
    numbers = np.random.default_rng(0).normal(size=(len(words), dimension)).astype(np.float32)
    lines = [f"{len(words)} {dimension}"] if header else []
    lines += [" ".join([word, *map(str, row)]) for word, row in zip(words, numbers.tolist(), strict=True)]
    file = written(tmp_path, "".join(line + end for line in lines), name)
    ids, rows = load_vectors(file, {word: number for number, word in enumerate(words)})
    assert dimension_of(file) == dimension
    assert ids == list(range(len(words)))
    assert (rows == numbers).all()


def test_a_words_first_vector_counts_and_a_word_in_its_own_case_comes_before_others(tmp_path: Path) -> None:
    file = written(tmp_path, "THE 1\nthe 2\nthe 3\nThe 4\n")
    assert load_vectors(file, {"the": 0, "The": 1, "tHe": 2}).rows.tolist() == [[2], [4], [1]]


def test_bytes_that_are_not_utf_8_spoil_their_own_word_only(tmp_path: Path) -> None:
    file = written(tmp_path, b"a 1 2\n\xff\xfe 3 4\nb 5 6\n")
    assert load_vectors(file, {"a": 0, "b": 1}).rows.tolist() == [[1, 2], [5, 6]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "line 1 is ''"),
        ("once upon a time\n", "line 1 is 'once upon a time', expected a word and its numbers"),
        ("a 1 2\nb 3\n", "line 2 is 'b 3', expected a word and 2 numbers"),
        ("a 1 2\n\nb 3 4\n", "line 2 is '', expected a word and 2 numbers"),
        ("2 2\na 1 2\nb 3 x\n", "line 3 is 'b 3 x', expected a word and its numbers"),
        ("a 1 2\nb 3 nan\n", "line 2 is 'b 3 nan'"),
        ("3 2\na 1 2\nb 3 4\n", "has 2 words, but its first line says 3"),
        (b"3 2\na \x00\x01\x02\xff\n", "line 2 is .*the text format of word2vec or GloVe"),
    ],
)
def test_other_files_are_refused_with_the_line_and_what_stands_there(
    tmp_path: Path, text: str | bytes, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        load_vectors(written(tmp_path, text), {"a": 0, "b": 1})


def test_files_that_are_not_there_or_cut_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        load_vectors(tmp_path / "none.txt", {})
    whole = gzip.compress("".join(f"word{n} {n} {n + 1}\n" for n in range(2000)).encode())
    for data in (whole[: len(whole) // 2], b"no gzip at all"):
        file = tmp_path / "cut.txt.gz"
        file.write_bytes(data)
        with pytest.raises(UserError, match="can't be unpacked after line"):
            load_vectors(file, {"word1": 0})


# ------------------------------------------------------------------------------------------------ the vocabulary


def test_entries_that_begin_words_come_first_and_special_tokens_are_no_words() -> None:
    assert words_of(wordpiece()) == {"the": 1, "ing": 3, "we": 4}
    found = words_of(
        byte_level("the", " the", "##ing", " ", "é".encode().decode("latin-1"), "<end>", eos_token="<end>")
    )
    assert found == {"the": 1, "##ing": 2, "é": 4}


def test_sentencepieces_and_words_that_carry_their_end() -> None:
    unigram = Backend(models.Unigram([("<unk>", 0.0), ("the", -1.0), ("▁the", -2.0), ("<0x2C>", -3.0), (",", -4.0)], 0))
    unigram.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=unigram, unk_token="<unk>")
    assert words_of(tokenizer) == {"the": 2, ",": 4}
    backend = Backend(models.BPE({"the": 0, "the</w>": 1, "in": 2}, [], end_of_word_suffix="</w>"))
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    assert words_of(PreTrainedTokenizerFast(tokenizer_object=backend)) == {"the": 1, "in": 2}


def test_every_entry_of_a_trained_tokenizer_stands_for_what_it_writes() -> None:
    tokenizer = train_bpe([("The cat sat on the mat, and the caf\u00e9 was near. " * 20, True)], 300)
    words = words_of(tokenizer)
    assert {"the", "The", "cat", "café"} <= words.keys()
    for text, entry in words.items():
        assert tokenizer.decode([entry]).removeprefix(" ") == text
    assert len(set(words.values())) == len(words)


# ------------------------------------------------------------------------------------------------ the embedding


def test_vectors_replace_rows_at_the_scale_of_those_they_replace(tmp_path: Path) -> None:
    model, tokenizer = built(llama()), byte_level(" the", "the", "The", " rome", "zz")
    before = rows_of(model)
    assert initialise_embedding(model, tokenizer, written(tmp_path, EXAMPLE), project=False, seed=0) == 3
    after, matched = rows_of(model), [0, 2, 3]
    factor = after[0, 0] / 3
    assert torch.allclose(after[matched], factor * torch.tensor([[3.0, 4], [0, 1], [1, 0]]))
    assert after[matched].std().item() == pytest.approx(before[matched].std().item(), rel=1e-5)
    others = [1, 4, 5, 6, 7]
    assert torch.equal(after[others], before[others])


def test_heads_that_share_the_embedding_have_the_vectors_and_others_keep_theirs(tmp_path: Path) -> None:
    tokenizer, file = byte_level(" the", "the", "The"), written(tmp_path, EXAMPLE)
    for tied in (True, False):
        model = built(llama(tied=tied))
        head = model.lm_head.weight.detach().clone()
        initialise_embedding(model, tokenizer, file, project=False, seed=0)
        assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight) == tied
        assert torch.equal(model.lm_head.weight, head) != tied


def test_encoder_and_decoder_share_the_vectors_and_padding_is_no_word(tmp_path: Path) -> None:
    config = BartConfig(
        vocab_size=8,
        d_model=2,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=1,
        encoder_ffn_dim=4,
        decoder_attention_heads=1,
        decoder_ffn_dim=4,
        pad_token_id=4,
    )
    model = build(config, "AutoModelForSeq2SeqLM", 0)
    assert isinstance(model, BartForConditionalGeneration)
    before = rows_of(model)
    tokenizer = byte_level(" the", "the", "The", " rome", "<pad>", pad_token="<pad>")
    file = written(tmp_path, EXAMPLE + "<pad> 7 7\n")
    assert initialise_embedding(model, tokenizer, file, project=False, seed=0) == 3
    weight = model.model.encoder.embed_tokens.weight
    assert torch.equal(weight, model.model.decoder.embed_tokens.weight)
    assert torch.equal(weight, model.lm_head.weight)
    assert torch.equal(weight[4], before[4])


@pytest.mark.parametrize(("had", "wanted"), [(3, 7), (7, 3), (4, 4)])
def test_projection_is_orthogonal_and_of_its_seed(had: int, wanted: int) -> None:
    matrix = projection(had, wanted, seed=1)
    assert matrix.shape == (had, wanted)
    square = matrix @ matrix.T if had <= wanted else matrix.T @ matrix
    assert torch.allclose(square, torch.eye(min(had, wanted), dtype=torch.float64), atol=1e-12)
    assert torch.equal(matrix, projection(had, wanted, seed=1))
    assert not torch.allclose(matrix, projection(had, wanted, seed=2))


def test_no_direction_of_a_projection_is_likelier_than_another() -> None:
    drawn = torch.stack([projection(2, 2, seed) for seed in range(2000)])
    assert drawn.mean(0).abs().max() < 0.06  # without the turn of signs, -0.64 on the diagonal
    assert (drawn[:, 0] ** 2).mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.03)


@pytest.mark.parametrize("size", [6, 64])
def test_vectors_of_another_dimension_keep_their_angles(tmp_path: Path, size: int) -> None:
    words = [f"w{n}" for n in range(20)]
    clusters = np.repeat(np.random.default_rng(0).normal(size=(2, 16)), 10, axis=0)
    numbers = clusters + 0.1 * np.random.default_rng(1).normal(size=clusters.shape)
    file = written(tmp_path, "".join(f"{w} {' '.join(map(str, row))}\n" for w, row in zip(words, numbers, strict=True)))
    model, again = built(llama(size, vocab_size=20)), built(llama(size, vocab_size=20))
    before = rows_of(model)
    assert initialise_embedding(model, byte_level(*words), file, project=True, seed=3) == 20
    after = rows_of(model)
    assert after.std().item() == pytest.approx(before.std().item(), rel=1e-3)
    cosines = torch.nn.functional.cosine_similarity(after[:, None], after, dim=-1)
    theirs = torch.from_numpy(numbers)
    expected = torch.nn.functional.cosine_similarity(theirs[:, None], theirs, dim=-1)
    assert (cosines - expected).abs().max() < (0.5 if size < 16 else 1e-5)
    assert cosines[:10, :10].min() > 0.9 > cosines[:10, 10:].max()
    initialise_embedding(again, byte_level(*words), file, project=True, seed=3)
    assert torch.equal(after, rows_of(again))


def test_what_does_not_fit_is_refused_before_a_weight_is_drawn(tmp_path: Path) -> None:
    file, tokenizer = written(tmp_path, EXAMPLE), byte_level("the")
    model = on_meta(llama(size=6), "AutoModelForCausalLM")
    with pytest.raises(
        UserError, match=r"have 2 numbers, the model's embedding 6; give --model.embedding_project true"
    ):
        check_vectors(file, model, tokenizer, project=False)
    check_vectors(file, model, tokenizer, project=True)
    bert = BertConfig(vocab_size=8, hidden_size=2, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    check_vectors(file, on_meta(bert, "AutoModelForMaskedLM"), tokenizer, project=False)
    with pytest.raises(UserError, match=r"give --data.tokenizer"):
        check_vectors(file, model, None, project=True)


def test_vectors_that_say_nothing_are_refused_and_change_nothing(tmp_path: Path) -> None:
    model = built(llama())
    before = rows_of(model)
    with pytest.raises(
        UserError, match="none of its words is an entry of the tokenizer, which has such as chien, chat"
    ):
        initialise_embedding(model, byte_level("chien", "chat"), written(tmp_path, EXAMPLE), project=False, seed=0)
    with pytest.raises(UserError, match=r"all numbers of the 1 words .* are the same"):
        initialise_embedding(model, byte_level("the"), written(tmp_path, "the 0 0\n"), project=False, seed=0)
    assert torch.equal(rows_of(model), before)
