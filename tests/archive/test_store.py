"""Archives in an object store: an S3 server of moto on loopback, through s3fs, as users run it."""

from __future__ import annotations

import io
import logging
import threading

import numpy as np
import pytest
from archive_files import frame
from test_archive import pictures
from test_hostile import member, png, write_tar

from cmmfnet.archive import places
from cmmfnet.archive.manifest import MANIFEST, read_manifest
from cmmfnet.archive.places import open_place
from cmmfnet.files.errors import UserError

s3fs = pytest.importorskip("s3fs", reason="object stores need s3fs: pip install 'cmmfnet[archive]'")
moto_server = pytest.importorskip("moto.server", reason="the tests' S3 server is moto's")
SECRET = "wJalr-not-a-real-secret"


class Flaky:
    """A server in front of moto's that answers every n-th request with 503 Slow Down."""

    def __init__(self, app):
        self.app, self.every, self.count, self.refused = app, 0, 0, 0

    def __call__(self, environ, start_response):
        self.count += 1
        if self.every and self.count % self.every == 0:
            self.refused += 1
            length = int(environ.get("CONTENT_LENGTH") or 0)
            environ["wsgi.input"].read(length)
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Slow down</Message></Error>"]
        return self.app(environ, start_response)


@pytest.fixture(scope="module")
def server():
    from werkzeug.serving import make_server

    app = Flaky(moto_server.DomainDispatcherApplication(moto_server.create_backend_app))
    served = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    app.url = f"http://127.0.0.1:{served.server_port}"
    yield app
    served.shutdown()


@pytest.fixture
def bucket(server, monkeypatch):
    """An empty bucket: its file system, and the server. Credentials come from the environment."""
    for name, value in {
        "AWS_ENDPOINT_URL": server.url, "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    s3fs.S3FileSystem.clear_instance_cache()
    server.every = server.refused = 0
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    if fs.exists("frames"):
        fs.rm("frames", recursive=True)
    fs.mkdir("frames")
    return fs


@pytest.fixture
def uploaded(bucket, source):
    """The pictures of ``source``, a tar and a sequence under s3://frames/in."""
    write_tar(source / "s.tar", *(member(f"{i}.png", png(i)) for i in range(3)))
    np.save(source / "walk.npy", np.arange(2 * 20 * 30, dtype=np.uint16).reshape(2, 20, 30))
    for path in source.rglob("*.*"):
        bucket.put_file(str(path), f"frames/in/{path.relative_to(source)}")
    return bucket


def inputs(out: str) -> list[str]:
    table = read_manifest(out).to_pylist()
    return sorted(row["input"] for row in table if row["output"] is not None)


def test_from_bucket_to_bucket_is_as_on_this_machine(uploaded, source, tmp_path, archive, capsys):
    assert archive("s3://frames/in", "s3://frames/out") == 0
    assert archive(source, tmp_path / "out") == 0
    expected = pictures(tmp_path / "out")
    assert len(expected) == 12
    stored = {key for key in uploaded.find("frames/out") if key.endswith(".png")}
    assert stored == {f"frames/out/{name}" for name in expected}
    for name in expected:
        assert uploaded.cat(f"frames/out/{name}") == (tmp_path / "out" / name).read_bytes()
    assert inputs("s3://frames/out") == inputs(str(tmp_path / "out"))
    assert not uploaded.exists(f"frames/out/{MANIFEST}/_journal")
    uploaded.rm_file("frames/out/s.tar/1.png")
    uploaded.pipe_file("frames/out/day/0.jpg.png", b"changed")
    capsys.readouterr()
    assert archive("s3://frames/in", "s3://frames/out", "--verify") == 0
    assert "coloured 2 frames, 10 were done before, 2 were lost" in capsys.readouterr().out
    assert (
        uploaded.cat("frames/out/s.tar/1.png")
        == (tmp_path / "out" / "s.tar" / "1.png").read_bytes()
    )
    assert archive("s3://frames/in", "s3://frames/out") == 0
    assert capsys.readouterr().out.startswith("coloured 0 frames, 12 were done before")


def test_globs_and_single_objects(uploaded, tmp_path, archive):
    assert archive("s3://frames/in/**/[01].*", tmp_path / "some") == 0
    assert inputs(str(tmp_path / "some")) == [
        "day/0.jpg",
        "day/1.jpg",
        "night/0.png",
        "night/1.png",
    ]
    assert archive("s3://frames/in/day/2.jpg", "s3://frames/one") == 0
    assert inputs("s3://frames/one") == ["2.jpg"]


@pytest.mark.slow  # it waits before it asks again
def test_a_server_that_is_overloaded(uploaded, server, archive):
    server.every = 4
    assert archive("s3://frames/in", "s3://frames/out", "--batch-size", "3") == 0
    server.every = 0
    assert server.refused > 10
    assert len(inputs("s3://frames/out")) == 12


def test_an_interrupted_put_leaves_no_object(bucket, monkeypatch):
    place = open_place("s3://frames/out")
    real = type(place._fs)._call_s3

    async def cut(self, method, *args, **kwargs):
        if method == "put_object":
            raise ConnectionResetError("cut")
        return await real(self, method, *args, **kwargs)

    monkeypatch.setattr(type(place._fs), "_call_s3", cut)
    monkeypatch.setattr(places.time, "sleep", lambda _: None)
    with pytest.raises(OSError, match="cut"):
        place.put("a.png", b"content")
    monkeypatch.undo()
    assert list(place.names()) == []


def test_credentials_are_in_no_message_and_no_file(uploaded, archive, capsys, caplog):
    caplog.set_level(logging.DEBUG, logger="cmmfnet")
    uploaded.pipe_file("frames/in/bad.png", b"no picture")
    assert archive("s3://frames/in", "s3://frames/out") == 1
    assert archive("s3://no-such-bucket/in", "s3://frames/other") == 2
    assert archive("s3://frames/in", "s3://no-such-bucket/out") == 1
    said = "".join(capsys.readouterr()) + caplog.text
    stored = b"".join(uploaded.cat(key) for key in uploaded.find(f"frames/out/{MANIFEST}"))
    stored += read_manifest("s3://frames/out").to_pandas().to_json().encode()
    assert SECRET not in said and SECRET.encode() not in stored
    assert "bad.png: found text" in said and b"bad.png" in stored


@pytest.mark.parametrize("given", [{}, {"AWS_PROFILE": "unknown"}], ids=["nothing", "profile"])
def test_without_credentials_both_ways_end_with_what_to_set(
    given, bucket, source, archive, capsys, monkeypatch, tmp_path
):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    none = {"AWS_SHARED_CREDENTIALS_FILE": "none", "AWS_CONFIG_FILE": "none"}
    for name, value in {"AWS_EC2_METADATA_DISABLED": "true", **none, **given}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    for arguments in (("s3://frames/in", tmp_path / "out"), (source, "s3://frames/out")):
        assert archive(*arguments) == 1
        assert "no credentials" in (said := capsys.readouterr().err)
        assert "AWS_ACCESS_KEY_ID" in said and "Traceback" not in said
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    "url",
    [
        f"s3://AKIA:{SECRET}@frames/in", f"s3://{SECRET}@frames/in", f"sftp://me:{SECRET}@host/in",
        f"s3://frames/in?secret={SECRET}", f"simplecache::s3://{SECRET}/in",
    ],
)  # fmt: skip
def test_a_url_with_credentials_is_refused_without_repeating_them(url):
    with pytest.raises(UserError) as refused:
        open_place(url)
    assert SECRET not in str(refused.value)


def test_keys_that_lead_nowhere(bucket, tmp_path, archive):
    """An object store takes any name, and the output may be a folder."""
    for key in ("a/../../up.png", "a//b.png", "./c.png", "d.png"):
        call = {"Bucket": "frames", "Key": f"in/{key}", "Body": png()}
        bucket.call_s3("put_object", **call)
    found = set(open_place("s3://frames/in").names())
    assert archive("s3://frames/in", tmp_path / "deep" / "out") in (0, 1)
    assert all((tmp_path / "deep" / "out") in path.parents for path in tmp_path.rglob("*.png"))
    failed = [r for r in read_manifest(str(tmp_path / "deep" / "out")).to_pylist() if r["error"]]
    assert {row["input"] for row in failed} == found - {"d.png"}
    assert all("no name inside the archive" in row["error"] for row in failed)


def test_pages_of_a_listing(bucket, monkeypatch):
    """A listing of several pages, none of which is kept."""
    for i in range(7):
        bucket.pipe_file(f"frames/in/{i}/x.png", b"")
    bucket.pipe_file("frames/in/.hidden/x.png", b"")
    place, pages = open_place("s3://frames/in"), []
    real = type(place._fs).call_s3

    def small(self, method, **query):
        pages.append(query.get("ContinuationToken"))
        return real(self, method, MaxKeys=3, **query)

    monkeypatch.setattr(type(place._fs), "call_s3", small)
    assert sorted(place.names()) == [f"{i}/x.png" for i in range(7)]
    assert len(pages) == 3 and len(set(pages)) == 3
    assert list(open_place("s3://frames/nothing").names()) == []


def test_another_store_of_fsspec(tmp_path, archive):
    import fsspec

    memory = fsspec.filesystem("memory")
    content = io.BytesIO()
    frame(tmp_path / "a.png")
    content.write((tmp_path / "a.png").read_bytes())
    memory.pipe_file("/in/deep/a.png", content.getvalue())
    memory.pipe_file("/in/b.png", content.getvalue())
    assert archive("memory://in", "memory://out") == 0
    assert inputs("memory://out") == ["b.png", "deep/a.png"]
    assert {name for name in memory.find("/out") if name.endswith(".png")} == {
        "/out/b.png", "/out/deep/a.png",
    }  # fmt: skip
