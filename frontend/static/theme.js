// Applies the remembered theme before the first paint, and moves the switch: system, light, dark.
"use strict";
(() => {
  const themes = ["system", "light", "dark"];
  const root = document.documentElement;
  const remembered = () => {
    try {
      return localStorage.getItem("moongate-theme") ?? "system";
    } catch {
      return "system";
    }
  };
  const apply = (theme) => {
    if (theme === "system") root.removeAttribute("data-theme");
    else root.setAttribute("data-theme", theme);
  };
  apply(remembered());
  addEventListener("DOMContentLoaded", () => {
    for (const button of document.querySelectorAll("[data-theme-switch]")) {
      const icon = button.querySelector("use");
      const label = button.querySelector("[data-theme-name]");
      const show = (theme) => {
        const picture = { system: "sun-moon", light: "sun", dark: "moon" }[theme];
        icon.setAttribute("href", icon.getAttribute("href").replace(/#.*/, `#${picture}`));
        label.textContent = { system: "Auto", light: "Light", dark: "Dark" }[theme];
        button.title = `Colours: ${label.textContent.toLowerCase()}. Click to change.`;
      };
      show(remembered());
      button.addEventListener("click", () => {
        const next = themes[(themes.indexOf(remembered()) + 1) % themes.length];
        try {
          localStorage.setItem("moongate-theme", next);
        } catch {
          // private windows: the choice lasts for this page
        }
        apply(next);
        show(next);
        dispatchEvent(new Event("moongate:theme"));
      });
    }
  });
})();
