"""What a model that was fine-tuned to write makes of rows: a target for each source, the same in any batch."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from sslm.data.corpus import tokenizer as tokenizers
from sslm.data.labelled.texts import Texts
from sslm.data.stream.labelled_rows import LabelledRows
from sslm.data.stream.recipe import IGNORED
from sslm.models.generation.draws import Sampling
from sslm.models.generation.writing import Prompt, Writer
from sslm.objectives.predictions import Prediction
from sslm.runs.trained import Trained


class How(NamedTuple):
    """How texts are written: the likeliest token after the other, or by beams."""

    max_new_tokens: int | None = None
    """Tokens of the longest text; None: of the longest target that was trained on."""
    num_beams: int = 1


def written(
    rows: LabelledRows,
    trained: Trained,
    how: How,
    batch_size: int,
    report: Callable[[int, int], object] = lambda done, number: None,
) -> Iterator[Prediction]:
    """Yield for each row its number, its source, the text that is written, why it ends, and what is right if known.

    Args:
        rows: in the order of their file, opened to be predicted.
        trained: the model, on its device.
        how: how it writes.
        batch_size: sources at a time; texts don't depend on it.
        report: told of (rows done, all rows).
    """
    number = len(rows.places.positions)
    name, writer = rows.tables[0].task.fields[1], _writer(rows, trained, how)
    for first in range(0, number, batch_size):
        here = np.arange(first, min(first + batch_size, number))
        sources = rows.fields(here, (name,))[name]
        prompts = [Prompt(i, ids[ids != IGNORED].tolist()) for i, ids in zip(here.tolist(), sources, strict=True)]
        for prompt, text in zip(prompts, writer.write(prompts), strict=True):
            row = rows.rows[prompt.number]
            example = rows.examples[row]
            truth = {"label": example.pair} if example.pair else {}
            said = {"predicted": text.text, "finish_reason": text.reason}
            yield {"row": row.number, "text": example.text, **said, **truth}
        report(first + len(here), number)


def _writer(rows: LabelledRows, trained: Trained, how: How) -> Writer:
    tokenizer, model = trained.tokenizer, trained.model
    [task] = {table.task for table in rows.tables}
    assert isinstance(task, Texts)
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = {tokenizers.end_of_document(tokenizer), *(own if isinstance(own, list) else [own])}

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    return Writer(
        model,
        decode,
        Sampling(),
        [end for end in ends if isinstance(end, int) and 0 <= end < model.config.vocab_size],
        min(tokenizers.num_ids(tokenizer), model.config.vocab_size),
        max_new_tokens=how.max_new_tokens or task.most_written,
        num_beams=how.num_beams,
    )
