"""Every metric of a worker, in one list, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from inference.errors import InvalidRequest

# From a token of a small model on a fast device to a cold start on a slow one.
LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """What one worker counts; a registry of its own, so that two workers can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._answers = Counter("loraplex_answers", "Answers finished.", registry=self.registry)
        self._tokens = Counter("loraplex_output_tokens", "Tokens answered.", registry=self.registry)
        self._prompt_tokens = Counter(
            "loraplex_prompt_tokens", "Tokens of prompts, cached ones too.", registry=self.registry
        )
        self._cached_tokens = Counter(
            "loraplex_cached_tokens", "Tokens of prompts that were in the prefix cache.", registry=self.registry
        )
        self._first_token = Histogram(
            "loraplex_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._total = Histogram(
            "loraplex_answer_seconds",
            "From a request's arrival to the end of its answer.",
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )

    def admitted(self, prompt_tokens: int, cached_tokens: int) -> None:
        """Counts a request that left the queue."""
        self._prompt_tokens.inc(prompt_tokens)
        self._cached_tokens.inc(cached_tokens)

    def answered(self, tokens: int, first_token_s: float, total_s: float) -> None:
        """Counts a finished answer."""
        self._answers.inc()
        self._tokens.inc(tokens)
        self._first_token.observe(first_token_s)
        self._total.observe(total_s)

    def gauge(self, name: str, meaning: str, read: Callable[[], float]) -> None:
        """Adds a value that is read when it is asked for."""
        Gauge(f"loraplex_{name}", meaning, registry=self.registry).set_function(read)

    def serve(self, listen: str) -> Callable[[], None]:
        """Answers Prometheus at host:port from now on; returns what stops it. Raises InvalidRequest."""
        host, _, port = listen.rpartition(":")
        try:
            server, thread = start_http_server(int(port), host or "127.0.0.1", registry=self.registry)
        except (OSError, OverflowError, ValueError) as error:
            raise InvalidRequest(
                f"metrics_listen: expected host:port of this machine that is free, found {listen}: {error}",
                field="metrics_listen",
            ) from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop
