// <photo-drop [upload="address"]>: drop, paste or pick photos; thumbnails at once; one file a request, three at a time.
// Inside a form without `upload` the photos wait until the form has made the concept; what was turned or cropped
// meanwhile is told to the studio after the upload.

import { WHOLE, askForCrop, edited, isWhole, near, shown, stagePx, turned } from "./photo-edit.js";

const AT_ONCE = 3;
const QUARTER = 90;
const DUPLICATE = "Almost the same as another photo: different views teach more.";

class PhotoDrop extends HTMLElement {
  connectedCallback() {
    this.input = this.querySelector("input[type=file]");
    this.list = this.querySelector(".photos");
    this.waiting = [];
    this.cards = [];
    this.checking = Promise.resolve();
    this.running = 0;
    this.upload = this.getAttribute("upload");
    this.input.addEventListener("change", () => this.take(this.input.files));
    this.addEventListener("dragover", (event) => {
      event.preventDefault();
      this.toggleAttribute("over", true);
    });
    this.addEventListener("dragleave", () => this.toggleAttribute("over", false));
    this.addEventListener("drop", (event) => {
      event.preventDefault();
      this.toggleAttribute("over", false);
      this.take(event.dataTransfer.files);
    });
    this.paste = (event) => this.take(event.clipboardData?.files ?? []);
    document.addEventListener("paste", this.paste);
    this.dialog = this.querySelector("dialog");
    for (const button of this.dialog.querySelectorAll("[data-close]")) {
      button.addEventListener("click", () => this.dialog.close(button.dataset.close));
    }
    this.dialog.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !event.target.matches("input")) return;
      event.preventDefault(); // of the form around it, which is not meant
      this.dialog.close("crop");
    });
    this.form = this.upload ? null : this.closest("form");
    this.form?.addEventListener("submit", (event) => this.submit(event));
  }

  disconnectedCallback() {
    document.removeEventListener("paste", this.paste);
  }

  take(files) {
    for (const file of files) {
      const card = this.card(file);
      this.list.append(card.element);
      this.waiting.push(card);
      this.cards.push(card);
      if (!this.upload) this.check(card);
    }
    if (files.length > 0) this.input.value = "";
    if (this.upload) this.pump();
  }

  card(file) {
    const template = this.querySelector("template").content.cloneNode(true);
    const element = template.querySelector("li");
    const picture = element.querySelector("img");
    picture.src = URL.createObjectURL(file);
    picture.alt = file.name;
    const card = { file, element, picture, rotate: 0, crop: WHOLE, progress: element.querySelector("progress"), said: element.querySelector("[data-said]") };
    picture.addEventListener("error", () => card.said.textContent || this.say(card, "This picture cannot be shown here; it may still be accepted.", "warning"));
    element.querySelector(".remove").addEventListener("click", () => this.remove(card));
    element.querySelector(".turn").addEventListener("click", () => this.turn(card));
    element.querySelector(".crop").addEventListener("click", () => this.crop(card));
    return card;
  }

  async turn(card) {
    if (card.id) return this.edit(card, { rotate: QUARTER });
    card.rotate = (card.rotate + QUARTER) % 360;
    card.crop = turned(card.crop);
    return this.show(card);
  }

  async crop(card) {
    const source = card.id ? card.url : await shown(card.file, card.rotate, WHOLE, stagePx).catch(() => null);
    if (!source) return undefined;
    const box = await askForCrop(this.dialog, source, card.crop);
    if (!box) return undefined;
    if (card.id) return this.edit(card, { crop: box });
    card.crop = box;
    return this.show(card);
  }

  /** The thumbnail as the photo will be. A format that the browser cannot draw keeps its place and is edited later. */
  async show(card) {
    const source = await shown(card.file, card.rotate, card.crop).catch(() => null);
    if (source) card.picture.src = source;
    this.check(card);
  }

  /** Asks what the studio would say of the photo as it is now; one photo after the other. */
  check(card) {
    const version = (card.version = (card.version ?? 0) + 1);
    this.checking = this.checking.then(() => this.judge(card, version)).catch(() => {});
  }

  async judge(card, version) {
    const stale = () => card.version !== version || card.request || !this.cards.includes(card);
    if (stale()) return;
    const body = new FormData();
    body.append("files", await edited(card.file, card.rotate, card.crop), card.file.name);
    const answer = await fetch("/api/v1/photos/check", { method: "POST", body });
    const told = await answer.json();
    if (stale()) return;
    card.checked = answer.ok;
    card.report = answer.ok ? told.items[0] : null;
    if (answer.ok) this.compare();
    else this.say(card, told.errors?.[0]?.detail ?? told.detail, "wrong");
  }

  /** Says of each checked photo what there is to say, also that an earlier one is almost the same. */
  compare() {
    const earlier = [];
    for (const card of this.cards) {
      if (!card.report || card.request) continue;
      const again = earlier.some((other) => near(other, card.report.fingerprint));
      this.say(card, [...card.report.warnings, ...(again ? [DUPLICATE] : [])].join(" "), "warning");
      earlier.push(card.report.fingerprint);
    }
  }

  /** Has the studio turn or crop a photo that it has already. */
  async edit(card, wanted) {
    const answer = await fetch(`${this.upload}/${card.id}`, {
      method: "PATCH",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(wanted),
    });
    const told = await answer.json();
    if (answer.ok) this.stored(card, told);
    else {
      card.failed = true;
      this.say(card, told.errors?.[0]?.detail ?? told.detail, "wrong");
    }
  }

  stored(card, photo) {
    Object.assign(card, { id: photo.id, url: photo.url, rotate: 0, crop: WHOLE, failed: false });
    card.picture.src = photo.thumbnail_url;
    this.say(card, photo.warnings.join(" "), "warning");
  }

  say(card, sentence, kind) {
    card.said.textContent = sentence;
    card.said.className = kind;
  }

  async remove(card) {
    this.waiting = this.waiting.filter((other) => other !== card);
    this.cards = this.cards.filter((other) => other !== card);
    this.compare();
    card.request?.abort();
    if (card.id) await fetch(`${this.upload}/${card.id}`, { method: "DELETE" });
    card.element.remove();
    if (this.concept) this.pump();
  }

  pump() {
    while (this.running < AT_ONCE && this.waiting.length > 0) this.send(this.waiting.shift());
    if (this.running === 0 && this.waiting.length === 0) this.finished();
  }

  send(card) {
    this.running += 1;
    const body = new FormData();
    body.append("files", card.file);
    const request = new XMLHttpRequest();
    card.request = request;
    card.progress.hidden = false;
    request.upload.addEventListener("progress", ({ loaded, total }) => (card.progress.value = loaded / total));
    request.addEventListener("loadend", async () => {
      card.progress.hidden = true;
      await this.received(card, request);
      this.running -= 1;
      this.pump();
    });
    request.open("POST", this.upload);
    request.responseType = "json";
    request.send(body);
  }

  async received(card, request) {
    const answer = request.response;
    if (request.status === 201) {
      const { rotate, crop } = card;
      this.stored(card, answer.items[0]);
      if (rotate || !isWhole(crop)) await this.edit(card, { rotate, crop: isWhole(crop) ? null : crop });
      return;
    }
    card.failed = true;
    const reason = answer?.errors?.[0]?.detail ?? answer?.detail ?? "The studio did not answer. Try this photo again.";
    this.say(card, reason, "wrong");
  }

  finished() {
    const seen = (card) => this.concept && card.checked;
    const troubled = this.cards.some((card) => card.failed || (card.said.textContent && !seen(card)));
    const done = this.querySelector("[data-continue]");
    if (this.concept && !troubled) location.assign(this.concept);
    else if (this.concept) {
      Object.assign(done, { hidden: false, href: this.concept });
      this.form.querySelector("[data-fields] [type=submit]").hidden = true;
    }
    else if (!troubled) location.reload();
    else this.dispatchEvent(new Event("uploaded"));
  }

  /** Makes the concept by the same form the server renders; its errors come back beside the fields. */
  async submit(event) {
    event.preventDefault();
    const button = this.form.querySelector("[type=submit]");
    button.setAttribute("aria-busy", "true");
    const fields = new FormData(this.form);
    fields.delete("files");
    const answer = await fetch(this.form.action, { method: "POST", body: new URLSearchParams([...fields]) });
    if (answer.redirected) {
      this.concept = answer.url;
      this.upload = `/api/v1${new URL(answer.url).pathname}/photos`;
      for (const sentence of this.form.querySelectorAll("[data-fields] .wrong")) sentence.remove();
      this.form.querySelector("[data-fields]").disabled = true;
      this.pump();
      return;
    }
    button.removeAttribute("aria-busy");
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-fields]");
    if (fresh) this.form.querySelector("[data-fields]").replaceChildren(...fresh.childNodes);
    this.form.querySelector("[aria-invalid=true]")?.focus();
  }
}

customElements.define("photo-drop", PhotoDrop);
