"""Where a server can run. One module a target; each translates a Plan and adds nothing to it."""
