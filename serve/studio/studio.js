// The page: the key, then making, watching and keeping videos.

import { ask, key, read, Refused, sleep } from "./api.js";
import { $, answer, complain, relent } from "./dom.js";
import { lora, named, RequestForm } from "./form.js";
import { Gallery } from "./gallery.js";
import { Stage } from "./stage.js";

const MADE = "cinesynth.studio.made"; // which videos were asked for together: the server does not know
const SHOWN = "cinesynth.studio.shown";
const REFRESH_MS = 5000;

const form = new RequestForm();
const gallery = new Gallery({ open, remix, remove, refused, label: video => named(video.lora) });
const stage = new Stage({
  remix, remove, refused,
  cancel: videos => erase(videos, "Cancelled."),
  changed: video => gallery.put({ ...video }),
  gone: id => { forget(id); stage.remove(id, "This video was deleted."); },
  seed: seed => form.keepSeed(seed),
  fps: () => form.model.fps,
});

// --- the key -------------------------------------------------------------------------------------------------

async function enter() {
  const models = await read("models"); // alone: a wrong key is refused once
  const [adapters] = await Promise.all([read("adapters"), gallery.refresh()]);
  form.offer(models.data[0], adapters.data);
  $("gate").hidden = true;
  $("work").hidden = $("forget").hidden = false;
  const ids = JSON.parse(sessionStorage.getItem(SHOWN) ?? "[]").filter(id => gallery.videos.has(id));
  if (ids.length) show(ids.map(id => gallery.videos.get(id)));
}

/** Ask for the key; `why`, where one was refused. What was typed into the page stays. */
function lock(why = "") {
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  $("gate").hidden = false;
  $("work").hidden = $("forget").hidden = true;
  relent($("gate"));
  if (why) complain($("gate"), "key", why);
  else $("key").focus();
}

/** What a refusal means for the page: without a valid key it is locked. Returns whether that was so. */
function refused(error) {
  if (error.name === "AbortError") return true;
  if (!(error instanceof Refused)) throw error;
  if (error.status === 401) {
    key.forget();
    lock("The server does not take this key. Look for a letter too many or too few, or ask for a new one.");
    return true;
  }
  $("list-error").textContent = told(error);
  $("list-error").hidden = false;
  return false;
}

function told(error) {
  return error.retryAfter ? `${error.message.replace(/\.$/, "")}. Try again in ${error.retryAfter} s.` : error.message;
}

$("gate").addEventListener("submit", async event => {
  event.preventDefault();
  relent($("gate"));
  const given = $("key").value.trim();
  if (!/^[\x21-\x7e]+$/.test(given)) return complain($("gate"), "key", given ? "A key has letters, digits, - and _ only." : "Give a key.");
  key.set(given);
  attempt = null;
  gallery.clear(); // the videos of another key
  stage.clear();
  try {
    await enter();
    $("key").value = "";
    $("file").focus();
  } catch (error) {
    if (error instanceof Refused && error.status !== 401) {
      key.forget();
      complain($("gate"), "key", told(error));
    } else refused(error);
  }
});

$("forget").addEventListener("click", () => {
  key.forget();
  sessionStorage.removeItem(SHOWN);
  attempt = null;
  drafts.clear();
  stage.clear();
  gallery.clear();
  lock();
});

// --- making --------------------------------------------------------------------------------------------------

// What was sent but not wholly taken: sent again it is the same request, never a second video. It belongs to one key.
let attempt = null;

$("make").addEventListener("submit", async event => {
  event.preventDefault();
  if ($("go").getAttribute("aria-disabled") === "true") return;
  const asked = form.read();
  if (!asked) return;
  const same = attempt?.file === asked.file && attempt.text === JSON.stringify(asked);
  if (!same) attempt = plan(asked);
  const sent = attempt, { wanted, seed } = sent;
  $("go").setAttribute("aria-disabled", "true");
  $("sending").textContent = "Sending the first frame …";
  try {
    for (const one of wanted) {
      one.video ??= await send(asked, seed, one);
      if (attempt !== sent) return; // another key's turn
    }
    attempt = null;
  } catch (error) {
    if (attempt !== sent) return;
    if (error.status === 401) refused(error);
    else complain(form.form, error.param ?? "", (wanted[0].video ? `The first of two is queued, the second was refused: ` : "") + told(error));
  } finally {
    $("go").removeAttribute("aria-disabled");
    $("sending").textContent = "";
  }
  const taken = wanted.filter(one => one.video);
  if (!taken.length) return;
  for (const { video } of taken) {
    const pair = taken.map(t => t.video.id).filter(id => id !== video.id)[0];
    if (pair) remember(video.id, { pair });
    gallery.put({ ...video });
  }
  show(taken.map(t => t.video), asked.file);
  const { top } = $("stage").getBoundingClientRect();
  if (top < 0 || top > innerHeight / 2) $("stage").scrollIntoView();
});

/** The requests of one press of the button, each with a key of its own and all with one seed. */
function plan(asked) {
  const seed = asked.seed ?? crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
  const chosen = { adapters: asked.adapters };
  const wanted = asked.both ? [{ adapters: [] }, chosen] : [chosen];
  for (const one of wanted) one.key = random();
  return { text: JSON.stringify(asked), file: asked.file, seed, wanted };
}

const random = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), b => b.toString(16).padStart(2, "0")).join("");

async function send(asked, seed, one) {
  for (let again = 0; ; again++) {
    const body = new FormData();
    for (const [name, value] of Object.entries(asked.fields)) body.append(name, value);
    body.append("seed", seed);
    if (one.adapters.length) body.append("lora", lora(one.adapters));
    body.append("input_reference", asked.file, asked.file.name || "frame");
    try {
      return await read("videos", { method: "POST", body, headers: { "Idempotency-Key": one.key } });
    } catch (error) {
      if (!error.unsure || again === 2) throw error;
      await sleep(1000 * (again + 1));
      if (!attempt?.wanted.includes(one)) throw error; // the key was forgotten: it is not sent with another
    }
  }
}

function remember(id, facts) {
  const all = JSON.parse(localStorage.getItem(MADE) ?? "{}");
  delete all[id];
  all[id] = facts;
  localStorage.setItem(MADE, JSON.stringify(Object.fromEntries(Object.entries(all).slice(-500))));
}

const made = id => JSON.parse(localStorage.getItem(MADE) ?? "{}")[id] ?? {};

// --- watching ------------------------------------------------------------------------------------------------

function show(videos, picture) {
  stage.show(videos.map(video => ({ video: { ...video }, label: named(video.lora), picture })));
  gallery.mark(stage.ids);
  sessionStorage.setItem(SHOWN, JSON.stringify(stage.ids));
}

/** Put an earlier video on the stage, beside the one that was made with it. */
function open(video) {
  const pair = gallery.videos.get(made(video.id).pair);
  const both = pair ? [video, pair].sort((a, b) => Boolean(a.lora) - Boolean(b.lora)) : [video]; // the base first
  show(both);
  $("stage").focus({ preventScroll: true });
  $("stage").scrollIntoView({ block: "start" });
}

// --- keeping -------------------------------------------------------------------------------------------------

async function remove(video) {
  $("delete-what").textContent = video.prompt;
  if (await answer($("delete")) === "delete") await erase([video], "Deleted.");
}

async function erase(videos, message) {
  for (const { id } of videos) {
    try {
      await ask(`videos/${id}`, { method: "DELETE" });
    } catch (error) {
      if (error.status !== 404) { // gone already is as good
        refused(error);
        return;
      }
    }
    forget(id);
    stage.remove(id, message);
  }
  stage.say(message);
}

function forget(id) {
  gallery.remove(id);
  gallery.mark(stage.ids);
}

const drafts = new Map(); // of remixes by the video's id, until they are taken: {text, sent, key}

async function remix(video) {
  const dialog = $("remix"), inner = dialog.querySelector("form"), field = $("remix-prompt");
  const draft = drafts.get(video.id) ?? { text: video.prompt };
  relent(inner);
  field.value = draft.text;
  field.oninput = () => {
    draft.text = field.value;
    drafts.set(video.id, draft);
  };
  const submit = async event => {
    event.preventDefault();
    relent(inner);
    const prompt = field.value;
    if (!prompt.trim()) return complain(inner, "prompt", "Say what happens in the video.");
    if (prompt !== draft.sent) Object.assign(draft, { text: prompt, sent: prompt, key: random() });
    drafts.set(video.id, draft);
    const mine = () => dialog.open && inner.onsubmit === submit; // it may be that of another video when the answer comes
    try {
      const body = JSON.stringify({ prompt });
      const headers = { "Content-Type": "application/json", "Idempotency-Key": draft.key };
      const remixed = await read(`videos/${video.id}/remix`, { method: "POST", body, headers });
      if (draft.text === prompt && drafts.get(video.id) === draft) drafts.delete(video.id);
      gallery.put({ ...remixed });
      if (!mine()) return;
      dialog.close();
      show([remixed]);
      $("stage").focus();
    } catch (error) {
      if (error.status === 401 || !(error instanceof Refused) || !mine()) refused(error);
      else complain(inner, error.param, told(error));
    }
  };
  inner.onsubmit = submit;
  dialog.querySelector("[data-close]").onclick = () => dialog.close();
  await answer(dialog);
}

// --- what runs by itself -------------------------------------------------------------------------------------

async function refresh() {
  if (document.hidden || $("work").hidden || !gallery.unfinished(stage.ids)) return;
  try {
    await gallery.refresh();
    $("list-error").hidden = true;
  } catch (error) {
    refused(error);
  }
}

setInterval(refresh, REFRESH_MS);
document.addEventListener("visibilitychange", refresh);

if (key.get()) {
  enter().catch(error => {
    if (refused(error)) return;
    $("key").value = key.get(); // a press of the button tries again
    lock(told(error));
  });
} else lock();
