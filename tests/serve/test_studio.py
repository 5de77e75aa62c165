"""The page `/studio` in a real browser, against the API in this process and an engine that draws."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from cinesynth.data.video import read_video
from cinesynth.registry import Published
from serve import pages
from serve.auth import create_key, revoke_key
from serve.config import ServeConfig
from serve.jobs import JobStore
from tests.serve.browsing import chromium, opening
from tests.serve.running import Service, running_service


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests of this file: Debian's."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def config(config: ServeConfig) -> ServeConfig:
    """Of jobs that are predicted to be short, so that nobody is told to ask again in ten seconds."""
    return config.model_copy(update={"assumed_job_s": 1.0})


@pytest.fixture
def service(config: ServeConfig, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr("serve.events.POLL_S", 0.2)
    with running_service(config, store) as service:
        yield service


@pytest.fixture
def open_page(browser: Browser, service: Service) -> Iterator[Callable[..., Page]]:
    """Open `/studio` in a context of its own; at the end nothing went elsewhere, and the console has no error."""
    with opening(browser, service.url, "/studio") as go:
        yield go


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A 120x120 PNG, whose top and bottom the server cuts off for a video of 96x64."""
    y, x = np.mgrid[0:120, 0:120]
    path = tmp_path / "harbour.png"
    Image.fromarray(np.stack([x * 2, y * 2, np.full_like(x, 90)], -1).astype(np.uint8)).save(path)
    return path


def enter(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Open the studio").click()
    expect(page.get_by_role("heading", name="Make a video")).to_be_visible()


def drop(page: Page, path: Path, kind: str = "image/png", pasted: bool = False) -> None:
    """Drop a file on the page as a file manager does, or paste it."""
    page.evaluate(
        """([name, kind, text, pasted]) => {
            const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name, {type: kind}));
            const options = {dataTransfer, clipboardData: dataTransfer, bubbles: true, cancelable: true};
            const events = pasted ? [new ClipboardEvent("paste", options)]
                : ["dragover", "drop"].map(type => new DragEvent(type, options));
            for (const event of events) document.body.dispatchEvent(event);
        }""",
        [path.name, kind, base64.b64encode(path.read_bytes()).decode(), pasted],
    )


def paint(page: Page, selector: str) -> np.ndarray:
    """The pixels of a picture or video as the page shows it, with object-fit: cover, 96 pixels wide."""
    url = page.locator(selector).evaluate(
        """shown => {
            const [w, h] = [shown.naturalWidth || shown.videoWidth, shown.naturalHeight || shown.videoHeight];
            const box = shown.getBoundingClientRect(), scale = Math.min(w / box.width, h / box.height);
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [96, Math.round(96 * box.height / box.width)];
            const [cw, ch] = [box.width * scale, box.height * scale];
            const onto = [0, 0, canvas.width, canvas.height];
            canvas.getContext("2d").drawImage(shown, (w - cw) / 2, (h - ch) / 2, cw, ch, ...onto);
            return canvas.toDataURL("image/png");
        }"""
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")).astype(int)


def no_sideways_scroll(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_a_video_is_made_with_and_without_an_adapter_compared_and_downloaded(
    open_page: Callable[..., Page],
    service: Service,
    config: ServeConfig,
    key: str,
    publish: Callable[..., Published],
    picture: Path,
    tmp_path: Path,
) -> None:
    film, push = publish("film-look"), publish("slow-push-in")
    page = open_page()
    enter(page, key)
    drop(page, picture)
    expect(page.get_by_text("harbour.png, 120 × 120. 33 % is cropped off at the top and bottom.")).to_be_visible()
    page.get_by_label("Prompt", exact=True).fill("a car turns the corner")
    page.get_by_label("Length").select_option("9")
    page.get_by_label("Steps").fill("3")
    page.get_by_role("checkbox", name="film-look").check()
    page.get_by_label("Scale of film-look").fill("0.8")
    page.get_by_role("checkbox", name="slow-push-in").check()
    page.get_by_label("with and without").check()
    service.working.clear()
    page.get_by_role("button", name="Make both").click()
    screens = page.locator("#screens figure")
    expect(screens).to_have_count(2)
    expect(screens.nth(0)).to_contain_text(re.compile("Starting|%"))
    expect(screens.nth(1)).to_contain_text("In the queue")
    expect(page.locator("#live")).not_to_be_empty()
    expect(page.get_by_role("button", name="Cancel both")).to_be_visible()
    service.working.set()
    videos = page.locator("#screens video")
    expect(videos).to_have_count(2, timeout=20_000)
    expect(page.locator("#transport")).to_be_visible()

    first, second = service.done
    applied = [(adapter["ref"], adapter["scale"]) for adapter in second.request["adapters"]]
    assert applied == [(film.ref, 0.8), (push.ref, 1.0)]
    assert first.request["adapters"] == []
    assert first.request["sampler"] == second.request["sampler"], "one seed, one setting"
    assert (first.request["num_frames"], first.request["sampler"]["steps"]) == (9, 3)
    kept = np.asarray(Image.open(config.inputs() / first.image)).astype(int)
    assert np.abs(paint(page, "#preview")[:64] - kept).mean() < 3, "the preview is cut as the server cuts"

    # In step: both play, and both stand at the frame that the slider says.
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    page.get_by_label("Frame", exact=True).fill("4")
    expect(page.get_by_text("5 / 9")).to_be_visible()
    assert videos.evaluate_all("all => all.map(v => [v.paused, Math.floor(v.currentTime * 16)])") == [[True, 4]] * 2
    page.get_by_label("Frame", exact=True).press("ArrowRight")
    expect(page.get_by_text("6 / 9")).to_be_visible()
    page.get_by_role("button", name="Play").click()
    times = page.evaluate(
        """() => new Promise(tell => {
            const videos = [...document.querySelectorAll("#screens video")], apart = [];
            const look = () => {
                apart.push(Math.abs(videos[0].currentTime - videos[1].currentTime));
                if (apart.length < 40) requestAnimationFrame(look); else tell(apart);
            };
            look();
        })"""
    )
    assert np.median(times) < 1 / 16

    for name, job in (("base", first), (f"{film.ref} × 0.8, {push.ref}", second)):
        with page.expect_download() as download:
            page.get_by_role("link", name=f"Download: {name}").click()
        assert download.value.suggested_filename == f"{job.id}.mp4"
        path = tmp_path / "downloaded.mp4"
        download.value.save_as(path)
        stored = service.store.get(job.id)
        assert stored is not None
        assert stored.result is not None
        assert path.read_bytes() == (config.results() / stored.result).read_bytes()
        assert read_video(path)[0].shape == (9, 64, 96, 3)

    # All is there after a reload: the two side by side, the list, and what was typed.
    page.reload()
    expect(page.locator("#screens video")).to_have_count(2)
    expect(page.locator("#list li")).to_have_count(2)
    expect(page.locator("#list img")).to_have_count(2)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a car turns the corner")
    assert key not in page.url
    assert "?" not in page.url


def test_a_wrong_key_is_told_and_the_right_one_opens(
    open_page: Callable[..., Page], config: ServeConfig, key: str, picture: Path
) -> None:
    page = open_page()
    field = page.get_by_label("API key")
    for wrong, told in (
        ("", "Give a key."),
        ("clé", "A key has letters"),
        ("cs-wrong", "The server does not take this key."),
    ):
        field.fill(wrong)
        field.press("Enter")
        expect(page.get_by_role("alert").filter(has_text=told)).to_be_visible()
        expect(field).to_be_focused()
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(page.get_by_role("heading", name="Make a video")).to_be_hidden()
    enter(page, key)
    assert page.evaluate("Object.values(sessionStorage)").count(key) == 1
    assert key not in str(page.evaluate("[location.href, Object.values(localStorage), document.cookie]"))
    page.reload()
    expect(page.get_by_role("heading", name="Make a video")).to_be_visible()

    drop(page, picture, pasted=True)
    expect(page.locator("#preview")).to_be_visible()
    page.get_by_label("Prompt", exact=True).fill("a car")
    revoke_key(config.keys_path(), "alice")
    page.get_by_role("button", name="Make", exact=True).click()
    expect(page.get_by_role("alert").filter(has_text="The server does not take this key.")).to_be_visible()
    assert key not in str(page.evaluate("Object.values(sessionStorage)"))
    enter(page, create_key(config.keys_path(), "bob"))
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a car")
    expect(page.locator("#preview")).to_be_visible()
    page.get_by_role("button", name="Forget the key").click()
    expect(field).to_be_focused()
    assert "cs-" not in str(page.evaluate("Object.values(sessionStorage)"))


def test_a_refusal_is_shown_at_its_field_and_nothing_typed_is_lost(
    open_page: Callable[..., Page], service: Service, key: str, picture: Path, tmp_path: Path
) -> None:
    page = open_page()
    enter(page, key)
    prompt, steps = page.get_by_label("Prompt", exact=True), page.get_by_label("Steps")
    make = page.get_by_role("button", name="Make", exact=True)

    def told(param: str, text: str) -> None:
        expect(page.locator(f"[data-param='{param}'] > .error")).to_contain_text(text)

    make.click()
    told("input_reference", "Choose the picture")
    told("prompt", "Say what happens")
    expect(page.locator("#file")).to_be_focused()
    animation = tmp_path / "moving.gif"
    animation.write_bytes(b"GIF89a")
    drop(page, animation, "image/gif")
    told("input_reference", "moving.gif: give a JPEG, PNG or WebP picture.")
    noise = tmp_path / "noise.png"
    noise.write_bytes(b"no picture")
    drop(page, noise)
    told("input_reference", "noise.png cannot be read")
    drop(page, picture)
    expect(page.locator("[data-param=input_reference] > .error")).to_have_count(0)
    prompt.fill("a car")
    expect(page.locator("[data-param=prompt] > .error")).to_have_count(0)
    steps.fill("5000")
    make.click()
    told("num_inference_steps", "less than or equal to 1000")
    expect(steps).to_be_focused()
    assert "error" in str(steps.get_attribute("aria-describedby"))
    steps.fill("4")
    expect(page.locator(".error:visible")).to_have_count(0)
    page.get_by_text("More settings").click()
    page.get_by_label("Flow shift").fill("0.001")
    page.get_by_text("More settings").click()
    make.click()
    told("flow_shift", "0.01")
    expect(page.get_by_label("Flow shift")).to_be_focused()
    page.get_by_label("Flow shift").fill("")
    service.working.clear()
    for n in range(4):  # one is being made, three are queued
        make.click()
        expect(page.locator("#list li")).to_have_count(n + 1)
        expect(make).not_to_have_attribute("aria-disabled", "true")
        page.wait_for_timeout(200)
    make.click()
    told("", "3 videos are queued; try again later. Try again in")
    expect(prompt).to_have_value("a car")
    expect(page.locator("#list li")).to_have_count(4)


def test_by_keyboard_alone(open_page: Callable[..., Page], key: str, picture: Path) -> None:
    page = open_page(reduced_motion="reduce")
    page.on("filechooser", lambda chooser: chooser.set_files(picture))

    def to(selector: str) -> None:
        """Tab until it has the focus, which can be seen wherever it is."""
        for _ in range(40):
            page.keyboard.press("Tab")
            seen = page.evaluate(
                """() => [document.activeElement, document.activeElement.nextElementSibling]
                    .filter(Boolean).map(e => getComputedStyle(e))
                    .some(style => style.outlineStyle !== "none" && style.outlineWidth !== "0px")"""
            )
            assert seen, "the focus cannot be seen"
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
        raise AssertionError(f"Tab does not lead to {selector}")

    expect(page.locator("#key")).to_be_focused()
    page.keyboard.type(key)
    page.keyboard.press("Enter")
    expect(page.locator("#file")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator("#preview")).to_be_visible()
    to("#prompt")
    page.keyboard.type("a car")
    to("#size")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#size")).to_have_value("64x96")
    to("#seed-random")
    page.keyboard.press("ArrowRight")
    to("#seed")
    page.keyboard.type("7")
    to("#go")
    page.keyboard.press("Enter")
    expect(page.locator("#screens video")).to_be_visible(timeout=20_000)
    expect(page.locator("#facts")).to_contain_text("seed7")
    expect(page.locator("#live")).to_have_text("Ready")
    assert page.locator("#screens video").evaluate("v => v.paused"), "less motion is wanted: nothing moves by itself"
    to("#play")
    page.keyboard.press("Space")
    expect(page.locator("#play")).to_have_text("Pause")
    to("#list button")
    page.keyboard.press("Enter")
    expect(page.locator("#stage")).to_be_focused()
    to("#list .actions button:last-child")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Delete this video?")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#list .actions button:last-child")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(page.locator("#list li")).to_have_count(0)
    expect(page.locator("#earlier-title")).to_be_focused()


def test_on_a_phone_nothing_is_wider_than_the_screen(
    open_page: Callable[..., Page],
    service: Service,
    key: str,
    publish: Callable[..., Published],
    picture: Path,
) -> None:
    publish("an-adapter-with-a-name-that-is-long-enough-to-be-wider-than-a-phone-in-a-pocket")
    page = open_page(390, 844, color_scheme="light", has_touch=True, is_mobile=True)
    no_sideways_scroll(page)
    page.get_by_label("API key").fill("cs-" + "w" * 80)
    page.get_by_role("button", name="Open the studio").tap()
    expect(page.get_by_role("alert")).to_be_visible()
    no_sideways_scroll(page)
    enter(page, key)
    page.locator("#file").set_input_files(picture)
    page.get_by_label("Prompt", exact=True).fill("a-word-without-any-space-" * 8)
    page.get_by_role("checkbox", name="an-adapter").tap()
    page.get_by_label("with and without").tap()
    page.get_by_role("button", name="Make both").tap()
    expect(page.locator("#screens video")).to_have_count(2, timeout=20_000)
    expect(page.locator("#list img")).to_have_count(2)
    expect(page.locator("#stage")).to_be_in_viewport()
    no_sideways_scroll(page)
    page.get_by_role("button", name="Remix").first.tap()
    expect(page.get_by_role("dialog")).to_be_visible()
    no_sideways_scroll(page)
    small = page.locator("button:visible, .button:visible, select:visible").evaluate_all(
        "all => all.filter(e => e.getBoundingClientRect().height < 36).map(e => e.outerHTML)"
    )
    assert small == [], "too small for a thumb"
    for scheme, paper in (("light", "rgb(253, 252, 250)"), ("dark", "rgb(22, 23, 26)")):
        page.emulate_media(color_scheme=scheme)
        expect(page.locator("body")).to_have_css("background-color", paper)


def test_cancel_remix_and_delete(open_page: Callable[..., Page], service: Service, key: str, picture: Path) -> None:
    page = open_page()
    enter(page, key)
    page.locator("#file").set_input_files(picture)
    page.get_by_label("Prompt", exact=True).fill("a car")
    service.working.clear()
    page.get_by_role("button", name="Make", exact=True).click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#stage-empty")).to_be_visible()
    expect(page.locator("#live")).to_have_text("Cancelled.")
    expect(page.locator("#list li")).to_have_count(0)
    assert service.store.ids() == set()
    service.working.set()

    page.get_by_role("button", name="Make", exact=True).click()
    expect(page.locator("#screens video")).to_be_visible(timeout=20_000)
    page.get_by_role("button", name="Use this seed again").click()
    made = service.done[-1]
    expect(page.get_by_label("Fixed seed")).to_have_value(str(made.request["sampler"]["seed"]))
    page.locator("#stage").get_by_role("button", name="Remix").click()
    dialog = page.get_by_role("dialog", name="Remix")
    expect(dialog.get_by_label("New prompt")).to_have_value("a car")
    dialog.get_by_label("New prompt").fill(" ")
    dialog.get_by_role("button", name="Make").click()
    expect(dialog.get_by_role("alert")).to_have_text("Say what happens in the video.")
    dialog.get_by_label("New prompt").fill("a boat")
    dialog.get_by_role("button", name="Make").click()
    expect(dialog).to_be_hidden()
    expect(page.locator("#stage-prompt")).to_have_text("a boat")
    expect(page.locator("#screens video")).to_be_visible(timeout=20_000)
    assert service.done[-1].request == {**made.request, "prompt": "a boat"}

    page.locator("#list li", has_text="a car").get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#list li")).to_have_count(1)
    assert service.store.ids() == {service.done[-1].id}
    expect(page.locator("#screens video")).to_be_visible()


def test_a_lost_answer_makes_no_second_video_and_a_missing_stream_is_done_without(
    open_page: Callable[..., Page], service: Service, key: str, picture: Path
) -> None:
    page = open_page()
    asked: list[str] = []
    keys: list[str] = []

    def see(request: Any) -> None:
        asked.append(urlsplit(request.url).path)
        if request.method == "POST":
            keys.append(request.headers["idempotency-key"])

    page.on("request", see)
    page.route(re.compile("/events$"), lambda route: route.fulfill(status=404, json={"error": {"message": "no"}}))
    service.lost_answers = 1
    service.working.clear()
    enter(page, key)
    page.locator("#file").set_input_files(picture)
    page.get_by_label("Prompt", exact=True).fill("a car")
    page.get_by_role("button", name="Make", exact=True).click()
    expect(page.locator("#screens figure")).to_be_visible()
    service.working.set()
    expect(page.locator("#screens video")).to_be_visible(timeout=20_000)
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert re.fullmatch("[0-9a-f]{32}", keys[0])
    (made,) = service.store.ids()
    expect(page.locator("#list li")).to_have_count(1)
    assert asked.count(f"/v1/videos/{made}/events") == 1
    assert asked.count(f"/v1/videos/{made}") >= 1


def make_two(page: Page, key: str, picture: Path) -> None:
    """Ask for a video with and without an adapter."""
    send_two(page, key, picture)
    expect(page.locator("#screens figure")).to_have_count(2)


def send_two(page: Page, key: str, picture: Path) -> None:
    """Fill in the form for a video with and without an adapter, and send it."""
    enter(page, key)
    page.locator("#file").set_input_files(picture)
    page.get_by_label("Prompt", exact=True).fill("a car")
    page.get_by_label("Length").select_option("9")
    page.get_by_role("checkbox", name="look").check()
    page.get_by_label("with and without").check()
    page.get_by_role("button", name="Make both").click()


def owned(service: Service, owner: str) -> int:
    """How many videos a key's owner has."""
    page = service.store.page(owner, None, 10, True)
    assert page is not None
    return len(page.jobs)


@pytest.mark.parametrize("moment", ["the second is refused", "the first is sent"])
def test_a_pair_that_is_half_sent_is_not_gone_on_with_by_another_key(
    open_page: Callable[..., Page],
    config: ServeConfig,
    service: Service,
    key: str,
    publish: Callable[..., Published],
    picture: Path,
    moment: str,
) -> None:
    publish("look")
    bob = create_key(config.keys_path(), "bob")
    page = open_page()
    posts: list[Route] = []

    def pass_on(route: Route) -> None:
        if route.request.method != "POST":
            route.continue_()
            return
        posts.append(route)
        if len(posts) == 1 and moment == "the first is sent":
            return  # it waits
        if len(posts) == 2 and moment == "the second is refused":
            route.fulfill(status=429, json={"error": {"message": "the queue is full", "code": "queue_full"}})
        else:
            route.continue_()

    page.route(re.compile("/v1/videos$"), pass_on)
    send_two(page, key, picture)
    if moment == "the second is refused":
        expect(page.get_by_role("alert").filter(has_text="The first of two is queued")).to_be_visible()
    else:
        expect(page.locator("#sending")).not_to_be_empty()
    page.get_by_role("button", name="Forget the key").click()
    enter(page, bob)
    if moment == "the first is sent":
        posts[0].continue_()
        expect(page.locator("#sending")).to_be_empty()
        expect(page.locator("#list li")).to_have_count(0)
        assert (len(posts), owned(service, "alice"), owned(service, "bob")) == (1, 1, 0)
    page.get_by_role("button", name="Make both").click()
    expect(page.locator("#screens video")).to_have_count(2, timeout=20_000)
    expect(page.locator("#list li")).to_have_count(2)
    assert (owned(service, "alice"), owned(service, "bob")) == (1, 2)


def test_a_tab_reads_one_stream_and_none_while_it_is_hidden(
    open_page: Callable[..., Page], service: Service, key: str, publish: Callable[..., Published], picture: Path
) -> None:
    publish("look")
    page = open_page()
    streams: set[Any] = set()
    asked: list[str] = []
    most = 0

    def began(request: Any) -> None:
        nonlocal most
        asked.append(urlsplit(request.url).path)
        if asked[-1].endswith("/events"):
            streams.add(request)
            most = max(most, len(streams))

    page.on("request", began)
    for end in ("requestfinished", "requestfailed"):
        page.on(end, lambda request: streams.discard(request))

    def until(condition: Callable[[], bool]) -> None:
        for _ in range(150):
            if condition():
                return
            page.wait_for_timeout(100)
        raise AssertionError(asked)

    def turn(hidden: bool) -> None:
        page.evaluate(
            """hidden => {
                Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
                document.dispatchEvent(new Event("visibilitychange"));
            }""",
            hidden,
        )

    service.working.clear()
    make_two(page, key, picture)
    ids = page.locator("#screens figure").evaluate_all("all => all.map(f => f.dataset.id)")
    until(lambda: len(streams) == 1 and f"/v1/videos/{ids[1]}" in asked)
    turn(hidden=True)
    until(lambda: not streams)
    asked.clear()
    until(lambda: {f"/v1/videos/{i}" for i in ids} <= {*asked})
    assert not any(path.endswith("/events") for path in asked)
    turn(hidden=False)
    until(lambda: len(streams) == 1)
    service.working.set()
    expect(page.locator("#screens video")).to_have_count(2, timeout=20_000)
    until(lambda: not streams)
    assert most == 1


def test_the_first_of_two_plays_at_once_and_goes_on_when_the_second_joins(
    open_page: Callable[..., Page], key: str, publish: Callable[..., Published], picture: Path
) -> None:
    publish("look")
    page = open_page(reduced_motion="reduce")
    contents: list[Any] = []
    page.route(re.compile("/content$"), lambda route: contents.append(route))
    make_two(page, key, picture)
    for _ in range(200):
        if len(contents) == 2:
            break
        page.wait_for_timeout(100)
    (first,) = [r for r in contents if page.locator("#screens figure").first.get_attribute("data-id") in r.request.url]
    first.continue_()
    videos = page.locator("#screens video")
    expect(videos).to_have_count(1)
    expect(page.locator("#transport")).to_be_visible()
    page.get_by_label("Frame", exact=True).fill("4")
    expect(page.get_by_text("5 / 9")).to_be_visible()
    # The second one comes while the first one seeks, and so is short of data.
    videos.evaluate("video => Object.defineProperty(video, 'readyState', { get: () => 1, configurable: true })")
    contents.remove(first)
    contents[0].continue_()
    expect(videos).to_have_count(2)
    page.wait_for_function("() => document.querySelectorAll('#screens video')[1].readyState >= 2")
    videos.first.evaluate("video => { delete video.readyState; video.currentTime = video.currentTime; }")
    page.wait_for_function("() => [...document.querySelectorAll('#screens video')].every(v => v.currentTime > 0.2)")
    assert videos.evaluate_all("all => all.map(v => [v.paused, Math.floor(v.currentTime * 16)])") == [[True, 4]] * 2
    expect(page.get_by_text("5 / 9")).to_be_visible()


def test_a_remix_that_was_typed_is_kept_until_it_is_taken(
    open_page: Callable[..., Page], service: Service, config: ServeConfig, key: str, picture: Path
) -> None:
    page = open_page()
    enter(page, key)
    page.locator("#file").set_input_files(picture)
    for n, prompt in enumerate(("a car", "a ship")):
        page.get_by_label("Prompt", exact=True).fill(prompt)
        page.get_by_role("button", name="Make", exact=True).click()
        expect(page.locator("#list li")).to_have_count(n + 1)
    dialog = page.get_by_role("dialog", name="Remix")
    field = dialog.get_by_label("New prompt")

    def remix(prompt: str) -> None:
        page.locator("#list").get_by_role("button", name=f"Remix: {prompt}", exact=True).click()

    remix("a car")
    field.fill("a car at night")
    page.keyboard.press("Escape")
    remix("a ship")
    expect(field).to_have_value("a ship")
    dialog.get_by_role("button", name="Close").click()
    remix("a car")
    expect(field).to_have_value("a car at night")
    revoke_key(config.keys_path(), "alice")
    dialog.get_by_role("button", name="Make").click()
    expect(page.get_by_role("alert").filter(has_text="The server does not take this key.")).to_be_visible()
    expect(dialog).to_be_hidden()
    enter(page, create_key(config.keys_path(), "alice"))
    remix("a car")
    expect(field).to_have_value("a car at night")

    # Answers that come when the dialog is that of another video leave it alone.
    held: list[Any] = []
    page.route(re.compile("/remix$"), lambda route: held.append(route))
    with page.expect_request(re.compile("/remix$")):
        dialog.get_by_role("button", name="Make").click()
    page.keyboard.press("Escape")
    remix("a ship")
    field.fill("a ship in a storm")
    error = {"message": "the queue is full", "code": "queue_full", "param": None}
    held.pop().fulfill(status=429, json={"error": error})
    expect(page.locator("#list-error")).to_have_text("the queue is full")
    expect(dialog).to_be_visible()
    expect(field).to_have_value("a ship in a storm")
    page.keyboard.press("Escape")
    remix("a car")
    expect(field).to_have_value("a car at night")
    with page.expect_request(re.compile("/remix$")):
        dialog.get_by_role("button", name="Make").click()
    page.keyboard.press("Escape")
    remix("a ship")
    held.pop().continue_()
    expect(page.locator("#list li")).to_have_count(3)
    expect(dialog).to_be_visible()
    expect(field).to_have_value("a ship in a storm")
    page.keyboard.press("Escape")
    remix("a car")
    expect(field).to_have_value("a car")


def test_what_another_browser_made_is_told_in_full(
    open_page: Callable[..., Page], service: Service, key: str, publish: Callable[..., Published], picture: Path
) -> None:
    look = publish("look")
    sent = httpx.post(
        f"{service.url}/v1/videos",
        headers={"Authorization": f"Bearer {key}"},
        files={"input_reference": picture.read_bytes()},
        data={"prompt": "a car", "lora": "look:0.5", "seed": 77, "num_inference_steps": 3, "guidance_scale": 1.5},
    )
    assert sent.status_code == 200, sent.text
    page = open_page()
    enter(page, key)
    page.get_by_role("button", name="Watch: a car").click()
    expect(page.locator("#screens figcaption")).to_contain_text(f"{look.ref} × 0.5")
    for fact in ("steps3", "guidance1.5", "seed77"):
        expect(page.locator("#facts")).to_contain_text(fact)
    page.get_by_role("button", name="Use this seed again").click()
    expect(page.get_by_label("Fixed seed")).to_have_value("77")


def test_the_files_are_typed_revalidated_and_locked_in(config: ServeConfig, client: TestClient) -> None:
    page = client.get("/studio")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert not re.search(r"<script(?![^>]*src)|<style|\sstyle=|\son\w+=|https?://", page.text), "inline or foreign"
    names = re.findall(r'(?:src|href)="studio/([^"]+)"', page.text)
    modules = {path.name for path in pages.FOLDERS["studio"].glob("*.js")}
    assert {"studio.css", "studio.js"} <= {*names} <= {path.name for path in pages.FOLDERS["studio"].iterdir()}
    kinds = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
    for name in {*names, *modules}:
        file = client.get(f"/studio/{name}")
        assert (file.status_code, file.content) == (200, (pages.FOLDERS["studio"] / name).read_bytes())
        assert file.headers["content-type"] == kinds[Path(name).suffix]
        assert "http" not in re.sub(r"http://www.w3.org/\S+", "", file.text)
    for answer in (page, file, client.head("/studio")):
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        policy = dict(part.partition(" ")[::2] for part in answer.headers["content-security-policy"].split("; "))
        assert (policy["default-src"], policy["script-src"], policy["frame-ancestors"]) == (
            "'none'",
            "'self'",
            "'none'",
        )
        assert not re.search("unsafe|http|\\*|data:", str(policy))
    known = client.get("/studio", headers={"If-None-Match": f'"other", W/{page.headers["etag"]}'})
    assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", page.headers["etag"])
    assert client.get("/studio", headers={"If-None-Match": '"other"'}).status_code == 200
    for name in ("pages.py", "..%2Fpages.py", "", "studio"):
        missing = client.get(f"/studio/{name}", follow_redirects=False)
        assert missing.status_code in (307, 404)
    assert not any("studio" in path for path in client.get("/openapi.json").json()["paths"])
