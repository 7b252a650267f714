"""Whether a run can prune its model, found out before anything starts."""

from transformers import PreTrainedModel

from sslm.config import Config
from sslm.models.compression.pruning.check import check_pruning
from sslm.system.errors import UserError
from sslm.training.pruning.schedule import schedule_of


def check_prune(config: Config, model: PreTrainedModel) -> None:
    """Refuse what can't be pruned, or not with these settings; the model may be on the meta device.

    Raises:
        UserError: says why, and what to give instead.
    """
    if (schedule := schedule_of(config.prune, config.total_steps)) is None:
        return
    flag = f"--prune.sparsity {schedule.pruning.sparsity}"
    if config.lora.rank is not None:
        raise UserError(f"{flag}: not with --lora.rank, which leaves the weights as they are; leave one of the two out")
    if config.model.freeze is not None and "blocks" in config.model.freeze:
        raise UserError(f"{flag}: not with --model.freeze {config.model.freeze}; freeze embeddings alone")
    if config.optim.name == "adamw_8bit":
        why = "codes of 8 bits share a scale with what is pruned"
        raise UserError(f"{flag}: not with --optim.name adamw_8bit, whose {why}; give adamw")
    check_pruning(model, schedule.pruning)
