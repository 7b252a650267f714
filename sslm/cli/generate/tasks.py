"""What is done with a prompt, by what the model was trained to do.

causal_lm        goes on with the prompt
masked_lm        fills in each `<fill>`, `<fill:3>` (three tokens) or mask of the tokenizer's
span_corruption  fills in each `<fill>`, with as many tokens as it likes; without any, a run's model goes on with the
                 prompt, and another's writes what it has to say to it
denoising        writes the whole text anew, with each `<fill>` or mask of the tokenizer's filled in
token_order      restores the order of tokens, if it has a decoder
text_to_text     writes what belongs to the prompt
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from sslm.cli.generate.prompts import Given
from sslm.cli.generate.texts import Texts
from sslm.data.stream.vocabulary import vocabulary_of
from sslm.models.generation.draws import Sampling
from sslm.models.generation.filling import Filler
from sslm.models.generation.text import continued
from sslm.models.generation.writing import Prompt, Writer, Written
from sslm.models.masks import num_positions
from sslm.runs.trained import Trained
from sslm.system.errors import UserError, short
from sslm.system.terminal import plural

FILL = re.compile(r"<fill(?::([0-9]{1,4}))?>")
"""What holds the place of something missing, and how many tokens that are."""

Show = Callable[[str], object]


class Settings(NamedTuple):
    """How to write."""

    sampling: Sampling
    max_new_tokens: int
    num_beams: int
    stops: list[str]
    iterative: bool


class Answer(NamedTuple):
    """What came out for a prompt."""

    text: str
    """What follows the prompt, or the whole text if something in it was filled in."""
    tokens: list[int]
    reason: str
    logprobs: list[float] | None = None


@dataclass
class Task:
    """Does what a model was trained for with prompts.

    Args:
        trained: the model.
        texts: its tokenizer.
        settings: how to write.
        needs_logprobs: whether to tell the probability of each token.
        chat: makes a prompt a turn of a conversation, as tokens.
    """

    trained: Trained
    texts: Texts
    settings: Settings
    needs_logprobs: bool = False
    chat: Callable[[str], list[int]] | None = None
    cut: dict[int, str] = field(default_factory=dict, init=False)
    """Number of a prompt that was too long -> a sentence about it."""
    _writer: Writer | None = field(default=None, init=False)
    is_one_pass: ClassVar[bool] = False
    """Whether it fills in masks, and writes no text that goes on."""
    streams: ClassVar[bool] = False
    """Whether its text can be shown as it comes."""

    def echoes(self, given: Given) -> bool:
        """Whether the prompt is to be shown before its answer: otherwise the answer has it in it."""
        return False

    def prompt(self, given: Given) -> Prompt:
        """Make a prompt's tokens; UserError if it can't be used."""
        raise NotImplementedError

    def answer(self, given: Sequence[Given], show: Show | None = None) -> list[Answer]:
        """Answer prompts, which may be one batch."""
        raise NotImplementedError

    def writer(self, never: Sequence[int] = ()) -> Writer:
        """Return what writes tokens after a prompt."""
        if self._writer is None:
            how = self.settings
            self._writer = Writer(
                self.trained.model,
                self.texts.decode,
                how.sampling,
                {*ends_of(self.trained, self.texts), *self.texts.special_named(how.stops)},
                self.texts.vocab_size,
                never=never,
                max_new_tokens=how.max_new_tokens,
                num_beams=how.num_beams,
                stops=how.stops,
            )
        return self._writer

    def fitting(self, given: Given, before: list[int], ids: list[int], after: list[int]) -> Prompt:
        """Put tokens around a prompt, and cut it from the left if it is longer than the model's positions."""
        positions, around = num_positions(self.trained.model.config), len(before) + len(after)
        if positions is not None and around + len(ids) > positions - (not self.trained.model.config.is_encoder_decoder):
            room = positions
            if not self.trained.model.config.is_encoder_decoder:  # what is written takes positions, too
                room = max(positions - self.settings.max_new_tokens, positions // 2)
            kept = max(room - around, 1)
            cut = f"its first {plural(len(ids) - kept, 'token', exact=True)} are left out"
            what = f"{len(ids):,} tokens, and the model has {positions:,} positions"
            self.cut[given.number] = f"{given.where}: {what}; {cut}"
            ids = ids[-kept:]
        return Prompt(given.number, before + ids + after or [self.texts.end])


class Continuing(Task):
    """Goes on with a prompt."""

    streams = True

    def echoes(self, given: Given) -> bool:
        return self.chat is None and self.trained.objective not in ("token_order", "text_to_text")

    def prompt(self, given: Given) -> Prompt:
        if self.chat is not None:
            return self.fitting(given, [], self.chat(given.prompt), [])
        if FILL.search(given.prompt):
            kind = f"{self.trained.name} is a {self.trained.objective} model, which writes on and fills in nothing"
            raise UserError(
                f"{given.where}: has <fill>, but {kind}; take a masked_lm, span_corruption or denoising one"
            )
        if self.trained.objective == "text_to_text":
            source = setting(self.trained, "prefix", "") + given.prompt + setting(self.trained, "separator", "\n")
            return self.fitting(given, self.texts.before, self.texts.encode(source), [])
        after = [self.texts.end] if self.trained.objective == "token_order" else []
        return self.fitting(given, self.texts.begin, self.texts.encode(given.prompt), after)

    def answer(self, given: Sequence[Given], show: Show | None = None) -> list[Answer]:
        prompts = [self.prompt(one) for one in given]
        written = self.writer().write(prompts, show)
        return answers(self, prompts, written)


class Rewriting(Task):
    """Reads a prompt, and writes a text: the prompt's as it should be, its translation, or whatever was trained."""

    streams = True

    def prompt(self, given: Given) -> Prompt:
        if self.trained.objective == "text_to_text":
            source = self.texts.encode(setting(self.trained, "prefix", "") + given.prompt)
            return self.fitting(given, self.texts.before, source, self.texts.ended)
        is_denoising = self.trained.objective == "denoising"
        mask = self.texts.tokenizer.mask_token_id
        ids = list[int]()
        for number, piece in enumerate(pieces_of(given, self.texts)):
            if number and (mask is None or not is_denoising):
                raise UserError(f"{given.where}: has <fill>, which {self.trained.name} was not trained to fill in")
            ids += ([mask] if number else []) + self.texts.encode(piece.text)
            if piece.num_missing is not None:
                raise UserError(
                    f"{given.where}: <fill:{piece.num_missing}>: the model decides how much it fills in; type <fill>"
                )
        return self.fitting(given, self.texts.before, ids, self.texts.after or [self.texts.end])

    def answer(self, given: Sequence[Given], show: Show | None = None) -> list[Answer]:
        prompts = [self.prompt(one) for one in given]
        written = self.writer(never=self._never()).write(prompts, show)
        return answers(self, prompts, written)

    def _never(self) -> list[int]:
        mask = self.texts.tokenizer.mask_token_id
        return [] if mask is None or self.trained.objective != "denoising" else [mask]


class SpanFilling(Task):
    """Writes what each sentinel stands for (T5), and puts it into its place."""

    @functools.cached_property
    def sentinels(self) -> list[int]:
        """Ids of the tokens that stand for spans."""
        found: list[int] = vocabulary_of(self.texts.tokenizer).sentinels.tolist()
        return found

    def echoes(self, given: Given) -> bool:
        return len(pieces_of(given, self.texts)) == 1 and bool(self.trained.settings)

    def _pieces(self, given: Given) -> "list[Piece]":
        pieces = pieces_of(given, self.texts)
        if len(pieces) == 1 and self.trained.settings:
            pieces = [pieces[0], Piece("", None)]  # what is missing is the rest
        if len(pieces) - 1 > len(self.sentinels):
            number = plural(len(self.sentinels), "sentinel", exact=True)
            raise UserError(f"{given.where}: has {len(pieces) - 1} times <fill>, and the model {number}; give fewer")
        if count := next((piece.num_missing for piece in pieces if piece.num_missing is not None), None):
            raise UserError(f"{given.where}: <fill:{count}>: the model decides how much it fills in; type <fill>")
        return pieces

    def prompt(self, given: Given) -> Prompt:
        pieces = self._pieces(given)
        ids = self.texts.encode(pieces[0].text)
        for sentinel, piece in zip(self.sentinels, pieces[1:], strict=False):
            ids += [sentinel, *self.texts.encode(piece.text)]
        return self.fitting(given, [], ids, self.texts.after or [self.texts.end])

    def answer(self, given: Sequence[Given], show: Show | None = None) -> list[Answer]:
        prompts = [self.prompt(one) for one in given]
        written = self.writer().write(prompts)
        plain = answers(self, prompts, written)
        return [self._filled(one, answer) for one, answer in zip(given, plain, strict=True)]

    def _filled(self, given: Given, answer: Answer) -> Answer:
        """Put spans into their places; a text that goes on, or has no places, is as it was written."""
        pieces = self._pieces(given)
        if len(pieces) == 1:
            return answer
        spans = spans_of(answer.tokens, self.sentinels)
        if len(pieces_of(given, self.texts)) == 1:
            before = self.texts.encode(given.prompt)
            return answer._replace(text=continued(self.texts.decode, before, spans.get(0, [])))
        fills = [spans.get(number, []) for number in range(len(pieces) - 1)]
        return answer._replace(text=assembled(pieces, fills, self.texts))


class MaskFilling(Task):
    """Fills in masks."""

    is_one_pass = True

    def prompt(self, given: Given) -> Prompt:
        mask = self.texts.tokenizer.mask_token_id
        if mask is None:
            raise UserError(f"{self.trained.name}: its tokenizer has no mask token, so it can fill in nothing")
        pieces = pieces_of(given, self.texts)
        if len(pieces) == 1:
            name = self.texts.tokenizer.mask_token
            raise UserError(
                f"{given.where}: has nothing to fill in; put <fill>, <fill:3> or {name} where text is missing"
            )
        ids = self.texts.encode(pieces[0].text)
        for piece in pieces[1:]:
            ids += [mask] * (piece.num_missing or 1) + self.texts.encode(piece.text)
        positions = num_positions(self.trained.model.config)
        ids = self.texts.before + ids + self.texts.after
        if positions is not None and len(ids) > positions:
            raise UserError(
                f"{given.where}: {len(ids):,} tokens, and the model has {positions:,} positions; shorten it"
            )
        return Prompt(given.number, ids)

    def answer(self, given: Sequence[Given], show: Show | None = None) -> list[Answer]:
        mask = self.texts.tokenizer.mask_token_id
        filler = Filler(
            self.trained.model,
            mask,
            self.texts.special_ids(),
            self.texts.vocab_size,
            self.settings.sampling,
            self.settings.iterative,
        )
        found = []
        for one, filled in zip(given, filler.fill([self.prompt(one) for one in given]), strict=True):
            pieces, tokens = pieces_of(one, self.texts), iter(filled.tokens)
            fills = [[next(tokens) for _ in range(piece.num_missing or 1)] for piece in pieces[1:]]
            text = assembled(pieces, fills, self.texts)
            found.append(Answer(text, filled.tokens, "filled", filled.logprobs if self.needs_logprobs else None))
        return found


class Piece(NamedTuple):
    """Text of a prompt between what is missing."""

    text: str
    num_missing: int | None
    """Number of tokens that are missing before it, if any says so."""
    space: str = ""
    """White space that stood before the mark after it: words begin with it, so it belongs to what is filled in."""


def pieces_of(given: Given, texts: Texts) -> list[Piece]:
    """Cut a prompt at what is missing: `<fill>`, `<fill:3>`, or the name of the tokenizer's mask.

    Raises:
        UserError: `<fill:0>`.
    """
    mask = texts.tokenizer.mask_token
    marks = re.compile(FILL.pattern + (f"|{re.escape(mask)}" if mask else ""))
    pieces, start, count = list[Piece](), 0, None
    for mark in marks.finditer(given.prompt):
        pieces.append(_piece(given.prompt[start : mark.start()], count))
        start, count = mark.end(), None if mark[1] is None else int(mark[1])
        if count == 0:
            raise UserError(f"{given.where}: {short(mark[0])}: expected a number of tokens from 1 on, as in <fill:3>")
    return [*pieces, Piece(given.prompt[start:], count)]


def _piece(text: str, count: int | None) -> Piece:
    return Piece(text[:-1], count, " ") if text.endswith(" ") else Piece(text, count)


def assembled(pieces: list[Piece], fills: list[list[int]], texts: Texts) -> str:
    """Put what was filled in between the pieces of a prompt, which stay as they were typed."""
    whole, ids = pieces[0].text, texts.encode(pieces[0].text)
    for before, piece, fill in zip(pieces, pieces[1:], fills, strict=False):
        text = continued(texts.decode, ids, fill)
        if not texts.keeps_spaces:
            text = before.space + text.strip()
        elif not whole:
            text = before.space + text.lstrip(" ")
        whole += text + piece.text
        ids = ids + fill + texts.encode(piece.text)
    return whole


def spans_of(tokens: list[int], sentinels: list[int]) -> dict[int, list[int]]:
    """Cut what a T5 wrote at its sentinels: number of a sentinel -> the tokens after it.

    >>> spans_of([99, 14, 15, 98, 20, 1], [99, 98])
    {0: [14, 15], 1: [20, 1]}
    """
    numbers = {token: number for number, token in enumerate(sentinels)}
    spans: dict[int, list[int]] = {}
    span = list[int]()
    for token in tokens:
        if token in numbers:
            span = spans.setdefault(numbers[token], [])
        else:
            span.append(token)
    return spans


def answers(task: Task, prompts: list[Prompt], written: list[Written]) -> list[Answer]:
    """Make answers of what was written, with the probabilities of its tokens if they are wanted."""
    logprobs: Any = task.writer().logprobs(prompts, written) if task.needs_logprobs else [None] * len(written)
    return [
        Answer(one.text, one.tokens, one.reason, logprobs=probs) for one, probs in zip(written, logprobs, strict=True)
    ]


def setting(trained: Trained, name: str, default: str) -> str:
    """Return a setting of the objective that a run was trained with."""
    value = trained.settings.get("objective", {}).get(name, default)
    return value if isinstance(value, str) else default


def ends_of(trained: Trained, texts: Texts) -> list[int]:
    """List the tokens that end a text: the tokenizer's, and those that the model's generation config names."""
    named = getattr(trained.model.generation_config, "eos_token_id", None)
    named = named if isinstance(named, list) else [named]
    size = trained.model.config.vocab_size
    return sorted({texts.end, *(end for end in named if isinstance(end, int) and 0 <= end < size)})


TASKS: dict[str, type[Task]] = {
    "causal_lm": Continuing,
    "masked_lm": MaskFilling,
    "span_corruption": SpanFilling,
    "denoising": Rewriting,
}


WITH_DECODER: dict[str, type[Task]] = {"AutoModelForCausalLM": Continuing, "AutoModelForSeq2SeqLM": Rewriting}
"""transformers' auto class -> what a model of any other objective does."""


def task_class(trained: Trained) -> type[Task]:
    """Choose what a model does with prompts.

    Raises:
        UserError: it writes nothing.
    """
    if trained.objective in TASKS:
        return TASKS[trained.objective]
    if trained.objective in ("token_order", "text_to_text") and trained.auto_class in WITH_DECODER:
        return WITH_DECODER[trained.auto_class]
    instead = "sslm predict says what it makes of rows"
    if trained.objective == "token_order":
        instead = "only with a decoder would it write the order that it restores"
    raise UserError(f"{trained.name}: is a {trained.objective} model, which writes no text; {instead}")
