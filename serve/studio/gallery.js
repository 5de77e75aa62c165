// Earlier videos of this key, newest first.

import { ask, FINAL, read } from "./api.js";
import { $, element, moment } from "./dom.js";
import { sentence } from "./stage.js";

const PAGE = 12;

export class Gallery {
  videos = new Map();
  cards = new Map();
  pictures = [];

  /** `on`: {open(video), remix(video), remove(video), refused(error), label(video)}. */
  constructor(on) {
    this.on = on;
    $("older").addEventListener("click", () => this.older());
    this.seen = new IntersectionObserver(entries => {
      for (const entry of entries) if (entry.isIntersecting) this.picture(entry.target);
    }, { rootMargin: "300px" });
  }

  async refresh() {
    await this.page("");
  }

  async older() {
    const last = [...this.videos.keys()].at(-1);
    const before = new Set(this.videos.keys());
    await this.page(`&after=${encodeURIComponent(last)}`).catch(error => this.on.refused(error));
    const first = [...this.videos.keys()].find(id => !before.has(id));
    if (first) this.cards.get(first).querySelector("button").focus();
  }

  async page(after) {
    const { data, has_more: more } = await read(`videos?order=desc&limit=${PAGE}${after}`);
    if (!after) {
      // One that is not on the newest page any more, though younger than its last one, was deleted.
      const oldest = more && data.length ? data.at(-1).created_at : 0;
      const ids = new Set(data.map(v => v.id));
      for (const [id, video] of this.videos) if (!ids.has(id) && video.created_at > oldest) this.remove(id);
      if (this.videos.size <= data.length) $("older").hidden = !more;
    } else $("older").hidden = !more;
    for (const video of data) this.put(video);
    this.tidy();
  }

  /** A video is new, or has another state. */
  put(video) {
    this.videos.set(video.id, video);
    let card = this.cards.get(video.id);
    if (!card) {
      card = this.card(video);
      this.cards.set(video.id, card);
      const next = [...$("list").children].find(other => this.videos.get(other.dataset.id).created_at < video.created_at);
      $("list").insertBefore(card, next ?? null);
      this.seen.observe(card);
    }
    const facts = [this.on.label(video), video.size.replace("x", " × "), `${video.seconds} s`, moment(video.created_at)];
    if (video.status === "failed") facts.unshift(sentence(video));
    card.querySelector(".about").textContent = facts.filter(Boolean).join(" · ");
    const thumb = card.querySelector(".thumb");
    if (!thumb.firstElementChild) thumb.textContent = video.status === "failed" ? "Failed" : sentence(video);
    card.classList.toggle("failed", video.status === "failed");
    if (video.status === "completed" && card.dataset.seen) this.picture(card);
    this.tidy();
  }

  card(video) {
    const watch = element("button", { type: "button", className: "thumb", "aria-label": `Watch: ${video.prompt}` });
    watch.style.setProperty("--aspect", video.size.replace("x", " / "));
    watch.onclick = () => this.on.open(this.videos.get(video.id));
    const remix = element("button", { type: "button", textContent: "Remix", "aria-label": `Remix: ${video.prompt}` });
    remix.onclick = () => this.on.remix(this.videos.get(video.id));
    const remove = element("button", { type: "button", textContent: "Delete", "aria-label": `Delete: ${video.prompt}` });
    remove.onclick = () => this.on.remove(this.videos.get(video.id));
    const card = element("li", {}, watch,
      element("p", { className: "clamp", textContent: video.prompt, title: video.prompt }),
      element("p", { className: "soft about" }),
      element("div", { className: "actions" }, remix, remove));
    card.dataset.id = video.id;
    return card;
  }

  /** Fetch a finished video's picture once its card is near the window; one after another. */
  picture(card) {
    card.dataset.seen = "yes";
    const video = this.videos.get(card.dataset.id);
    if (video?.status !== "completed" || card.dataset.asked) return;
    card.dataset.asked = "yes";
    this.seen.unobserve(card);
    this.line = (this.line ?? Promise.resolve()).then(async () => {
      const response = await ask(`videos/${video.id}/content?variant=thumbnail`);
      const image = element("img", { alt: "", src: URL.createObjectURL(await response.blob()) });
      card.querySelector(".thumb").replaceChildren(image);
    }).catch(() => {}); // a card without a picture is still a card
  }

  remove(id) {
    const card = this.cards.get(id);
    if (!card) return;
    const image = card.querySelector("img");
    if (image) URL.revokeObjectURL(image.src);
    if (card.contains(document.activeElement)) {
      const next = card.nextElementSibling ?? card.previousElementSibling;
      (next?.querySelector("button") ?? $("earlier-title")).focus();
    }
    card.remove();
    this.seen.unobserve(card);
    this.cards.delete(id);
    this.videos.delete(id);
    this.tidy();
  }

  clear() {
    for (const id of [...this.videos.keys()]) this.remove(id);
  }

  /** Mark what is on the stage. */
  mark(ids) {
    for (const [id, card] of this.cards) {
      const watch = card.querySelector(".thumb");
      if (ids.includes(id)) watch.setAttribute("aria-current", "true");
      else watch.removeAttribute("aria-current");
    }
  }

  unfinished(but) {
    return [...this.videos.values()].some(v => !FINAL.includes(v.status) && !but.includes(v.id));
  }

  tidy() {
    $("list-empty").hidden = this.videos.size > 0;
    // In the order of the list, so that the last key is the oldest.
    this.videos = new Map([...$("list").children].map(card => [card.dataset.id, this.videos.get(card.dataset.id)]));
  }
}
