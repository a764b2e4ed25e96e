"""The bench measures what it says, on servers that run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from xenvirtio.bench.store_attacker import ATTACKS
from xenvirtio.bench.store_bench import ROOT, bench_own, bench_servers, report_of
from xenvirtio.bench.store_cases import CASES, measure
from xenvirtio.bench.store_client import BenchClient, process_time_s, request
from xenvirtio.bench.store_fairness import ALONE, MEASURED, fairness_table, measure_fairness
from xenvirtio.bench.store_server import ServerProcess
from xenvirtio.bench.store_table import table_of
from xenvirtio.cli.main import main
from xenvirtio.errors import PeerProtocolError, XenStoreError
from xenvirtio.xenstore.client import XenStoreClient
from xenvirtio.xenstore.serve import XenStoreService
from xenvirtio.xenstore.wire import MessageType

OPERATIONS = [case.name for case in CASES]


def silent(line: str) -> None:
    pass


@pytest.mark.parametrize("rings", [False, True])
def test_a_server_of_its_own_is_measured_beside_each_number_of_domains(rings: bool) -> None:
    report = bench_own([1, 3], 1, 0.01, silent, rings=rings)
    measured = {(row["operation"], row["domains"]) for row in report["rows"]}
    assert measured == {(name, size) for name in OPERATIONS for size in (1, 3)}
    assert all(row["us"] > 0 and row["server_us"] > 0 for row in report["rows"])
    assert [growth["operation"] for growth in report["growth"]] == OPERATIONS
    assert len(table_of(report).splitlines()) >= len(OPERATIONS)


def test_running_servers_are_compared_and_left_as_they_were(tmp_path: Path) -> None:
    with XenStoreService() as service:
        service.listen(tmp_path / "one")
        service.listen(tmp_path / "two")
        servers = [("one", tmp_path / "one"), ("two", tmp_path / "two")]
        report = bench_servers(servers, [1, 2], 1, 0.01, silent)
        assert {(ratio["server"], ratio["to"]) for ratio in report["ratios"]} == {("two", "one")}
        assert "time by that of one" in table_of(report)
        with XenStoreClient.at(tmp_path / "one") as client:
            assert client.directory("/") == ["tool"]
            assert not client.exists(ROOT.decode())


def test_growth_and_ratio_are_of_the_right_rows() -> None:
    rows = [
        {"operation": name, "server": server, "domains": size, "us": cost * size, "server_us": None,
         "fastest_us": cost, "fastest_server_us": None}
        for name in OPERATIONS for server, cost in (("a", 2.0), ("b", 3.0)) for size in (1, 10)
    ]  # fmt: skip
    report = report_of(["a", "b"], [1, 10], rows, 1, 1.0)
    assert {growth["us"] for growth in report["growth"]} == {10.0}
    assert {ratio["us"] for ratio in report["ratios"]} == {1.5}
    assert {growth["server_us"] for growth in report["growth"]} == {None}


def test_each_case_does_what_its_name_says() -> None:
    with ServerProcess(1) as server:
        server.control.ask(request(MessageType.WRITE, b"/local/domain/1/device/0/state\x001"))
        server.control.ask(request(MessageType.SET_PERMS, b"/local/domain/1/device/0/state\0n1\0"))
        client, home = server.open(1), b"/local/domain/1"
        values = []
        for case in CASES:
            try:
                measure(case, client, home, server.pid, 0.001)
            except XenStoreError as error:
                values.append(error.name)
            else:
                values.append(client.ask(request(MessageType.READ, home + b"/device/0/state\0")).decode())
        assert values == ["1", "1", "EACCES", "5", "7", "6"]  # the directory belongs to dom0
        with pytest.raises(XenStoreError):  # no watch is left
            client.ask(request(MessageType.UNWATCH, home + b"/device/0/state\0bench\0"))


def test_the_victim_is_measured_alone_and_beside_each_attack() -> None:
    report = measure_fairness(1, 1, 0.01, silent)
    assert {(row["beside"], row["operation"]) for row in report["rows"]} == {
        (scene, case) for scene in (ALONE, *ATTACKS) for case in MEASURED
    }
    assert all(row["wall_ratio"] == row["server_ratio"] == 1 for row in report["rows"] if row["beside"] == ALONE)
    assert all(scene in fairness_table(report) for scene in ATTACKS)


def test_another_process_has_a_processor_time() -> None:
    with ServerProcess(0) as server:
        assert process_time_s(server.pid) > 0
    assert math.isnan(process_time_s(0))


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with XenStoreService() as service:
        service.listen(tmp_path / "xs")
        words = ["--domains", "1", "--rounds", "1", "--seconds", "0.005", "--format", "json"]
        assert main(["bench", "store", "--socket", str(tmp_path / "xs"), *words]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert {row["server"] for row in report["rows"]} == {"xs"}


@pytest.mark.parametrize(
    "words", [["--domains", "0"], ["--domains", "1,x"], ["--rounds", "0"], ["--socket", "/none/at/all"]]
)
def test_wrong_arguments_are_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "store", *words]) in (1, 2)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_closed_server_is_a_documented_error(tmp_path: Path) -> None:
    with XenStoreService() as service:
        service.listen(tmp_path / "xs")
        client = BenchClient.at(tmp_path / "xs")
        client.ask(request(MessageType.READ, b"/tool\0"))
    with pytest.raises((PeerProtocolError, BrokenPipeError)):
        client.ask(request(MessageType.READ, b"/tool\0"))
    client.close()
