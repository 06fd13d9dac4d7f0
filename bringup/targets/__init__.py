"""Where a server runs: each module is one target, with the interface of `server.Target`."""
