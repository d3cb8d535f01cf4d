"""The daemon's HTTP side: `app` says what is served, `thread` serves it beside the frames."""
