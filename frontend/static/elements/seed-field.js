// <seed-field>: dice (empty: a new seed each time) or locked to a number.

class SeedField extends HTMLElement {
  connectedCallback() {
    this.field = this.querySelector("input");
    this.button = this.querySelector("button");
    this.button.hidden = false;
    this.button.addEventListener("click", () => {
      this.field.value = this.field.value === "" ? String(Math.floor(Math.random() * 2 ** 32)) : "";
      this.show();
    });
    this.field.addEventListener("input", () => this.show());
    this.show();
  }

  show() {
    const locked = this.field.value !== "";
    const icon = this.button.querySelector("use");
    icon.setAttribute("href", icon.getAttribute("href").replace(/#.*/, locked ? "#lock" : "#dice-5"));
    this.button.setAttribute("aria-pressed", String(locked));
    this.button.title = locked ? "The seed is locked. Click to roll a new one each time." : "A new seed each time. Click to lock one.";
    this.button.setAttribute("aria-label", this.button.title);
  }
}

customElements.define("seed-field", SeedField);
