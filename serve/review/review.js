// The page: the key, then one item after another, each kept by the server before the next one is shown.

import { ask, key, read, Refused } from "../studio/api.js";
import { $, complain, element, relent } from "../studio/dom.js";
import { Player } from "../studio/player.js";
import { Clips } from "./clips.js";
import { Questions } from "./questions.js";

const DRAFTS = "cinesynth.review.drafts"; // answers that were not saved yet, by item: a reload keeps them

const clips = new Clips();
const player = new Player();
let review, questions, at = 0, saving = false;
let seen = 0, since = 0, plays = 0; // milliseconds that the item was seen, since when it is, how often it began

// --- the key -------------------------------------------------------------------------------------------------

function view(name) {
  for (const part of ["gate", "intro", "work", "done"]) $(part).hidden = part !== name;
  $("forget").hidden = name === "gate";
  if (name !== "work") player.clear();
}

function lock(why = "") {
  view("gate");
  relent($("gate"));
  if (why) complain($("gate"), "key", why);
  else $("key").focus();
}

async function enter() {
  review = await read("review");
  questions = new Questions(review, answers => draft(item(), answers));
  document.title = `${review.title} · review`;
  $("title").textContent = $("intro-title").textContent = review.title;
  tell();
  const open = review.items.findIndex(i => !i.answers);
  if (open < 0) return finish();
  at = open;
  if (open > 0 || Object.keys(drafts()).length) return show();
  view("intro");
  $("begin").focus();
  clips.of(item()).catch(() => {});
}

/** What the page says of itself: how many items, what to do, and which keys there are. */
function tell() {
  const pairs = review.format === "pairs", n = review.items.length;
  $("instructions").textContent = review.instructions;
  $("how").textContent = pairs
    ? `You see ${n} pairs of short videos, without sound. For each question say which one is better, A or B; if you see no difference, it is a tie.`
    : `You see ${n} short videos, without sound. For each question give 1 to 5.`;
  const keys = [[pairs ? "A B" : "1 to 5", "answer the marked question"], ...(pairs ? [["T", "tie"]] : []),
    ["Enter", "save and go on"], ["Backspace", "back"], ["R", "again from the start"], ["P", "play or pause"]];
  for (const place of document.querySelectorAll(".keys")) {
    place.replaceChildren(...keys.map(([name, does]) => element("span", {}, element("kbd", { textContent: name }), ` ${does}`)));
  }
}

/** What a refusal means for the page. */
function refused(error, say) {
  if (!(error instanceof Refused)) throw error;
  if (error.status === 401) {
    key.forget();
    lock("The server does not take this key. Look for a letter too many or too few, or ask for a new one.");
  } else if (error.status === 403) {
    key.forget();
    lock("This key is not one for reviews. Ask whoever invited you for a review key.");
  } else say(error.status ? error.message : `${error.message} Your answers are kept here meanwhile.`);
}

// --- an item -------------------------------------------------------------------------------------------------

const item = () => review.items[at];
const drafts = () => JSON.parse(sessionStorage.getItem(DRAFTS) ?? "{}");

function draft(of, answers) {
  const all = drafts();
  if (answers) all[of.id] = answers;
  else delete all[of.id];
  sessionStorage.setItem(DRAFTS, JSON.stringify(all));
}

async function show() {
  view("work");
  const shown = item(), pairs = review.format === "pairs", answered = review.items.filter(i => i.answers).length;
  $("place").textContent = `${pairs ? "Pair" : "Video"} ${at + 1} of ${review.items.length}`;
  $("progress").max = review.items.length;
  $("progress").value = answered;
  $("count").textContent = `${answered} answered`;
  $("caption").textContent = shown.caption;
  $("caption").hidden = !shown.caption;
  $("back").disabled = at === 0;
  $("sending").textContent = "";
  relent($("answers"));
  questions.show(drafts()[shown.id] ?? shown.answers);
  seen = plays = 0;
  since = performance.now();
  $("place").focus();
  await load(shown);
}

async function load(shown) {
  player.clear();
  $("lost").hidden = true;
  const videos = shown.videos.map((_, n) => {
    const video = element("video", { muted: true, playsInline: true, preload: "auto", tabIndex: -1 });
    video.setAttribute("aria-label", shown.videos.length > 1 ? `Video ${"AB"[n]}` : "Video");
    return video;
  });
  videos[0].addEventListener("play", () => plays++);
  $("screens").className = `screens${videos.length > 1 ? " two" : ""}${shown.width > shown.height ? " wide" : ""}`;
  $("screens").style.setProperty("--aspect", shown.width / shown.height || 1.5);
  $("screens").replaceChildren(...videos.map((video, n) => element("figure", {},
    element("div", { className: "screen" }, video),
    ...(videos.length > 1 ? [element("figcaption", { textContent: "AB"[n] })] : []))));
  try {
    const urls = await clips.of(shown);
    if (item() !== shown || $("work").hidden) return;
    videos.forEach((video, n) => { video.src = urls[n]; });
    await player.show(videos, shown.fps);
    if (videos.some(video => video.error)) throw new Refused(0, "This browser cannot play a video.");
    clips.keep(review.items.slice(Math.max(0, at - 1), at + 3));
    if (review.items[at + 1]) clips.of(review.items[at + 1]).catch(() => {}); // asked for again when it is shown
  } catch (error) {
    if (item() === shown) {
      refused(error, message => { $("lost").textContent = `${message} Press R to try again.`; $("lost").hidden = false; });
    }
  }
}

function restart() {
  if (!$("lost").hidden) return load(item());
  if (!player.videos.length) return;
  player.pause();
  player.seek(0);
  player.play();
}

function seconds() {
  return (seen + (document.hidden ? 0 : performance.now() - since)) / 1000;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) seen += performance.now() - since;
  else since = performance.now();
});

/** Keep the answers, then show the next item. What is pressed meanwhile does nothing; the same answer twice is one. */
async function save() {
  if (saving || questions.complain()) {
    if (!saving) $("sending").textContent = "Answer the marked questions first.";
    return;
  }
  const of = item(), answers = questions.answers();
  saving = true;
  $("save").setAttribute("aria-disabled", "true");
  relent($("answers"));
  $("sending").textContent = "Saving";
  try {
    const body = JSON.stringify({ answers, seconds: Math.min(seconds(), 86_400), plays });
    const headers = { "Content-Type": "application/json" };
    await ask(`review/answers/${of.id}`, { method: "PUT", body, headers });
    of.answers = answers;
    draft(of, null);
    if (item() === of) go(at + 1);
  } catch (error) {
    $("sending").textContent = "";
    refused(error, message => complain($("answers"), "", message));
  } finally {
    saving = false;
    $("save").removeAttribute("aria-disabled");
  }
}

function go(place) {
  if (place >= review.items.length) {
    const open = review.items.findIndex(i => !i.answers);
    if (open < 0) return finish();
    place = open;
  }
  at = Math.max(0, place);
  show();
}

function finish() {
  view("done");
  $("done-count").textContent = `You answered all ${review.items.length} items.`;
  $("done-title").focus();
}

// --- what is pressed -----------------------------------------------------------------------------------------

document.addEventListener("keydown", event => {
  if ($("work").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const pressed = event.target.closest("button, summary, input[type=checkbox]");
  const does = { r: restart, p: () => player.videos.length && player.toggle(), backspace: () => at > 0 && !saving && go(at - 1) };
  if (event.key === "Enter") {
    if (pressed) return; // which Enter presses
    event.preventDefault();
    if (!event.repeat) save();
  } else if (does[event.key.toLowerCase()]) {
    event.preventDefault();
    if (!event.repeat) does[event.key.toLowerCase()]();
  } else if (!saving && !event.repeat && event.target.id !== "scrub" && questions.press(event.key)) event.preventDefault();
});

$("answers").addEventListener("submit", event => { event.preventDefault(); save(); });
$("back").addEventListener("click", () => saving || go(at - 1));
$("again").addEventListener("click", restart);
$("begin").addEventListener("click", () => show());
$("look").addEventListener("click", () => go(0));
$("forget").addEventListener("click", () => { key.forget(); sessionStorage.removeItem(DRAFTS); location.reload(); });

$("gate").addEventListener("submit", async event => {
  event.preventDefault();
  relent($("gate"));
  const given = $("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(given)) return complain($("gate"), "key", given ? "A key has letters, digits, - and _ only." : "Give a key.");
  key.set(given);
  try {
    await enter();
    $("key").value = "";
  } catch (error) {
    refused(error, lock);
  }
});

if (key.get()) enter().catch(error => refused(error, why => { $("key").value = key.get(); lock(why); }));
else lock();
