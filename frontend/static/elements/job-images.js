// <job-images job since>: pictures of a generation take their places one by one as they are finished.
import { standing } from "./job-progress.js";
import { announce, refresh, subscribe } from "./stream.js";

class JobImages extends HTMLElement {
  connectedCallback() {
    this.end = subscribe(this.getAttribute("job"), Number(this.getAttribute("since")), (event) => {
      if (event.type === "image") this.place(event);
      if (event.type === "progress") this.say(event);
      if (event.type === "done" || event.type === "note") this.settle();
    });
  }

  disconnectedCallback() {
    this.end?.();
  }

  place({ id, index, url }) {
    const slot = this.querySelector(`.pending[data-index="${index}"]`);
    if (!slot) return;
    const link = document.createElement("a");
    link.className = "shot arriving";
    link.href = `/images/${id}`;
    link.dataset.lightbox = id;
    const picture = document.createElement("img");
    const width = Number(slot.dataset.width);
    const height = Number(slot.dataset.height);
    Object.assign(picture, { src: url, alt: this.getAttribute("prompt") ?? "", width, height });
    link.append(picture);
    slot.replaceWith(link);
    const left = this.querySelectorAll(".pending").length;
    announce(left === 0 ? "All pictures are finished." : `A picture is finished, ${left} to come.`);
  }

  say({ phase, step, total }) {
    const known = JSON.parse(this.dataset.phases ?? "{}")[phase];
    const place = this.closest("article")?.querySelector("[data-part=sentence]");
    if (place) place.textContent = standing(known?.words ?? phase, phase, step, total);
  }

  settle() {
    clearTimeout(this.timer);
    this.timer = setTimeout(refresh, 200, `#${this.closest("article").id}`);
  }
}

customElements.define("job-images", JobImages);
