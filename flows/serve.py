"""A client's scoring service: ``python -m flows.serve <client> --certificate cert.pem --key key.pem``."""

import argparse

from tasks.clients import serve_client
from tasks.runtime import flow, main


@flow
def serve(client: str, host: str, port: int, certificate: str, key: str) -> None:
    """Serve one client's reward model, answer key and router updates; nothing else leaves it."""
    serve_client(client, host, port, certificate, key)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("client")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8443)
    parser.add_argument("--certificate", required=True, help="PEM file")
    parser.add_argument("--key", required=True, help="PEM file")
    given = parser.parse_args()
    main(serve, given.client, given.host, given.port, given.certificate, given.key)
