// <light-box>: opens a picture of the page in a dialog with its whole recipe; arrows step through the page's pictures.

class LightBox extends HTMLElement {
  connectedCallback() {
    document.addEventListener("click", (event) => this.clicked(event));
    document.addEventListener("keydown", (event) => this.pressed(event));
  }

  clicked(event) {
    const link = event.target.closest?.("a[data-lightbox]");
    if (!link || event.metaKey || event.ctrlKey || event.shiftKey || event.button !== 0) return;
    event.preventDefault();
    this.open(link);
  }

  pressed(event) {
    if (!this.dialog?.open || event.target.closest("input, textarea, select")) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    this.step(step);
  }

  /** Links of the page in the order they are seen. */
  links() {
    return [...document.querySelectorAll("a[data-lightbox]")].filter((link) => !this.contains(link));
  }

  build() {
    this.dialog = document.createElement("dialog");
    this.dialog.className = "lightbox";
    this.dialog.setAttribute("aria-label", "Picture");
    this.dialog.addEventListener("click", (event) => {
      if (event.target.closest("[data-close]") || event.target.matches("dialog, .lightbox-stage")) this.dialog.close();
      const button = event.target.closest("[data-step]");
      if (button) this.step(Number(button.dataset.step));
    });
    this.dialog.addEventListener("close", () => {
      document.documentElement.classList.remove("modal-is-open");
      this.link?.focus();
    });
    this.append(this.dialog);
  }

  async open(link) {
    if (!this.dialog) this.build();
    this.link = link;
    const answer = await fetch(link.href, { headers: { "HX-Request": "true" } });
    if (!answer.ok) {
      location.assign(link.href);
      return;
    }
    const fragment = new DOMParser().parseFromString(await answer.text(), "text/html");
    const focused = this.dialog.open && document.activeElement?.dataset.step;
    this.dialog.replaceChildren(...fragment.body.childNodes);
    globalThis.htmx?.process(this.dialog);
    if (!this.dialog.open) this.dialog.showModal();
    const links = this.links();
    this.mark("-1", links.indexOf(link) > 0);
    this.mark("1", links.indexOf(link) < links.length - 1);
    const target = focused && this.dialog.querySelector(`[data-step="${focused}"]:not([hidden])`);
    (target || this.dialog.querySelector("[data-close]"))?.focus();
  }

  mark(step, present) {
    const button = this.dialog.querySelector(`[data-step="${step}"]`);
    if (button) button.hidden = !present;
  }

  step(by) {
    const links = this.links();
    const next = links[links.indexOf(this.link) + by];
    if (next) this.open(next);
  }
}

customElements.define("light-box", LightBox);
