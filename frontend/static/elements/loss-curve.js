// <loss-curve job since data-points="[[step, loss], ...]">: the loss while it grows, smoothed line over faint points.
import { subscribe } from "./stream.js";

const SMOOTH = 0.9; // weight of the past in the smoothed line

class LossCurve extends HTMLElement {
  connectedCallback() {
    this.points = new Map(JSON.parse(this.dataset.points ?? "[]"));
    this.theme = () => this.draw(true);
    addEventListener("moongate:theme", this.theme);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", this.theme);
    this.size = new ResizeObserver(() => this.plot?.setSize({ width: this.clientWidth, height: 220 }));
    this.size.observe(this);
    if (this.hasAttribute("live")) {
      this.end = subscribe(this.getAttribute("job"), Number(this.getAttribute("since")), (event) => {
        if (event.type !== "loss") return;
        for (const [step, loss] of event.points) this.points.set(step, loss);
        this.draw();
      });
    }
    this.draw();
  }

  disconnectedCallback() {
    this.end?.();
    this.size.disconnect();
    this.plot?.destroy();
    removeEventListener("moongate:theme", this.theme);
    matchMedia("(prefers-color-scheme: dark)").removeEventListener("change", this.theme);
  }

  series() {
    const steps = [...this.points.keys()].sort((one, other) => one - other);
    const losses = steps.map((step) => this.points.get(step));
    let mean = 0;
    const smooth = losses.map((loss, index) => {
      mean = SMOOTH * mean + (1 - SMOOTH) * loss;
      return mean / (1 - SMOOTH ** (index + 1));
    });
    return [steps, losses, smooth];
  }

  draw(again = false) {
    if (!globalThis.uPlot || this.points.size === 0 || this.clientWidth === 0) return;
    if (again) {
      this.plot?.destroy();
      this.plot = null;
    }
    const data = this.series();
    if (this.plot) {
      this.plot.setData(data);
      return;
    }
    this.querySelector("[data-empty]")?.remove();
    const style = getComputedStyle(this);
    const axis = { stroke: style.color, grid: { stroke: style.getPropertyValue("--grid"), width: 1 }, ticks: { show: false } };
    this.plot = new globalThis.uPlot(
      {
        width: this.clientWidth,
        height: 220,
        legend: { show: false },
        cursor: { y: false },
        scales: { x: { time: false } },
        axes: [axis, { ...axis, size: 48 }],
        series: [
          { label: "step" },
          { label: "loss", stroke: "transparent", points: { show: true, size: 3, fill: style.getPropertyValue("--faint"), stroke: "transparent" } },
          { label: "smoothed", stroke: style.getPropertyValue("--curve"), width: 2, points: { show: false } },
        ],
      },
      data,
      this,
    );
  }
}

customElements.define("loss-curve", LossCurve);
