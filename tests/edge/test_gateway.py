"""What a request to the registry needs; a path read differently than meant needs nothing less."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from mayfly.edge.gateway import need
from mayfly.edge.proxy import end_to_end, relative
from mayfly.errors import NotFound
from mayfly.registry import grants
from mayfly.registry.grants import Access

DIGEST = "sha256:" + "a" * 64
PULL, PUSH, DELETE = frozenset({"pull"}), frozenset({"pull", "push"}), frozenset({"delete"})

RESTS = {
    "manifests/latest": "manifests",
    f"manifests/{DIGEST}": "manifests",
    f"blobs/{DIGEST}": "blobs",
    "blobs/uploads/": "uploads",
    "blobs/uploads/6b0c4b9e-1234?_state=x%2By%3D%3D": "uploads",
    "tags/list?n=10": "tags",
    f"referrers/{DIGEST}": "referrers",
}
name = st.lists(
    st.sampled_from(["images", "blobs", "uploads", "manifests", "tags", "o", "r", "a.b-c", "list"]),
    min_size=1,
    max_size=4,
).map("/".join)


@given(name, st.sampled_from(sorted(RESTS)), st.sampled_from(["GET", "HEAD"]))
def test_reading_needs_pull_on_that_repository(name: str, rest: str, method: str) -> None:
    found = need(method, f"/v2/{name}/{rest}")
    assert found.asked == found.passed == (Access(name, PULL),)
    assert found.target == f"/v2/{name}/{rest}"


@given(name, st.sampled_from(sorted(RESTS)), st.sampled_from(["PUT", "POST", "PATCH"]))
def test_writing_needs_push_on_that_repository(name: str, rest: str, method: str) -> None:
    assert need(method, f"/v2/{name}/{rest}").asked == (Access(name, PUSH),)


@given(name, st.sampled_from(sorted(RESTS)))
def test_deleting_needs_delete_except_ones_own_upload(name: str, rest: str) -> None:
    found = need("DELETE", f"/v2/{name}/{rest}")
    upload = RESTS[rest] == "uploads"
    assert found.asked == (Access(name, frozenset({"push"}) if upload else DELETE),)
    assert found.passed == (Access(name, DELETE),)


@given(st.text("/abc.%:_-?=~*AZ09", max_size=30), st.sampled_from(["GET", "PUT", "DELETE"]))
def test_whatever_is_asked_is_a_repository_of_the_path_or_refused(path: str, method: str) -> None:
    try:
        found = need(method, f"/v2/{path}")
    except NotFound:
        return
    for access in found.asked:
        assert access == grants.CATALOG or (
            grants.is_repository(access.name) and path.startswith(f"{access.name}/")
        )
    assert found.asked or path.partition("?")[0] == ""


@pytest.mark.parametrize(
    "path",
    [
        "/v2/images/o/r/../../x/manifests/t",
        "/v2/images/o/r/%2e%2e/x/manifests/t",
        "/v2/images//o/manifests/t",
        "/v2//manifests/t",
        "/v2/images/o/manifests/..",
        "/v2/images/o/blobs/uploads/..",
        "/v2/images/o/blobs/uploads/../../manifests/t",
        "/v2/images/o/blobs/uploads/a/b",
        "/v2/images/O/manifests/t",
        "/v2/images/o/manifests/a%2fb",
        "/v2/images/o/manifests/t;x",
        "/v2/images/o/tags",
        "/v2/images/o",
        "/v2/manifests/t",
        "/v2manifests/t",
        "/images/o/manifests/t",
        "/v1/images/o/manifests/t",
        "//v2/images/o/manifests/t",
        "/healthz",
        "",
        "/v2/_catalog/",
        "/v2/" + "a" * 256 + "/manifests/t",
    ],
)
def test_a_path_that_could_be_read_in_two_ways_is_refused(path: str) -> None:
    with pytest.raises(NotFound):
        need("GET", path)


def test_a_strange_method_is_refused() -> None:
    with pytest.raises(NotFound):
        need("CONNECT", "/v2/o/r/manifests/t")


def test_the_catalog_is_its_own_thing() -> None:
    found = need("GET", "/v2/_catalog?n=5")
    assert found.asked == (grants.CATALOG,)
    assert grants.CATALOG in found.passed, "as distribution calls it"
    assert Access("", PULL) in found.passed, "as zot calls it"


@pytest.mark.parametrize("path", ["/v2/", "/v2", "/v2/?x"])
def test_the_front_door_needs_a_token_and_no_grant(path: str) -> None:
    found = need("GET", path)
    assert (found.target, found.asked) == ("/v2/", ())


@pytest.mark.parametrize("order", ["mount={d}&from={f}", "from={f}&mount={d}"])
def test_a_mount_wants_pull_on_its_source_and_can_go_without(order: str) -> None:
    query = order.format(d=DIGEST.replace(":", "%3A"), f="images%2Fbase%2Fdebian")
    found = need("POST", f"/v2/images/o/r/blobs/uploads/?{query}&x=1")
    assert found.asked == (Access("images/o/r", PUSH),)
    assert found.optional == (Access("images/base/debian", PULL),)
    assert found.target.endswith(query + "&x=1")
    assert found.target_without == "/v2/images/o/r/blobs/uploads/?x=1"


def test_a_mount_from_wherever_the_registry_finds_the_blob_is_an_upload() -> None:
    found = need("POST", f"/v2/o/r/blobs/uploads/?mount={DIGEST}&x=1")
    assert (found.target, found.optional) == ("/v2/o/r/blobs/uploads/?x=1", ())


def test_every_source_that_is_named_counts() -> None:
    found = need("POST", f"/v2/o/r/blobs/uploads/?mount={DIGEST}&from=a&from=b")
    assert [access.name for access in found.optional] == ["a", "b"]
    assert found.target_without == "/v2/o/r/blobs/uploads/"


def test_headers_of_the_connection_do_not_travel() -> None:
    headers = CIMultiDictProxy(
        CIMultiDict(
            [("Connection", "close, X-Own"), ("X-Own", "1"), ("TE", "x"), ("Range", "bytes=0-1"),
             ("Authorization", "secret"), ("Transfer-Encoding", "chunked"), ("A", "1"), ("A", "2")]
        )
    )  # fmt: skip
    left = end_to_end(headers, leave=("authorization",))
    assert list(left.items()) == [("Range", "bytes=0-1"), ("A", "1"), ("A", "2")]


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/v2/o/blobs/uploads/u?_state=a%2Bb%3D", "/v2/o/blobs/uploads/u?_state=a%2Bb%3D"),
        (
            "http://localhost/v2/o/blobs/uploads/u?s=a%2Bb",
            "/v2/o/blobs/uploads/u?s=a%2Bb",
        ),
        ("https://registry:5000/v2/", "/v2/"),
    ],
)
def test_a_location_is_good_at_every_name(location: str, expected: str) -> None:
    assert relative(location) == expected
