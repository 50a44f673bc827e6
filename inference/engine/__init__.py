"""Token ids in, token ids out: continuous batching over one model. Knows no text, no files and no gRPC."""
