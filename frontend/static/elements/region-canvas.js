// <region-canvas data-concepts="[{token, name, picture}]">: boxes on the picture to come, each with what stands in it.
// Drawn with pointer or finger on the stage; moved with the arrow keys, resized with Shift and them, removed with Delete.
// The hidden field carries [{x, y, width, height, prompt, weights}], shares of the picture.
import { announce } from "./stream.js";

const MOST = 8;
const LEAST = 0.05;
const STEP = 0.02;
const CORNERS = [["left", "top"], ["right", "top"], ["left", "bottom"], ["right", "bottom"]];
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

class RegionCanvas extends HTMLElement {
  connectedCallback() {
    if (this.stage) return;
    this.field = this.querySelector("[name=regions]");
    this.stage = this.querySelector(".region-stage");
    this.list = this.querySelector(".region-list");
    this.add = this.querySelector("[data-add]");
    this.concepts = JSON.parse(this.dataset.concepts ?? "[]");
    this.regions = [];
    for (const region of parsed(this.field.value)) this.put(region);
    this.stage.addEventListener("pointerdown", (event) => this.begin(event));
    this.add.addEventListener("click", () => this.more());
    const size = this.closest("form").elements.size;
    size?.addEventListener("change", () => this.shape(size.value));
    this.shape(size?.value ?? "");
    this.save();
  }

  shape(size) {
    const [width, height] = size.split("x").map(Number);
    this.stage.style.aspectRatio = width > 0 && height > 0 ? `${width} / ${height}` : "1";
  }

  // ---- boxes

  /** A box for the next concept without one, where there is room from left to right. */
  more() {
    const used = this.regions.map(({ prompt }) => prompt);
    const next = this.concepts.find(({ token }) => !used.some((prompt) => prompt.includes(`@${token}`)));
    const x = [0.04, 0.54, 0.29][this.regions.length % 3];
    const region = this.put({ x, y: 0.15, width: 0.42, height: 0.7, prompt: next ? `@${next.token}` : "" });
    this.save();
    region?.input.select();
    region?.input.focus();
  }

  put(given) {
    if (this.regions.length >= MOST) {
      announce(`A picture takes ${MOST} boxes.`);
      return undefined;
    }
    const taken = new Set(this.regions.map(({ hue }) => hue));
    const hue = Array.from({ length: MOST }, (_, at) => at + 1).find((each) => !taken.has(each));
    const region = { ...given, hue };
    region.box = this.drawn(region);
    region.row = this.listed(region);
    region.input = region.row.querySelector("input");
    this.regions.push(region);
    this.lay(region);
    return region;
  }

  drawn(region) {
    const box = document.createElement("div");
    box.className = `region-box hue-${region.hue}`;
    box.tabIndex = 0;
    box.setAttribute("role", "group");
    box.setAttribute("aria-roledescription", "box");
    box.append(document.createElement("span"));
    for (const sides of CORNERS) {
      const handle = document.createElement("i");
      handle.className = sides.join(" ");
      handle.addEventListener("pointerdown", (event) => this.pull(event, region, sides));
      box.append(handle);
    }
    box.addEventListener("pointerdown", (event) => this.pull(event, region, []));
    box.addEventListener("keydown", (event) => this.pressed(event, region));
    this.stage.append(box);
    return box;
  }

  listed(region) {
    const row = this.querySelector("template").content.cloneNode(true).firstElementChild;
    row.classList.add(`hue-${region.hue}`);
    const input = row.querySelector("input");
    input.value = region.prompt;
    input.addEventListener("input", () => {
      region.prompt = input.value;
      delete region.weights; // they taught what stood here before
      this.lay(region);
      this.save();
    });
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      if (event.metaKey || event.ctrlKey) this.closest("form").requestSubmit();
    });
    row.querySelector("button").addEventListener("click", () => this.remove(region));
    this.list.append(row);
    return row;
  }

  remove(region) {
    region.box.remove();
    region.row.remove();
    this.regions = this.regions.filter((each) => each !== region);
    this.save();
    announce("The box is removed.");
    (this.regions.at(-1)?.box ?? this.add).focus();
  }

  lay(region) {
    for (const [side, value] of Object.entries({ left: region.x, top: region.y, width: region.width, height: region.height })) {
      region.box.style[side] = `${100 * value}%`;
    }
    const percent = (value) => `${Math.round(100 * value)} %`;
    const what = region.prompt.trim() || "nothing yet";
    region.box.firstElementChild.textContent = what;
    region.box.setAttribute(
      "aria-label",
      `${what}: ${percent(region.x)} from the left, ${percent(region.y)} from the top, ${percent(region.width)} wide, ${percent(region.height)} high`,
    );
    const token = /@([\w-]+)/.exec(region.prompt)?.[1]?.toLowerCase();
    const picture = this.concepts.find((concept) => concept.token === token)?.picture;
    const image = region.row.querySelector("img");
    image.hidden = !picture;
    if (picture && image.getAttribute("src") !== picture) image.src = picture;
  }

  save() {
    const kept = this.regions.map(({ x, y, width, height, prompt, weights }) => ({
      x, y, width, height, prompt, ...(weights ? { weights } : {}),
    }));
    this.field.value = kept.length > 0 ? JSON.stringify(kept) : "";
    this.add.disabled = kept.length >= MOST;
  }

  // ---- pointer and keys

  /** Draws a new box from where the pointer went down. */
  begin(event) {
    if (event.target !== this.stage || event.button !== 0) return;
    event.preventDefault();
    const area = this.stage.getBoundingClientRect();
    const at = (moved) => [
      between(0, (moved.clientX - area.left) / area.width, 1),
      between(0, (moved.clientY - area.top) / area.height, 1),
    ];
    const [startX, startY] = at(event);
    let region;
    this.follow(event, (moved) => {
      const [x, y] = at(moved);
      const box = { x: Math.min(x, startX), y: Math.min(y, startY), width: Math.abs(x - startX), height: Math.abs(y - startY) };
      if (!region && Math.min(box.width, box.height) >= LEAST) region = this.put({ ...box, prompt: "" });
      if (!region) return;
      Object.assign(region, fitted({ ...box, width: Math.max(LEAST, box.width), height: Math.max(LEAST, box.height) }));
      this.lay(region);
    }, () => {
      this.save();
      region?.input.focus();
    });
  }

  /** Moves the sides that a handle holds, or the whole box. */
  pull(event, region, sides) {
    if (event.button !== 0) return;
    event.preventDefault();
    event.stopPropagation();
    region.box.focus();
    const begun = { ...region };
    const area = this.stage.getBoundingClientRect();
    this.follow(event, (moved) => {
      const by = [(moved.clientX - event.clientX) / area.width, (moved.clientY - event.clientY) / area.height];
      Object.assign(region, sides.length > 0 ? resized(begun, sides, by) : fitted({ ...begun, x: begun.x + by[0], y: begun.y + by[1] }));
      this.lay(region);
    }, () => this.save());
  }

  follow(event, moved, ended) {
    const held = event.currentTarget;
    held.setPointerCapture(event.pointerId);
    held.addEventListener("pointermove", moved);
    const end = () => {
      held.removeEventListener("pointermove", moved);
      held.removeEventListener("pointerup", end);
      held.removeEventListener("pointercancel", end);
      ended();
    };
    held.addEventListener("pointerup", end);
    held.addEventListener("pointercancel", end);
  }

  pressed(event, region) {
    if (event.key === "Delete" || event.key === "Backspace") {
      event.preventDefault();
      this.remove(region);
      return;
    }
    const arrow = ARROWS[event.key];
    if (!arrow) return;
    event.preventDefault();
    const by = arrow.map((each) => each * STEP);
    Object.assign(region, event.shiftKey ? resized(region, ["right", "bottom"], by) : fitted({ ...region, x: region.x + by[0], y: region.y + by[1] }));
    this.lay(region);
    this.save();
  }
}

const between = (least, value, most) => Math.min(most, Math.max(least, value));
const rounded = (value) => Math.round(1e4 * value) / 1e4;

/** The box inside the picture, its size kept. */
function fitted({ x, y, width, height }) {
  const size = { width: rounded(Math.min(1, width)), height: rounded(Math.min(1, height)) };
  return { x: rounded(between(0, x, 1 - size.width)), y: rounded(between(0, y, 1 - size.height)), ...size };
}

function resized({ x, y, width, height }, sides, [byX, byY]) {
  let [left, top, right, bottom] = [x, y, x + width, y + height];
  if (sides.includes("left")) left = between(0, left + byX, right - LEAST);
  if (sides.includes("right")) right = between(left + LEAST, right + byX, 1);
  if (sides.includes("top")) top = between(0, top + byY, bottom - LEAST);
  if (sides.includes("bottom")) bottom = between(top + LEAST, bottom + byY, 1);
  return fitted({ x: left, y: top, width: right - left, height: bottom - top });
}

/** What the server put into the field. */
function parsed(value) {
  try {
    const regions = JSON.parse(value || "[]");
    return Array.isArray(regions) ? regions.filter((each) => Number.isFinite(each?.x) && typeof each.prompt === "string") : [];
  } catch {
    return [];
  }
}

customElements.define("region-canvas", RegionCanvas);
