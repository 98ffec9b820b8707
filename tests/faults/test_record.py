"""The page says what the record of the last whole run says."""

from __future__ import annotations

from tests.conftest import ROOT
from tests.faults.record import ALL, read, table
from tests.faults.way import WAY


def test_the_page_has_the_table_of_the_record() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert table(read()) in page


def test_the_record_is_of_a_whole_run() -> None:
    kills = read()
    assert [kill["kill"] for kill in kills] == list(range(ALL))
    assert {kill["step"] for kill in kills} == {step.name for step in WAY}
    assert all(0 <= kill["moment"] <= kill["of"] for kill in kills)
