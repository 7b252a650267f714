"""The steps of a clean that ask trained models, from flags."""

import argparse
import os

from sslm.data.cleaning.settings import ModelStep
from sslm.system.errors import UserError
from sslm.system.terminal import keep_libraries_quiet

USUAL_QUALITY = 0.5


def model_steps(options: argparse.Namespace, workers: int) -> tuple[ModelStep, ...]:
    """Make the steps that ask models, which are opened once, to see that they can be what they are to be.

    Args:
        workers: number of processes, which share the cores.

    Raises:
        UserError: a model can't be opened, or a flag lacks the one that it belongs to.
    """
    _check_flags(options)
    if options.quality_model is None and options.perplexity_model is None:
        return ()
    from sslm.evaluation.document_scores import Perplexity, Quality, opened  # brings torch and transformers

    keep_libraries_quiet()
    threads = None if workers == 1 else max((os.cpu_count() or 1) // workers, 1)
    steps: list[Perplexity | Quality] = []
    if options.perplexity_model is not None:
        bounds = options.min_perplexity, options.max_perplexity
        steps.append(opened(Perplexity(options.perplexity_model, *bounds, threads)))
    if options.quality_model is not None:
        least = USUAL_QUALITY if options.min_quality is None else options.min_quality
        steps.append(opened(Quality(options.quality_model, least, options.quality_label, threads)))
    return tuple(steps)


def _check_flags(options: argparse.Namespace) -> None:
    for model, flags in (
        ("quality_model", ("quality_label", "min_quality")),
        ("perplexity_model", ("min_perplexity", "max_perplexity")),
    ):
        given = [name for name in flags if getattr(options, name) is not None]
        if given and getattr(options, model) is None:
            raise UserError(f"--{given[0]}: changes nothing without --{model}")
