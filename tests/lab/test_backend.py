from __future__ import annotations

from collections import Counter

from xenvirtio.lab.backend import (
    Holdings,
    ProcessTime,
    parse_descriptors,
    parse_mappings,
    parse_records,
    parse_stat,
    trouble_in,
)

GOOD = '{"time": "x", "level": "info", "logger": "l", "message": "ready", "guests": 0}'
BAD = '{"time": "x", "level": "error", "logger": "l", "message": "broken"}'


def test_records_are_the_lines_that_are_json_objects() -> None:
    records = parse_records(f"{GOOD}\nTraceback (most recent call last):\n3\n{GOOD}\n")
    assert [record["message"] for record in records] == ["ready", "ready"]


def test_errors_and_unformatted_lines_are_trouble_and_a_line_cut_by_a_kill_is_not() -> None:
    cut = GOOD[:20]
    assert trouble_in(f"{GOOD}\n{cut}\n\n") == []
    assert trouble_in(f"{BAD}\nException in thread\n") == [BAD, "Exception in thread"]


def test_descriptors_are_counted_by_kind() -> None:
    listing = "/dev/xen/privcmd\n/dev/xen/privcmd\nsocket:[12]\nsocket:[77]\nanon_inode:[eventfd]\n"
    assert parse_descriptors(listing) == Counter({"/dev/xen/privcmd": 2, "socket": 2, "anon_inode:[eventfd]": 1})


def test_only_mappings_of_devices_and_state_files_count() -> None:
    maps = (
        "7f00-7f01 r--s 00000000 00:05 7 /dev/xen/privcmd\n"
        "7f02-7f03 rw-s 00000000 00:05 7 /run/lab/daemon0/state/guest-12.state\n"
        "7f04-7f05 rw-p 00000000 00:00 0 \n"
        "7f06-7f07 r-xp 00000000 fd:00 9 /usr/lib/libc.so.6\n"
    )
    assert parse_mappings(maps) == Counter({"/dev/xen/privcmd": 1, "/run/lab/daemon0/state/guest-N.state": 1})


def test_a_difference_names_what_is_more_and_what_is_less() -> None:
    before = Holdings(Counter(socket=1, eventfd=2), Counter(), 1)
    after = Holdings(Counter(socket=2), Counter({"/dev/xen/gntdev": 3}), 1)
    assert before.difference(before) == ""
    frames = Holdings(Counter(socket=1, eventfd=2), Counter({"/dev/xen/privcmd": 4}), 1)
    assert before.difference(frames, but_chunks=True) == ""
    assert before.difference(frames) == "map /dev/xen/privcmd +4"
    assert before.difference(after) == "fd eventfd -2, fd socket +1, map /dev/xen/gntdev +3"


def test_processor_time_is_read_behind_a_name_with_parentheses() -> None:
    stat = "12 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 250 75 0 0 20 0 3"
    assert parse_stat(stat) == ProcessTime(2.5, 0.75)
