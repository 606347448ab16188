"""Memory while a million keys of an object store are listed, as `cmmfnet archive` lists them.

    python benchmarks/archive_listing.py --keys 10000 1000000

The server is a stand-in on loopback that answers ListObjectsV2 with made-up keys, 1000 a page, as
S3 does (a real store of a million objects takes too long to fill); the client is s3fs. Each number
of keys is listed by a process of its own, whose peak memory is printed.
"""

from __future__ import annotations

import argparse
import http.server
import os
import resource
import subprocess
import sys
import threading
import time
from urllib.parse import parse_qs, urlsplit

PAGE = 1000


class Listing(http.server.BaseHTTPRequestHandler):
    """ListObjectsV2 of ``keys`` objects; the token is the number of the next key."""

    protocol_version = "HTTP/1.1"
    keys = 0

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        start = int(query.get("continuation-token", ["0"])[0])
        end = min(start + PAGE, self.keys)
        objects = "".join(
            f"<Contents><Key>drive/{i // 5000:05d}/{i:09d}.png</Key><LastModified>2026-01-01T"
            f'00:00:00.000Z</LastModified><ETag>"{i:032x}"</ETag><Size>81920</Size>'
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for i in range(start, end)
        )
        more = end < self.keys
        token = f"<NextContinuationToken>{end}</NextContinuationToken>" if more else ""
        body = (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>frames</Name><Prefix>drive/</Prefix><KeyCount>{end - start}</KeyCount>"
            f"<MaxKeys>{PAGE}</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{token}"
            f"{objects}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def client(expected: int) -> None:
    """List s3://frames/drive as the command does, and print what it took."""
    from cmmfnet.archive.items import Reader, Scan

    began = time.perf_counter()
    count = sum(1 for _ in Scan("s3://frames/drive", Reader()).files())
    assert count == expected, f"{count} keys"
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{count} keys: {seconds:.1f} s, {count / seconds:.0f} keys a second, peak {peak:.0f} MB")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keys", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client is not None:
        client(given.client)
        return 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    for keys in given.keys:
        Listing.keys = keys
        command = [sys.executable, __file__, "--client", str(keys)]
        subprocess.run(command, env=environment, check=True, timeout=1800)
    server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
