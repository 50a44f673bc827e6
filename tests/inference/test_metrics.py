"""What Prometheus is served, and where it cannot be."""

from __future__ import annotations

import socket

import pytest

from inference.errors import InvalidRequest
from inference.metrics import Metrics


@pytest.mark.parametrize("listen", ["nowhere", "127.0.0.1:", "127.0.0.1:99999", "192.0.2.1:7000"])
def test_an_address_that_is_none_of_ours_is_refused_by_name(listen: str) -> None:
    with pytest.raises(InvalidRequest, match=f"metrics_listen: .*found {listen}"):
        Metrics().serve(listen)


def test_an_address_in_use_is_refused_by_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InvalidRequest, match=r"metrics_listen: .*in use"):
            Metrics().serve(listen)
