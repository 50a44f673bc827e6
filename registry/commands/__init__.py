"""The subcommands of `registry`: arguments into calls of the client, answers into tables or JSON."""
