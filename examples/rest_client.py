"""Pictures through a server, in Python without further packages.

cmmfnet serve &
python rest_client.py frame.tiff colour.png --text "a street at night"
"""

import argparse
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path


def colorize(file: bytes, server: str, token: str = "", **options: str) -> bytes:
    """The picture in colour. ``options``: text, span, palette, model, format (docs/serve.md).

    A server that is busy is asked again when it says so.
    """
    address = f"{server}/v1/colorize?{urllib.parse.urlencode(options)}"
    head = {"Content-Type": "application/octet-stream"}
    if token:
        head["Authorization"] = f"Bearer {token}"
    while True:
        try:
            request = urllib.request.Request(address, data=file, headers=head)
            with urllib.request.urlopen(request, timeout=120) as answer:
                for note in json.loads(answer.headers["X-Notes"]):
                    print("note:", note)
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code != 429:
                raise SystemExit(json.loads(error.read())["error"]) from None
            time.sleep(int(error.headers["Retry-After"]))
        except urllib.error.URLError as error:
            raise SystemExit(f"no server at {server} ({error.reason})") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text")
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    parser.add_argument("--token", default="")
    given = parser.parse_args()
    options = {"format": given.out.suffix.lower().lstrip(".").replace("jpg", "jpeg")}
    if given.text is not None:
        options["text"] = given.text
    colour = colorize(given.picture.read_bytes(), given.server, given.token, **options)
    given.out.write_bytes(colour)


if __name__ == "__main__":
    main()
