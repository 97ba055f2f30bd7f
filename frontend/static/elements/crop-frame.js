// <crop-frame>: a frame over a picture, drawn with pointer or finger; the four fields say and take the same in percent.

const SIDES = ["left", "top", "right", "bottom"];
const CORNERS = [["left", "top"], ["right", "top"], ["left", "bottom"], ["right", "bottom"]];
const LEAST = 5;

class CropFrame extends HTMLElement {
  connectedCallback() {
    if (this.frame) return;
    this.stage = this.querySelector(".crop-stage");
    this.picture = this.stage.querySelector("img");
    this.fields = Object.fromEntries(SIDES.map((side) => [side, this.querySelector(`[name=${side}]`)]));
    this.frame = document.createElement("div");
    this.frame.className = "crop-box";
    for (const sides of CORNERS) {
      const handle = document.createElement("span");
      handle.className = `crop-handle ${sides.join(" ")}`;
      handle.addEventListener("pointerdown", (event) => this.pull(event, sides));
      this.frame.append(handle);
    }
    this.frame.addEventListener("pointerdown", (event) => this.pull(event, []));
    this.stage.append(this.frame);
    for (const side of SIDES) this.fields[side].addEventListener("input", () => this.draw());
    this.draw();
  }

  /** Percent cut away at each side; a field that says nothing sensible counts as none. */
  cut() {
    return Object.fromEntries(SIDES.map((side) => [side, Math.min(99, Math.max(0, Number(this.fields[side].value) || 0))]));
  }

  /** What is kept, in shares of the picture. */
  get box() {
    const { left, top, right, bottom } = this.cut();
    return { x: left / 100, y: top / 100, width: (100 - left - right) / 100, height: (100 - top - bottom) / 100 };
  }

  set box({ x, y, width, height }) {
    this.write({ left: 100 * x, top: 100 * y, right: 100 * (1 - x - width), bottom: 100 * (1 - y - height) });
  }

  write(cut) {
    for (const side of SIDES) this.fields[side].value = String(Math.max(0, Math.round(10 * cut[side]) / 10));
    this.draw();
  }

  draw() {
    const cut = this.cut();
    for (const side of SIDES) this.frame.style[side] = `${cut[side]}%`;
  }

  /** Moves the sides that a handle holds, or the whole frame. */
  pull(event, sides) {
    event.preventDefault();
    event.stopPropagation();
    const begun = this.cut();
    const area = this.stage.getBoundingClientRect();
    const follow = (moved) => {
      const by = { x: (100 * (moved.clientX - event.clientX)) / area.width, y: (100 * (moved.clientY - event.clientY)) / area.height };
      this.write(sides.length > 0 ? resized(begun, sides, by) : shifted(begun, by));
    };
    const held = event.currentTarget;
    held.setPointerCapture(event.pointerId);
    held.addEventListener("pointermove", follow);
    const end = () => held.removeEventListener("pointermove", follow);
    held.addEventListener("pointerup", end, { once: true });
    held.addEventListener("pointercancel", end, { once: true });
  }
}

const between = (least, value, most) => Math.min(most, Math.max(least, value));

function resized(cut, sides, by) {
  const now = { ...cut };
  if (sides.includes("left")) now.left = between(0, cut.left + by.x, 100 - cut.right - LEAST);
  if (sides.includes("right")) now.right = between(0, cut.right - by.x, 100 - cut.left - LEAST);
  if (sides.includes("top")) now.top = between(0, cut.top + by.y, 100 - cut.bottom - LEAST);
  if (sides.includes("bottom")) now.bottom = between(0, cut.bottom - by.y, 100 - cut.top - LEAST);
  return now;
}

function shifted(cut, by) {
  const x = between(-cut.left, by.x, cut.right);
  const y = between(-cut.top, by.y, cut.bottom);
  return { left: cut.left + x, right: cut.right - x, top: cut.top + y, bottom: cut.bottom - y };
}

customElements.define("crop-frame", CropFrame);
