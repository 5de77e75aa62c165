// The form of a new video: what the server offers, the first frame, and what was typed, which survives a reload.

import { $, complain, element, relent } from "./dom.js";

const DRAFT = "cinesynth.studio.draft";
const PICTURES = ["image/jpeg", "image/png", "image/webp"];
const TYPED = ["prompt", "size", "length", "steps", "guidance", "seed", "negative", "shift"];

export class RequestForm {
  file = null;
  model = null;

  constructor() {
    const form = this.form = $("make");
    form.addEventListener("input", event => {
      const field = event.target.closest("[data-param]");
      if (field) relent(field);
      this.follow();
      this.save();
    });
    $("prompt").addEventListener("keydown", event => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    $("filter").addEventListener("input", () => {
      for (const row of $("adapters").children) row.hidden = !row.dataset.text.includes($("filter").value.toLowerCase());
    });
    this.takePictures();
  }

  /** Fill in what is served. Called again with another key, it keeps what was chosen as far as it is still there. */
  offer(model, adapters) {
    const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "{}");
    this.model = model;
    $("serving").textContent = model.id;
    const { num_inference_steps: steps, guidance_scale: guidance, num_frames: frames } = model.defaults;
    $("size").replaceChildren(...model.sizes.map(size => new Option(size.replace("x", " × "), size)));
    $("length").replaceChildren(...model.num_frames.map(n => new Option(this.length(n), n)));
    $("length").value = frames ?? model.num_frames.at(-1);
    $("steps").value = steps;
    $("steps").max = model.max_steps;
    $("guidance").value = guidance;
    this.offerAdapters(adapters, draft.adapters ?? {});
    for (const id of TYPED) {
      const known = $(id).options ? [...$(id).options].some(o => o.value === draft[id]) : draft[id] !== undefined;
      if (known) $(id).value = draft[id];
    }
    if (draft.fixed) $("seed-fixed").checked = true;
    $("both").checked = Boolean(draft.both);
    this.follow();
  }

  length(frames) {
    return `${Number(((frames - 1) / this.model.fps).toFixed(2))} s · ${frames} ${frames === 1 ? "frame" : "frames"}`;
  }

  offerAdapters(adapters, chosen) {
    $("adapters").replaceChildren(...adapters.map(({ id, aliases = [], parents = [] }) => {
      const [name, version] = id.split("@");
      const more = [...aliases, ...(parents.length ? [`on top of ${parents.map(p => p.id ?? "one that is not published").join(", ")}`] : [])];
      const check = element("input", { type: "checkbox", value: id, checked: id in chosen });
      const scale = element("input", {
        type: "number", min: 0.05, max: 4, step: 0.05, value: chosen[id] ?? 1, inputMode: "decimal",
        "aria-label": `Scale of ${id}`,
      });
      const label = element("label", { className: "choice" }, check, element("span", {},
        name, element("span", { className: "soft" }, `@${version}`, more.length ? ` · ${more.join(" · ")}` : "")));
      const row = element("div", { className: "adapter" }, label, element("span", { className: "scale" }, "×", scale));
      row.dataset.text = `${id} ${more.join(" ")}`.toLowerCase();
      return row;
    }));
    if (!adapters.length) $("adapters").append(element("p", { className: "hint" }, "No adapter of this model is published."));
    $("filter").hidden = adapters.length <= 8;
  }

  adapters() {
    return [...$("adapters").querySelectorAll(".adapter")].map(row => {
      const [check, scale] = row.querySelectorAll("input");
      return { id: check.value, chosen: check.checked, scale: scale.value };
    }).filter(a => a.chosen);
  }

  /** What depends on other fields. */
  follow() {
    const fixed = $("seed-fixed").checked, some = this.adapters().length > 0;
    $("seed").disabled = $("seed").hidden = !fixed;
    for (const row of $("adapters").querySelectorAll(".adapter")) {
      row.querySelector(".scale").hidden = !row.querySelector("input").checked;
    }
    $("both").disabled = !some;
    $("both-choice").hidden = $("both-hint").hidden = !$("adapters").querySelector("input");
    $("go").textContent = some && $("both").checked ? "Make both" : "Make";
    const [width, height] = $("size").value.split("x").map(Number);
    $("frame").style.setProperty("--aspect", width / height || 1);
    if (this.file) this.describe(width, height);
  }

  save() {
    const draft = Object.fromEntries(TYPED.map(id => [id, $(id).value]));
    const adapters = Object.fromEntries(this.adapters().map(a => [a.id, a.scale]));
    draft.fixed = $("seed-fixed").checked;
    sessionStorage.setItem(DRAFT, JSON.stringify({ ...draft, adapters, both: $("both").checked }));
  }

  /** From now on the seed is this one. */
  keepSeed(seed) {
    $("seed-fixed").checked = true;
    $("seed").value = seed;
    this.follow();
    this.save();
    $("seed").focus();
  }

  // --- the first frame ---------------------------------------------------------------------------------------

  takePictures() {
    $("file").addEventListener("change", () => {
      if ($("file").files[0]) this.take($("file").files[0]);
    });
    // Anywhere on the page: a picture that misses its place would replace the page, and what was typed.
    const over = event => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      $("frame").classList.toggle("over", event.type === "dragover");
    };
    for (const type of ["dragover", "dragleave", "drop"]) addEventListener(type, over);
    addEventListener("drop", event => {
      if (event.dataTransfer?.files[0] && !$("work").hidden) this.take(event.dataTransfer.files[0]);
    });
    addEventListener("paste", event => {
      const file = event.clipboardData?.files[0];
      if (!file || $("work").hidden || document.querySelector("dialog[open]")) return;
      if (event.target.closest("input, textarea") && event.clipboardData.getData("text")) return; // text with a picture of it
      event.preventDefault();
      this.take(file);
    });
  }

  /** Take a file as the first frame; what it is no picture of this kind is told, and the one before stays. */
  async take(file) {
    relent(this.form.querySelector("[data-param=input_reference]"));
    const problem = message => complain(this.form, "input_reference", message);
    if (!PICTURES.includes(file.type)) return problem(`${file.name}: give a JPEG, PNG or WebP picture.`);
    const url = URL.createObjectURL(file), image = new Image();
    image.src = url;
    try {
      await image.decode();
    } catch {
      URL.revokeObjectURL(url);
      return problem(`${file.name} cannot be read as a picture.`);
    }
    if ($("preview").src) URL.revokeObjectURL($("preview").src);
    this.file = file;
    this.sides = [image.naturalWidth, image.naturalHeight];
    $("preview").src = url;
    $("preview").alt = `First frame, as it will be cropped: ${file.name}`;
    $("preview").hidden = false;
    $("frame").classList.add("full");
    $("file-how").textContent = "Choose another";
    this.follow();
  }

  /** Say what the server will cut off: the same centre crop that the preview shows. */
  describe(width, height) {
    const [w, h] = this.sides;
    const scale = Math.min(w / width, h / height);
    const kept = [Math.round(width * scale), Math.round(height * scale)];
    const part = Math.round(100 * (1 - kept[0] * kept[1] / (w * h)));
    const where = kept[0] < w ? "at the sides" : "at the top and bottom";
    const cut = part ? `${part} % is cropped off ${where}.` : "Nothing is cropped off.";
    const small = scale < 1 ? " It is smaller than the video, so it is enlarged." : "";
    $("frame-note").textContent = `${this.file.name || "Pasted picture"}, ${w} × ${h}. ${cut}${small}`;
  }

  // --- reading -------------------------------------------------------------------------------------------------

  /** What is asked for: {fields, seed, adapters, both, file}; null, with the reasons shown, where something is missing. */
  read() {
    relent(this.form);
    const problems = [];
    if (!this.file) problems.push(["input_reference", "Choose the picture that the video begins with."]);
    if (!$("prompt").value.trim()) problems.push(["prompt", "Say what happens in the video."]);
    for (const input of this.form.querySelectorAll("input[type=number]:not(:disabled)")) {
      if (input.closest(".scale[hidden]")) continue;
      const needed = input.id === "seed" || input.closest(".scale");
      if (input.validity.badInput || (needed && !input.value)) {
        problems.push([input.closest("[data-param]").dataset.param, "Give a number."]);
      }
    }
    for (const [param, message] of problems.reverse()) complain(this.form, param, message); // the first has the focus
    if (problems.length) return null;
    const fields = {
      prompt: $("prompt").value,
      size: $("size").value,
      num_frames: $("length").value,
      num_inference_steps: $("steps").value,
      guidance_scale: $("guidance").value,
      negative_prompt: $("negative").value,
      flow_shift: $("shift").value,
    };
    for (const name of Object.keys(fields)) if (!fields[name]) delete fields[name]; // the server has defaults
    const adapters = this.adapters();
    const both = $("both").checked && adapters.length > 0;
    return { fields, seed: $("seed-fixed").checked ? $("seed").value : null, adapters, both, file: this.file };
  }
}

/** How adapters are written in the field `lora`: name@version:scale, by commas. */
export const lora = adapters => adapters.map(a => Number(a.scale) === 1 ? a.id : `${a.id}:${a.scale}`).join(",");

/** What the field `lora` of a video says, for people. */
export const named = lora => lora ? lora.replaceAll(",", ", ").replaceAll(":", " × ") : "base";
