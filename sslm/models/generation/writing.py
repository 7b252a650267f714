"""Text that goes on: transformers' `generate`, its cache, and draws of our own. A batch gives what one prompt gives.

Prompts stand at the right edge of a batch, behind padding that no token sees. That holds by construction: whether an
architecture heeds masks and positions is tried, and if it doesn't, prompts of one length alone are a batch. No row goes
past its model's positions: rows with less room than others are a batch of their own.
"""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from sslm.models.generation.draws import Choose, Known, Sampling
from sslm.models.generation.text import Decode, Stream, continued, first_of, has_stop
from sslm.models.head import decoder_start
from sslm.models.masks import num_positions
from sslm.models.probe import probe_tokens
from sslm.system.errors import UserError, one_line

KEPT = {"forced_bos_token_id": 0, "suppress_tokens": 1, "begin_suppress_tokens": 1, "bad_words_ids": 2}
"""What is taken over from a model's own generation config (what it was trained to begin with, or never writes) -> depth
of its lists."""
PADDED_TOKENS = 3


class Prompt(NamedTuple):
    """What a model continues, or reads if it has an encoder."""

    number: int
    """Its draws depend on it."""
    ids: list[int]


class Written(NamedTuple):
    """What a model wrote for a prompt."""

    tokens: list[int]
    """The end included, if it wrote one."""
    text: str
    """Up to the text that it was to stop at."""
    reason: str
    """Why it stopped: end, stop (one of the texts), length, or positions (the model has no more of them)."""


class Writer:
    """Continues prompts.

    Args:
        model: in evaluation mode, on its device.
        decode: token ids to text.
        sampling: how tokens are chosen; beams take the likeliest text instead.
        ends: tokens that end a text.
        vocab_size: tokens that the tokenizer knows; no other is written.
        never: tokens that are never written either.
        max_new_tokens: longest text.
        num_beams: texts that are followed at a time (beam search); 1: one.
        stops: texts to stop at, which are cut off.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        decode: Decode,
        sampling: Sampling,
        ends: Iterable[int],
        vocab_size: int,
        *,
        never: Iterable[int] = (),
        max_new_tokens: int = 128,
        num_beams: int = 1,
        stops: Sequence[str] = (),
    ) -> None:
        self.model, self.decode, self.sampling, self.ends = model, decode, sampling, sorted(set(ends))
        self.max_new_tokens, self.num_beams, self.stops = max_new_tokens, num_beams, stops
        self.has_encoder = bool(model.config.is_encoder_decoder)
        own: Any = model.generation_config
        self.start = start_of(model) if self.has_encoder else None
        size = model.config.vocab_size
        self.kept = {
            name: value for name, depth in KEPT.items() if are_tokens(value := getattr(own, name, None), size, depth)
        }
        model.generation_config = GenerationConfig()  # a folder's own settings decide nothing: flags do
        self.known = Known(vocab_size, never, model.config.vocab_size)
        self.pads = not self.has_encoder and heeds_padding(model)

    def write(self, prompts: Sequence[Prompt], show: Callable[[str], object] | None = None) -> list[Written]:
        """Continue prompts, as one batch if they go together.

        Args:
            prompts: with at least one token each, and room for another.
            show: takes the text of a single prompt piece by piece, as it comes.
        """
        alike = defaultdict[tuple[int, int], list[int]](list)
        for place, prompt in enumerate(prompts):
            length = 0 if self.has_encoder or self.pads else len(prompt.ids)
            alike[self.room(prompt), length].append(place)
        written: dict[int, Written] = {}
        for (room, _), places in alike.items():
            batch = [prompts[place] for place in places]
            written |= zip(places, self._write(batch, room, show), strict=True)
        return [written[place] for place in range(len(prompts))]

    def room(self, prompt: Prompt) -> int:
        """How many tokens may follow a prompt."""
        positions = num_positions(self.model.config)
        if positions is None:
            return self.max_new_tokens
        return min(self.max_new_tokens, positions - (1 if self.has_encoder else len(prompt.ids)))

    @torch.inference_mode()
    def _write(self, prompts: Sequence[Prompt], room: int, show: Callable[[str], object] | None) -> list[Written]:
        ids, mask = padded([prompt.ids for prompt in prompts], on_left=not self.has_encoder)
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        before = [[] if self.has_encoder else prompt.ids for prompt in prompts]
        start = 1 if self.has_encoder else ids.shape[1]
        padding = torch.zeros_like(mask[:, 0]) if self.has_encoder else (mask == 0).sum(1)
        choose = Choose(
            self.sampling,
            self.known,
            [prompt.number for prompt in prompts],
            padding,
            self._alone(prompts),
            self._is_exact,
        )
        ending = Ending(self.decode, self.ends, self.stops, before, start, choose.is_done, self.num_beams)
        stream = Stream(self.decode, before[0], self.stops, show) if show else None
        generated = self._generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=self._config(room),
            logits_processor=LogitsProcessorList([self.known if self.num_beams > 1 else choose]),
            stopping_criteria=StoppingCriteriaList([ending]),
            streamer=Streamer(stream, set(self.ends)) if stream and self.num_beams == 1 else None,
        )
        written = [
            self._written(known, row, room) for known, row in zip(before, generated[:, start:].tolist(), strict=True)
        ]
        if stream and self.num_beams > 1 and show:
            show(written[0].text)
        return written

    def _generate(self, **how: Any) -> Tensor:
        """Call transformers' `generate`: [n, prompt and new tokens], or UserError if it can't do so with this model."""
        try:
            tokens: Tensor = self.model.generate(**how)  # type: ignore[operator]
        except ValueError as error:  # a cache that can't follow beams, and what else an architecture lacks
            instead = "leave --num_beams out" if self.num_beams > 1 else "take another model"
            raise UserError(f"a {self.model.config.model_type} can't write so ({one_line(error)}); {instead}") from None
        return tokens

    @torch.inference_mode()
    def logprobs(self, prompts: Sequence[Prompt], written: Sequence[Written]) -> list[list[float]]:
        """Return the log-probability of each token that was written, in the model's own distribution, in fp32.

        Each row is computed alone, at once, and is the same in any batch.
        """
        return [self._logprobs(prompt.ids, one.tokens) for prompt, one in zip(prompts, written, strict=True)]

    def _logprobs(self, ids: list[int], tokens: list[int]) -> list[float]:
        device = self.model.device
        if self.has_encoder:
            target = torch.tensor([[self.start, *tokens[:-1]]], device=device)
            logits = self._logits(target, len(tokens), torch.tensor([ids], device=device))
        else:
            logits = self._logits(torch.tensor([ids + tokens[:-1]], device=device), len(tokens))
        chosen = torch.tensor(tokens, device=device)[:, None]
        found: list[float] = logits.float().log_softmax(-1).gather(1, chosen)[:, 0].tolist()
        return found

    def _logits(self, ids: Tensor, num: int, source: Tensor | None = None) -> Tensor:
        """[num, vocab_size] last logits of one row, without a cache; `source` is what the encoder reads."""
        how: dict[str, Any] = {"input_ids": ids} if source is None else {"input_ids": source, "decoder_input_ids": ids}
        if self.model._supports_logits_to_keep():  # type: ignore[operator]
            how["logits_to_keep"] = num
        logits: Tensor = self.model(**how, use_cache=False).logits[0, -num:]
        return logits

    def _config(self, room: int) -> GenerationConfig:
        return GenerationConfig(
            **self.kept,
            do_sample=False,
            max_new_tokens=room,
            num_beams=self.num_beams,
            repetition_penalty=self.sampling.repetition_penalty if self.num_beams > 1 else None,
            eos_token_id=self.ends,
            pad_token_id=0,  # masks tell what is padding
            decoder_start_token_id=self.start,
        )

    @property
    def _is_exact(self) -> bool:
        return self.model.dtype == torch.float32

    def _alone(self, prompts: Sequence[Prompt]) -> Callable[[int, Tensor], Tensor]:
        """Make a function that computes a row's next logits in a batch of one, without padding or cache."""

        def logits(row: int, tokens: Tensor) -> Tensor:
            source = torch.tensor([prompts[row].ids], device=tokens.device) if self.has_encoder else None
            return self._logits(tokens[None], 1, source)[0]

        return logits

    def _written(self, before: list[int], tokens: list[int], room: int) -> Written:
        end = next((place for place, token in enumerate(tokens) if token in self.ends), None)
        tokens = tokens[:room] if end is None else tokens[: end + 1]
        text = continued(self.decode, before, tokens)
        if (place := first_of(self.stops, text)) is not None:
            lengths = range(1, len(tokens) + 1)  # a row that waited for others went on
            length = next(n for n in lengths if has_stop(self.decode, before, tokens[:n], self.stops))
            return Written(tokens[:length], text[:place], "stop")
        if end is not None:
            return Written(tokens, text, "end")
        return Written(tokens, text, "length" if room == self.max_new_tokens else "positions")


def start_of(model: PreTrainedModel) -> int:
    """Return the token that the decoder of a model with an encoder begins with."""
    own = getattr(model.generation_config, "decoder_start_token_id", None)
    return own if are_tokens(own, model.config.vocab_size) else decoder_start(model.config)  # type: ignore[return-value]


def are_tokens(value: object, vocab_size: int, depth: int = 0) -> bool:
    """Whether a value of a folder's generation config is a token, or a list of tokens, or of such lists.

    >>> [are_tokens(value, 9) for value in (3, 9, "3", True)], [are_tokens(value, 9, 1) for value in ([3, 8], [], 3)]
    ([True, False, False, False], [True, False, False])
    """
    if depth:
        return isinstance(value, list) and bool(value) and all(are_tokens(x, vocab_size, depth - 1) for x in value)
    return type(value) is int and 0 <= value < vocab_size


class Ending(StoppingCriteria):
    """Ends a row with one of the tokens that end a text, or once it has one of the texts to stop at.

    Args:
        decode: ids to text.
        ends: tokens that end a text.
        stops: texts to stop at.
        before: [n] the tokens of each prompt.
        start: place of the first new token.
        is_done: takes which rows have ended.
        num_beams: above 1, rows are candidates that change places.
    """

    def __init__(
        self,
        decode: Decode,
        ends: list[int],
        stops: Sequence[str],
        before: list[list[int]],
        start: int,
        is_done: list[bool],
        num_beams: int,
    ) -> None:
        self.decode, self.ends, self.stops = decode, set(ends), stops
        self.before, self.start, self.is_done, self.num_beams = before, start, is_done, num_beams

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        rows = input_ids[:, self.start :].tolist() if self.stops else input_ids[:, -1:].tolist()
        each = len(rows) // len(self.before)
        found = [self._ends(self.before[n // each], row) for n, row in enumerate(rows)]
        if self.num_beams == 1:
            self.is_done[:] = found = [new or old for new, old in zip(found, self.is_done, strict=True)]
        return torch.tensor(found, device=input_ids.device)

    def _ends(self, before: list[int], new: list[int]) -> bool:
        return new[-1] in self.ends or has_stop(self.decode, before, new, self.stops)


class Streamer(BaseStreamer):
    """Gives the tokens of one row to a stream of text; the first that comes is the prompt, and no end is shown."""

    def __init__(self, stream: Stream, ends: set[int]) -> None:
        self.stream, self.ends, self.is_prompt = stream, ends, True

    def put(self, value: Tensor) -> None:
        if not self.is_prompt and int(value[0]) not in self.ends:
            self.stream.put(int(value[0]))
        self.is_prompt = False

    def end(self) -> None:
        self.stream.close()


def padded(rows: Sequence[list[int]], on_left: bool) -> tuple[Tensor, Tensor]:
    """Make [n, longest] ids and their mask of rows of any lengths.

    >>> padded([[5, 6], [7]], on_left=True)[0].tolist(), padded([[5, 6], [7]], on_left=True)[1].tolist()
    ([[5, 6], [0, 7]], [[1, 1], [0, 1]])
    """
    longest = max(map(len, rows))
    fill = [[0] * (longest - len(row)) for row in rows]
    ids = [gap + row if on_left else row + gap for gap, row in zip(fill, rows, strict=True)]
    mask = [gap + [1] * len(row) if on_left else [1] * len(row) + gap for gap, row in zip(fill, rows, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


@torch.inference_mode()
def heeds_padding(model: PreTrainedModel) -> bool:
    """Whether a decoder says the same with padding before its tokens, as `generate` masks and positions it."""
    ids = probe_tokens(model)[:, : (num_positions(model.config) or 16) - PADDED_TOKENS][:, :8]
    row = torch.cat([ids[:, :1].expand(-1, PADDED_TOKENS), ids], dim=1)
    mask = (torch.arange(row.shape[1], device=row.device) >= PADDED_TOKENS).long()[None]
    how: dict[str, Any] = {"attention_mask": mask, "use_cache": True, "is_first_iteration": True}
    try:
        if "position_ids" in inspect.signature(model.forward).parameters:
            how["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        inputs = model.prepare_inputs_for_generation(row, **how)  # type: ignore[operator]
        alone, behind = model(input_ids=ids).logits[:, -1], model(**inputs).logits[:, -1]
    except Exception:  # each architecture has its own way not to take a mask
        return False
    error = max(1e-4, 4 * torch.finfo(alone.dtype).eps)
    return bool((alone - behind).abs().max() <= error * alone.abs().max())
