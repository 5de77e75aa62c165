// The video that is being made or watched; two of them side by side.

import { ask, FINAL, follow } from "./api.js";
import { $, about, element, moment } from "./dom.js";
import { Player } from "./player.js";

export class Stage {
  screens = [];

  /** `on`: {changed(video), gone(id), refused(error), cancel(videos), remix(video), remove(video), seed(seed), fps()}. */
  constructor(on) {
    this.on = on;
    this.player = new Player();
  }

  /** Show these: [{video, label, picture}]; `picture` is the first frame, where it is known. */
  show(shown) {
    this.clear();
    this.leaving = new AbortController();
    $("stage-empty").hidden = true;
    $("stage-full").hidden = false;
    const [{ video }] = shown;
    const [width, height] = video.size.split("x").map(Number);
    $("screens").style.setProperty("--aspect", width / height);
    $("screens").className = `screens ${width >= height ? "wide" : "tall"} ${shown.length > 1 ? "two" : "one"}`;
    $("stage-prompt").textContent = video.prompt;
    this.screens = shown.map(one => new Screen(this, one));
    $("screens").replaceChildren(...this.screens.map(s => s.figure));
    this.refresh();
    for (const screen of this.screens) screen.begin(this.leaving.signal);
  }

  clear(message = "Nothing yet. What you make plays here.") {
    const inside = $("stage").contains(document.activeElement);
    this.leaving?.abort();
    for (const screen of this.screens) screen.close();
    this.screens = [];
    this.player.clear();
    $("screens").replaceChildren();
    $("stage-full").hidden = true;
    $("stage-empty").hidden = false;
    $("stage-empty").textContent = message;
    if (inside) $("stage").focus({ preventScroll: true }); // what had the focus is gone
  }

  get ids() {
    return this.screens.map(s => s.video.id);
  }

  /** Take a video off, which was deleted. */
  remove(id, message) {
    if (!this.ids.includes(id)) return;
    const left = this.screens.filter(s => s.video.id !== id);
    if (left.length) this.show(left.map(s => s.shown));
    else this.clear(message);
  }

  say(text) {
    $("live").textContent = text;
  }

  /** What belongs to all screens: facts and actions. */
  refresh() {
    const [{ video }] = this.screens;
    const facts = [
      ["size", video.size.replace("x", " × ")], ["length", `${video.seconds} s`],
      ["steps", video.num_inference_steps], ["guidance", video.guidance_scale], ["seed", video.seed],
      ["asked for", moment(video.created_at)],
    ];
    if (video.expires_at) facts.push(["kept until", moment(video.expires_at)]);
    $("facts").replaceChildren(...facts.map(([name, value]) =>
      element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value }))));
    const unfinished = this.screens.filter(s => !FINAL.includes(s.video.status)).map(s => s.video);
    const actions = [];
    if (unfinished.length) {
      const cancel = element("button", { type: "button", textContent: unfinished.length > 1 ? "Cancel both" : "Cancel" });
      cancel.dataset.action = "cancel";
      cancel.onclick = () => this.on.cancel(unfinished);
      actions.push(cancel);
    }
    const keep = element("button", { type: "button", textContent: "Use this seed again" });
    keep.onclick = () => this.on.seed(video.seed);
    actions.push(keep);
    const focused = $("stage-actions").contains(document.activeElement);
    $("stage-actions").replaceChildren(...actions);
    if (focused) actions[0].focus();
  }

  /** A screen has its video: it plays, in step with the other one where that has its own. */
  ready() {
    this.player.show(this.screens.filter(s => s.playable).map(s => s.element), this.on.fps());
  }
}

class Screen {
  playable = false;

  constructor(stage, shown) {
    Object.assign(this, { stage, shown, video: shown.video, label: shown.label });
    this.bar = element("progress", { max: 100, value: 0, "aria-label": `Progress: ${this.label}` });
    this.text = element("p", { className: "state" });
    this.actions = element("span", { className: "actions" });
    this.screen = element("div", { className: "screen" });
    if (shown.picture) {
      this.picture = URL.createObjectURL(shown.picture);
      this.screen.append(element("img", { src: this.picture, alt: "", className: "behind" }));
    }
    this.screen.append(element("div", { className: "waiting" }, this.text, this.bar));
    const caption = element("figcaption", {}, element("span", { className: "label", textContent: this.label }), this.actions);
    this.figure = element("figure", {}, this.screen, caption);
    this.figure.dataset.id = this.video.id;
  }

  begin(signal) {
    this.signal = signal;
    this.update(this.video);
    if (FINAL.includes(this.video.status)) return;
    this.ticking = setInterval(() => this.tick(), 1000);
    follow(this.video.id, state => signal.aborted || this.update(state), signal).catch(error => this.stage.on.refused(error));
  }

  close() {
    clearInterval(this.ticking);
    for (const url of [this.url, this.picture]) if (url) URL.revokeObjectURL(url);
  }

  /** A new state, as `follow` tells it. */
  update(state) {
    this.figure.classList.toggle("lost", Boolean(state.lost));
    if (state.lost) {
      this.text.textContent = "The server does not answer; trying again. The video is not lost.";
      return this.announce("lost", this.text.textContent);
    }
    const before = this.video.status;
    Object.assign(this.video, { status: state.status, progress: state.progress ?? this.video.progress, error: state.error ?? null });
    for (const name of ["completed_at", "expires_at"]) if (state[name]) this.video[name] = state[name];
    this.bar.hidden = FINAL.includes(state.status);
    this.bar.value = this.video.progress;
    if (state.status === "queued") this.bar.removeAttribute("value"); // how long is not known
    this.told = { ...state, at: Date.now() };
    this.tick();
    if (state.status === "failed") this.figure.classList.add("failed");
    const step = state.status === "in_progress" ? Math.floor(this.video.progress / 25) : state.position ?? "";
    this.announce(`${state.status} ${step}`, this.text.textContent);
    if (state.status === "deleted") return this.stage.on.gone(this.video.id);
    this.stage.on.changed(this.video);
    if (before !== state.status) this.stage.refresh();
    if (state.status === "completed") this.load();
    if (["completed", "failed"].includes(state.status)) this.offer();
  }

  /** The state in words. Between two events the seconds that are left count down. */
  tick() {
    const { position, eta_s: eta, at } = this.told;
    if (this.figure.classList.contains("lost") || this.unread) return;
    this.text.textContent = sentence(this.video, { position, eta_s: Math.max(0, (eta ?? 0) - (Date.now() - at) / 1000) });
  }

  /** Read aloud what is new, not every percent. */
  announce(what, text) {
    if (what === this.announced) return;
    this.announced = what;
    this.stage.say(this.stage.screens.length > 1 ? `${this.label}: ${text}` : text);
  }

  async load() {
    if (this.loading) return;
    this.loading = true;
    try {
      const response = await ask(`videos/${this.video.id}/content`, { signal: this.signal });
      this.url = URL.createObjectURL(await response.blob());
    } catch (error) {
      if (error.name === "AbortError") return;
      this.unread = true;
      this.text.textContent = error.message;
      return;
    }
    this.element = element("video", { src: this.url, muted: true, playsInline: true, preload: "auto", "aria-label": `Video: ${this.label}` });
    this.screen.replaceChildren(this.element);
    this.playable = true;
    this.offer();
    this.stage.ready();
  }

  /** What can be done with a finished video. Called again once it is here; buttons that may have the focus stay. */
  offer() {
    const { video, stage, label } = this;
    if (!this.actions.children.length) {
      for (const [text, act] of [["Remix", stage.on.remix], ["Delete", stage.on.remove]]) {
        const button = element("button", { type: "button", textContent: text, "aria-label": `${text}: ${label}` });
        button.onclick = () => act(video);
        this.actions.append(button);
      }
    }
    if (!this.url) return;
    const download = element("a", { href: this.url, download: `${video.id}.mp4`, textContent: "Download", className: "button" });
    download.setAttribute("aria-label", `Download: ${label}`);
    this.actions.prepend(download);
  }
}

/** A video's state in words. */
export function sentence(video, { position, eta_s: eta } = {}) {
  const left = eta ? `, ${about(eta)}` : "";
  switch (video.status) {
    case "queued": return position ? `Number ${position} in the queue${left}` : `In the queue${left}`;
    case "in_progress": return video.progress ? `${video.progress} %${left && `${left} left`}` : `Starting${left}`;
    case "completed": return "Ready";
    case "failed": return `Failed: ${video.error?.message || video.error?.code || "no reason was given"}`;
    default: return "Deleted";
  }
}
