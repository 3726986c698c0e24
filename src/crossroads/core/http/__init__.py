"""A client of HTTP/1.1: connections that are kept, timeouts by phase, events of streams."""
