"""A review over HTTP: who may see it, what is told, and how answers are kept."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from cinesynth.errors import StorageError
from cinesynth.studies.review.folder import ReviewFolder
from cinesynth.studies.review.make import make_review
from serve import pages
from serve.auth import create_key
from serve.config import ServeConfig
from serve.content import Content
from serve.jobs import JobStore
from tests.serve.asking import error
from tests.studies.review.small_review import review_config


@pytest.fixture
def review(tmp_path: Path) -> ReviewFolder:
    """Of 4 windows and 2 checks, with places for three raters."""
    return make_review(review_config(tmp_path, raters=3, title="Looks", instructions="Sit in the dark."))


@pytest.fixture
def config(config: ServeConfig, review: ReviewFolder) -> ServeConfig:
    return config.model_copy(update={"reviews": "looks"})


@pytest.fixture
def rater(client: TestClient, config: ServeConfig) -> TestClient:
    """The client with ann's key, which is for reviews only."""
    client.headers["Authorization"] = f"Bearer {create_key(config.keys_path(), 'ann', ['review'])}"
    return client


def as_rater(client: TestClient, config: ServeConfig, name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {create_key(config.keys_path(), name, ['review'])}"}


def answers(shown: dict[str, Any], choice: str = "A") -> dict[str, Any]:
    return {"answers": {q["name"]: choice for q in shown["questions"]}, "seconds": 4.5, "plays": 2}


def test_a_rater_sees_items_in_order_and_no_word_that_tells_an_arm(rater: TestClient, review: ReviewFolder) -> None:
    shown = rater.get("/v1/review").json()
    assert [item["id"] for item in shown["items"]] == list(review.design.sequences[0])
    assert (shown["title"], shown["instructions"], shown["format"]) == ("Looks", "Sit in the dark.", "pairs")
    assert [q["text"] for q in shown["questions"]] == [q.text for q in review.design.questions]
    assert all(set(item) == {"id", "videos", "width", "height", "fps", "caption", "answers"} for item in shown["items"])
    assert {(item["width"], item["height"], item["fps"]) for item in shown["items"]} == {(64, 48, 16.0)}
    told = json.dumps(shown).lower()
    for word in ("base", "adapter", "real", "check", "expected", "damaged", "w0", review.design.salt, "storage"):
        assert not re.search(rf"\b{word}\b", told), word
    video = rater.get(f"/v1/review/videos/{shown['items'][0]['videos'][0]}")
    assert not re.search(r"base|adapter|/", video.headers["content-disposition"])


def test_a_key_without_the_scope_is_403_none_is_401_and_a_review_key_makes_no_video(
    client: TestClient, config: ServeConfig, review: ReviewFolder
) -> None:
    item, video = review.design.sequences[0][0], next(iter(review.design.clips))
    routes = [("GET", "/v1/review"), ("PUT", f"/v1/review/answers/{item}"), ("GET", f"/v1/review/videos/{video}")]
    for method, path in routes:
        told = error(client.request(method, path, json={}), 403, "scope_missing")["message"]
        assert told == "this key has the scopes videos; a review needs a key with the scope review"
        client.headers["Authorization"], before = "Bearer cs-wrong", client.headers["Authorization"]
        error(client.request(method, path, json={}), 401, "invalid_api_key")
        client.headers["Authorization"] = before
    assert review.raters() == {}, "nobody took a place"
    error(client.get("/v1/videos", headers=as_rater(client, config, "ann")), 403, "scope_missing")


def test_answers_are_kept_once_changed_and_told_again(rater: TestClient, review: ReviewFolder) -> None:
    shown = rater.get("/v1/review").json()
    first = shown["items"][0]["id"]
    with ThreadPoolExecutor(8) as pool:
        sent = list(pool.map(lambda _: rater.put(f"/v1/review/answers/{first}", json=answers(shown)), range(8)))
    assert {response.status_code for response in sent} == {200}
    assert sent[0].json() == {
        "object": "review.answer",
        "item": first,
        "answers": answers(shown)["answers"],
        "changes": 0,
    }
    (kept,) = review.answers(0).values()
    assert (kept.changes, kept.seconds, kept.plays) == (0, 4.5, 2), "eight clicks are one answer"
    assert rater.put(f"/v1/review/answers/{first}", json=answers(shown, "tie")).json()["changes"] == 1
    again = rater.get("/v1/review").json()
    assert [item["id"] for item in again["items"]] == [item["id"] for item in shown["items"]]
    assert [item["answers"] for item in again["items"]] == [answers(shown, "tie")["answers"]] + [None] * 5
    assert list(ReviewFolder.open(str(Path(review.folder.path).parents[1]), "looks").answers(0)) == [first]


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"answers": {}}, 400, "invalid_value", "answers"),
        ({"answers": {"style": "A"}}, 400, "invalid_value", "answers"),
        (
            {"answers": {"style": "C", "stability": "A", "motion": "A", "artefacts": "A"}},
            400,
            "invalid_value",
            "answers",
        ),
        ({"answers": {"x" * 500: "A"}}, 400, "invalid_value", "answers"),
        ({"answers": None}, 400, "invalid_value", "answers"),
        ({"seconds": -1}, 400, "invalid_value", "seconds"),
        ({"seconds": 1e999}, 400, "invalid_value", "seconds"),
        ({"plays": 1.5}, 400, "invalid_value", "plays"),
        ({"rater": "bob"}, 400, "invalid_value", "rater"),
    ],
)
def test_answers_that_are_none_are_refused(
    rater: TestClient, review: ReviewFolder, change: dict[str, Any], status: int, code: str, param: str
) -> None:
    shown = rater.get("/v1/review").json()
    body = json.dumps({**answers(shown), **change})
    path = f"/v1/review/answers/{shown['items'][0]['id']}"
    refused = rater.put(path, content=body, headers={"Content-Type": "application/json"})
    told = error(refused, status, code, param)
    assert len(told["message"]) < 300
    assert review.answers(0) == {}


def test_bodies_are_bounded_and_json(rater: TestClient, review: ReviewFolder) -> None:
    path = f"/v1/review/answers/{rater.get('/v1/review').json()['items'][0]['id']}"
    error(rater.put(path, content=b"{" + b" " * 300_000 + b"}", headers={"Content-Type": "application/json"}), 413,
          "too_large", "input_reference")  # fmt: skip
    error(rater.put(path, content=b"a=1", headers={"Content-Type": "text/plain"}), 415, "unsupported_media_type")
    error(rater.put(path, content=b"[1]", headers={"Content-Type": "application/json"}), 400, "invalid_json")


def test_a_rater_reaches_the_own_items_and_videos_only(
    rater: TestClient, config: ServeConfig, review: ReviewFolder
) -> None:
    shown = rater.get("/v1/review").json()
    design = review.design
    bob = as_rater(rater, config, "bob")
    theirs = rater.get("/v1/review", headers=bob).json()
    assert [item["id"] for item in theirs["items"]] == list(design.sequences[1])
    foreign = next(name for name in design.sequences[1] if name not in design.sequences[0])
    error(rater.put(f"/v1/review/answers/{foreign}", json=answers(shown)), 404, "not_found", "item")
    for name in ("..%2fdesign.json", "%2e%2e%2f%2e%2e%2fdesign", "0" * 32, "a" * 4000, "%00"):
        for path in (f"/v1/review/answers/{name}", f"/v1/review/videos/{name}"):
            method = "PUT" if "answers" in path else "GET"
            answer = rater.request(method, path, json=answers(shown) if method == "PUT" else None)
            assert answer.status_code in (307, 404, 405), path
            assert "salt" not in answer.text
    mine = {video for item in shown["items"] for video in item["videos"]}
    for video in set(design.clips) - mine:
        error(rater.get(f"/v1/review/videos/{video}"), 404, "not_found", "clip")


def test_videos_are_served_in_byte_ranges_and_dated_alike(rater: TestClient, review: ReviewFolder) -> None:
    videos = [video for item in rater.get("/v1/review").json()["items"] for video in item["videos"]]
    whole = rater.get(f"/v1/review/videos/{videos[0]}")
    assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
    assert whole.content == (Path(review.folder.path) / "videos" / f"{videos[0]}.mp4").read_bytes()
    part = rater.get(f"/v1/review/videos/{videos[0]}", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole.content)}"
    error(
        rater.get(f"/v1/review/videos/{videos[0]}", headers={"Range": "bytes=9999999-"}), 416, "invalid_range", "Range"
    )
    dates = {rater.head(f"/v1/review/videos/{video}").headers["last-modified"] for video in videos}
    assert dates == {"Thu, 01 Jan 1970 00:00:00 GMT"}


def test_a_video_whose_file_goes_as_its_answer_begins_is_a_404(
    rater: TestClient, review: ReviewFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = rater.get("/v1/review").json()["items"][0]["videos"][0]
    call = Content.__call__

    async def late(self: Content, *args: Any) -> None:
        (Path(review.folder.path) / "videos" / f"{video}.mp4").unlink(missing_ok=True)
        await call(self, *args)

    monkeypatch.setattr(Content, "__call__", late)
    for _ in range(2):
        error(rater.get(f"/v1/review/videos/{video}"), 404, "not_found", "clip")


def test_when_all_places_are_taken_the_next_rater_is_told(
    rater: TestClient, config: ServeConfig, review: ReviewFolder
) -> None:
    headers = [as_rater(rater, config, name) for name in ("bob", "cid", "dan", "eve")]
    statuses = [rater.get("/v1/review", headers=h).status_code for h in headers]
    assert statuses == [200, 200, 200, 409]
    error(rater.get("/v1/review", headers=headers[3]), 409, "review_full")
    assert rater.get("/v1/review", headers=headers[0]).status_code == 200
    assert review.raters() == {0: "bob", 1: "cid", 2: "dan"}


def test_the_page_is_served_as_the_studio_is(client: TestClient) -> None:
    page = client.get("/review")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert not re.search(r"<script(?![^>]*src)|<style|\sstyle=|\son\w+=|https?://", page.text), "inline or foreign"
    linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    modules = {f"review/{path.name}" for path in pages.FOLDERS["review"].glob("*.js")}
    assert {"studio/studio.css", "review/review.css", "review/review.js"} <= {*linked}
    for name in {*linked, *modules}:
        file = client.get(f"/{name}")
        assert file.status_code == 200, name
        assert "http" not in re.sub(r"http://www.w3.org/\S+", "", file.text)
        for imported in re.findall(r'from "([^"]+)"', file.text):
            assert client.get(f"/{Path(name).parent}/{imported}").status_code == 200
    assert page.headers["content-security-policy"] == client.get("/studio").headers["content-security-policy"]
    assert page.headers["x-frame-options"] == "DENY"
    known = client.get("/review", headers={"If-None-Match": page.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    error(client.get("/review/review.py"), 404, "not_found")


def test_a_review_that_is_not_there_is_refused_before_the_service_starts(config: ServeConfig, key: str) -> None:
    config.check_inputs()
    with pytest.raises(StorageError, match=r"no review 'look' in .*; there are: looks"):
        config.model_copy(update={"reviews": "look"}).check_inputs()


class TestNoReviewIsOpen:
    @pytest.fixture
    def config(self, config: ServeConfig) -> ServeConfig:
        return config.model_copy(update={"reviews": None})

    def test_every_route_says_so(self, rater: TestClient, store: JobStore) -> None:
        for method, path in (("GET", "/review"), ("GET", "/v1/review"), ("PUT", "/v1/review/answers/x")):
            told = error(rater.request(method, path, json={}), 404, "no_review")["message"]
            assert told == "no review is open here; the server's operator opens one with `reviews`"
