// One or two videos under one set of controls, frame for frame in step.

import { $ } from "./dom.js";

const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Player {
  videos = [];
  coming = []; // what is shown once it is loaded
  fps = 16;
  playing = false;

  constructor() {
    $("play").addEventListener("click", () => this.toggle());
    $("scrub").addEventListener("input", () => {
      const frame = Number($("scrub").value); // before the pause sets it
      this.pause();
      this.seek(frame);
    });
  }

  /**
   * Take over these video elements; `fps` of all of them. They play from the beginning, unless motion is unwanted; one
   * that joins another goes on with it from where that is.
   */
  async show(videos, fps) {
    this.coming = videos;
    await Promise.all(videos.map(loaded));
    if (this.coming !== videos) return; // others were shown meanwhile
    const whole = videos.filter(v => !v.error);
    if (!whole.length) return;
    const joined = this.videos.some(v => whole.includes(v));
    const frame = joined ? this.frame : 0, playing = joined ? this.playing : !still.matches;
    this.pause();
    this.videos = whole;
    this.fps = fps;
    $("transport").hidden = false;
    for (const video of whole) video.onclick = () => this.toggle();
    $("scrub").max = this.frames - 1;
    this.seek(frame);
    if (playing) this.play();
  }

  clear() {
    this.pause();
    this.coming = this.videos = [];
    $("transport").hidden = true;
  }

  get frames() {
    return Math.max(1, Math.round(Math.min(...this.videos.map(v => v.duration)) * this.fps));
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  play() {
    if (this.frame >= this.frames - 1) this.seek(0);
    this.playing = true;
    this.follow();
  }

  pause() {
    this.playing = false;
    cancelAnimationFrame(this.next);
    for (const video of this.videos) video.pause();
    if (this.videos.length) this.align(0);
    this.tell();
  }

  /** Show this frame in all videos: its middle, so that rounding cannot give the one before. */
  seek(frame) {
    for (const video of this.videos) video.currentTime = Math.min((frame + 0.5) / this.fps, video.duration);
    this.tell(frame);
  }

  get frame() {
    return Math.min(this.frames - 1, Math.floor(this.videos[0].currentTime * this.fps + 1e-3));
  }

  /** Bring the others to where the first one is, when they are further off than `allowed` seconds. */
  align(allowed) {
    const [first, ...others] = this.videos;
    for (const video of others) {
      if (Math.abs(video.currentTime - first.currentTime) > allowed) video.currentTime = first.currentTime;
    }
  }

  /**
   * While they play, before each picture of the screen: all play, within half a frame of each other, and at their end
   * they begin again together. Looking is simpler than events: a video at its end pauses itself some time later.
   */
  follow() {
    cancelAnimationFrame(this.next);
    if (this.videos.every(v => v.ended)) {
      if (!$("loop").checked) return this.pause();
      this.seek(0);
    }
    if (!this.videos.some(v => v.seeking || v.ended)) this.align(0.5 / this.fps);
    for (const video of this.videos) {
      if (video.paused && !video.ended) {
        video.play().catch(error => error.name === "AbortError" || this.pause()); // a browser may forbid it
      }
    }
    this.tell();
    this.next = requestAnimationFrame(() => this.follow());
  }

  tell(frame) {
    if (!this.videos.length || !this.videos.every(v => v.duration)) return;
    frame ??= this.frame;
    $("play").textContent = this.playing ? "Pause" : "Play";
    $("scrub").value = frame;
    $("scrub").setAttribute("aria-valuetext", `frame ${frame + 1} of ${this.frames}`);
    $("time").textContent = `${frame + 1} / ${this.frames}`;
  }
}

// One that was loaded is short of data again while it seeks; "loadeddata" does not come a second time.
const loaded = video => new Promise(resolve => {
  if (video.readyState >= 2 || video.error) resolve();
  else for (const event of ["loadeddata", "seeked", "error"]) video.addEventListener(event, resolve, { once: true });
});
