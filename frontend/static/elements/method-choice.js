// <method-choice>: the links in it choose a method or a base model; the form is changed in place of the whole page, and
// what was chosen of the rest (preset, seed, consent, open folds) is kept. Without script the links are links.
import { announce } from "./stream.js";

class MethodChoice extends HTMLElement {
  connectedCallback() {
    this.addEventListener("click", (event) => {
      const link = event.target.closest("a[href]");
      const elsewhere = event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0;
      if (!link || elsewhere) return;
      event.preventDefault();
      this.choose(link);
    });
  }

  async choose(link) {
    const form = this.closest("form");
    form.setAttribute("aria-busy", "true");
    const answer = await fetch(link.href, { headers: { Accept: "text/html" } }).catch(() => null);
    const page = answer?.ok ? new DOMParser().parseFromString(await answer.text(), "text/html") : null;
    const fresh = page?.getElementById(form.id);
    if (!fresh) return location.assign(link.href);
    keep(form, fresh);
    history.replaceState(history.state, "", link.href);
    form.replaceWith(fresh);
    globalThis.htmx?.process(fresh);
    fresh.querySelector("#methods > summary").focus({ preventScroll: true });
    return announce(`${link.querySelector("strong").textContent} is chosen.`);
  }
}

/** What a person has set that does not depend on the method. */
function keep(form, fresh) {
  for (const field of form.querySelectorAll("[name=preset]:checked, [name=seed], [name=consent]")) {
    const same = [...fresh.querySelectorAll(`[name="${field.name}"]`)];
    const place = same.find((other) => other.type !== "radio" || other.value === field.value);
    if (!place) continue;
    if (place.matches("[type=radio], [type=checkbox]")) place.checked = field.checked;
    else place.value = field.value;
  }
  fresh.querySelector("#advanced").open = form.querySelector("#advanced").open;
}

customElements.define("method-choice", MethodChoice);
