"""schemathesis invents requests from the OpenAPI description: none may meet a fault of the server,
or get an answer that the description does not know."""

from __future__ import annotations

import pytest
from serve_app import fake, service

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
pytest.importorskip("fastapi", reason="needs cmmfnet[serve]")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from schemathesis import checks  # noqa: E402

from cmmfnet.serve.api import make_app  # noqa: E402

CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def description():
    served = service(fake())
    yield schemathesis.openapi.from_asgi("/openapi.json", make_app(served))
    served.close()


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/v1/colorize", "POST"),
        ("/v1/tags", "POST"),
        ("/v1/models", "GET"),
        ("/healthz", "GET"),
        ("/metrics", "GET"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of false colour; the server sends them as notes
def test_no_request_meets_a_fault(description, path, method):
    @given(case=description[path][method].as_strategy())
    @settings(max_examples=25, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    def check(case):
        case.validate_response(case.call(), checks=CHECKS)

    check()
