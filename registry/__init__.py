"""The registry: base models, adapters, versions, aliases, and a stream of what changed."""
