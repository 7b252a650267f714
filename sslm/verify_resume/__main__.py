"""`python -m sslm.verify_resume …`: the same as `sslm verify-resume …`."""

from sslm.verify_resume import main

if __name__ == "__main__":
    raise SystemExit(main())
