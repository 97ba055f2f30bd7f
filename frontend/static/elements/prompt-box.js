// <prompt-box data-concepts="[{token, name, picture}]">: completion after @, chips, and the check while one writes.
import { announce } from "./stream.js";

class PromptBox extends HTMLElement {
  connectedCallback() {
    this.field = this.querySelector("textarea");
    this.options = this.querySelector("[role=listbox]");
    this.concepts = JSON.parse(this.dataset.concepts ?? "[]");
    this.problem = this.querySelector("[data-part=problem]");
    this.told = !this.problem.hidden; // what the server said stays until something is changed
    this.field.addEventListener("input", () => {
      this.told = false;
      this.changed();
    });
    this.field.addEventListener("keydown", (event) => this.pressed(event));
    this.field.addEventListener("blur", () => setTimeout(() => this.close(), 150));
    this.chips = [...this.form().querySelectorAll("button[data-token]")];
    for (const chip of this.chips) chip.addEventListener("click", () => this.toggle(chip.dataset.token));
    this.changed(document.activeElement === this.field); // somebody may have begun before the script came
  }

  form() {
    return this.closest("form");
  }

  changed(complete = true) {
    if (complete) this.complete();
    const used = new Set([...this.field.value.matchAll(/@([\w-]+)/g)].map(([, token]) => token.toLowerCase()));
    for (const chip of this.chips) chip.setAttribute("aria-pressed", String(used.has(chip.dataset.token)));
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.check(), 300);
  }

  // ---- completion

  /** The word after @ left of the caret, or null. */
  started() {
    return /(^|[^\w@])@([\w-]*)$/.exec(this.field.value.slice(0, this.field.selectionStart))?.[2] ?? null;
  }

  complete() {
    const start = this.started()?.toLowerCase();
    const found = start === undefined ? [] : this.concepts.filter(
      ({ token, name }) => token.startsWith(start) || name.toLowerCase().startsWith(start),
    );
    this.options.replaceChildren(...found.slice(0, 8).map((concept, index) => this.option(concept, index)));
    this.options.hidden = found.length === 0;
    if (found.length > 0) announce(`${found.length} of your concepts fit. Choose with the arrow keys.`);
    this.choose(0);
  }

  option({ token, name, picture }, index) {
    const row = this.querySelector("template").content.cloneNode(true).firstElementChild;
    row.id = `concept-option-${index}`;
    row.dataset.token = token;
    if (picture) row.querySelector("img").src = picture;
    row.querySelector("strong").textContent = `@${token}`;
    row.querySelector("small").textContent = name;
    row.addEventListener("mousedown", (event) => {
      event.preventDefault();
      this.insert(token);
    });
    return row;
  }

  choose(index) {
    this.chosen = index;
    [...this.options.children].forEach((row, at) => row.setAttribute("aria-selected", String(at === index)));
    const row = this.options.children[index];
    row?.scrollIntoView({ block: "nearest" });
    if (row) this.field.setAttribute("aria-activedescendant", row.id);
    else this.field.removeAttribute("aria-activedescendant");
  }

  close() {
    this.options.hidden = true;
    this.field.removeAttribute("aria-activedescendant");
  }

  pressed(event) {
    if (event.key === "Enter" && (event.metaKey || event.ctrlKey)) {
      event.preventDefault();
      this.form().requestSubmit();
      return;
    }
    if (this.options.hidden) return;
    const rows = this.options.children.length;
    if (event.key === "ArrowDown") this.choose((this.chosen + 1) % rows);
    else if (event.key === "ArrowUp") this.choose((this.chosen + rows - 1) % rows);
    else if (event.key === "Enter" || event.key === "Tab") this.insert(this.options.children[this.chosen].dataset.token);
    else if (event.key === "Escape") this.close();
    else return;
    event.preventDefault();
  }

  insert(token) {
    const caret = this.field.selectionStart;
    const begin = caret - (this.started() ?? "").length - 1;
    const rest = this.field.value.slice(caret);
    this.field.setRangeText(`@${token}${/^\s/.test(rest) ? "" : " "}`, begin, caret, "end");
    this.close();
    this.changed(false);
  }

  toggle(token) {
    const pattern = new RegExp(`\\s*@${token}(?![\\w-])`, "gi");
    const { value } = this.field;
    this.field.value = pattern.test(value) ? value.replace(pattern, "").trimStart() : `${value.trimEnd()} @${token}`.trimStart();
    this.field.focus();
    this.changed(false);
  }

  /** The token under the caret while completions are offered: it is not wrong yet. */
  typing() {
    return this.options.hidden ? null : this.started()?.toLowerCase();
  }

  // ---- the check

  async check() {
    const prompt = this.field.value.trim();
    const base = this.form().elements.base?.value;
    const counter = this.querySelector("[data-part=tokens]");
    if (prompt === "") {
      counter.textContent = "";
      return;
    }
    const answer = await fetch("/api/v1/prompts/check", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(base ? { prompt, base } : { prompt }),
    });
    const told = await answer.json();
    if (this.field.value.trim() !== prompt) return; // an older answer
    if (answer.ok) {
      const awaited = told.awaited.map((token) => `@${token}`).join(" and ");
      counter.textContent = `${told.tokens} of ${told.limit} tokens${awaited && ` · waits until ${awaited} is taught`}`;
    }
    if (this.told) return;
    const sentences = answer.ok
      ? told.unknown.filter((token) => token !== this.typing()).map((token) => `Nothing has been taught under @${token} on this base model.`)
      : [told.errors?.[0]?.detail ?? told.detail];
    if (answer.ok && told.tokens > told.limit) sentences.push("The prompt is too long for the text encoder. Shorten it.");
    this.problem.textContent = sentences.join(" ");
    this.problem.hidden = sentences.length === 0;
    if (sentences.length > 0) this.field.setAttribute("aria-invalid", "true");
    else this.field.removeAttribute("aria-invalid");
  }
}

customElements.define("prompt-box", PromptBox);
