"""Checkpoints: a folder that is whole or not there, the same whatever the strategy that wrote it.

    step-000100/
      state.json                   step, position, fingerprint of the data, loss scale, metrics …
      shard-0000R.safetensors      rank R's part of weights, optimizer states and averages
      model/                       config and tokenizer, as transformers saves them
      manifest.json                size and SHA-256 of every file above

`folder` reads what lies on the disk, `transaction` writes it. `states` gives and takes a run's tensors, `tensors` cuts
them into pieces, `shards` reads the files' rows, `compare` compares them. `saver` writes while training goes on,
`retention` says what is kept, `mirror` uploads and `fetch` downloads. Nothing is ever unpickled.
"""
