// The mask brush: places of the code map over the prior. value: {image, columns, marks: ["pe-on", "", ...]}.
let at = 0, painting = null;
element.tabIndex = 0;
element.setAttribute("role", "application");
element.setAttribute("aria-label",
  "Mask brush: arrow keys move, space marks a place or unmarks it. Where places are marked, only they may change.");
const cells = () => [...element.querySelectorAll(".pe-cell")];
const show = () => {
  const found = cells();
  at = Math.min(at, Math.max(found.length - 1, 0));
  found.forEach((cell, i) => cell.classList.toggle("pe-at", i === at));
};
const keep = () => {
  props.value = {...props.value, marks: cells().map((c) => (c.classList.contains("pe-on") ? "pe-on" : ""))};
  requestAnimationFrame(show);
};
element.addEventListener("pointerdown", (event) => {
  const cell = event.target.closest(".pe-cell");
  if (!cell) return;
  event.preventDefault();
  element.focus({preventScroll: true});
  painting = !cell.classList.contains("pe-on");
  cell.classList.toggle("pe-on", painting);
});
element.addEventListener("pointermove", (event) => {
  if (painting === null) return;
  const under = document.elementFromPoint(event.clientX, event.clientY);
  const cell = under && under.closest(".pe-cell");
  if (cell && element.contains(cell)) cell.classList.toggle("pe-on", painting);
});
window.addEventListener("pointerup", () => {
  if (painting === null) return;
  painting = null;
  keep();
});
element.addEventListener("keydown", (event) => {
  const found = cells(), columns = props.value.columns;
  const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns}[event.key];
  if (!found.length || (step === undefined && event.key !== " ")) return;
  event.preventDefault();
  if (step === undefined) {
    found[at].classList.toggle("pe-on");
    keep();
  } else if (at + step >= 0 && at + step < found.length) {
    at += step;
    show();
  }
});
watch("value", show);
