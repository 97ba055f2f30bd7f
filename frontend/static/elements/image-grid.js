// <image-grid>: pictures in rows of equal height that end where the column ends; never larger than their markup says.

const GAP = 4;

class ImageGrid extends HTMLElement {
  connectedCallback() {
    this.size = new ResizeObserver(() => this.lay());
    this.size.observe(this);
    this.children_ = new MutationObserver(() => this.lay());
    this.children_.observe(this, { childList: true });
    this.lay();
  }

  disconnectedCallback() {
    this.size.disconnect();
    this.children_.disconnect();
  }

  lay() {
    const space = this.clientWidth;
    if (space === 0 || (space === this.space && this.childElementCount === this.count)) return;
    this.space = space;
    this.count = this.childElementCount;
    let row = [];
    let width = 0;
    for (const shot of this.querySelectorAll(":scope > .shot, :scope > .cell")) {
      const natural = Number(shot.querySelector("img")?.getAttribute("width") ?? shot.dataset.width);
      row.push([shot, natural]);
      width += natural;
      if (width + GAP * (row.length - 1) >= space) {
        this.fit(row, (space - GAP * (row.length - 1)) / width);
        this.scale = (space - GAP * (row.length - 1)) / width;
        row = [];
        width = 0;
      }
    }
    this.fit(row, Math.min(1, this.scale ?? 1)); // the last row keeps the measure of the one before
  }

  fit(row, scale) {
    for (const [shot, natural] of row) {
      shot.style.width = `${Math.floor(natural * Math.min(1, scale) * 100) / 100}px`;
    }
  }
}

customElements.define("image-grid", ImageGrid);
