"""The local page that shows runs: `answers` makes what it asks for, `server` sends it, `static/` is the page itself."""
