"""One module per competitor or ceiling; each has ``make(data, **settings) -> Epoch``."""
