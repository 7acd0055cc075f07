"use strict";
// A chart names the value that is next to the pointer. Whatever a run has named reaches the page as text alone.
for (const chart of document.querySelectorAll("figure.chart")) {
  const drawing = chart.querySelector("svg");
  const mark = drawing.querySelector(".mark");
  const tip = chart.querySelector(".tip");
  const lines = [...drawing.querySelectorAll("polyline")].map((line) => ({
    line,
    places: line.getAttribute("points").split(" ").map((place) => place.split(",").map(Number)),
    values: line.dataset.values.split(";").map((value) => value.split(" ").map(Number)),
  }));

  function nearest(x, y) {
    let found = null;
    for (const each of lines) {
      if (each.line.closest(".off")) continue;
      each.places.forEach(([px, py], place) => {
        const distance = (px - x) ** 2 + (py - y) ** 2;
        if (!found || distance < found.distance) found = { ...each, place, px, py, distance };
      });
    }
    return found;
  }

  function leave() {
    chart.querySelector(".over")?.classList.remove("over");
    chart.classList.remove("pointed");
  }

  drawing.addEventListener("pointerleave", leave);
  drawing.addEventListener("pointermove", (event) => {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(drawing.getScreenCTM().inverse());
    const found = nearest(place.x, place.y);
    leave();
    if (!found) return;
    const [frames, value] = found.values[found.place];
    found.line.classList.add("over");
    chart.classList.add("pointed");
    mark.setAttribute("cx", found.px);
    mark.setAttribute("cy", found.py);
    const name = found.line.dataset.name;
    tip.textContent = `${name ? name + ": " : ""}${value.toLocaleString("en", { maximumSignificantDigits: 6 })}`
      + ` at ${frames.toLocaleString("en")} frames`;
  });
}

// A group that is switched off or on, is so in every chart.
for (const button of document.querySelectorAll("button[data-group]")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    for (const other of document.querySelectorAll("button[data-group]")) {
      if (other.dataset.group === button.dataset.group) other.setAttribute("aria-pressed", shown);
    }
    for (const part of document.querySelectorAll("g[data-group]")) {
      if (part.dataset.group === button.dataset.group) part.classList.toggle("off", !shown);
    }
  });
}
