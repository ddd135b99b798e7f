// Before the first paint, so that a dark page never flashes white. Storage may be forbidden under file://.
"use strict";
(function () {
  const root = document.documentElement;
  const asked = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("theme"); } catch (error) { /* not remembered */ }
  function dark() { return chosen ? chosen === "dark" : asked.matches; }
  function apply() {
    root.dataset.theme = dark() ? "dark" : "light";
    const button = document.getElementById("theme");
    if (button) {
      button.textContent = dark() ? "Light" : "Dark";
      button.setAttribute("aria-label", "Switch to " + (dark() ? "light" : "dark") + " colours");
    }
    window.dispatchEvent(new Event("theme"));
  }
  apply();
  asked.addEventListener("change", apply);
  document.addEventListener("DOMContentLoaded", function () {
    apply();
    document.getElementById("theme").addEventListener("click", function () {
      chosen = dark() ? "light" : "dark";
      try { localStorage.setItem("theme", chosen); } catch (error) { /* not remembered */ }
      apply();
    });
  });
})();
