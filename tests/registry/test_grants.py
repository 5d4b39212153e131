"""A lease reaches its own repositories and the base images, and nothing else, however it asks."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mayfly.errors import UsageError
from mayfly.registry import grants
from mayfly.registry.grants import Access

# Few parts, of which some begin like others, so that names are often near each other.
part = st.sampled_from(["a", "ab", "a-b", "a.b", "b", "base", "images", "pr"])
name = st.lists(part, min_size=1, max_size=4).map("/".join)
repo = name.filter(lambda text: text.split("/")[0] not in grants.RESERVED)
actions = st.sets(st.sampled_from(["pull", "push", "delete", "*"]), max_size=4).map(frozenset)
pattern = st.one_of(name, name.map(lambda text: f"{text}/*"), st.just("*"))
kind = st.sampled_from(["repository", "registry"])
granted = st.lists(st.builds(Access, pattern, actions, kind), max_size=4).map(tuple)
request = st.builds(Access, st.one_of(name, pattern, st.just("catalog")), actions, kind)


def may(grant: Access, asked_name: str, asked_kind: str, action: str) -> bool:
    """What one grant means, said in another way than the code does."""
    if grant.type != asked_kind or action not in grant.actions:
        return False
    if asked_kind == "repository" and not grants.is_repository(asked_name):
        return False
    if grant.name.endswith("/*"):
        return asked_name.split("/")[:-1] == grant.name.split("/")[:-1]
    return grant.name in ("*", asked_name)


@given(granted, request)
def test_allowed_is_what_the_grants_together_say(given_: tuple[Access, ...], asked: Access) -> None:
    expected = all(
        any(may(grant, asked.name, asked.type, action) for grant in given_)
        for action in asked.actions
    )
    assert grants.allows(given_, asked) == expected


@given(st.lists(request, max_size=4), granted)
def test_an_intersection_is_asked_for_and_granted_and_leaves_nothing_out(
    asked: list[Access], given_: tuple[Access, ...]
) -> None:
    got = grants.intersect(asked, given_)
    for item in got:
        assert item.actions
        assert grants.allows(given_, item)
        wanted = [a.actions for a in asked if (a.type, a.name) == (item.type, item.name)]
        assert item.actions <= frozenset[str]().union(*wanted)
    for item in asked:
        for action in item.actions:
            one = Access(item.name, frozenset({action}), item.type)
            if grants.allows(given_, one):
                assert grants.allows(got, one)
    assert grants.intersect(got, given_) == got


@given(repo, repo, part, st.sampled_from(["pull", "push", "delete", "*"]))
def test_a_lease_reaches_no_other_repo(mine: str, other: str, tail: str, action: str) -> None:
    assume(other != mine)
    assume(not mine.startswith("images/base/"))  # as a name that is everybody's to pull
    access = grants.for_lease(mine)
    for target in (
        *(name.replace("NAME", tail) for name in grants.image_names(other)),
        f"cache/trusted/{other}/{tail}",
        f"cache/untrusted/{mine}/{tail}",
        f"images/pr/{mine}/{tail}",
        f"images/mayfly/{tail}",
        f"sccache/{mine}",
        mine,
    ):
        assert not grants.allows(access, Access(target, frozenset({action})))
    assert not grants.allows(access, grants.CATALOG)


@given(repo, repo, part, part, part, st.sampled_from(["pull", "push", "delete"]))
def test_what_is_not_trusted_writes_its_own_slot_and_reads_its_own_repo(
    mine: str, other: str, slot: str, beside: str, tail: str, action: str
) -> None:
    slot, beside = slot.replace("__", "_"), beside.replace("__", "_")
    assume(slot != beside and not mine.startswith("images/base/"))
    access, trusted = grants.for_lease(mine, slot), grants.for_lease(mine)
    push = frozenset({"push"})
    for repo_, at in ((mine, beside), (other, slot) if other != mine else (mine, beside)):
        for target in (f"images/pr/{repo_}/{at}", f"cache/untrusted/{repo_}/{at}__{tail}"):
            assert not grants.allows(access, Access(target, frozenset({action})))
    for target in (f"images/pr/{mine}/{slot}", f"cache/untrusted/{mine}/{slot}__{tail}"):
        assert grants.allows(access, Access(target, push))
        assert not grants.allows(trusted, Access(target, frozenset({action})))
    for grant in trusted:  # nothing that a trusted build writes, all that it reads
        target = grant.name.replace("*", tail)
        assert not grants.allows(access, Access(target, push))
        assert grants.allows(access, Access(target, frozenset({"pull"})))


@given(repo, part)
def test_who_owns_an_image_is_who_may_write_it(mine: str, tail: str) -> None:
    for name in grants.image_names(mine):
        assert grants.owner_of(name.replace("NAME", tail)) == mine
    for name in (f"cache/trusted/{mine}/{tail}", f"images/base/{tail}", f"images/pr/{mine}/{tail}"):
        assert grants.owner_of(name) == ""


@given(repo, repo, name, st.sampled_from(["images", "cache/trusted"]))
def test_no_name_can_be_written_by_two_repos(
    mine: str, other: str, written: str, zone: str
) -> None:
    assume(other != mine)
    both = (f"{zone}/{mine}", f"{zone}/{other}", f"{zone}/{written}", f"{zone}/{mine}/{written}")
    for target in both:
        push = Access(target, frozenset({"push"}))
        assert not all(grants.allows(grants.for_lease(each), push) for each in (mine, other))


@pytest.mark.parametrize(
    ("mine", "names"),
    [
        ("team", ("images/team",)),
        ("team/app", ("images/team/app", "images/team/app/NAME")),
        ("group/team/app", ("images/group/team/app/NAME",)),
    ],
)
def test_where_images_may_be_pushed(mine: str, names: tuple[str, ...]) -> None:
    assert grants.image_names(mine) == names


def test_an_owner_does_not_write_what_is_its_repos() -> None:
    for target in ("images/team/app", "cache/trusted/team/app/default"):
        push = Access(target, frozenset({"push"}))
        assert not grants.allows(grants.for_lease("team"), push)
        assert grants.allows(grants.for_lease("team/app"), push)


@given(repo, part)
def test_a_lease_has_its_own_and_reads_the_bases(mine: str, tail: str) -> None:
    access = grants.for_lease(mine)
    images = (name.replace("NAME", tail) for name in grants.image_names(mine))
    for target in (*images, f"cache/trusted/{mine}/{tail}"):
        assert grants.allows(access, Access(target, frozenset({"pull", "push"})))
        assert not grants.allows(access, Access(target, frozenset({"delete"})))
    assert grants.allows(access, Access(f"images/base/{tail}", frozenset({"pull"})))
    assert not grants.allows(access, Access(f"images/base/{tail}", frozenset({"push"})))


@pytest.mark.parametrize("name", ["images/o/r/*", "*", "images/o/*", "images/o/r/", "images//o"])
def test_a_pattern_cannot_be_asked_for(name: str) -> None:
    assert grants.intersect([Access(name, frozenset({"pull"}))], grants.for_lease("o/r")) == ()
    assert grants.intersect([Access(name, frozenset({"pull"}))], grants.EVERYTHING) == ()


@pytest.mark.parametrize(
    "repo", ["", "O/r", "o/", "/o", "o//r", "o/../r", "o r", "-o", "base/x", "pr", "mayfly/x",
             "o/*", "o" * 201, "o/r\n"]
)  # fmt: skip
def test_a_wrong_repo_is_refused_in_one_line(repo: str) -> None:
    with pytest.raises(UsageError) as caught:
        grants.for_lease(repo)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("slot", ["", "7"])
def test_who_may_empty_a_cache_is_who_writes_it(slot: str) -> None:
    held = grants.for_caches("team/app", slot)
    lease = grants.for_lease("team/app", slot)
    for name in (
        "cache/trusted/team/app/default",
        "cache/untrusted/team/app/7__default",
        "cache/untrusted/team/app/8__default",
        "cache/trusted/team/other/default",
        "cache/trusted/team/app/sub/default",
        "cache/trusted/team/app",
        "images/team/app",
    ):
        for done, needed in ((grants.PULL, grants.PULL), (grants.DELETE, grants.PUSH)):
            may = grants.allows(held, Access(name, frozenset({done})))
            # What is trusted also looks after what is not, which it neither reads nor writes.
            also = not slot and name.startswith("cache/untrusted/team/app/")
            own = name.startswith("cache/") and grants.allows(
                lease, Access(name, frozenset({needed}))
            )
            assert may is (own or also), (name, done)
        assert not grants.allows(held, Access(name, frozenset({grants.PUSH})))


@given(st.lists(st.builds(Access, name, actions), max_size=3), name)
def test_caches_are_asked_for_by_repo(others: list[Access], repo: str) -> None:
    asked = (*others, grants.caches(repo), Access(f"caches/{repo}", frozenset({"list"})))
    assert grants.caches_asked(asked) == (repo,)
    assert grants.parse_scope(str(grants.caches(repo))) == (grants.caches(repo),)
    with pytest.raises(UsageError):
        grants.for_caches("Team/App")


@given(st.lists(st.builds(Access, name, actions), max_size=3))
def test_a_scope_says_what_it_was_made_of(items: list[Access]) -> None:
    assert list(grants.parse_scope(" ".join(map(str, items)))) == items


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("repository:a/b:pull", (Access("a/b", frozenset({"pull"})),)),
        ("repository(plugin):a:pull,push", (Access("a", frozenset({"pull", "push"})),)),
        ("repository:host:5000/a:pull", (Access("host:5000/a", frozenset({"pull"})),)),
        ("registry:catalog:*", (grants.CATALOG,)),
        ("repository:a:", (Access("a", frozenset()),)),
    ],
)
def test_scopes_as_clients_write_them(text: str, expected: tuple[Access, ...]) -> None:
    assert grants.parse_scope(text) == expected


@pytest.mark.parametrize("text", ["repository", "repository:a", "::", ":a:pull", "a b"])
def test_what_is_not_a_scope_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not TYPE:NAME:ACTIONS"):
        grants.parse_scope(text)


@given(granted)
def test_claims_come_back_as_they_went(given_: tuple[Access, ...]) -> None:
    assert grants.from_claims(grants.claims(given_)) == given_


@pytest.mark.parametrize("value", [None, {}, "x", [1], [{"name": "a"}], [{"type": 1}]])
def test_what_is_not_an_access_list_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="access"):
        grants.from_claims(value)
