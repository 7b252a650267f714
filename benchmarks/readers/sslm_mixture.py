"""sslm with more asked of it: two sources mixed three to one, and the documents of each row numbered."""

from pathlib import Path

from sslm.config import DataConfig, SourceConfig

from . import sslm

prepare = None


class Reader(sslm.Reader):
    def config(self, prepared: Path) -> DataConfig:
        sources = [SourceConfig(str(prepared), name="much", weight=3), SourceConfig(str(prepared), name="little")]
        return DataConfig(sources=sources, document_mask=True)
