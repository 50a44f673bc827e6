"""What every server and client of ours shares about gRPC: bootstrap, TLS, tokens, health, status mapping, drain."""
