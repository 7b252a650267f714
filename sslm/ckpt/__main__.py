"""`python -m sslm.ckpt …`: the same as `sslm ckpt …`."""

from sslm.ckpt import main

if __name__ == "__main__":
    raise SystemExit(main())
