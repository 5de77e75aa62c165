// The questions of an item: choices that one letter or digit makes, and which question is asked now.

import { $, element } from "../studio/dom.js";

const LETTERS = { pairs: { a: "A", t: "tie", b: "B" }, scales: { 1: "1", 2: "2", 3: "3", 4: "4", 5: "5" } };

export class Questions {
  /**
   * @param review as the server gives it.
   * @param changed is told the answers so far, {question: choice}.
   */
  constructor(review, changed) {
    this.letters = LETTERS[review.format];
    this.questions = review.questions;
    this.fields = review.questions.map(question => this.field(question, review.format));
    $("questions").replaceChildren(...this.fields);
    $("questions").onchange = event => {
      this.mark(this.fields.indexOf(event.target.closest("fieldset")));
      changed(this.answers());
    };
    $("questions").onfocusin = event => this.mark(this.fields.indexOf(event.target.closest("fieldset")));
    this.changed = changed;
  }

  field(question, format) {
    const picks = Object.values(this.letters).map(choice => element("label", {},
      element("input", { type: "radio", name: question.name, value: choice }), element("span", { textContent: choice })));
    const hint = `hint-${question.name}`;
    const field = element("fieldset", { className: "question", "aria-describedby": hint },
      element("legend", { textContent: question.text }),
      element("p", { className: "hint", id: hint, textContent: question.hint, hidden: !question.hint }),
      element("div", { className: "picks" }, ...picks));
    if (format === "scales") {
      field.append(element("p", { className: "ends soft" },
        element("span", { textContent: `1 ${question.low}` }), element("span", { textContent: `5 ${question.high}` })));
    }
    return field;
  }

  answers() {
    const found = {};
    for (const field of this.fields) {
      const picked = field.querySelector("input:checked");
      if (picked) found[picked.name] = picked.value;
    }
    return found;
  }

  /** Show these answers, and ask the first question that has none. */
  show(answers) {
    for (const input of $("questions").querySelectorAll("input")) input.checked = answers?.[input.name] === input.value;
    this.relent();
    this.mark(Math.max(0, this.open()));
  }

  /** The place of the first question without an answer; -1: all have one. */
  open() {
    return this.fields.findIndex(field => !field.querySelector("input:checked"));
  }

  /** Which question is asked now. */
  mark(place) {
    if (place < 0) return;
    this.now = place;
    this.fields.forEach((field, n) => field.classList.toggle("now", n === place));
  }

  /** Answer the question that is asked now by a key, and ask the next one. Returns whether the key means an answer. */
  press(key) {
    const choice = this.letters[key.toLowerCase()];
    if (choice === undefined) return false;
    const field = this.fields[this.now];
    field.querySelector(`input[value="${choice}"]`).checked = true;
    field.classList.remove("wrong");
    this.changed(this.answers());
    if (this.now + 1 < this.fields.length) this.focus(this.now + 1);
    else $("save").focus();
    return true;
  }

  focus(place) {
    const field = this.fields[place];
    this.mark(place);
    (field.querySelector("input:checked") ?? field.querySelector("input")).focus();
  }

  /** Say which questions are open, and ask the first of them. Returns whether there is one. */
  complain() {
    const place = this.open();
    if (place < 0) return false;
    for (const field of this.fields) field.classList.toggle("wrong", !field.querySelector("input:checked"));
    this.focus(place);
    return true;
  }

  relent() {
    for (const field of this.fields) field.classList.remove("wrong");
  }
}
