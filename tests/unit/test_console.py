"""What a log file sees of a run's progress."""

import io
import logging
import re
import signal
import time
from contextlib import suppress

import pytest
from rich.console import Console

from data_contracts.enums import Stage
from flows.cli import main
from flows.cli_base import PrintableFormatter, say
from flows.console import ProgressDisplay, _Work, print_table
from flows.interrupts import interrupts_heard


def log() -> Console:
    return Console(file=io.StringIO(), width=40)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def wait_for(console: Console, pattern: str) -> None:
    while not re.search(pattern, text(console)):
        time.sleep(0.001)  # without end: pytest has a limit


def test_a_log_is_told_now_and_then_what_a_stage_is_at(monkeypatch: pytest.MonkeyPatch):
    """It was silent until the stage ended, for hours maybe."""
    monkeypatch.setattr("flows.console._LEAST_SECONDS", 0.0)
    console = log()
    with ProgressDisplay(console, seconds_between_lines=0.01) as display:
        display(Stage.EXTRACT_ATTENTION, "a-data-set-of-a-long-name", 0, 12, "")
        wait_for(
            console,
            r"(?m)^extract-attention a-data-set-of-a-long-name: 0 of 12 shards after 0.0 min$",
        )
        display(Stage.EXTRACT_ATTENTION, "a-data-set-of-a-long-name", 3, 12, "")
        wait_for(console, r"3 of 12 shards after 0.0 min, about 0.0 min left")
        display(Stage.EXTRACT_ATTENTION, "a-data-set-of-a-long-name", 12, 12, "")
        display(Stage.MAKE_LABELS, "", 1, 2, "")
        wait_for(console, r"make-labels: 1 of 2 shards after")
    lines = text(console).splitlines()
    done = lines.index("extract-attention a-data-set-of-a-long-name: done")
    assert all(line.startswith("make-labels") for line in lines[done + 1 :])


def test_a_log_is_told_of_a_stage_that_cannot_count_yet():
    console = log()
    with ProgressDisplay(console, seconds_between_lines=0.01) as display:
        display(Stage.DOWNLOAD, "mix", 0, None, "")
        wait_for(console, r"(?m)^download mix: running for 0.0 min$")
        display(Stage.DOWNLOAD, "mix", 3, 9, "MiB of https://host/a.zip")
        wait_for(console, r"(?m)^download mix: 3 of 9 MiB of https://host/a.zip after 0.0 min$")
        display(Stage.DOWNLOAD, "mix", 9, 9, "MiB of https://host/a.zip")
        num_before = len(text(console))
        while "running for" not in text(console)[num_before:]:
            time.sleep(0.001)  # without end: pytest has a limit
        assert "done" not in text(console)
        display(Stage.DOWNLOAD, "mix", 2, 2, "")
    assert text(console).splitlines()[-1] == "download mix: done"


def test_time_left_is_reckoned_from_what_this_run_has_done(monkeypatch: pytest.MonkeyPatch):
    """A resumed training would else promise to be done in no time."""
    now = [1000.0]
    monkeypatch.setattr("flows.console.time.monotonic", lambda: now[0])
    work = _Work(began=1000.0)
    assert work.line() == "running for 0.0 min"
    now[0] += 60
    work.count(500, 1000, "steps")
    assert work.line() == "500 of 1000 steps after 1.0 min"
    now[0] += 600
    work.count(510, 1000, "steps")
    assert work.line() == "510 of 1000 steps after 11.0 min, about 8.2 h left"
    now[0] += 3600
    assert work.line() == "510 of 1000 steps after 71.0 min, about 8.2 h left"
    work.count(990, 1000, "steps")
    now[0] += 24 * 3600
    each = 4200 / 490
    assert work.line() == f"990 of 1000 steps after 25.2 h, about {9 * each / 60:.1f} min left"
    work.count(499, 1000, "steps")
    assert work.line() == "499 of 1000 steps after 25.2 h", "it was not told in order"
    work.count(10, 2000, "MiB of a.zip")
    assert work.line() == "10 of 2000 MiB of a.zip after 25.2 h"


def test_no_speed_is_told_from_a_beginning_that_came_with_the_first_unit(
    monkeypatch: pytest.MonkeyPatch,
):
    """``1 of 104 steps after 0.1 min, about 0.0 min left``, of a training of two minutes."""
    now = [6.0]
    monkeypatch.setattr("flows.console.time.monotonic", lambda: now[0])
    work = _Work(began=0.0)
    for num_done in (0, 1):
        work.count(num_done, 104, "steps")
        now[0] += 0.001
    assert work.line() == "1 of 104 steps after 0.1 min"


def test_of_unknown_size_no_end_is_foretold(monkeypatch: pytest.MonkeyPatch):
    """A file whose server did not say was about to be there all the time."""
    now = [0.0]
    monkeypatch.setattr("flows.console.time.monotonic", lambda: now[0])
    work = _Work(began=0.0)
    for num_done in (0, 700):
        work.count(num_done, None, "MiB of a.zip")
        now[0] += 60
    assert work.line() == "700 MiB of a.zip after 2.0 min"


def test_stages_count_in_their_own_units_and_calibration_foretells_nothing(
    monkeypatch: pytest.MonkeyPatch,
):
    """One of calibration's questions may be a look, or a share of a training."""
    monkeypatch.setattr("flows.console._LEAST_SECONDS", 0.0)
    console = log()
    with ProgressDisplay(console, seconds_between_lines=0.01) as display:
        for num_done in (3, 4):
            display(Stage.TRAIN_RPN, "", num_done, 9, "")
            display(Stage.CALIBRATE, "", num_done, 9, "")
        wait_for(console, r"(?m)^train-rpn: 4 of 9 steps after 0.0 min, about 0.0 min left$")
        wait_for(console, r"(?m)^calibrate: 4 of 9 questions after 0.0 min$")
        display(Stage.DOWNLOAD, "", 5, None, "MiB of a.zip")
        wait_for(console, r"(?m)^download: 5 MiB of a.zip after 0.0 min$")


def test_a_short_stage_is_one_line():
    console = log()
    with ProgressDisplay(console) as display:
        for num_done in range(4):
            display(Stage.TRAIN_RPN, "", num_done, 3, "")
    assert text(console) == "train-rpn: done\n"


def test_what_an_earlier_run_left_is_told_at_once():
    """A training that took its last 100 steps within half a minute looked as if it had run whole,
    and a stage of which nothing was made said what one says that was."""
    console = log()
    with ProgressDisplay(console) as display:
        for num_done in (300, 350, 400):
            display(Stage.TRAIN_RPN, "", num_done, 400, "")
        display(Stage.DOWNLOAD, "mix", 0, None, "")
        for num_done in (2, 9):
            display(Stage.DOWNLOAD, "mix", num_done, 9, "MiB of a.zip")
        display(Stage.DOWNLOAD, "mix", 1, 1, "")
        display(Stage.REPORT, "", 0, None, "")
        display(Stage.REPORT, "", 1, 1, "")
    assert text(console).splitlines() == [
        "train-rpn: goes on from 300 of 400 steps",
        "train-rpn: done",
        "download mix: done",
        "report: reused",
    ]


def test_a_ctrl_c_that_was_lost_ends_what_tells_of_its_progress():
    def work() -> None:
        with interrupts_heard(), ProgressDisplay(log()) as display:
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            display.show("answering", 1, 2, unit="questions")

    with pytest.raises(KeyboardInterrupt):
        work()


def test_work_that_is_no_stage_is_done_and_never_reused():
    console = log()
    with ProgressDisplay(console) as display:
        display.show("answering", 0, None, unit="")
        display.show("answering", 2, 2, unit="questions")
    assert text(console) == "answering: done\n"


def test_a_terminal_shows_bars_and_no_lines():
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with ProgressDisplay(console, seconds_between_lines=0.001) as display:
        display(Stage.TRAIN_RPN, "", 1, 3, "")
        time.sleep(0.05)
    assert "train-rpn" in text(console)
    assert "1 of 3" not in text(console)
    assert "1/3" in text(console)


def test_a_line_is_printed_as_it_is():
    """Brackets in a path were taken for markup, and ":x:" in an answer for a picture."""
    console = Console(file=io.StringIO(), width=10)
    say("run[1]/a.png :x: A:B:C", console)
    assert text(console) == "run[1]/a.png :x: A:B:C\n"


def test_debug_tells_what_we_log_and_no_credentials(monkeypatch: pytest.MonkeyPatch):
    """With ``--debug``, S3's client logged the session token with the headers of each request."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    main(debug=True)
    assert logging.getLogger("tasks.fetching.fetcher").getEffectiveLevel() == logging.INFO
    assert logging.getLogger("botocore.endpoint").getEffectiveLevel() > logging.DEBUG


def test_a_cell_of_a_table_is_text():
    """``[/]`` in the path of an image ended the command with a traceback, ``[b]`` was left out."""
    console = log()
    print_table(console, "Rejected rows", [{"reason": "no image 'a[/]b[b].png' :x:", "rows": 1}])
    assert "no image 'a[/]b[b].png' :x: " in text(console)


def test_a_narrow_terminal_shows_ids_whole():
    """They were folded to three letters a line beside columns of figures."""
    row = {"artifact": "download/fb932017a54e7ad15726", "state": "committed", "bytes": "1,234,567"}
    shown = {}
    for width in (40, 37):
        console = Console(file=io.StringIO(), width=width, force_terminal=True, no_color=True)
        print_table(console, "Artifacts", [row])
        shown[width] = console.file.getvalue()
    assert f"artifact: {row['artifact']}\nstate: committed\nbytes: 1,234,567\n" in shown[37]
    assert "committed \N{BOX DRAWINGS LIGHT VERTICAL} 1,234,567" in shown[40]


def test_what_others_wrote_gives_a_terminal_no_orders():
    """Names of files, questions and answers could set its title, clear it and hide lines."""
    console, orders = log(), "a\x1b]0;title\x07\x1b[2J\x9b8m\rb\u202ec"
    shown = r"a\x1b]0;title\x07\x1b[2J\x9b8m\rb\u202ec"
    say(orders, console)
    assert text(console) == f"{shown}\n"
    print_table(console, "Files", [{"name": orders}])
    assert text(console).count(shown) == 2
    record = logging.LogRecord("sdrpn", logging.WARNING, "", 0, "%s: bad", (orders,), None)
    assert PrintableFormatter("%(message)s").format(record) == f"{shown}: bad"


def test_debug_tells_where_it_is_redirected_to_but_not_the_signature():
    message = 'HTTP Request: GET https://h/a?X-Amz-Signature=s3cret "HTTP/1.1 200 OK"'
    record = logging.LogRecord("httpx", logging.INFO, "", 0, message, (), None)
    shown = PrintableFormatter("%(message)s").format(record)
    assert shown == message.replace("s3cret", "...")
