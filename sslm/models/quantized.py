"""The libraries that read weights of fewer bits: transformers needs one of them beside it."""

from importlib.util import find_spec

from transformers import PreTrainedConfig

from sslm.system.errors import UserError

LIBRARIES = ("torchao", "compressed-tensors")
"""As pip calls them, and config.json."""


def check_installed(library: str, what: str) -> None:
    """Raise UserError if a library is missing.

    Args:
        library: one of LIBRARIES.
        what: needs it.
    """
    if find_spec(library.replace("-", "_")) is None:
        raise UserError(f"{what} needs {library}, which is not installed; pip install 'sslm[quantize]'")


def library_of(config: PreTrainedConfig) -> str | None:
    """Name the library, of LIBRARIES, that reads a model's weights; None if they are plain."""
    written = getattr(config, "quantization_config", None)
    library = written.get("quant_method") if isinstance(written, dict) else None
    return library if library in LIBRARIES else None


def check_readable(config: PreTrainedConfig, name: str) -> None:
    """Raise UserError if a model's weights are quantized, and the library that reads them is missing."""
    if (library := library_of(config)) is not None:
        check_installed(library, f"{name}: its weights are quantized, and reading them")
