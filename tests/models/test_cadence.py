import pytest

from models.cadence import Cadence, CadenceSettings
from models.drift import Alarm

SETTINGS = CadenceSettings(every_events=5_000, every_seconds=300, cold_start_events=2_000, least_new=200)


def test_a_first_model_waits_for_enough_events() -> None:
    cadence = Cadence(SETTINGS, 0, 0.0)
    assert cadence.due(1_999, 1e9, serving=False) is None
    assert cadence.due(2_000, 0.0, serving=False) == "cold-start"
    cadence.began(2_000, 0.0)  # and it came to nothing
    assert cadence.due(2_100, 0.0, serving=False) is None
    assert cadence.due(2_200, 0.0, serving=False) == "cold-start"


@pytest.mark.parametrize("failed", [False, True], ids=["rejected", "failed"])
def test_a_first_model_that_came_to_nothing_waits_for_a_quarter_more(failed: bool) -> None:
    cadence, passes = Cadence(SETTINGS, 0, 0.0), []
    for seen in range(0, 5_001, 100):
        if cadence.due(seen, 0.0, serving=False):
            passes.append(seen)
            cadence.began(seen, 0.0)
            for _ in range(2 if failed else 1):  # a failure is told at every look
                (cadence.failed if failed else cadence.rejected)()
    assert passes == [2_000, 2_500, 3_200, 4_000, 5_000]


def test_a_first_model_that_failed_is_tried_again_after_the_most_time_too() -> None:
    cadence = Cadence(SETTINGS, 0, 0.0)
    cadence.began(5_000, 0.0)
    cadence.failed()
    assert cadence.due(5_200, 299.0, serving=False) is None
    assert cadence.due(5_199, 300.0, serving=False) is None
    assert cadence.due(5_200, 300.0, serving=False) == "cold-start"
    cadence.began(5_200, 300.0)  # and this one had too little that is new
    assert cadence.due(5_400, 300.0, serving=False) == "cold-start"


def test_a_later_model_that_failed_waits_for_its_usual_cadence() -> None:
    cadence = Cadence(SETTINGS, 50_000, 0.0)
    cadence.began(55_000, 0.0)
    cadence.failed()
    assert cadence.due(59_999, 299.0, serving=True) is None
    assert cadence.due(60_000, 0.0, serving=True) == "events"
    assert cadence.due(55_200, 300.0, serving=True) == "time"


def test_a_young_stream_trains_at_every_doubling() -> None:
    cadence, seen, passes = Cadence(SETTINGS, 0, 0.0), 2_000, []
    cadence.began(2_000, 0.0)
    while seen < 30_000:
        seen += 100
        if cadence.due(seen, 0.0, serving=True):
            passes.append(seen)
            cadence.began(seen, 0.0)
    assert passes == [4_000, 8_000, 13_000, 18_000, 23_000, 28_000]


def test_time_alone_is_enough_when_there_is_something_new() -> None:
    cadence = Cadence(SETTINGS, 50_000, 100.0)
    assert cadence.due(50_199, 10_000.0, serving=True) is None
    assert cadence.due(50_200, 399.0, serving=True) is None
    assert cadence.due(50_200, 400.0, serving=True) == "time"
    cadence.began(50_200, 400.0)
    assert cadence.due(51_000, 500.0, serving=True) is None
    quiet = Cadence(CadenceSettings(every_events=5_000, every_seconds=0), 50_000, 0.0)
    assert quiet.due(54_999, 1e9, serving=True) is None


def test_an_alarm_hurries_until_the_rate_has_recovered() -> None:
    cadence = Cadence(SETTINGS, 50_000, 0.0)
    cadence.alarm(Alarm(900, before=0.3, after=0.1, width=120), seen=51_000)
    assert cadence.changed_at == 50_880
    assert cadence.due(51_379, 0.0, serving=True) is None
    assert cadence.due(51_380, 0.0, serving=True) == "drift"
    cadence.observe(0.5, 900)  # before any pass: of the old events still
    assert cadence.changed_at == 50_880
    cadence.began(51_380, 0.0)
    assert cadence.due(52_379, 0.0, serving=True) is None
    assert cadence.due(52_380, 0.0, serving=True) == "drift"
    cadence.began(52_380, 0.0)
    cadence.observe(0.26, 900)
    assert cadence.changed_at == 50_880
    cadence.observe(0.9, 60)  # too few to tell
    assert cadence.changed_at is not None
    cadence.observe(0.27, 900)
    assert cadence.changed_at is None
    assert cadence.due(57_379, 0.0, serving=True) is None
    assert cadence.due(57_380, 0.0, serving=True) == "events"


def test_the_hurry_ends_by_itself_or_when_a_pass_after_the_alarm_is_rejected() -> None:
    cadence = Cadence(SETTINGS, 50_000, 0.0)
    cadence.alarm(Alarm(900, 0.3, 0.1, 1_000), seen=51_000)
    for number in range(SETTINGS.drift_passes + 1):
        assert cadence.changed_at == 50_000
        cadence.began(51_000 + 1_000 * number, 0.0)
    assert cadence.changed_at is None
    cadence.alarm(Alarm(900, 0.3, 0.1, 1_000), seen=70_000)
    cadence.rejected()  # a pass that had begun before
    assert cadence.changed_at == 69_000
    cadence.began(70_500, 0.0)
    assert cadence.changed_at == 69_000
    cadence.rejected()
    assert cadence.changed_at is None
