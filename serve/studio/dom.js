// Elements, and the words for numbers.

export const $ = id => document.getElementById(id);

/** An element with properties and children. A property with a dash (aria-label, data-id) is an attribute. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** "about 40 s", "about 3 min", "about 2 h". */
export function about(seconds) {
  if (seconds < 90) return `about ${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `about ${Math.round(seconds / 60)} min` : `about ${Math.round(seconds / 3600)} h`;
}

/** A time of the server (seconds since 1970) as this reader writes it: of today without the date. */
export function moment(seconds) {
  const date = new Date(seconds * 1000);
  const today = date.toDateString() === new Date().toDateString();
  return date.toLocaleString([], today ? { timeStyle: "short" } : { dateStyle: "medium", timeStyle: "short" });
}

/** Ask in a dialog; resolves to the value of the button that closed it, "" for Escape. */
export function answer(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise(resolve => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

/** Show an error at the field of this name within a form, or at the end of the form. Returns the field. */
export function complain(form, param, message) {
  const name = { seconds: "num_frames", width: "size", height: "size" }[param] ?? param.split(".")[0];
  const fields = [...form.querySelectorAll("[data-param]")];
  const field = fields.find(f => f.dataset.param === name) ?? fields.find(f => f.dataset.param === "");
  relent(field);
  const id = `error-${form.id || form.parentElement.id}-${field.dataset.param || "all"}`;
  field.classList.add("wrong");
  field.append(element("p", { className: "error", id, textContent: message, role: "alert" }));
  for (const input of field.querySelectorAll("input, textarea, select")) {
    input.setAttribute("aria-invalid", "true");
    input.dataset.described = input.getAttribute("aria-describedby") ?? "";
    input.setAttribute("aria-describedby", `${id} ${input.dataset.described}`.trim());
  }
  const details = field.closest("details");
  if (details) details.open = true;
  const target = field.querySelector("input:not(:disabled), textarea, select");
  if (target) target.focus();
  field.scrollIntoView({ block: "nearest" });
  return field;
}

/** Take the error off a field, or off all fields of a form. */
export function relent(place) {
  for (const field of place.matches("[data-param]") ? [place] : place.querySelectorAll("[data-param].wrong")) {
    if (!field.classList.contains("wrong")) continue;
    field.classList.remove("wrong");
    field.querySelector(":scope > .error").remove();
    for (const input of field.querySelectorAll("[aria-invalid]")) {
      input.removeAttribute("aria-invalid");
      if (input.dataset.described) input.setAttribute("aria-describedby", input.dataset.described);
      else input.removeAttribute("aria-describedby");
    }
  }
}
