"""What models write: the same in any batch, token for token what transformers writes, and whole characters."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sslm.models.build import build
from sslm.models.generation.draws import Choose, Known, Sampling, cutoffs, gumbel
from sslm.models.generation.filling import Filler
from sslm.models.generation.text import Stream, continued, has_stop
from sslm.models.generation.writing import Prompt, Writer, heeds_padding
from sslm.system.errors import RunFailed

VOCAB, END, SEED = 64, 1, 5
GREEDY = Sampling()
SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "sslm_lstm": {"hidden_size": 16, "num_hidden_layers": 2},
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    "bert": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
}
PROMPTS = [
    Prompt(n, [END, *((7 * n + k) % 60 + 4 for k in range(length))]) for n, length in enumerate((0, 13, 1, 25, 6, 2, 9))
]
WAYS = {
    "greedy": (Sampling(), 1),
    "drawn": (Sampling(1.0, seed=SEED), 1),
    "cut": (Sampling(0.7, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.3, seed=SEED), 1),
    "beams": (Sampling(), 3),
}


def tiny(model_type: str) -> PreTrainedModel:
    """A model whose logits are far apart, as a trained one's are."""
    config = AutoConfig.for_model(model_type, vocab_size=VOCAB, tie_word_embeddings=True, **SIZES[model_type])
    kind = {"t5": "AutoModelForSeq2SeqLM", "bert": "AutoModelForMaskedLM"}.get(model_type, "AutoModelForCausalLM")
    model = build(config, kind, 0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.4, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


def spell(ids: list[int]) -> str:
    """An alphabet; special tokens are no text."""
    return "".join(chr(33 + n) for n in ids if n > 3)


def writer(model: PreTrainedModel, sampling: Sampling = GREEDY, **how: Any) -> Writer:
    return Writer(model, spell, sampling, [END], VOCAB, **{"max_new_tokens": 8, **how})


@pytest.fixture(scope="module", params=["llama", "gpt2", "sslm_lstm", "t5"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny(request.param)


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_gives_what_single_prompts_give(model: PreTrainedModel, way: str) -> None:
    sampling, num_beams = WAYS[way]
    write = writer(model, sampling, num_beams=num_beams).write
    single = [write([prompt])[0] for prompt in PROMPTS]
    assert len({tuple(one.tokens) for one in single}) > 3
    for size in (3, 7):
        batches = [PROMPTS[start : start + size] for start in range(0, 7, size)]
        assert [one for batch in batches for one in write(batch)] == single
    assert write(PROMPTS[::-1]) == single[::-1]


def test_greedy_text_and_beams_are_those_of_transformers(model: PreTrainedModel) -> None:
    for num_beams in (1, 4):
        wanted: Any = model.generate(  # type: ignore[operator]
            torch.tensor([PROMPTS[4].ids]),
            max_new_tokens=8,
            num_beams=num_beams,
            eos_token_id=END,
            pad_token_id=0,
            decoder_start_token_id=0,
        )
        start = 1 if model.config.is_encoder_decoder else len(PROMPTS[4].ids)
        assert writer(model, num_beams=num_beams).write([PROMPTS[4]])[0].tokens == wanted[0, start:].tolist()


def test_another_seed_or_prompt_number_draws_otherwise(model: PreTrainedModel) -> None:
    ids = PROMPTS[1].ids
    texts = {
        tuple(writer(model, Sampling(1.0, seed=seed)).write([Prompt(number, ids)])[0].tokens)
        for seed in (0, 1, (1 << 64) - 1)
        for number in (0, 1)
    }
    assert len(texts) == 6


def test_log_probabilities_are_the_models_own_and_fp32(model: PreTrainedModel) -> None:
    write = writer(model, Sampling(0.5, top_k=5, repetition_penalty=1.5))
    written = write.write(PROMPTS)
    found = write.logprobs(PROMPTS, written)
    assert [len(one) for one in found] == [len(one.tokens) for one in written]
    ids, tokens = PROMPTS[1].ids, written[1].tokens
    inputs = {"input_ids": torch.tensor([ids + tokens])}
    if model.config.is_encoder_decoder:
        inputs = {"input_ids": torch.tensor([ids]), "decoder_input_ids": torch.tensor([[0, *tokens]])}
    logits = model(**inputs).logits[0].detach().log_softmax(-1)[-1 - len(tokens) : -1]
    assert found[1] == pytest.approx([float(row[token]) for row, token in zip(logits, tokens, strict=True)], abs=1e-5)


def test_no_row_goes_past_the_models_positions() -> None:
    written = writer(tiny("gpt2"), max_new_tokens=30).write(PROMPTS)
    room = [min(32 - len(prompt.ids), 30) for prompt in PROMPTS]
    assert [len(one.tokens) for one in written if one.reason != "end"] == [
        most for one, most in zip(written, room, strict=True) if one.reason != "end"
    ]
    assert written[3].reason in ("positions", "end")


def test_whoever_heeds_no_padding_gets_none() -> None:
    """RWKV's kin: prompts of one length alone are a batch."""
    blind = tiny("llama")
    forward = blind.forward
    blind.forward = lambda *args, attention_mask=None, position_ids=None, **how: forward(*args, **how)  # type: ignore
    assert heeds_padding(tiny("llama"))
    assert not heeds_padding(blind)
    assert writer(blind).write(PROMPTS) == [writer(blind).write([prompt])[0] for prompt in PROMPTS]


def test_only_tokens_that_a_tokenizer_knows_are_written_and_none_that_is_forbidden() -> None:
    write = Writer(tiny("llama"), spell, Sampling(1.0), [END], 40, never=[30, 31], max_new_tokens=20)
    tokens = {token for one in write.write(PROMPTS) for token in one.tokens}
    assert max(tokens) < 40
    assert not tokens & {30, 31}


# ---------------------------------------------------------------------------------------------- draws


KNOWN = Known(30, [], 30)


def test_draws_have_the_probabilities_of_the_softmax() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, -math.inf]])
    drawn = (logits + gumbel(0, [(n, 3) for n in range(20_000)], torch.arange(4)[None])).argmax(-1).bincount(
        minlength=4
    ) / 20_000
    assert drawn.tolist() == pytest.approx(logits.softmax(-1)[0].tolist(), abs=0.01)


def logits_of(n: int = 50, size: int = 30) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(0)) * 3


CUT = [
    Sampling(0.7),
    Sampling(1.5, top_k=7),
    Sampling(0.9, top_p=0.8),
    Sampling(1.0, min_p=0.1),
    Sampling(1.3, 9, 0.6, 0.05),
    Sampling(1.0, top_k=99),
    Sampling(1.0, top_p=1e-9),
    Sampling(1.0, min_p=1.0),
]


@pytest.mark.parametrize("how", CUT)
def test_cutoffs_leave_the_tokens_that_transformers_warpers_leave(how: Sampling) -> None:
    warpers: list[Any] = [TemperatureLogitsWarper(how.temperature)]
    warpers += [TopKLogitsWarper(how.top_k)] if how.top_k else []
    warpers += [TopPLogitsWarper(how.top_p)] if how.top_p else []
    warpers += [MinPLogitsWarper(how.min_p)] if how.min_p else []
    wanted = LogitsProcessorList(warpers)(torch.zeros(50, 1, dtype=torch.long), logits_of()) > -math.inf
    logits = (logits_of() - logits_of().amax(-1, keepdim=True)) / how.temperature
    loose, exact, tight = cutoffs(logits, how, torch.full((50, 1), 1e-6))
    assert torch.equal(logits >= exact, wanted)
    assert ((loose <= exact) & (exact <= tight)).all()


ALL_WAYS = [
    Sampling(),
    Sampling(1.0),
    Sampling(1.0, top_k=1),
    Sampling(0.8, 5, 0.7, 0.1, 1.2),
    Sampling(1.0, top_p=0.5),
    Sampling(1.0, top_k=3),
]


@pytest.mark.parametrize("how", ALL_WAYS)
def test_rounding_of_logits_decides_nothing(how: Sampling) -> None:
    """Logits come otherwise in each batch, by less than is taken for close; rows alone are always the same."""
    exact = (logits_of(400) * 4).round() / 4  # many ties
    ids = torch.arange(400)[:, None] % 30
    asked = [0]

    def choose(noise: float) -> Tensor:
        def alone(row: int, tokens: Tensor) -> Tensor:
            asked[0] += 1
            return exact[row]

        rounding = torch.rand(exact.shape, generator=torch.Generator().manual_seed(int(noise * 1e9))) - 0.5
        given = exact + noise * exact.abs().amax(-1, keepdim=True) * rounding
        return Choose(how, KNOWN, list(range(400)), torch.zeros(400, dtype=torch.long), alone)(ids, given).argmax(-1)

    assert all(torch.equal(choose(0.0), choose(noise)) for noise in (1e-6, 4e-6, 5e-6))
    assert asked[0] < 4 * 200


def test_a_temperature_near_0_is_greedy_and_a_huge_one_uniform() -> None:
    def choose(temperature: float) -> Tensor:
        how, none = Sampling(temperature), torch.zeros(50, dtype=torch.long)
        return Choose(how, KNOWN, list(range(50)), none, lambda row, _: logits_of()[row])(
            none[:, None], logits_of()
        ).argmax(-1)

    assert torch.equal(choose(1e-30), logits_of().argmax(-1))
    assert len(set(choose(1e6).tolist())) > 15


def test_weights_that_are_no_numbers_are_told_and_not_written() -> None:
    with pytest.raises(RunFailed, match="NaN"):
        Known(3, [], 3)(torch.zeros(1, 1), torch.tensor([[1.0, math.nan, 0.0]]))


# ---------------------------------------------------------------------------------------------- text


def by_bytes(ids: list[int]) -> str:
    return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize("text", ["plain", "שלום 你好", "e\u0301 😀🏳️‍🌈", "a\x00b", "\ufffd!"])
def test_a_stream_shows_whole_characters_and_all_of_them(text: str) -> None:
    shown: list[str] = []
    stream = Stream(by_bytes, list(b"before: "), [], shown.append)
    for byte in text.encode():
        stream.put(byte)
    stream.close()
    assert "".join(shown) == text
    assert text == "\ufffd!" or "\ufffd" not in "".join(shown)


@pytest.mark.parametrize(
    ("stops", "wanted"),
    [(["ll"], "he"), (["lo w", "xx"], "hel"), (["zz"], "hello world"), (["d"], "hello worl"), (["h"], "")],
)
def test_a_stream_ends_before_a_stop_and_holds_back_what_may_become_one(stops: list[str], wanted: str) -> None:
    shown: list[str] = []
    stream = Stream(by_bytes, [], stops, shown.append)
    for byte in b"hello world":
        stream.put(byte)
    stream.close()
    assert "".join(shown) == wanted


def test_broken_bytes_are_shown_when_they_can_no_longer_become_a_character() -> None:
    shown: list[str] = []
    stream = Stream(by_bytes, [], [], shown.append)
    for byte in b"\xff" * 20:
        stream.put(byte)
    assert shown
    stream.close()
    assert "".join(shown) == "\ufffd" * 20


def test_a_piece_is_written_as_it_stands_behind_others() -> None:
    def words(ids: list[int]) -> str:  # as sentencepiece, which drops the first space
        return "".join(" a" for _ in ids).lstrip()

    assert continued(words, [5], [5, 5]) == " a a"
    assert continued(words, [], [5, 5]) == "a a"


def test_stops_are_found_in_new_text_alone_and_at_its_end() -> None:
    assert has_stop(by_bytes, [], list(b"the end"), ["end"])
    assert not has_stop(by_bytes, list(b"end"), list(b"ing"), ["end"])
    assert not has_stop(by_bytes, list(b"the e"), list(b"nd"), ["end"])


@pytest.mark.parametrize("num_beams", [1, 3])
def test_text_ends_before_a_stop_and_no_token_comes_after_it(num_beams: int) -> None:
    whole = writer(tiny("llama"), num_beams=num_beams).write(PROMPTS)
    stop = whole[1].text[5:7]
    written = writer(tiny("llama"), num_beams=num_beams, stops=[stop]).write(PROMPTS)
    if num_beams == 1:
        place = whole[1].text.index(stop)
        assert written[1] == (whole[1].tokens[: place + 2], whole[1].text[:place], "stop")
    assert all(stop not in one.text for one in written)


# ---------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("iterative", [False, True])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, top_p=0.9, seed=SEED)])
def test_masks_are_filled_in_alike_in_any_batch(iterative: bool, sampling: Sampling) -> None:
    mask, bert = 3, tiny("bert")
    rows = [[2, 9, mask, 11, 1], [2, mask, mask, mask, 30, 31, mask, 12, 1], [2, 40, 1], [2, mask, 1]]
    prompts = [Prompt(n, row) for n, row in enumerate(rows)]
    filler = Filler(bert, mask, [0, 1, 2, 3], VOCAB, sampling, iterative)
    filled = filler.fill(prompts)
    assert [len(one.tokens) for one in filled] == [1, 4, 0, 1]
    assert min(token for one in filled for token in one.tokens) > 3
    assert [one.tokens for one in filled] == [filler.fill([prompt])[0].tokens for prompt in prompts]


def test_one_pass_takes_the_likeliest_of_each_and_iterative_the_surest_first() -> None:
    mask, bert = 3, tiny("bert")
    row = [2, mask, 20, mask, mask, 30, 1]
    places = [1, 3, 4]

    @torch.no_grad()
    def likeliest(ids: list[int]) -> Tensor:
        logits = bert(torch.tensor([ids])).logits[0, :, :].log_softmax(-1)
        return logits.index_fill(1, torch.tensor([0, 1, 2, 3]), -math.inf)

    once = Filler(bert, mask, [0, 1, 2, 3], VOCAB, Sampling(), False).fill([Prompt(0, row)])[0]
    assert once.tokens == likeliest(row)[places].argmax(-1).tolist()
    ids = list(row)
    while left := [n for n in places if ids[n] == mask]:
        logits = likeliest(ids)
        surest = max(left, key=lambda n: float(logits[n].max()))
        ids[surest] = int(logits[surest].argmax())
    again = Filler(bert, mask, [0, 1, 2, 3], VOCAB, Sampling(), True).fill([Prompt(0, row)])[0]
    assert again.tokens == [ids[n] for n in places]
    assert all(logprob <= 0 for logprob in again.logprobs)
