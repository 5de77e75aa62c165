"""The page `/review` in a real browser: a rater answers a whole review by keyboard, and nothing is lost on the way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from cinesynth.studies.review.analysis import analyse, read_rows
from cinesynth.studies.review.folder import ReviewFolder
from cinesynth.studies.review.make import make_review
from serve.auth import create_key
from serve.config import ServeConfig
from serve.jobs import JobStore
from tests.serve.browsing import chromium, opening
from tests.serve.running import Service, running_service
from tests.studies.review.small_review import review_config


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests of this file: Debian's."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def settings() -> dict[str, Any]:
    """Of the review: 3 windows and 2 checks."""
    return {"windows": 3, "raters": 2, "title": "Which looks better?", "instructions": "Sit in the dark."}


@pytest.fixture
def review(tmp_path: Path, settings: dict[str, Any]) -> ReviewFolder:
    return make_review(review_config(tmp_path, **settings))


@pytest.fixture
def service(config: ServeConfig, store: JobStore, review: ReviewFolder) -> Iterator[Service]:
    with running_service(config.model_copy(update={"reviews": "looks"}), store) as service:
        yield service


@pytest.fixture
def ann(config: ServeConfig) -> str:
    return create_key(config.keys_path(), "ann", ["review"])


@pytest.fixture
def open_page(browser: Browser, service: Service) -> Iterator[Callable[..., Page]]:
    """Open `/review` in a context of its own; at the end nothing went elsewhere, and the console has no error."""
    with opening(browser, service.url, "/review") as go:
        yield go


def enter(page: Page, key: str) -> None:
    page.get_by_label("Review key").fill(key)
    page.keyboard.press("Enter")


def at(page: Page, place: int, of: int = 5) -> None:
    expect(page.get_by_role("heading", name=f"Pair {place} of {of}")).to_be_visible()


def playing(page: Page, videos: int = 2) -> None:
    expect(page.locator("#screens video")).to_have_count(videos)
    page.wait_for_function(
        "() => [...document.querySelectorAll('#screens video')].every(v => !v.paused && v.currentTime > 0)"
    )


def test_a_rater_answers_all_by_keyboard_reloads_in_the_middle_and_finishes(
    open_page: Callable[..., Page], review: ReviewFolder, ann: str
) -> None:
    page = open_page()
    enter(page, ann)
    expect(page.get_by_role("heading", name="Which looks better?")).to_be_visible()
    expect(page.get_by_text("Sit in the dark.")).to_be_visible()
    page.get_by_role("button", name="Begin").focus()
    page.keyboard.press("Enter")
    at(page, 1)
    playing(page)
    apart = page.locator("#screens video").evaluate_all("([a, b]) => Math.abs(a.currentTime - b.currentTime)")
    assert apart <= 1.5 / 16, "they play in step"
    assert page.locator("#screens video").evaluate_all("all => all.every(v => v.muted)")

    page.keyboard.press("Enter")  # nothing is answered yet
    expect(page.get_by_text("Answer the marked questions first.")).to_be_visible()
    assert review.answers(0) == {}
    page.keyboard.type("abta")
    expect(page.get_by_role("button", name="Save and go on")).to_be_focused()
    page.keyboard.press("Enter")
    at(page, 2)
    page.keyboard.type("bb")  # half of the second one, then the tab is reloaded
    page.reload()
    at(page, 2)
    assert page.locator("#questions input:checked").evaluate_all("all => all.map(i => i.value)") == ["B", "B"]
    page.keyboard.type("tt")
    page.keyboard.press("Enter")
    at(page, 3)
    page.keyboard.press("Backspace")
    at(page, 2)
    assert page.locator("#questions input:checked").evaluate_all("all => all.map(i => i.value)") == [
        "B",
        "B",
        "tie",
        "tie",
    ]
    page.keyboard.press("A")
    page.locator("#place").focus()
    page.keyboard.press("Enter")
    for place in (3, 4, 5):
        at(page, place)
        page.keyboard.type("aaaa")
        page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="That was the last one. Thank you.")).to_be_visible()
    expect(page.get_by_text("You answered all 5 items.")).to_be_visible()

    names = [question.name for question in review.design.questions]
    kept = review.answers(0)
    assert [list(kept[item].answers.values()) for item in review.design.sequences[0]] == [
        ["A", "B", "tie", "A"],
        ["A", "B", "tie", "tie"],
        *[["A"] * 4] * 3,
    ]
    assert all(list(given.answers) == names for given in kept.values())
    assert [kept[item].changes for item in review.design.sequences[0]] == [0, 1, 0, 0, 0]
    assert all(0 < given.seconds < 60 for given in kept.values())
    assert kept[review.design.sequences[0][0]].plays >= 1
    found = analyse(review.design, read_rows(review), 0.75)
    assert (found.every.raters, found.every.items, found.raters[0].answered) == (1, 3, 5)
    page.reload()
    expect(page.get_by_role("heading", name="That was the last one. Thank you.")).to_be_visible()
    page.get_by_role("button", name="Look at them again").click()
    at(page, 1)


def test_a_wrong_key_and_one_without_the_scope_are_told_and_another_one_is_asked_for(
    open_page: Callable[..., Page], review: ReviewFolder, key: str, ann: str
) -> None:
    page = open_page()
    with page.expect_response(re.compile("/v1/review$")) as answered:
        enter(page, "cs-wrong")
    assert answered.value.status == 401
    expect(page.get_by_role("alert")).to_contain_text("The server does not take this key.")
    with page.expect_response(re.compile("/v1/review$")) as answered:
        enter(page, key)
    assert answered.value.status == 403
    expect(page.get_by_role("alert")).to_contain_text("This key is not one for reviews.")
    assert page.evaluate("sessionStorage.length") == 0
    enter(page, ann)
    expect(page.get_by_role("button", name="Begin")).to_be_visible()
    assert ann not in page.url
    page.get_by_role("button", name="Forget the key").click()
    expect(page.get_by_label("Review key")).to_be_visible()


def test_an_answer_that_was_lost_on_its_way_is_sent_again_and_double_clicks_count_once(
    open_page: Callable[..., Page], service: Service, review: ReviewFolder, ann: str
) -> None:
    page = open_page()
    enter(page, ann)
    page.get_by_role("button", name="Begin").click()
    at(page, 1)
    page.keyboard.type("aaaa")
    page.route(re.compile("/answers/"), lambda route: route.abort())
    page.get_by_role("button", name="Save and go on").click()
    expect(page.get_by_role("alert").last).to_contain_text("The server does not answer.")
    assert page.locator("#questions input:checked").count() == 4
    page.unroute(re.compile("/answers/"))
    sent: list[str] = []
    page.on("request", lambda request: request.method == "PUT" and sent.append(request.url))
    page.get_by_role("button", name="Save and go on").dblclick()
    expect(page.get_by_role("heading", name=re.compile("Pair 2 of 5"))).to_be_visible()
    assert len(sent) == 1
    assert list(review.answers(0)) == [review.design.sequences[0][0]]


def test_it_is_usable_on_a_phone_in_the_dark(open_page: Callable[..., Page], review: ReviewFolder, ann: str) -> None:
    page = open_page(390, 844, color_scheme="dark", has_touch=True, is_mobile=True)
    enter(page, ann)
    page.get_by_role("button", name="Begin").tap()
    at(page, 1)
    playing(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    boxes = page.locator("#screens .screen").evaluate_all("all => all.map(e => e.getBoundingClientRect().toJSON())")
    assert all(box["bottom"] <= 844 for box in boxes), "both are seen at once"
    assert all(box["width"] > 250 for box in boxes)
    for field in page.locator("#questions fieldset").all():
        field.get_by_label("B", exact=True).tap()
    heights = page.locator(".picks label").evaluate_all("all => all.map(e => e.getBoundingClientRect().height)")
    assert min(heights) >= 44, "a finger hits it"
    page.get_by_role("button", name="Save and go on").tap()
    at(page, 2)
    assert set(review.answers(0)[review.design.sequences[0][0]].answers.values()) == {"B"}


class TestScales:
    @pytest.fixture
    def settings(self) -> dict[str, Any]:
        return {"windows": 3, "raters": 2, "format": "scales", "checks": 1}

    def test_one_video_is_rated_from_1_to_5(
        self, open_page: Callable[..., Page], review: ReviewFolder, ann: str
    ) -> None:
        page = open_page()
        enter(page, ann)
        page.get_by_role("button", name="Begin").click()
        expect(page.get_by_role("heading", name="Video 1 of 4")).to_be_visible()
        playing(page, 1)
        page.keyboard.type("a6")  # mean nothing here
        page.keyboard.type("1535")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Video 2 of 4")).to_be_visible()
        (given,) = review.answers(0).values()
        assert list(given.answers.values()) == ["1", "5", "3", "5"]
