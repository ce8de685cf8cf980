"""Requests generated from the OpenAPI page (schemathesis): no failure of the server, and answers as the page has them.

``tools/fuzz_service.py`` runs more of them.
"""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
QUICK = settings(
    max_examples=2,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_generated_requests_are_answered_as_the_page_says(service, mode):
    page = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    answers = []
    for operation in [each.ok() for each in page.get_all_operations()]:

        @QUICK
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            answers.append(case.call_and_validate(checks=CHECKS, timeout=20).status_code)

        try:
            check()
        except Unsatisfiable:
            continue  # nothing is wrong about an operation without values
        except Exception as error:
            pytest.fail(f"{operation.label}: {error}")
    assert len(answers) > 30
    assert any(400 <= status < 500 for status in answers)
