"""From documents to batches: corpus -> tokenizer -> shards -> order -> stream -> module."""
