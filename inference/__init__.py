"""The worker: one frozen base model, many adapters, one batch."""
