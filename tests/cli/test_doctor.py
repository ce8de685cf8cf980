from __future__ import annotations

import json

import pytest

from kinema.cli import doctor
from kinema.cli.main import main


def test_every_check_has_a_verdict(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", {k: v for k, v in doctor.CHECKS.items() if k not in ("weights", "sample")})
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [f["name"] for f in found] == list(doctor.checks())
    assert {f["verdict"] for f in found} <= {"ok", "warn"}


def test_the_embedded_weights_are_complete_and_sample(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", {k: doctor.CHECKS[k] for k in ("weights", "sample")})
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.count("ok ") == 2


@pytest.mark.parametrize(("verdict", "code"), [("ok", 0), ("warn", 0), ("bad", 1)])
def test_only_a_bad_finding_exits_with_1(verdict, code, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", {"thing": lambda: (verdict, "details")})
    assert main(["doctor"]) == code
    assert "details" in capsys.readouterr().out


def test_a_check_that_raises_is_a_bad_finding(capsys, monkeypatch):
    def broken() -> tuple[str, str]:
        raise RuntimeError("no such library\nand more")

    monkeypatch.setattr(doctor, "CHECKS", {"thing": broken})
    assert main(["doctor"]) == 1
    assert "RuntimeError: no such library\n" in capsys.readouterr().out
