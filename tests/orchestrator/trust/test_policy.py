"""Who is trusted, and on which terms a lease is granted: the whole policy, without a farm."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.config import Trust as Policy
from mayfly.errors import Denied
from mayfly.model import LeaseRequest
from mayfly.orchestrator.trust import Origin, Principal, covers, policy
from mayfly.registry import grants

POLICY = Policy()
KEY = "ssh-ed25519 AAAA"
ASKED = LeaseRequest("team/app", KEY)
PUSH = Origin(("team/app",), "push", "main", "main", "refs/heads/main", "c" * 40)
PULL = replace(PUSH, event="pull_request", ref="refs/pull/12/head", pull_request=12)


def who(origin: Origin | None, name: str = "woodpecker:team/app#7") -> Principal:
    return Principal(name, origin=origin)


def decide(origin: Origin, asked: LeaseRequest = ASKED, *, seen: bool = False) -> policy.Decision:
    return policy.decide(who(origin), asked, POLICY, "t2", seen=seen)


@pytest.mark.parametrize(
    ("origin", "seen", "trusted"),
    [
        (PUSH, False, True),
        (replace(PUSH, event="cron"), False, True),
        (replace(PUSH, event="manual"), False, True),
        (replace(PUSH, branch="feature"), True, False),
        (replace(PUSH, event="cron", branch="feature"), True, False),
        (replace(PUSH, default_branch=""), True, False),
        (replace(PUSH, branch="", default_branch=""), True, False),
        (replace(PUSH, event="tag", branch="v1"), True, True),
        (replace(PUSH, event="tag", branch="v1"), False, False),
        (replace(PUSH, event="tag", branch="main"), False, False),
        (replace(PUSH, event="tag", commit=""), True, False),
        (PULL, True, False),
        (replace(PULL, pull_request=0), True, False),
        (replace(PULL, event="pull_request_closed"), True, False),
        (replace(PUSH, pull_request=12), True, False),
        (replace(PUSH, fork=True), True, False),
        (replace(PUSH, event="deployment"), True, False),
        (replace(PUSH, event="release"), True, False),
        (replace(PUSH, event=""), True, False),
        (replace(PUSH, vouched=False), True, False),
        (Origin(("team/*",), vouched=True), False, True),
        (Origin(("team/*",)), True, False),
    ],
)
def test_who_is_trusted(origin: Origin, seen: bool, trusted: bool) -> None:
    decision = decide(origin, seen=seen)
    assert decision.trusted is trusted, decision.terms.why
    assert bool(decision.terms.slot) is not trusted
    assert decision.terms.alone is (not trusted and origin.vouched is None)
    assert (decision.budget_min, decision.terms.largest) == ((0, "") if trusted else (30, "t2"))
    assert decision.terms.why


def test_an_operator_can_trust_other_branches_and_events() -> None:
    wider = Policy(branches=("release/*",), events=("push", "deployment"))
    assert policy.standing(replace(PUSH, branch="release/1"), wider)[0]
    assert not policy.standing(replace(PUSH, branch="feature"), wider)[0]
    assert policy.standing(replace(PUSH, event="deployment"), wider)[0]
    assert not policy.standing(replace(PUSH, event="cron"), wider)[0]
    assert not policy.standing(replace(PULL, branch="release/1"), wider)[0]


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_events = st.sampled_from(
    ["", "push", "tag", "cron", "manual", "pull_request", "pull_request_closed", "release", "x"]
)
_origins = st.builds(
    Origin,
    repos=st.sampled_from([("team/app",), ("team/*",), ("**",)]),
    event=_events,
    branch=st.one_of(st.sampled_from(["", "main", "feature/x", "Main"]), _texts),
    default_branch=st.sampled_from(["", "main"]),
    ref=_texts,
    commit=st.sampled_from(["", "c" * 40]),
    pull_request=st.integers(0, 3),
    fork=st.booleans(),
    vouched=st.sampled_from([None, None, True, False]),
)
_requests = st.builds(
    LeaseRequest,
    repo=st.just("team/app"),
    ssh_public_key=st.just(KEY),
    size=st.sampled_from(["", "t1"]),
    ref=_texts,
    event=st.one_of(_events, _texts),
    target=_texts,
)


@given(_origins, _requests, _requests, st.booleans())
def test_no_claim_changes_whether_a_lease_is_trusted(
    origin: Origin, one: LeaseRequest, two: LeaseRequest, seen: bool
) -> None:
    first, second = decide(origin, one, seen=seen), decide(origin, two, seen=seen)
    assert (first.trusted, first.terms) == (second.trusted, second.terms)
    if origin.event:
        assert first.request.event == second.request.event == origin.event
    if origin.ref:
        assert first.request.ref == origin.ref


@given(_origins, st.booleans())
def test_what_is_never_trusted(origin: Origin, seen: bool) -> None:
    trusted, why = policy.standing(origin, POLICY, seen=seen)
    assert why
    if origin.vouched is None and trusted:
        assert not origin.pull_request
        assert not origin.fork
        assert origin.event in POLICY.events
        assert origin.branch == "main" == origin.default_branch or (origin.event == "tag" and seen)
    if policy.proves_commit(origin, POLICY):
        assert trusted
        assert origin.commit
        assert origin.branch == "main"


@given(_origins)
def test_a_slot_is_one_part_of_a_name(origin: Origin) -> None:
    slot = policy.slot(who(origin))
    assert "/" not in slot
    assert "__" not in slot
    assert len(slot) < 64
    for grant in grants.for_lease("team/app", slot):
        assert grants.is_repository(grant.name.replace("*", "x"))
    if origin.vouched is None and origin.pull_request:
        assert slot == str(origin.pull_request)
    else:
        assert not slot.isdigit()


@given(_texts.filter(bool), _texts.filter(bool))
def test_two_branches_share_no_slot(one: str, two: str) -> None:
    slots = {policy.slot(who(replace(PUSH, branch=name, event="push"))) for name in (one, two)}
    assert len(slots) == len({one, two})


@pytest.mark.parametrize("name", ["Feature/X", "é", "a" * 80])
def test_no_branch_can_be_called_as_anothers_slot(name: str) -> None:
    slot = policy.slot(who(replace(PUSH, branch=name)))
    copied = slot.removeprefix("branch-")
    assert policy.slot(who(replace(PUSH, branch=copied))) != slot


def test_another_repo_is_refused_and_named() -> None:
    with pytest.raises(Denied, match=r"#7 may not build team/other - it may build team/app: see"):
        decide(PUSH, replace(ASKED, repo="team/other"))
    with pytest.raises(Denied, match="asks for no lease"):
        policy.decide(Principal("lease:x", lease="x"), ASKED, POLICY, "t2")
    with pytest.raises(Denied, match="names below 'base' are Mayfly's own"):
        decide(Origin(("**",), vouched=True), replace(ASKED, repo="base/x"))


def test_what_may_not_be_pushed_is_refused_before_there_is_a_lease() -> None:
    wanted = replace(ASKED, pushes=("images/team/app",))
    assert decide(PUSH, wanted).trusted
    with pytest.raises(Denied) as caught:
        decide(PULL, wanted)
    assert str(caught.value) == (
        "a build of repo team/app that is not trusted (it builds a pull request) may not push to "
        "images/team/app - use -t images/pr/team/app/12"
    )
    for allowed in ("images/pr/team/app/12",):
        assert not decide(PULL, replace(ASKED, pushes=(allowed,))).trusted
    for denied in ("images/pr/team/app/13", "images/pr/team/other/12", "cache/trusted/team/app/x"):
        with pytest.raises(Denied):
            decide(PULL, replace(ASKED, pushes=(denied,)))


def test_the_administrator_is_trusted_whatever_is_claimed() -> None:
    claimed = replace(ASKED, event="pull_request")
    decision = policy.decide(Principal("admin", admin=True), claimed, POLICY, "t2")
    assert decision.trusted
    assert decision.request == claimed


@pytest.mark.parametrize(
    ("pattern", "repo", "covered"),
    [
        ("team/app", "team/app", True),
        ("team/app", "team/apps", False),
        ("team/*", "team/app", True),
        ("team/*", "team/app/sub", False),
        ("team/*", "teams/app", False),
        ("team/**", "team/app/sub", True),
        ("team/**", "team", False),
        ("**", "any/thing/at/all", True),
        ("*", "one", True),
        ("*", "team/app", False),
        ("team/app-*", "team/app-web", True),
        ("team/a.p", "team/axp", False),
    ],
)
def test_patterns_of_repos(pattern: str, repo: str, covered: bool) -> None:
    assert covers([pattern], repo) is covered
    assert covers(["other/app", pattern], repo) is covered
    assert not covers([], repo)
