// <preview-strip job since [live]>: the same seeds while the concept is learned, growing to the right.
import { announce, subscribe } from "./stream.js";

class PreviewStrip extends HTMLElement {
  connectedCallback() {
    if (this.hasAttribute("live")) {
      this.end = subscribe(this.getAttribute("job"), Number(this.getAttribute("since")), (event) => {
        if (event.type === "preview") this.add(event);
      });
    }
    this.scrollLeft = this.scrollWidth;
  }

  disconnectedCallback() {
    this.end?.();
  }

  add({ step, index, prompt: text, url }) {
    const prompt = text.replace(/<([a-z][\w-]*)>/g, "@$1");
    const strip = this.querySelector(".strip");
    this.querySelector("[data-empty]")?.remove();
    let column = strip.querySelector(`[data-step="${step}"]`);
    if (!column) {
      column = document.createElement("li");
      column.dataset.step = step;
      const label = document.createElement("span");
      label.textContent = `step ${step}`;
      column.append(label);
      const later = [...strip.children].find((other) => Number(other.dataset.step) > step);
      strip.insertBefore(column, later ?? null);
      announce(`New previews at step ${step}.`);
    }
    if (column.querySelector(`[data-index="${index}"]`)) return;
    const picture = document.createElement("img");
    Object.assign(picture, { src: url, alt: `${prompt}, at step ${step}`, title: prompt, width: 128, height: 128 });
    picture.dataset.index = index;
    const after = [...column.querySelectorAll("img")].find((other) => Number(other.dataset.index) > index);
    column.insertBefore(picture, after ?? column.querySelector("span"));
    this.scrollLeft = this.scrollWidth;
  }
}

customElements.define("preview-strip", PreviewStrip);
