"""What goes between the host and those who ask it."""

from __future__ import annotations

from mayfly.host.record import SLOTS
from mayfly.model import Load, Outcome, Runner
from mayfly.vm.protocol import MAX_LINE, decode, encode, runner_from_json, runner_to_json


def test_the_list_of_as_many_vms_as_there_may_be_is_one_line() -> None:
    """Each as long as it gets: a host key of a guest that is anybody's, and why it began cold."""
    runners = [
        Runner(
            name=f"{'a' * 32}-{number:03}",
            size="a-size-with-a-long-name",
            ready=True,
            ssh_host_key="k" * 1000,
            timings_s={f"a_step_of_the_guest_{n}": 1234.5678 for n in range(30)},
            age_s=123456.789,
            ended=Outcome.BUDGET_EXCEEDED,
            disk_used_bytes=10**12,
            load=Load(*(10**12 for _ in Load.__slots__)),
            cold="c" * 500,
        )
        for number in range(SLOTS)
    ]
    line = encode({"ok": True, "runners": [runner_to_json(each) for each in runners]})
    assert len(line) < MAX_LINE
    assert [runner_from_json(each) for each in decode(line)["runners"]] == runners
