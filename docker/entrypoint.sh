#!/bin/sh
# Flags are those of python -m sslm.train; anything else is a command: sslm prepare …, torchrun …, bash.
# exec: what is run becomes the child of tini, which hands on signals and exit codes; no shell is between them.

# A user whom the image doesn't know (docker run --user) has neither a name nor a folder for caches.
export USER="${USER:-sslm}"
[ "${HOME:-/}" != / ] || export HOME=/workspace/home

case ${1-} in
  "" | -*) exec python -m sslm.train "$@" ;;
  *) exec "$@" ;;
esac
