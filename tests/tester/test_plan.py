"""Which cases a session says."""

from hypothesis import given
from hypothesis import strategies as st

from posthouse.tester.case import CASES, Way
from posthouse.tester.plan import Plan


def test_cases_that_need_a_session_of_their_own_get_one():
    plan = Plan(CASES, errors_borne=8)
    while batch := plan.take(0.0):
        assert len(batch) == 1 or not any(one.is_alone for one in batch) or all(one.is_together for one in batch)
        assert len(batch) <= plan.most


def test_case_under_which_a_session_ended_is_said_alone():
    plan = Plan(CASES, errors_borne=8)
    batch = plan.take(0.0)
    batch[0].lost += 1
    plan.put_back(batch)
    assert [one.case for one in plan.take(0.0)] == [batch[0].case]


def test_smuggled_cases_share_a_session_until_they_have_to_be_told_apart():
    smuggled = [case for case in CASES if case.way is Way.SMUGGLED]
    plan = Plan(smuggled, errors_borne=8)
    batch = plan.take(0.0)
    assert [one.case for one in batch] == smuggled
    for one in batch:
        one.share_less()
    plan.put_back(batch)
    with_line_feed, without = plan.take(0.0), plan.take(0.0)
    assert [one.case.number for one in with_line_feed] == [901, 902, 903]
    assert [one.case.number for one in without] == [904, 905, 906]
    for one in without:
        one.share_less()
    plan.put_back(without)
    assert [one.case.number for one in plan.take(0.0)] == [904]


def test_deferred_case_is_not_due_before_its_time():
    plan = Plan(CASES[:1], errors_borne=8)
    plan.put_back(plan.take(0.0), not_before=10.0)
    assert not plan.take(9.9)
    assert plan.next_due() == 10.0
    assert len(plan.take(10.0)) == 1
    assert plan.next_due() is None


def test_errors_borne_never_rise_and_never_reach_nothing():
    plan = Plan(CASES, errors_borne=8)
    for errors in (5, 7, 0, -1):
        plan.bear_less(errors)
    assert plan.errors_borne == 1


@given(st.lists(st.sampled_from(["said", "lost", "later"]), max_size=400))
def test_no_case_is_lost_or_said_twice_whatever_sessions_do(fates):
    plan = Plan(CASES, errors_borne=8)
    done, now = [], 0.0
    for fate in [*fates, *["said"] * 200]:
        now += 1.0
        batch = list(plan.take(now))
        if not batch:
            continue
        if fate == "said":
            done += batch
        elif fate == "lost":
            batch[0].lost += 1
            plan.put_back(batch)
        else:
            plan.put_back(batch, now + 3.0)
    left = plan.drain()
    assert sorted(one.case.number for one in [*done, *left]) == [case.number for case in CASES]
