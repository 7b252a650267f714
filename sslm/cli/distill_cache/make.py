"""The teacher reads a run's examples in their order, and what it says goes into parts of a cache."""

from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sslm.config import Config
from sslm.data.module import DataModule
from sslm.data.stream.batches import row_digests
from sslm.data.stream.recipe import Arrays
from sslm.data.stream.verify import Verifier
from sslm.objectives.choose import choose_objective, choose_teacher, open_data, with_epochs
from sslm.system.errors import UserError
from sslm.system.files import one_maker
from sslm.system.terminal import Progress, bytes_in_words, plural, say
from sslm.training.distillation.cache import TeacherCache, TopK, begin, top_k
from sslm.training.distillation.teacher import LiveTeacher

PART_BYTES = 64 << 20
"""About so much is lost at most when the command is killed."""


def make(config: Config, folder: Path, k: int) -> None:
    """Write all parts that a cache lacks.

    Raises:
        UserError: the teacher can't be asked about this run's text, or the folder is of something else.
    """
    objective, recipe = choose_objective(config)
    data = open_data(config, recipe)
    config = with_epochs(config, data)
    if len(data.lengths.stages) > 1:
        raise UserError(f"--seq_len {data.lengths.setting}: a cache is of one length; give {data.seq_len} alone")
    model = choose_teacher(config, objective, data)
    assert model is not None
    teacher = LiveTeacher(model, config.distill.precision)
    check_shards(data)
    end = config.batch_sizes.position_at(config.total_steps)
    is_gpu = torch.cuda.is_available() and config.accelerator != "cpu"
    device = torch.device("cuda" if is_gpu else "cpu")
    teacher.prepare(data, None, device)
    size = config.micro_batch_size if isinstance(config.micro_batch_size, int) else config.batch_ramp.numbers[0]
    with one_maker(folder), closing(Progress()) as bar:
        cache = begin(folder, teacher.fingerprint, config.distill.temperature, k, data)
        while cache.end < end:
            _add_part(cache, teacher, data, range(cache.end, end, size), k, config.distill.temperature, device)
            share = cache.end / end
            bar.show(f"{cache.end:,} of {plural(end, 'example', exact=True)}, {bar.time_left(share)}", share)
    written = sum(file.stat().st_size for file in folder.glob("part-*"))
    say(f"{folder}: {plural(end, 'example', exact=True)}, {bytes_in_words(written)}")
    say(f"Train beside it: the same flags, with --distill.cache {folder} in place of --distill.teacher", to_copy=True)


def check_shards(data: DataModule) -> None:
    """Verify the corpora's checksums; a BadShard if one is not as it was prepared, as a run would raise."""
    with closing(Verifier(data.train_stream.sources)) as verifier:
        verifier.wait()
        if (bad := verifier.found()) is not None:
            raise bad


def _add_part(
    cache: TeacherCache,
    teacher: LiveTeacher,
    data: DataModule,
    starts: range,
    k: int,
    temperature: float,
    device: torch.device,
) -> None:
    """Write the next part; UserError if the teacher says what is no number."""
    said: list[TopK] = []
    digests = []
    num_bytes = 0
    for start in starts:
        arrays = _arrays(data, start, min(start + starts.step, starts.stop))
        tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        said.append(_said(teacher, tensors, temperature, k))
        if not said[-1].values.isfinite().all():
            raise UserError(f"--distill.teacher: what it says of the examples from position {start:,} on is no number")
        digests.append(row_digests(arrays).astype(np.int64))
        num_bytes += sum(some.numel() * 4 for some in said[-1])
        if num_bytes >= PART_BYTES:
            break
    cache.add(said, digests)


def _arrays(data: DataModule, start: int, end: int) -> Arrays:
    examples = data.train_stream.at(np.arange(start, end))
    made = data.recipe.make_batch(examples, data.vocabulary, data.seed)
    return {n: np.ascontiguousarray(a, np.int64) if a.dtype.kind == "i" else a.copy() for n, a in made.items()}


def _said(teacher: LiveTeacher, tensors: dict[str, Tensor], temperature: float, k: int) -> TopK:
    found = top_k(teacher.outputs(tensors), temperature, k)
    return TopK(*(some.cpu() for some in found))
