// <job-progress job since [refresh="#part"]>: ring, sentence and numbers of a job while it runs.
// `refresh`: when the state changes, the server renders that part of the page again.
import { announce, refresh, subscribe } from "./stream.js";

const about = (seconds) => {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
};

const UNCOUNTED = ["preparing", "saving"]; // as in frontend/phrases.py

/** `Training: step 240 of 600, about 40 s left`; other phases by their share. */
export function standing(words, phase, step, total, eta) {
  if (!total || UNCOUNTED.includes(phase)) return words;
  if (phase !== "training") return `${words}, ${Math.floor((100 * step) / total)} %`;
  const left = typeof eta === "number" && step < total ? `, about ${about(eta)} left` : "";
  return `${words}: step ${step} of ${total}${left}`;
}

class JobProgress extends HTMLElement {
  connectedCallback() {
    const since = Number(this.getAttribute("since") ?? 0);
    this.end = subscribe(this.getAttribute("job"), since, (event) => this.receive(event));
  }

  disconnectedCallback() {
    this.end?.();
  }

  receive(event) {
    if (event.type === "state") this.share = 0;
    if (event.type === "progress") this.show(event);
    if (event.type === "done") announce(`The job has ended: ${event.state}.`);
    const changed = event.type === "state" || event.type === "note" || event.type === "done";
    if (changed && this.hasAttribute("refresh")) {
      clearTimeout(this.timer);
      this.timer = setTimeout(refresh, 150, this.getAttribute("refresh"));
    }
  }

  /** The sentence and the ring as frontend/phrases.py makes them. */
  show({ phase, step, total, rate, eta_s: eta }) {
    const known = JSON.parse(this.dataset.phases ?? "{}")[phase] ?? { words: phase };
    this.fill("sentence", standing(known.words, phase, step, total, eta));
    if (known.begin !== undefined) {
      const share = known.begin + (known.end - known.begin) * (total > 0 ? step / total : 0);
      this.share = Math.max(this.share ?? 0, share); // parts of a phase count from zero each
      for (const ring of this.scope().querySelectorAll(".gate-progress")) {
        ring.setAttribute("stroke-dasharray", `${(this.share * 100).toFixed(1)} 100`);
      }
    }
    if (phase !== "training") return;
    this.fill("step", `${step} / ${total}`);
    this.fill("rate", rate ? `${rate.toFixed(1)} / s` : "–");
    this.fill("eta", eta === null || eta === undefined ? "–" : about(eta));
  }

  scope() {
    return this.closest("[data-job-scope]") ?? this;
  }

  fill(part, text) {
    for (const place of this.scope().querySelectorAll(`[data-part="${part}"]`)) place.textContent = text;
  }
}

customElements.define("job-progress", JobProgress);
