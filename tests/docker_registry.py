"""A registry on this machine: images behind the pull half of the registry's HTTP API, version 2.

It can be told to fail, and it counts what is asked for at the same time. The daemon trusts 127.0.0.1 without TLS.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import docker
from docker_images import Image, digest

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIGURATION = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar"


@contextmanager
def registry_of(client: docker.DockerClient, images: Mapping[str, Image]) -> Iterator[Registry]:
    """A registry of these images, none of which is in the daemon before or after; `names` is what to ask for."""
    found = Registry(images)
    with serving(found) as address:
        found.names = [f"{address}/{name}:latest" for name in images]
        try:
            yield found
        finally:
            for name in filter(client.images.list, found.names):
                client.api.remove_image(name, force=True)


class Registry:
    """What is served. `delay_s` slows every layer; `failures` is how many requests for a manifest fail first."""

    def __init__(self, images: Mapping[str, Image]) -> None:
        self.delay_s, self.failures = 0.0, Counter()
        self.busy, self.most_busy, self.asked = 0, 0, Counter()
        self._lock = threading.Lock()
        self._manifests = {name: _manifest(image) for name, image in images.items()}
        parts = [part for image in images.values() for part in (image.configuration, *image.layers)]
        self._blobs = {digest(part): part for part in parts}

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body for a path below /v2/."""
        name, _, reference = path.partition("/manifests/")
        if reference:
            return self._manifest(name)
        blob = self._blobs.get(path.rpartition("/blobs/sha256:")[2])
        if blob is None:
            return (200, "text/plain", b"") if not path else _missing("BLOB_UNKNOWN", "blob unknown")
        with self._counted():
            time.sleep(self.delay_s)
        return 200, "application/octet-stream", blob

    def _manifest(self, name: str) -> tuple[int, str, bytes]:
        with self._lock:
            self.asked[name] += 1
            if self.failures[name] > 0:
                self.failures[name] -= 1
                return 500, "text/plain", b"try again"
        body = self._manifests.get(name)
        return (200, MANIFEST, body) if body else _missing("MANIFEST_UNKNOWN", "manifest unknown")

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        yield
        with self._lock:
            self.busy -= 1


@contextmanager
def serving(registry: Registry) -> Iterator[str]:
    """The registry's address, as it stands before an image's name, for as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, kind, body = registry.answer(self.path.removeprefix("/v2/"))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            self.send_header("Docker-Content-Digest", f"sha256:{digest(body)}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _manifest(image: Image) -> bytes:
    def part(kind: str, data: bytes) -> dict[str, object]:
        return {"mediaType": kind, "size": len(data), "digest": f"sha256:{digest(data)}"}

    body = {"schemaVersion": 2, "mediaType": MANIFEST, "config": part(CONFIGURATION, image.configuration)}
    return json.dumps(body | {"layers": [part(LAYER, layer) for layer in image.layers]}).encode()


def _missing(code: str, words: str) -> tuple[int, str, bytes]:
    return 404, "application/json", json.dumps({"errors": [{"code": code, "message": words}]}).encode()
