from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_supervisor.canary.stats.decision import Decision, EvidenceKind
from atlas_supervisor.canary.stats.forecast import Outlook, Shortage
from atlas_supervisor.canary.stats.ramp import (
    Action,
    Feature,
    RampError,
    Rules,
    Stage,
    act,
    judge_ramp,
    reset,
    set_percentage,
    waits_for,
)
from atlas_supervisor.model.verdict import Verdict

RULES = Rules(steps=(0.05, 0.25, 1.0), step_seconds=300, least_calls=20)
HOLD = Decision(Verdict.INCONCLUSIVE, EvidenceKind.WAITING, "not enough is known", {}, Outlook(120))
BAD = Decision(Verdict.FAIL, EvidenceKind.ERRORS, "it fails more often", {})
GOOD = Decision(Verdict.PASS, EvidenceKind.PROMOTION, "it is no worse", {})


def a_feature(**changes: object) -> Feature:
    return Feature.model_validate({"name": "vision", "percentage": 0.2, "epoch": 3, **changes})


def ramping(step: int = 0, **changes: object) -> Feature:
    return a_feature(**{"stage": Stage.RAMPING, "step": step, "step_since": 1000.0, **changes})


def test_a_started_ramp_is_on_its_first_step_with_fresh_evidence() -> None:
    following = act(a_feature(), Action.START, RULES, 1000.0, "uid:0")

    assert following is not None
    assert following.fresh
    assert following.feature == ramping()
    assert following.feature.share(RULES.steps) == 0.05
    assert following.why == "ramp started by uid:0"


@pytest.mark.parametrize("stage", [Stage.RAMPING, Stage.PAUSED])
def test_starting_a_ramp_in_progress_changes_nothing(stage: Stage) -> None:
    assert act(ramping(1, stage=stage), Action.START, RULES, 0, "x") is None


def test_a_ramp_without_steps_can_not_be_started() -> None:
    with pytest.raises(RampError, match="no steps") as caught:
        act(a_feature(), Action.START, Rules((), 300, 20), 0, "x")

    assert "CANARY_RAMP" in caught.value.hint


def test_a_paused_ramp_keeps_its_share_and_stays_on_its_step() -> None:
    following = act(ramping(1), Action.PAUSE, RULES, 0, "x")

    assert following is not None
    assert following.feature.share(RULES.steps) == 0.25
    assert judge_ramp(following.feature, GOOD, 1000, RULES, 9e9) is None


def test_a_paused_ramp_is_rolled_back_by_evidence() -> None:
    following = judge_ramp(a_feature(stage=Stage.PAUSED), BAD, 0, RULES, 0)

    assert following is not None
    assert following.feature.stage is Stage.ROLLED_BACK


@pytest.mark.parametrize("action", [Action.PAUSE, Action.RESUME, Action.ADVANCE])
@pytest.mark.parametrize("stage", [Stage.STEADY, Stage.PROMOTED, Stage.ROLLED_BACK])
def test_actions_on_a_ramp_are_refused_without_a_ramp(action: Action, stage: Stage) -> None:
    with pytest.raises(RampError, match="no ramp is in progress"):
        act(a_feature(stage=stage), action, RULES, 0, "x")


def test_an_operator_advances_to_the_next_step_at_once_but_not_to_all_calls() -> None:
    following = act(ramping(), Action.ADVANCE, RULES, 1001.0, "x")

    assert following is not None
    assert (following.feature.step, following.feature.step_since) == (1, 1001.0)
    assert not following.fresh
    with pytest.raises(RampError, match="last step"):
        act(following.feature, Action.ADVANCE, RULES, 0, "x")


@pytest.mark.parametrize(("action", "share"), [(Action.PROMOTE, 1.0), (Action.ROLLBACK, 0.0)])
def test_an_operator_promotes_and_rolls_back_in_any_stage(action: Action, share: float) -> None:
    for stage in Stage:
        following = act(a_feature(stage=stage), action, RULES, 0, "uid:7")
        feature = following.feature if following else a_feature(stage=stage)
        assert feature.share(RULES.steps) == share
        assert act(feature, action, RULES, 0, "uid:7") is None


def test_a_ramp_advances_after_the_steps_time_and_calls() -> None:
    assert judge_ramp(ramping(), HOLD, 20, RULES, 1299) is None
    assert judge_ramp(ramping(), HOLD, 19, RULES, 1300) is None
    following = judge_ramp(ramping(), HOLD, 20, RULES, 1300)

    assert following is not None
    assert following.feature == ramping(1).model_copy(update={"step_since": 1300})


def test_the_last_step_ends_only_by_evidence() -> None:
    assert judge_ramp(ramping(1), HOLD, 10**6, RULES, 9e9) is None
    following = judge_ramp(ramping(1), GOOD, 0, RULES, 1300)

    assert following is not None
    assert following.feature.stage is Stage.PROMOTED
    assert following.feature.reason == "it is no worse"


def test_a_ramp_without_a_full_share_ends_in_a_promotion_too() -> None:
    rules = Rules((0.05, 0.5), 300, 20)

    assert judge_ramp(ramping(1), HOLD, 10**6, rules, 9e9) is None
    following = judge_ramp(ramping(1), GOOD, 0, rules, 9e9)
    assert following is not None
    assert following.feature.share(rules.steps) == 1.0


def test_a_steady_canary_is_rolled_back_by_evidence_and_never_promoted() -> None:
    assert judge_ramp(a_feature(), GOOD, 10**6, RULES, 9e9) is None
    following = judge_ramp(a_feature(), BAD, 0, RULES, 0)

    assert following is not None
    assert following.feature.share(RULES.steps) == 0.0
    assert following.feature.reason == "it fails more often"


@pytest.mark.parametrize("stage", [Stage.PROMOTED, Stage.ROLLED_BACK])
def test_evidence_does_not_change_a_promoted_or_rolled_back_feature(stage: Stage) -> None:
    for judgement in (BAD, GOOD, HOLD):
        assert judge_ramp(a_feature(stage=stage), judgement, 10**6, RULES, 9e9) is None


def test_a_share_set_by_an_operator_ends_a_ramp_and_keeps_its_evidence() -> None:
    following = set_percentage(ramping(1), 0.3, "uid:0")

    assert following is not None
    assert not following.fresh
    assert (following.feature.stage, following.feature.share(RULES.steps)) == (Stage.STEADY, 0.3)
    assert following.feature.own_percentage
    assert set_percentage(following.feature, 0.3, "uid:0") is None


def test_a_share_set_by_hand_is_kept_when_the_settings_change() -> None:
    following = set_percentage(a_feature(), 0.2, "x")

    assert following is not None
    assert following.feature.own_percentage


def test_a_reset_goes_back_to_the_settings_with_fresh_evidence() -> None:
    before = a_feature(stage=Stage.ROLLED_BACK, percentage=0.7, own_percentage=True, reason="bad")
    following = reset(before, 0.2, "uid:0")

    assert following.fresh
    assert following.feature == Feature(name="vision", percentage=0.2, epoch=3)


def test_a_ramp_reports_the_condition_of_its_next_step() -> None:
    assert waits_for(ramping(), HOLD, 5, RULES, 1100) == (
        "200 s more on this step and 15 more canary calls, then the share is 25.0 %"
    )
    assert waits_for(ramping(1), HOLD, 500, RULES, 9e9) == (
        "evidence that it is no worse, about 120 more canary calls, then it is promoted"
    )
    assert waits_for(ramping(1), GOOD, 500, RULES, 1100) == (
        "200 s more on this step, then it is promoted"
    )
    few = replace(HOLD, outlook=Outlook(None, True, None, Shortage(300, 0.25, 390, 0.6)))
    assert waits_for(ramping(1), few, 500, RULES, 9e9) == (
        "evidence that it is no worse, but 300 keys are too few for a verdict at 25.0 %: it takes "
        "about 390 more keys or a share of 60.0 %"
    )
    assert waits_for(a_feature(), HOLD, 0, RULES, 0) is None
    paused = waits_for(a_feature(stage=Stage.PAUSED), HOLD, 0, RULES, 0)
    assert paused == "paused until an operator resumes it"


@given(
    st.lists(
        st.one_of(
            st.sampled_from(list(Action)), st.floats(0, 1), st.sampled_from([BAD, GOOD, HOLD])
        ),
        max_size=20,
    )
)
def test_any_sequence_of_actions_keeps_the_share_in_range_and_is_idempotent(
    story: list[Action | float | Decision],
) -> None:
    feature, now = a_feature(), 0.0
    for happening in story:
        now += 400
        try:
            if isinstance(happening, Action):
                following = act(feature, happening, RULES, now, "x")
            elif isinstance(happening, Decision):
                following = judge_ramp(feature, happening, 50, RULES, now)
            else:
                following = set_percentage(feature, happening, "x")
        except RampError:
            continue
        feature = following.feature if following else feature
        assert 0 <= feature.share(RULES.steps) <= 1
        if isinstance(happening, Action) and happening is not Action.ADVANCE:
            assert act(feature, happening, RULES, now, "x") is None
