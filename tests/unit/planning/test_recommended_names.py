"""A recommendation as JSON names arms as the suite does, and translates nothing but arms."""

from dataclasses import fields

from lorastudy.planning.recommendation import decision_json
from lorastudy.recommend.decision import ArmDecision


def test_only_what_holds_an_arm_is_translated():
    # "best", "memory" and "decided" are labels here, and words of the decision too.
    names = {"best": "arm_1", "memory": "arm_2", "decided": "arm_3"}
    decision = ArmDecision(
        status="decided", reason="best", arm="best", peers=("memory",), cheapest_by="memory", harmed=("decided",)
    )  # fmt: skip
    found = decision_json(decision, names)
    assert found["arm"] == "arm_1"
    assert found["peers"] == ["arm_2"]
    assert found["harmed"] == ["arm_3"]
    assert (found["status"], found["reason"], found["cheapest_by"]) == ("decided", "best", "memory")
    assert decision_json(ArmDecision(status="none", reason="one arm"), names)["arm"] is None


def test_every_part_that_holds_arms_is_translated():
    several = {each.name for each in fields(ArmDecision) if each.type == tuple[str, ...]}
    decision = ArmDecision(status="none", reason="best", **dict.fromkeys(several, ("r=4",)))
    assert all(decision_json(decision, {"r=4": "arm"})[key] == ["arm"] for key in several)
    assert several
